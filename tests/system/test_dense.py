"""Detection and segmentation as a user asks for them: trained, killed, resumed, measured, drawn."""

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_process import assert_one_error, command_line, run_cli
from PIL import Image

import cmtvision
from cmtvision.data import write_sample_scenes
from cmtvision.weights import read_state_dict

pytestmark = pytest.mark.slow

KINDS = ("detect", "segment")
MODELS = {"detect": "cmt_nano_maskrcnn", "segment": "cmt_nano_fpn"}
SETTINGS = [
    "scene.size=[64,64]", "scene.eval_short_side=64", "data.workers=0", "train.threads=1", "train.checkpoint_steps=2",
    "model.drop_path_rate=0.2", "optim.lr_base_batch=null",
]  # fmt: skip
FIGURES = {"detect": ("ap", "ap50", "ap75", "mask_ap"), "segment": ("miou", "pixel_accuracy", "boundary_f1")}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Ten scenes for each task, two of them held out."""
    root = tmp_path_factory.mktemp("scenes")
    for kind, task in zip(KINDS, ("detection", "segmentation"), strict=True):
        write_sample_scenes(root / kind, task, scenes=15, size=64)
    return root


def words(kind, scenes, out, *more):
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    width = ["--set", "model.options.fpn_width=32"] if kind == "detect" else []
    return [
        kind, "train", str(scenes / kind), "--model", MODELS[kind], "--epochs", "2", "--batch-size", "4", "--device",
        "cpu", "--out", str(out), *settings, *width, *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def runs(scenes, tmp_path_factory):
    """A finished run of each task, and what the command printed."""
    root = tmp_path_factory.mktemp("runs")
    done = {kind: run_cli(*words(kind, scenes, root / kind), cwd=root) for kind in KINDS}
    for one in done.values():
        assert one.returncode == 0, one.stderr
    return root, done


def rows(out):
    with (out / "metrics.csv").open() as file:
        return [{key: value for key, value in row.items() if key not in ("seconds", "images_per_second", "data_wait")}
                for row in csv.DictReader(file)]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("place", "number"), [("step", 4), ("validation", 1)])
def test_a_killed_run_ends_where_it_would_have(scenes, runs, tmp_path, kind, place, number):
    out = tmp_path / "run"
    script = str(Path(__file__).with_name("killed_run.py"))
    killed = subprocess.run(
        [sys.executable, script, place, str(number), *words(kind, scenes, out)],
        capture_output=True, timeout=300, check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    done = run_cli(*words(kind, scenes, out, "--resume", "auto"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expected, got = (read_state_dict(folder / "model.safetensors") for folder in (runs[0] / kind, out))
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert rows(out) == rows(runs[0] / kind)


@pytest.mark.parametrize("kind", KINDS)
def test_an_evaluation_is_the_same_in_two_processes_and_that_of_training(scenes, runs, tmp_path, kind):
    root, _ = runs
    found = []
    for processes in (1, 2):
        done = run_cli(
            kind, "eval", root / kind, scenes / kind, "--device", "cpu", "--devices", processes, "--json", cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout))
    assert found[0] == found[1]
    trained = json.loads((root / kind / "evaluation.json").read_text())
    assert {key: found[0][key] for key in FIGURES[kind]} == {key: trained[key] for key in FIGURES[kind]}
    assert found[0]["num_images"] == 3


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_and_the_first_writes_the_report(scenes, tmp_path, kind):
    done = run_cli(*words(kind, scenes, tmp_path / "run", "--devices", "2", "--set", "train.max_steps=2"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "<img" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_the_report_has_the_figures_and_the_worst_images(scenes, runs, tmp_path, kind):
    run = shutil.copytree(runs[0] / kind, tmp_path / "run")
    page = (run / "report.html").read_text()
    assert {"detect": "By size of the object", "segment": "By size of the region"}[kind] in page
    assert page.count("<img") in (2, 4, 6)
    (run / "report.html").unlink()
    done = run_cli("report", "run", scenes / kind, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (run / "report.html").read_text() == page
    asked = ["report", "run", scenes / kind, "--split", "train", "--out", "page.html", "--json"]
    done = run_cli(*asked, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["report"], found["split"], found["num_images"]) == ("page.html", "train", 12)
    assert "Training " in (tmp_path / "page.html").read_text()
    assert (run / "report.html").read_text() == page
    assert_one_error(run_cli(*asked, cwd=tmp_path), "page.html: already exists")
    assert_one_error(run_cli("report", "run", "--corruptions", cwd=tmp_path), "--corruptions is for classifiers")
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(facts | {"data": str(tmp_path / "gone")}))
    assert run_cli("report", "run", cwd=tmp_path).returncode == 0
    page = (run / "report.html").read_text()
    assert "without its images" in page
    assert "<img" not in page


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_found_is_drawn_and_printed(scenes, runs, tmp_path, kind):
    root, _ = runs
    images = sorted((scenes / kind / "val").rglob("*.png"))[:2]
    for number, image in enumerate(images):
        shutil.copy(image, tmp_path / f"{number}.png")
    more = ["--min-score", "0.01"] if kind == "detect" else []
    asked = [kind, "predict", root / kind, "0.png", "1.png", "gone.png", "--out", "drawn", "--json", *more]
    done = run_cli(*asked, cwd=tmp_path)
    assert done.returncode == 2
    assert "gone.png" in done.stderr
    found = json.loads(done.stdout)["predictions"]
    assert [one["image"] for one in found] == ["0.png", "1.png"]
    for one in found:
        with Image.open(tmp_path / one["drawn"]) as picture:
            assert max(picture.size) >= 448
    assert_one_error(run_cli(kind, "predict", root / kind, "0.png", "--out", "drawn", cwd=tmp_path), "--overwrite")
    done = run_cli(kind, "predict", root / kind, "0.png", "--out", "1.png", cwd=tmp_path)
    assert_one_error(done, "1.png: is a file; name a folder")
    predictor = cmtvision.load(root / kind, device="cpu")
    assert predictor.card.task == {"detect": "detection", "segment": "segmentation"}[kind]
    assert len(predictor.predict([images[0], images[1]])) == 2


def test_masks_hold_the_classes_of_the_pixels(scenes, runs, tmp_path):
    run, image = runs[0] / "segment", sorted((scenes / "segment" / "val").rglob("*.png"))[0]
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        shutil.copy(image, tmp_path / folder / "a.png")
    with Image.open(image) as picture:
        picture.convert("RGB").resize((200, 150)).save(tmp_path / "wide.jpg")
    asked = ["segment", "predict", run, "one/a.png", "two/a.png", "wide.jpg", "--masks", "masks", "--json"]
    done = run_cli(*asked, "--window", "64", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["predictions"]
    assert [one["mask"] for one in found] == ["masks/a.png", "masks/a-2.png", "masks/wide.png"]
    assert "drawn" not in found[0]
    predictor = cmtvision.load(run, device="cpu")
    for name, mask in (("one/a.png", "a.png"), ("wide.jpg", "wide.png")):
        with Image.open(tmp_path / "masks" / mask) as picture:
            assert picture.mode == "P"
            assert np.array_equal(np.asarray(picture), predictor.predict(tmp_path / name, window=64)[0])
    assert_one_error(run_cli(*asked, cwd=tmp_path), "masks/a.png: already exists", "--overwrite")
    assert run_cli(*asked, "--overwrite", cwd=tmp_path).returncode == 0
    assert_one_error(run_cli(*asked, "--out", "masks", cwd=tmp_path), "name two folders")
    assert_one_error(run_cli("segment", "predict", run, "wide.jpg", "--max-pixels", "20000", cwd=tmp_path),
                     "200 x 150 is more pixels than the limit of 20,000 .--max-pixels.")  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_ctrl_c_is_answered_in_words(runs, kind):
    command = command_line(kind, "predict", runs[0] / kind, "-")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(3)  # it waits for an image
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130
    assert said.startswith("stopped by Ctrl-C")


@pytest.mark.parametrize("kind", KINDS)
def test_commands_for_classifiers_name_the_right_one(scenes, runs, tmp_path, kind):
    root, _ = runs
    done = run_cli("predict", root / kind, scenes / kind, cwd=tmp_path)
    assert_one_error(done, "not a classifier", f"cmtvision {kind}")
    refused = [
        ["quantize", root / kind, scenes / kind],
        ["export", root / kind, "--to", "onnx", "--bundle", "--out", "b"],
        ["explain", root / kind, "0.png", "--out", "x.png"],
        ["calibrate", root / kind, scenes / kind],
    ]
    for asked in refused:
        assert_one_error(run_cli(*asked, cwd=tmp_path), "not a classifier")
    other = "segment" if kind == "detect" else "detect"
    assert_one_error(
        run_cli(other, "eval", root / kind, scenes / other, cwd=tmp_path), f"use `cmtvision {kind}` with it"
    )
    done = run_cli(kind, "train", scenes / kind, "--model", "cmt_nano", "--out", "x", cwd=tmp_path)
    assert_one_error(done, "unknown", "did you mean cmt_nano_")
    done = run_cli(kind, "train", scenes / kind, "--model", MODELS[other], "--out", "x", cwd=tmp_path)
    assert_one_error(done, f"`cmtvision {other} train` trains it")
    assert_one_error(run_cli("train", scenes / kind, "--out", "x", cwd=tmp_path), f"cmtvision {kind} train")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_refused_is_refused_before_the_plan(scenes, tmp_path, kind):
    other = "segment" if kind == "detect" else "detect"
    for more in (["--recipe", other], ["--set", "augment.hflip=0"], ["--recipe", "fashion_mnist"]):
        done = run_cli(kind, "train", scenes / kind, "--out", "x", *more, cwd=tmp_path)
        assert_one_error(done)
        assert len(done.stderr.splitlines()) == 1, done.stderr
    done = run_cli("train", scenes / kind, "--set", "scene.hflip=0", "--out", "x", cwd=tmp_path)
    assert_one_error(done, "set augment.hflip")


@pytest.mark.parametrize("kind", KINDS)
def test_a_recipe_without_a_scene_has_the_usual_one(scenes, tmp_path, kind):
    (tmp_path / "own.yaml").write_text(f"base: default\nmodel:\n  name: {MODELS[kind]}\n")
    asked = [kind, "train", scenes / kind, "--recipe", "own.yaml", "--out", "x", "--set", "model.weights=gone.pth"]
    done = run_cli(*asked, cwd=tmp_path)
    assert_one_error(done, "gone.pth")
    assert "epochs of 512 x 512 px" in done.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_is_verified_and_finds_what_the_model_finds(scenes, runs, tmp_path, kind):
    run = shutil.copytree(runs[0] / kind, tmp_path / "run")
    done = run_cli("export", "run", "--to", "onnx", "--num-images", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "verified on 2 images" in done.stdout
    export = run / "exports" / "onnx-fp32-64"
    card = json.loads((export / "model.json").read_text())
    assert card["export"]["img_size"] == [64, 64]
    assert card["export"]["verification"]["passed"]
    done = run_cli("verify", "run", export, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["num_images"] == 3
    assert found["num_compared"] > 0
    figures = [
        json.loads(run_cli(kind, "eval", model, scenes / kind, "--device", "cpu", "--json", cwd=tmp_path).stdout)
        for model in ("run", export)
    ]
    for name in FIGURES[kind]:
        assert figures[0][name] == pytest.approx(figures[1][name], abs=1e-3)
    image = sorted((scenes / kind / "val").rglob("*.png"))[0]
    with Image.open(image) as picture:
        picture.resize((200, 100)).save(tmp_path / "wide.png")
    assert run_cli(kind, "predict", export, "wide.png", "--out", "drawn", cwd=tmp_path).returncode == 0
    assert type(cmtvision.load(export)) is type(cmtvision.load(run))
    for wrong, said in {"--to openvino": "--to", "--precision fp16": "--precision", "--img-size 50": "32"}.items():
        given = ["--to", "onnx", *wrong.split(), "--out", "other"]
        assert_one_error(run_cli("export", "run", *given, cwd=tmp_path), said)
    assert not (tmp_path / "other").exists()
    done = run_cli("bench", "run", export, "--batch", "1", "--rounds", "1", "--seconds", "0.02", "--json", cwd=tmp_path)
    cells = json.loads(done.stdout)["cells"]
    assert {cell["runtime"] for cell in cells} == {"eager", "onnx"}
    assert not [cell["failure"] for cell in cells if cell["failure"] is not None]
    (export / "model.onnx").write_bytes((export / "model.onnx").read_bytes()[:-100])
    assert_one_error(run_cli(kind, "predict", export, image, cwd=tmp_path), "SHA-256")
