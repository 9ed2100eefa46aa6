"""report.html, from synthetic run folders with a real small model and real pictures."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
import yaml
from bs4 import BeautifulSoup
from PIL import Image
from pyarrow import parquet

from cmtvision.artefact import Artefact, load, write_artefact
from cmtvision.artefact.confusion import Confusion
from cmtvision.data import Preprocess, read_dataset
from cmtvision.engine.evaluation.multilabel import multilabel_evaluation
from cmtvision.errors import CheckpointError, DataError
from cmtvision.models import create_model
from cmtvision.report import write_report
from cmtvision.report.figures import curves
from cmtvision.report.intervals import wilson_interval
from cmtvision.report.statistics import class_rows, confused_pairs

CLASSES = ["<script>alert(1)</script>", "blue & co", "red"]
CONFUSION = [[5, 1, 0], [0, 6, 2], [3, 0, 3]]
COLUMNS = ["epoch", "step", "lr", "train_loss", "val_loss", "val_top1", "val_top5", "images_per_second", "seconds"]


def make_run(
    root: Path, classes: list[str] = CLASSES, confusion: list[list[int]] | None = None, epochs: int = 3
) -> Path:
    confusion = CONFUSION if confusion is None else confusion
    run, data = root / "run", root / "data"
    model = create_model("cmt_nano", num_classes=len(classes), img_size=32)
    preprocess = Preprocess((32, 32), 1.0, "bicubic", (0.5,) * 3, (0.5,) * 3)
    write_artefact(run, Artefact("cmt_nano", {"img_size": 32}, classes, preprocess, model=model))
    rng = np.random.default_rng(0)
    split = [["train/0/a.png", classes[0], "train"]]
    for number in range(min(40, sum(map(sum, confusion)))):
        file = data / f"val/{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(file)
        split.append([f"val/{number}.png", classes[number % len(classes)], "val"])
    write_csv(run / "split.csv", [["path", "label", "split"], *split])
    write_csv(run / "skipped.csv", [["path", "reason"], ["bad<b>.png", "damaged image"], ["c.txt", "not an image"]])
    rows = [[e, 10 * (e + 1), 1e-3 / (e + 1), 2.0 - e, 1.5 - e / 4, 0.5 + e / 10, 1, 800, 65.4] for e in range(epochs)]
    write_csv(run / "metrics.csv", [COLUMNS, *rows])
    facts = {"data": str(data), "root": str(data), "data_fingerprint": "f00d", "split_source": "folders"}
    (run / "run.json").write_text(json.dumps({**facts, "classes": classes}))
    (run / "recipe.yaml").write_text(yaml.safe_dump({"name": "test", "description": "</pre><img src=x>"}))
    counts = np.array(confusion)
    scores = {"split": "val", "num_images": int(counts.sum()), "top1_correct": int(counts.trace())}
    scores |= {"top5_correct": int(counts.sum()), "loss": 0.75, "classes": classes, "confusion": confusion}
    (run / "evaluation.json").write_text(json.dumps(scores))
    return run


def write_csv(path: Path, rows: list[list[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows(rows)


def read_csv(path: Path) -> list[list[str]]:
    return list(csv.reader(path.read_text(encoding="utf-8").splitlines()))


def page(run: Path) -> BeautifulSoup:
    path = write_report(run)
    assert path == run / "report.html"
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def words(element) -> str:
    return re.sub(r"\s+", " ", element.get_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def soup(run: Path) -> BeautifulSoup:
    return page(run)


def test_headline_has_exact_counts_interval_parameters_and_time(soup: BeautifulSoup, run: Path):
    assert soup.find(id="top1").text == "70.00%"
    assert "14 of 20 right; 95% interval 48.1% to 85.5%" in words(soup.find(id="top1-counts"))
    parameters = sum(p.numel() for p in load(run).artefact.model.parameters())
    assert soup.find(id="parameters").text == f"{parameters:,}"
    assert "1 min 5 s" in words(soup)
    assert "3 epochs, 800 images/s" in words(soup)
    assert "1 images to train on, 20 held out" in words(soup)


def test_confusion_matrix_has_true_classes_in_rows(soup: BeautifulSoup):
    rows = soup.find(id="confusion").tbody.find_all("tr")
    assert [[int(cell.text) for cell in row.find_all("td")] for row in rows] == CONFUSION
    assert rows[2].th.text == "red"
    pair = words(soup.find(id="pairs").tbody.tr)
    assert pair == "red<script>alert(1)</script>3 of 650.0%"


def test_class_table_is_sorted_by_recall_and_right(soup: BeautifulSoup):
    rows = [[words(cell) for cell in row(["th", "td"])] for row in soup.find(id="per-class").tbody.find_all("tr")]
    assert [row[0] for row in rows] == ["red", "blue & co", CLASSES[0]]
    # Wilson's intervals of 3 of 6, 3 of 5, and of 3 of the 8 that are red or were called so, through 2J / (1 + J)
    assert rows[0][1:] == ["6", "3", "50.0% 19\u201381", "", "60.0% 23\u201388", "54.5% 24\u201382"]
    assert rows[1][5].startswith("85.7%")


def test_sample_predictions_agree_with_the_model(soup: BeautifulSoup, run: Path):
    cards = soup.select(".cards li")
    assert len(cards) >= 20  # every photo has a place in one of the groups
    assert all(card.img["src"].startswith("data:image/png;base64,") and card.img["alt"] for card in cards)
    model = load(run)
    for card in cards[:5]:
        file = run.parent / "data" / "val" / card["title"]
        prediction = model.predict([file])[0]
        assert prediction.label in card.get_text()
        assert f"{100 * prediction.probability:.1f}%" in card.get_text()
        true = CLASSES[int(file.stem) % 3]
        assert ("wrong" in card["class"]) == (prediction.label != true)
    wrong = [float(re.search(r"([\d.]+)%", card.get_text())[1]) for card in soup.select(".cards")[0].select("li")]
    assert wrong == sorted(wrong, reverse=True)


def test_nothing_in_a_name_becomes_markup_and_nothing_is_fetched(soup: BeautifulSoup, run: Path):
    assert not soup.find_all("script")
    assert not soup.find("img", src="x")
    assert not soup.find("b", string="bad")
    assert "default-src 'none'" in soup.find("meta", {"http-equiv": "Content-Security-Policy"})["content"]
    text = (run / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', text)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', text)) | set(re.findall(r"url\(#([^)]+)\)", text)) <= set(ids)
    assert list(run.glob(".*")) == []  # no temporary file is left


def test_curves_skipped_files_recipe_and_use(soup: BeautifulSoup, run: Path):
    figures = [words(figure.figcaption) for figure in soup.find_all("figure")]
    assert figures[0] == "training from 2.000 to 0.000; held out from 1.500 to 1.000 (best 1.000, epoch 3)"
    assert figures[1] == "from 50.00% to 70.00% (best 70.00%, epoch 3)"
    assert len(soup.select("figure svg[role=img]")) == 3
    assert "2 files were not used" in words(soup)
    assert soup.find(id="skipped").tbody.td.text == "bad<b>.png"
    assert "description: </pre><img src=x>" in words(soup.find("pre", string=re.compile("description")) or soup)
    assert f"cmtvision.load({str(run)!r})" in soup.get_text()
    assert f"cmtvision predict {run}" in soup.get_text()
    provenance = words(soup.find(id="provenance"))
    assert "f00d" in provenance
    assert "torch" in provenance


def test_a_run_without_held_out_photos(tmp_path: Path):
    run = make_run(tmp_path, epochs=1)
    (run / "evaluation.json").unlink()
    write_csv(run / "split.csv", [["path", "label", "split"], ["a.png", "red", "train"]])
    write_csv(run / "metrics.csv", [COLUMNS, [0, 10, 1e-3, 2.0, "", "", "", 800, 2.5]])
    soup = page(run)
    assert soup.find(id="top1").text == "not measured"
    assert soup.find(id="confusion") is None
    assert "No images were held out" in words(soup.find(id="samples-note"))
    assert [figure.h3.text for figure in soup.find_all("figure")] == ["Loss", "Learning rate"]
    assert "2.5 s" in words(soup)
    assert "1 epoch," in words(soup)


def make_several(root: Path) -> Path:
    """The same run with any number of labels a photo."""
    run = make_run(root)
    artefact = replace(load(run).artefact, task="multi-label")
    write_artefact(run, artefact)
    rows = read_csv(run / "split.csv")
    labels = ["", CLASSES[1], f"{CLASSES[0]}|{CLASSES[2]}"]
    write_csv(
        run / "split.csv", [rows[0], *([path, labels[i % 3], part] for i, (path, _, part) in enumerate(rows[1:]))]
    )
    targets = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]])
    logits = torch.tensor([[3.0, 1.0, -1.0], [1.0, 2.0, -1.0], [2.0, -1.0, -1.0], [-1.0, -1.0, -1.0]])
    found = multilabel_evaluation(CLASSES, logits, targets, "val", [Path(f"{i}.png") for i in range(4)])
    (run / "evaluation.json").write_text(json.dumps(found.to_dict()))
    columns = [*COLUMNS[:5], "val_map", *COLUMNS[7:]]
    write_csv(run / "metrics.csv", [columns, [0, 9, 1e-3, 2, 1, 0.25, 800, 3], [1, 18, 1e-3, 1, 0.9, 0.5, 800, 6]])
    return run


def test_a_run_with_several_labels_a_photo(tmp_path: Path):
    run = make_several(tmp_path)
    soup = page(run)
    # AP of the first class (1 + 2/3) / 2, of the second (1 + 1/2) / 2, the third has no photos
    assert soup.find(id="map").text == "79.17%"
    assert words(soup.find(id="map-counts")) == "mean of 2 classes, 4 images; 1 without images left out"
    assert "2 of 4" in words(soup.find(id="exact"))
    assert soup.find(id="top1") is None
    assert soup.find(id="confusion") is None
    rows = [[cell.text for cell in row(["th", "td"])] for row in soup.find(id="per-class").tbody.find_all("tr")]
    assert [row[:3] for row in rows] == [
        ["blue & co", "2", "75.0%"], [CLASSES[0], "2", "83.3%"], ["red", "0", "n/a"]
    ]  # fmt: skip
    figures = {figure.h3.text: words(figure.figcaption) for figure in soup.find_all("figure")}
    assert figures["Held-out mean average precision (%)"] == "from 25.00% to 50.00% (best 50.00%, epoch 2)"
    cards = soup.select(".cards li")
    assert len(cards) >= 20
    model = load(run)
    true = {Path(row[0]).name: row[1] for row in read_csv(run / "split.csv")}
    for card in cards:
        prediction = model.predict([run.parent / "data" / "val" / card["title"]])[0]
        labels = set(filter(None, true[card["title"]].split("|")))
        assert ("wrong" in card["class"]) == (set(prediction.labels) != labels)
        assert all(name in card.get_text() for name in prediction.labels) or len(prediction.labels) > 1
    assert "n/a" not in words(soup.select(".cards")[0])
    (run / "evaluation.json").write_text('{"task": "multi-label", "per_class": [{}]}')
    with pytest.raises(DataError, match=r"evaluation.json: not an evaluation \('name'\)"):
        write_report(run)


@pytest.mark.parametrize(
    ("recipe", "words_of_it"),
    [
        ({}, None),
        ({"loss": {"name": "cross_entropy"}, "distill": {"teacher": None}}, None),
        ({"loss": {"name": "bce"}}, "Training minimised binary cross-entropy; the held-out loss is cross-entropy,"),
        ({"distill": {"teacher": "big"}}, "Training minimised cross-entropy and a teacher's part;"),
    ],
)
def test_curves_of_two_losses_are_said_not_to_compare(tmp_path: Path, recipe, words_of_it):
    run = make_run(tmp_path)
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    note = page(run).find(id="other-loss")
    assert (note is None) if words_of_it is None else words(note).startswith(words_of_it)


def test_photos_inside_a_table_are_shown_from_there(tmp_path: Path):
    run = make_run(tmp_path)
    rows = [row for row in read_csv(run / "split.csv") if row[2] == "val"]
    images = [{"bytes": (tmp_path / "data" / path).read_bytes(), "path": path} for path, _, _ in rows]
    table = tmp_path / "photos.parquet"
    parquet.write_table(pyarrow.table({"image": images, "label": [label for _, label, _ in rows]}), table)
    index = read_dataset(table, val_fraction=0, classes=CLASSES)
    split = [[index.relative(one.path), CLASSES[one.label], "val"] for one in index.samples]
    write_csv(run / "split.csv", [["path", "label", "split"], *split])
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**facts, "data": str(table), "root": str(index.root)}))
    soup = page(run)
    assert words(soup.find(id="samples-note")) == (
        f"The held-out images are no files of their own: they were read from {table}."
    )
    assert len(soup.select(".cards li img")) == 20
    table.unlink()
    assert "20 held-out images have been moved or damaged" in words(page(run).find(id="samples-note"))


def test_moved_photos_are_named(tmp_path: Path):
    run = make_run(tmp_path)
    (tmp_path / "data/val/0.png").unlink()
    assert "1 held-out image has been moved or damaged" in words(page(run).find(id="samples-note"))
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    soup = page(run)
    assert "is not there any more" in words(soup.find(id="samples-note"))
    assert not soup.select(".cards")
    assert soup.find(id="top1").text == "70.00%"


def test_many_classes_give_a_map_groups_and_a_close_up_and_stay_small(tmp_path: Path):
    classes = [f"class {i:03} " + "x" * 300 for i in range(250)]
    confusion = np.eye(250, dtype=int)
    confusion[7, 9] = 5
    run = make_run(tmp_path, classes, confusion.tolist())
    soup = page(run)
    assert soup.find(id="confusion") is None
    assert soup.find(id="confusion-map")["width"] == "250"
    assert words(soup.find(id="pairs").tbody).count("5 of 6") == 1
    (group,) = soup.find(id="groups").tbody.find_all("tr")
    assert [cell.text for cell in group("td")] == ["5", "7"]
    close = [[cell.text for cell in row("td")] for row in soup.find(id="close-up").tbody("tr")]
    assert close == [["1", "5"], ["0", "1"]]
    assert len(soup.find(id="per-class").tbody.find_all("tr")) == 200
    assert "50 classes with higher recall" in words(soup)
    assert (run / "report.html").stat().st_size < 3_000_000


def test_what_is_no_run_is_one_clear_line(tmp_path: Path):
    with pytest.raises(CheckpointError, match="no such folder"):
        write_report(tmp_path / "missing")
    with pytest.raises(CheckpointError, match=r"not a run folder \(no recipe.yaml\)"):
        write_report(tmp_path)
    run = make_run(tmp_path)
    (run / "evaluation.json").write_text('{"classes": ["a", "b"], "confusion": [[1]]}')
    with pytest.raises(DataError, match=r"evaluation.json: not an evaluation \(confusion of shape") as caught:
        write_report(run)
    assert "\n" not in str(caught.value)
    (run / "model.json").unlink()
    (run / "evaluation.json").unlink()
    with pytest.raises(CheckpointError, match=r"no model.json"):
        write_report(run)
    assert not (run / "report.html").exists()


def test_wilson_interval_against_published_values():
    # Newcombe 1998, Statistics in Medicine 17, table I: 81/263, 15/148, 0/20, 1/29
    for correct, total, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)):
        assert wilson_interval(correct, total) == pytest.approx((low, high), abs=5e-5)
    assert wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)
    assert wilson_interval(20, 20)[1] == 1.0
    with pytest.raises(ValueError, match="expected"):
        wilson_interval(0, 0)


def test_classes_without_images_have_no_recall():
    rows = class_rows(["a", "b"], Confusion.from_json([[2, 0], [0, 0]], 2))
    assert (rows[1].name, rows[1].recall, rows[1].precision) == ("b", None, None)
    assert confused_pairs(["a", "b"], Confusion.from_json([[2, 0], [0, 0]], 2), 5) == []


def test_curves_skip_epochs_that_were_not_evaluated():
    metrics = [{"epoch": float(e), "val_loss": 1.0 - e / 10 if e % 2 else float("nan")} for e in range(6)]
    (chart,) = curves(metrics)
    assert chart.caption == "held out from 0.900 to 0.500 (best 0.500, epoch 6)"
    assert curves([]) == []
