"""Two runs on the same images."""

import re
from contextlib import contextmanager

import pytest
import torch
from bs4 import BeautifulSoup
from report_runs import CLASSES, write_images, write_run

from cmtvision.artefact import load, write_artefact
from cmtvision.engine import evaluate
from cmtvision.errors import ConfigError, DataError
from cmtvision.report.compare_runs import compare_runs, comparison_page


@contextmanager
def stage(_):
    yield lambda done, total: None


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("compare")
    data = write_images(root / "data")
    return write_run(root / "first", data, seed=1), write_run(root / "second", data, seed=2), data


def test_counts_are_those_of_two_evaluations(runs):
    a, b, data = runs
    found = compare_runs(a, b, None, stage, workers=0)
    right = [[one.label == one.predicted for one in evaluate(run, data, workers=0).predictions] for run in (a, b)]
    pairs = list(zip(*right, strict=True))
    assert (found.paired.only_a, found.paired.only_b) == (pairs.count((True, False)), pairs.count((False, True)))
    assert found.paired.num_images == 36
    content = found.to_dict()
    assert content["difference"]["value"] == pytest.approx((sum(right[1]) - sum(right[0])) / 36)
    assert len(content["gained"]) == found.paired.only_b > 0
    assert all((data / name).is_file() for name in content["gained"])
    assert {one["name"]: one["images"] for one in content["classes"]} == dict.fromkeys(CLASSES, 6)
    soup = BeautifulSoup(comparison_page(found), "html.parser")
    assert len(soup.find(id="gained")("li")) == found.paired.only_b
    assert not soup("script")
    assert not soup.find("img", src="x")
    assert "first" in soup.h1.text


def test_classes_in_another_order_are_the_same_classes(runs, tmp_path):
    a, _, data = runs
    artefact = load(a).artefact
    turned = write_run(tmp_path / "turned", data, evaluated=False)
    head = artefact.model.get_classifier()
    with torch.no_grad():
        head.weight.copy_(head.weight.flip(0))
        head.bias.copy_(head.bias.flip(0))
    artefact.classes.reverse()
    write_artefact(turned, artefact)
    found = compare_runs(a, turned, data, stage, workers=0)
    assert (found.paired.only_a, found.paired.only_b) == (0, 0)
    assert found.answers[0].said == found.answers[1].said
    assert found.verdict() == "these images do not tell which is better"


def test_what_cannot_be_compared_is_refused_in_one_line(runs, tmp_path):
    a, b, data = runs
    other = write_run(tmp_path / "other", write_images(tmp_path / "data", [*CLASSES[:5], "black"]))
    with pytest.raises(ConfigError, match=r"different classes \(only .*first knows white; only .*other knows black\)"):
        compare_runs(a, other, data, stage, workers=0)
    rows = (b / "split.csv").read_text().splitlines()
    greedy = write_run(tmp_path / "greedy", data, evaluated=False)
    (greedy / "split.csv").write_text(
        "\n".join(re.sub(",val,", ",train,", row) if "/0." in row else row for row in rows)
    )
    with pytest.raises(DataError, match=r"greedy was trained on 6 of the 36 images that .*first held out"):
        compare_runs(a, greedy, None, stage, workers=0)
    (tmp_path / "bare").mkdir()
    for name in ("model.json", "model.safetensors"):
        (tmp_path / "bare" / name).write_bytes((a / name).read_bytes())
    with pytest.raises(DataError, match="does not say where its images are"):
        compare_runs(tmp_path / "bare", b, None, stage, workers=0)
