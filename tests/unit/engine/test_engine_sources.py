"""Whole runs on data that is not a folder of class folders: several labels a photo, shards, and a teacher."""

import os
import shutil
import tarfile

import pytest
import torch
from engine_photos import CLASSES, TINY, write_photos

import cmtvision
from cmtvision.data import read_dataset, write_shards
from cmtvision.engine import MultiLabelEvaluation, TrainingInterrupted, evaluate, fit
from cmtvision.engine.callbacks.run import RunCallback
from cmtvision.errors import ConfigError
from cmtvision.recipe import load_recipe
from cmtvision.report import write_report
from cmtvision.weights import read_state_dict


def recipe(*overrides):
    return load_recipe("demo", [*TINY, *overrides])


def assert_same(again, before):
    """Every count is that of training; the loss is, up to the rounding of the form that a model is opened in."""
    found, expected = again.to_dict(), before.to_dict()
    assert found.pop("loss") == pytest.approx(expected.pop("loss"), rel=1e-5)
    assert found == expected


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos") / "shapes")


@pytest.fixture(scope="module")
def labelled(photos):
    """Each photo has its shape as a label, every second one 'even' too, and some have none."""
    rows = ["path,label"]
    for name in CLASSES:
        for i in range(16):
            labels = [] if i % 8 == 7 else [name, *(["even"] if i % 2 == 0 else [])]
            rows.append(f"{name}/{i:02}.png,{'|'.join(labels)}")
    file = photos / "labels.csv"
    file.write_text("\n".join(rows) + "\n")
    return file


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["bce", "asymmetric"])
def test_several_labels_a_photo_from_training_to_prediction(labelled, photos, tmp_path, loss):
    chosen = recipe(
        "data.multi_label=true", f"loss.name={loss}", "augment.mixup=0.2", "schedule.epochs=8", "optim.lr=3e-3"
    )
    result = fit(chosen, labelled, tmp_path / "run")
    assert isinstance(result.evaluation, MultiLabelEvaluation)
    assert result.evaluation.classes == ["cross", "disc", "even", "stripes"]
    assert result.metrics["val_map"] == pytest.approx(result.evaluation.mean_average_precision, abs=1e-6)
    again = evaluate(tmp_path / "run", labelled)
    assert_same(again, result.evaluation)
    assert result.evaluation.mean_average_precision > 0.6  # chance is about 0.35
    predicted = cmtvision.load(tmp_path / "run").predict([photos / "stripes" / "02.png"])[0]
    probabilities = dict(predicted.top)
    assert sum(probabilities.values()) != pytest.approx(1.0, abs=1e-3)  # each a yes or no of its own
    assert set(predicted.labels) == {name for name, share in probabilities.items() if share >= 0.5}


@pytest.mark.parametrize("as_tar", [False, True])
def test_what_was_trained_is_evaluated_whatever_its_names_are(as_tar, tmp_path):
    """Names with spaces, a line end and bytes that are no UTF-8; in a tar with ./ in front of each."""
    root = write_photos(tmp_path / os.fsdecode(b"caf\xe9"), per_class=8)
    (root / "disc").rename(root / os.fsdecode(b" disc\xff"))
    for folder in list(root.iterdir()):
        for number, name in enumerate((b" a.png", b"a\nb.png", b"\xfe.png", b'"a,b.png')):
            (folder / f"{number:02}.png").rename(folder / os.fsdecode(name))
    if as_tar:
        with tarfile.open(tmp_path / "x.tar", "w") as tar:
            for folder in sorted(root.iterdir()):
                tar.add(folder, f"./{folder.name}")
    data = tmp_path / "x.tar" if as_tar else root
    result = fit(recipe(), data, tmp_path / "run")
    again = evaluate(tmp_path / "run", data)
    assert_same(again, result.evaluation)
    assert sum(map(sum, again.confusion.tolist())) == again.num_images > 0
    page = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert "moved or damaged" not in page
    assert "disc\\udcff" in page


def test_one_label_losses_and_several_labels_do_not_mix():
    with pytest.raises(ConfigError, match="bce or"):
        recipe("data.multi_label=true", "loss.name=cross_entropy")
    assert recipe("data.multi_label=true").loss.name == "bce"


@pytest.mark.slow
def test_a_run_on_shards_stops_in_the_middle_of_one_and_ends_as_if_it_had_not(photos, tmp_path, monkeypatch):
    write_shards(read_dataset(photos, val_fraction=0), tmp_path / "shards", shard_bytes=6_000)
    assert len(list((tmp_path / "shards").glob("*.tar"))) > 3
    chosen = recipe("model.drop_path_rate=0.2", "data.shard_window=2", "data.workers=1")
    whole = fit(chosen, tmp_path / "shards", tmp_path / "whole")
    assert whole.evaluation.num_images == 12
    original, seen = RunCallback.on_train_batch_end, 0

    def interrupted(self, *args):
        nonlocal seen
        seen += 1
        if seen == 3:
            self.signals.received = "SIGTERM"
        original(self, *args)

    monkeypatch.setattr(RunCallback, "on_train_batch_end", interrupted)
    with pytest.raises(TrainingInterrupted):
        fit(chosen, tmp_path / "shards", tmp_path / "parts")
    monkeypatch.undo()
    fit(chosen, tmp_path / "shards", tmp_path / "parts", resume=True)
    expected, got = (read_state_dict(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    again = evaluate(tmp_path / "whole", tmp_path / "shards")  # the split that the run chose
    assert (again.num_images, again.top1_correct) == (12, whole.evaluation.top1_correct)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["soft", "hard", "feature"])
def test_a_student_learns_from_a_run(photos, tmp_path_factory, tmp_path, kind):
    teacher = tmp_path / "teacher"
    fit(recipe("schedule.epochs=10", "optim.lr=3e-3"), photos, teacher)
    alone = fit(recipe(), photos, tmp_path / "alone")
    taught = fit(recipe(f"distill.teacher={teacher}", f"distill.kind={kind}"), photos, tmp_path / kind)
    names = set(read_state_dict(tmp_path / "alone" / "model.safetensors"))
    assert set(read_state_dict(tmp_path / kind / "model.safetensors")) == names  # nothing of the teacher is kept
    assert taught.metrics["train_loss"] != alone.metrics["train_loss"]
    shutil.rmtree(tmp_path / kind)
    again = fit(recipe(f"distill.teacher={teacher}", f"distill.kind={kind}"), photos, tmp_path / kind)
    assert again.metrics["train_loss"] == taught.metrics["train_loss"]
