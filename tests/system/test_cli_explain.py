"""`cmtvision explain`, as a person types it."""

import json
import re
import shutil

import pytest
from cli_process import assert_one_error, run_cli
from PIL import Image


def test_explain_a_run(trained, photos, tmp_path):
    run, _ = trained
    shutil.copy(sorted((photos / "sandal").iterdir())[0], tmp_path / "shoe.png")
    done = run_cli("explain", run, "shoe.png", "--class", "sandal", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Grad-CAM, stage 2 of 4, class sandal" in done.stdout
    assert "random" not in done.stderr
    with Image.open(tmp_path / "shoe-grad-cam.png") as picture:
        assert picture.format == "PNG"
    assert_one_error(run_cli("explain", run, "shoe.png", cwd=tmp_path), "already exists", "--overwrite")
    assert_one_error(
        run_cli("explain", run, "shoe.png", "--class", "sandals", "--out", "b.png", cwd=tmp_path),
        "did you mean sandal",
    )
    assert_one_error(run_cli("explain", run, "shoe.png", "--out", "b.jpg", cwd=tmp_path), r"b\.jpg", r"\.png")
    assert_one_error(run_cli("explain", run, "no.png", "--out", "b.png", cwd=tmp_path), r"no\.png")
    assert not (tmp_path / "b.png").exists()
    words = ["explain", run, "shoe.png", "--method", "lpu", "--stage", "-2", "--overwrite", "--json"]
    done = run_cli(*words, cwd=tmp_path)
    found = json.loads(done.stdout)
    assert (found["weights"], found["method"], found["stage"], found["class"]) == ("trained", "lpu", 3, None)
    assert found["values"]["shape"] == [96, 3, 3]
    assert (tmp_path / found["out"]).is_file()


def test_a_name_has_random_weights_and_says_so(photos, tmp_path):
    photo = sorted((photos / "bag").iterdir())[0]
    done = run_cli("explain", "cmt_nano", photo, "--method", "rollout", "--out", "map.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "random weights" in done.stderr
    done = run_cli("explain", "vit_nano", photo, "--method", "lpu", "--out", "other.png", cwd=tmp_path)
    assert_one_error(done, "lpu does not apply to vit_nano", "grad-cam")


def test_probabilities_are_those_of_predict(trained, photos, tmp_path):
    run, _ = trained
    shutil.copytree(run, tmp_path / "run")
    card = json.loads((tmp_path / "run" / "model.json").read_text())
    card["trust"]["temperature"] = 0.5
    (tmp_path / "run" / "model.json").write_text(json.dumps(card))
    photo = sorted((photos / "sandal").iterdir())[0]
    (predicted,) = json.loads(run_cli("predict", "run", photo, "--json", cwd=tmp_path).stdout)["predictions"]
    explained = json.loads(run_cli("explain", "run", photo, "--out", "map.png", "--json", cwd=tmp_path).stdout)
    assert explained["predicted"] == predicted["label"]
    assert explained["probability"] == pytest.approx(predicted["probability"], abs=1e-4)
    (tmp_path / "notes.txt").write_text("no image")
    assert_one_error(run_cli("explain", "run", "notes.txt", "--ideas", cwd=tmp_path), "not an image.*it is text")
    assert run_cli("explain", "run", photo, "--ideas", cwd=tmp_path).returncode == 0
    page = (tmp_path / "ideas.html").read_text()
    share = float(re.search(rf"takes this photo for {predicted['label']} \(([\d.]+)%\)", page)[1])
    assert share / 100 == pytest.approx(predicted["probability"], abs=0.006)
