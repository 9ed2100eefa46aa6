"""Calibrated answers as a user asks for them: calibrate, predict, export, bundle; and what is said where none are."""

import csv
import io
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from cli_process import assert_one_error, run_cli

import cmtvision
from cmtvision.artefact.card import Card, read_card
from cmtvision.artefact.features import FEATURES_FILE
from cmtvision.deploy import export, verify
from cmtvision.deploy.bundling.bundle import write_bundle
from cmtvision.errors import CheckpointError, ConfigError

pytestmark = pytest.mark.slow

CLASSES = ("bag", "sandal", "trouser")
ASK = {"conformal": 0.9, "abstain": 0.9}


@pytest.fixture(scope="module")
def others(sample, tmp_path_factory):
    """Forty more photos of each class, all in one part."""
    root = tmp_path_factory.mktemp("others") / "photos"
    for name in CLASSES:
        (root / name).mkdir(parents=True)
        for file in sorted((sample / "val" / name).iterdir())[:40]:
            shutil.copy(file, root / name)
    return root


@pytest.fixture(scope="module")
def calibrated(trained, others, tmp_path_factory):
    """(run folder, the finished process): a copy of the run, calibrated on other photos."""
    folder = shutil.copytree(trained[0], tmp_path_factory.mktemp("calibrated") / "run")
    done = run_cli("calibrate", folder, others, "--overwrite", "--json", cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    return folder, done


def test_training_calibrates_on_what_it_held_out_and_says_how_well(trained):
    run, done = trained
    card = Card.read(run)
    held_out = json.loads((run / "evaluation.json").read_text())["num_images"]
    assert card.trust.num_images == held_out < 19
    assert re.search(rf"calibrated on {held_out} held-out images: temperature 1, calibration error", done.stdout)
    assert [note.partition(" ")[0] for note in card.trust.notes] == [str(held_out)] * len(card.trust.notes)
    assert not (run / FEATURES_FILE).exists()  # too few to compare with


def test_calibrate_writes_a_card_that_a_person_can_read(calibrated, others, trained):
    run, done = calibrated
    found = json.loads(done.stdout)
    assert (found["num_images"], found["split"], found["chose_epoch"]) == (120, "all", False)
    assert found["ece"][1] <= 1
    text = (run / "model.json").read_text()
    assert len(text.splitlines()) < 150
    card, before = read_card(run), read_card(trained[0])
    assert {key: value for key, value in card.items() if key != "trust"} == {
        key: value for key, value in before.items() if key != "trust"
    }
    assert (run / "model.safetensors").read_bytes() == (trained[0] / "model.safetensors").read_bytes()
    assert_one_error(run_cli("calibrate", run, others, cwd=run.parent), "is calibrated already", "--overwrite")


def test_the_classes_stay_the_same_and_the_probabilities_have_the_temperature(calibrated, trained, others):
    images = sorted(others.rglob("*.png"))[::6]
    plain, own = cmtvision.load(trained[0], device="cpu"), cmtvision.load(calibrated[0], device="cpu")
    logits = plain.logits(images)
    expected = (logits / own.trust.temperature).softmax(dim=1)
    for row, one, two in zip(expected, plain.predict(images), own.predict(images), strict=True):
        assert (one.label, [name for name, _ in one.top]) == (two.label, [name for name, _ in two.top])
        assert two.probability == pytest.approx(float(row.max()), abs=1e-5)
        assert (two.set, two.unsure) == (None, None)
        assert 0 < two.familiarity <= 1
        assert two.distance is not None


def test_eval_writes_the_probability_that_predict_shows(calibrated, others, tmp_path):
    run, _ = calibrated
    done = run_cli("eval", run, others, "--split", "all", "--csv", "p.csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (first, *_) = csv.DictReader((tmp_path / "p.csv").read_text().splitlines())
    (said,) = cmtvision.load(run, device="cpu").predict([first["path"]])
    assert float(first["probability"]) == pytest.approx(said.probability, abs=1e-5)


@pytest.mark.parametrize("kind", ["lac", "raps"])
def test_run_export_and_bundle_give_the_same_sets(calibrated, shipped, others, kind, tmp_path):
    run, _ = calibrated
    exported, bundle = shipped
    images = [str(path) for path in sorted(others.rglob("*.png"))[::3]]
    own = cmtvision.load(run, device="cpu").predict(images, sets=kind, **ASK)
    graph = cmtvision.load(exported).predict(images, sets=kind, **ASK)
    words = ["--conformal", "0.9", "--sets", kind, "--abstain", "--json"]
    done = subprocess.run(
        [sys.executable, bundle / "predict.py", *images, *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert [one.set for one in own] == [one.set for one in graph] == [row["set"] for row in document["predictions"]]
    assert [one.label in one.set for one in own] == [True] * len(own)
    for one, row in zip(graph, document["predictions"], strict=True):
        assert (one.unsure, one.labels) == (row["unsure"], row["labels"])
        assert one.energy == pytest.approx(row["energy"], abs=1e-3)
        assert one.distance is None
    assert {one.unsure for one in own} & {"probability under 90%"}
    assert "energy (no features here)" in done.stderr
    assert document["trust"]["familiarity_by"] == "energy"

    cli = run_cli("predict", run, *images, *words, cwd=tmp_path)
    rows = json.loads(cli.stdout)
    assert [row["set"] for row in rows["predictions"]] == [one.set for one in own]
    assert rows["trust"]["familiarity_by"] == "distance"
    assert "at least 90% of images, not of each class; assuming that new images are like the 120" in cli.stderr


@pytest.fixture(scope="module")
def shipped(calibrated, others, tmp_path_factory):
    """(an export for ONNX, a bundle of it) of the calibrated run."""
    folder = tmp_path_factory.mktemp("shipped")
    found = export(calibrated[0], "onnx", folder / "onnx", images=sorted(others.rglob("*.png"))[::8])
    assert found.verification.sets_alike == 1.0
    assert found.verification.probability_difference < 1e-4
    assert "100.0% with equal prediction sets" in found.verification.headline()
    return found.folder, write_bundle(found.folder, folder / "bundle")


def test_verify_sees_that_one_model_answers_otherwise(calibrated, shipped, others, tmp_path):
    run, images = calibrated[0], sorted(others.rglob("*.png"))[::10]
    exported, _ = shipped
    other = shutil.copytree(exported, tmp_path / "other")
    card = read_card(other)
    card["trust"]["temperature"] *= 3
    (other / "model.json").write_text(json.dumps(card))
    found = verify(run, other, images)
    assert not found.passed
    assert found.sets_alike < 0.5
    assert any("have other prediction sets" in reason for reason in found.reasons)
    del card["trust"]
    (other / "model.json").write_text(json.dumps(card))
    found = verify(run, other, images)
    assert found.reasons == ["the first is calibrated and the second is not; export it again, or calibrate it"]
    assert found.sets_alike is None
    done = run_cli("verify", run, exported, "--images", others, "--num-images", "8", cwd=tmp_path)
    assert re.search(r"sets equal +100\.00%", done.stdout)


def test_an_export_can_be_calibrated_by_itself(shipped, others, tmp_path):
    folder, images = shutil.copytree(shipped[1], tmp_path / "bundle"), sorted(others.rglob("*.png"))[::30]
    card = read_card(folder)
    was = card.pop("trust")
    (folder / "model.json").write_text(json.dumps(card))
    done = subprocess.run(
        [sys.executable, folder / "predict.py", images[0], "--abstain"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (2, "error: prediction sets and abstaining: the model is not calibrated\n")
    done = run_cli("calibrate", folder, others, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "an export gives no features" in done.stderr
    assert "calibrated on 120 held-out images" in done.stdout
    assert Card.read(folder).trust.temperature == pytest.approx(was["temperature"], rel=1e-3)
    assert cmtvision.load(folder).predict(images, **ASK)[0].set
    assert not (folder / FEATURES_FILE).exists()


def test_text_and_csv_show_what_was_asked_for(calibrated, others, tmp_path):
    run, photo = calibrated[0], sorted((others / "bag").iterdir())[0]
    shown = run_cli("predict", run, photo, "--conformal", "0.999", "--abstain", "--top", "1", cwd=tmp_path)
    assert re.fullmatch(
        rf"{re.escape(str(photo))}: (unsure \(.*\): )?\w+ [\d.]+%; 99\.9% set: \w+, \w+, \w+\n", shown.stdout
    )
    assert (
        "120 held-out images cannot promise 99.9%, for which 999 are needed: every set is all classes" in shown.stderr
    )
    done = run_cli("predict", run, photo, "--csv", "--conformal", "0.9", "--abstain", "--top", "1", cwd=tmp_path)
    (row,) = csv.DictReader(io.StringIO(done.stdout))
    assert list(row) == ["image", "label", "probability", "energy", "familiarity", "set", "unsure"]
    assert row["label"] in row["set"].split("|")
    plain = run_cli("predict", run, photo, "--csv", "--top", "1", cwd=tmp_path)
    assert plain.stdout.splitlines()[0] == "image,label,probability,energy,familiarity"
    assert plain.stderr == ""


def test_a_model_of_before_opens_and_is_told_the_command(calibrated, others, tmp_path):
    old = shutil.copytree(calibrated[0], tmp_path / "old run")
    card = read_card(old)
    del card["trust"]
    (old / "model.json").write_text(json.dumps(card))
    photo = sorted((others / "bag").iterdir())[0]
    done = run_cli("predict", old, photo, "--json", cwd=tmp_path)
    assert done.stderr == f"probabilities are not calibrated; run: cmtvision calibrate '{old}' DATA\n"
    found = json.loads(done.stdout)
    assert set(found) == {"predictions", "failed"}
    assert set(found["predictions"][0]) == {"image", "label", "probability", "labels", "top"}
    for words in (["--conformal", "0.9"], ["--abstain"]):
        assert_one_error(
            run_cli("predict", old, photo, *words, cwd=tmp_path), "not calibrated; run cmtvision calibrate"
        )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--conformal", "1.5"], "--conformal: level 1.5: expected a share"),
        (["--conformal", "nan"], "--conformal: level nan: expected a share"),
        (["--sets", "raps"], "--sets raps: .* --conformal 0.9"),
    ],
)
def test_a_senseless_level_is_one_line(calibrated, others, tmp_path, words, told):
    assert_one_error(run_cli("predict", calibrated[0], others / "bag", *words, cwd=tmp_path), told)


def test_a_damaged_calibration_is_one_line_and_calibrate_mends_it(calibrated, others, tmp_path):
    run = shutil.copytree(calibrated[0], tmp_path / "run")
    card = read_card(run)
    card["trust"]["temperature"] = float("nan")
    (run / "model.json").write_text(json.dumps(card))
    photo = sorted((others / "bag").iterdir())[0]
    assert_one_error(run_cli("predict", run, photo, cwd=tmp_path), r"model\.json: trust: got nan.*calibrate")
    assert_one_error(run_cli("calibrate", run, others, cwd=tmp_path), "--overwrite")
    assert run_cli("calibrate", run, others, "--overwrite", cwd=tmp_path).returncode == 0
    assert cmtvision.load(run).predict([photo], **ASK)[0].distance is not None

    bank = (run / FEATURES_FILE).read_bytes()
    (run / FEATURES_FILE).write_bytes(bank[:-4] + b"\0\0\1\1")
    with pytest.raises(CheckpointError, match=r"familiarity\.safetensors: not the file that model\.json describes"):
        cmtvision.load(run)
    (run / FEATURES_FILE).unlink()  # whoever copies two files of a run has energy still
    assert cmtvision.load(run).predict([photo], **ASK)[0].distance is None


def test_what_the_run_trained_on_calibrates_nothing(trained, mixed_photos, tmp_path):
    run = shutil.copytree(trained[0], tmp_path / "run")
    text = (run / "split.csv").read_text()
    (run / "split.csv").write_text(re.sub(r"\bval\b", "train", text))
    before = (run / "model.json").read_bytes()
    done = run_cli("calibrate", run, mixed_photos, "--overwrite", cwd=tmp_path)
    assert_one_error(done, "the run trained on all .* of these photos")
    assert (run / "model.json").read_bytes() == before


def test_the_data_decides_nothing_about_several_labels(trained, others, tmp_path):
    folder = shutil.copytree(trained[0], tmp_path / "several")
    card = {**read_card(folder), "task": "multi-label", "format_version": 2}
    (folder / "model.json").write_text(json.dumps(card))
    predictor = cmtvision.load(folder)
    assert predictor.trust is None
    with pytest.raises(ConfigError, match="for models with one label per image, this has several"):
        predictor.predict(np.zeros((20, 20, 3), np.uint8), conformal=0.9)
    assert_one_error(run_cli("calibrate", folder, others, cwd=tmp_path), "several labels per image")
