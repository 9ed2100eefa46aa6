"""Train, evaluate, predict as a user types it, on real photos among which some are odd and some are broken."""

import csv
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cli_process import assert_one_error, command_line, run_cli

pytestmark = pytest.mark.slow


def test_training_says_its_plan_its_result_and_what_it_left_out(trained, mixed_photos):
    run, done = trained
    assert re.search(r"model +cmt_nano, [\d,]+ parameters, 32 x 32 px", done.stderr)
    assert "3 classes" in done.stderr
    assert "skipped 2 files:" in done.stderr
    assert re.search(r"sandal/torn\.jpg: damaged image", done.stderr)
    assert re.search(r"trouser/notes\.png: not an image.*text", done.stderr)
    for odd in ("deep.png", "palette.png", "cmyk.jpg", "alpha.png", "rotated.jpg"):
        assert odd not in done.stderr
        assert f"bag/{odd}," in (run / "split.csv").read_text()
    assert re.search(r"held-out accuracy: [\d.]+% \(\d+/\d+\)", done.stdout)
    assert "next, to classify a photo: cmtvision predict run PHOTO..." in done.stderr
    for name in (
        "recipe.yaml",
        "model.safetensors",
        "model.json",
        "metrics.csv",
        "report.html",
        "checkpoints/last.ckpt",
    ):
        assert (run / name).stat().st_size > 0, name


def test_a_run_is_not_overwritten_unasked(trained, mixed_photos):
    run, _ = trained
    before = (run / "model.safetensors").read_bytes()
    done = run_cli("train", mixed_photos, "--recipe", "demo", "--epochs", "1", "--out", run, cwd=run.parent)
    assert_one_error(done, "is not empty", "--overwrite")
    assert (run / "model.safetensors").read_bytes() == before


def test_evaluation_repeats_what_training_measured(trained, mixed_photos, tmp_path):
    run, _ = trained
    file = tmp_path / "predictions.csv"
    done = run_cli("eval", run, mixed_photos, "--json", "--csv", file, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found, before = json.loads(done.stdout), json.loads((run / "evaluation.json").read_text())
    for key in ("num_images", "top1_correct", "top5_correct", "confusion", "classes", "split"):
        assert found[key] == before[key], key
    assert found["loss"] == pytest.approx(before["loss"], rel=1e-5)
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert len(rows) == found["num_images"]
    assert sum(row["label"] == row["predicted"] for row in rows) == found["top1_correct"]
    assert_one_error(run_cli("eval", run, mixed_photos, "--csv", file, cwd=tmp_path), "already exists", "--overwrite")

    paths = "".join(f"{row['path']}\n" for row in rows)
    predicted = run_cli("predict", run, "-", "--csv", "--top", "1", stdin=paths.encode(), cwd=tmp_path)
    again = list(csv.DictReader(io.StringIO(predicted.stdout)))
    assert [row["image"] for row in again] == [row["path"] for row in rows]
    assert [row["label"] for row in again] == [row["predicted"] for row in rows]
    for one, other in zip(rows, again, strict=True):
        assert float(one["probability"]) == pytest.approx(float(other["probability"]), abs=1e-4)


def test_evaluation_for_people_has_counts_classes_and_matrix(trained, mixed_photos, tmp_path):
    run, _ = trained
    shown = run_cli("eval", run, mixed_photos, "--split", "all", cwd=tmp_path).stdout
    assert re.search(r"top-1: [\d.]+% \(\d+/41\)", shown)
    assert re.search(r"^bag +17 +\d+ ", shown, re.MULTILINE)
    matrix = shown[shown.index("true \\ predicted") :].splitlines()[1:]
    counts = [[0 if cell == "." else int(cell) for cell in line.split()[2:]] for line in matrix]
    assert [sum(row) for row in counts] == [17, 12, 12]


def test_predict_takes_files_folders_globs_and_bytes_and_survives_bad_ones(trained, mixed_photos, tmp_path):
    run, _ = trained
    bag, sandal = mixed_photos / "bag", mixed_photos / "sandal"
    done = run_cli(
        "predict", run, bag, f"{sandal}/*.jpg", tmp_path / "gone.png", bag / "deep.png", "--json", cwd=tmp_path
    )
    assert done.returncode == 2
    found = json.loads(done.stdout)
    assert [row["image"] for row in found["predictions"]] == [
        *map(str, sorted(bag.iterdir())), str(bag / "deep.png")
    ]  # fmt: skip
    assert [row["image"] for row in found["failed"]] == [str(sandal / "torn.jpg"), str(tmp_path / "gone.png")]
    assert done.stderr.count("error: ") == 2
    for row in found["predictions"]:
        assert sum(item["probability"] for item in row["top"]) == pytest.approx(1, abs=1e-5)
        assert row["label"] == row["top"][0]["label"]
        assert row["probability"] == max(item["probability"] for item in row["top"])

    photo = bag / "cmyk.jpg"
    piped = json.loads(run_cli("predict", run, "-", "--json", stdin=photo.read_bytes(), cwd=tmp_path).stdout)
    by_name = {row["image"]: row for row in found["predictions"]}
    assert piped["predictions"][0]["image"] == "standard input"
    assert piped["predictions"][0]["label"] == by_name[str(photo)]["label"]


def test_bad_images_keep_their_place_in_a_folder_that_is_opened_ahead(trained, mixed_photos, tmp_path):
    run, _ = trained
    everything = sorted(path for path in mixed_photos.rglob("*") if path.is_file())
    done = run_cli("predict", run, *everything, "--json", "--batch-size", "4", cwd=tmp_path)
    found = json.loads(done.stdout)
    bad = [row["image"] for row in found["failed"]]
    assert bad == [str(mixed_photos / "sandal" / "torn.jpg"), str(mixed_photos / "trouser" / "notes.png")]
    assert [row["image"] for row in found["predictions"]] == [str(one) for one in everything if str(one) not in bad]
    one_by_one = json.loads(run_cli("predict", run, *everything, "--json", "--batch-size", "1", cwd=tmp_path).stdout)
    for one, other in zip(found["predictions"], one_by_one["predictions"], strict=True):
        assert one["label"] == other["label"]
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)


def test_who_gives_one_image_at_a_time_is_answered_before_the_next(trained, photos, tmp_path):
    run, _ = trained
    files = sorted((photos / "bag").iterdir())[:3]
    words = command_line("predict", run, "-", "--batch-size", "1", "--csv", "--top", "1")
    with subprocess.Popen(words, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        for number, file in enumerate(files):
            child.stdin.write(f"{file}\n")
            child.stdin.flush()
            if number == 0:
                assert child.stdout.readline().startswith("image,")
            assert child.stdout.readline().startswith(f"{file},")
        child.stdin.close()
        assert child.wait(timeout=60) == 0


def test_what_is_no_run_or_no_longer_whole_is_named(trained, mixed_photos, tmp_path):
    run, _ = trained
    broken = tmp_path / "broken"
    shutil.copytree(run, broken)
    torn = broken / "model.safetensors"
    torn.write_bytes(torn.read_bytes()[:5000])
    assert_one_error(run_cli("predict", broken, mixed_photos / "bag", cwd=tmp_path), "model.safetensors")
    assert_one_error(run_cli("eval", mixed_photos, mixed_photos, cwd=tmp_path), "model.json")
    card = json.loads((run / "model.json").read_text())
    other = tmp_path / "other"
    shutil.copytree(run, other)
    (other / "model.json").write_text(json.dumps({**card, "architecture": "cmt_ti"}))
    assert_one_error(run_cli("predict", other, mixed_photos / "bag", cwd=tmp_path), "does not fit.*cmt_ti")


class Evil:
    """What a malicious checkpoint does when a careless reader opens it."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_weights_that_cannot_be_used_are_refused_in_one_line(photos, tmp_path):
    import timm
    import torch

    import cmtvision  # noqa: F401

    def attempt(weights, *words):
        return run_cli("train", photos, "--recipe", "demo", "--epochs", "1", "--weights", weights, *words, cwd=tmp_path)

    trap = tmp_path / "trap.pth"
    torch.save({"model": Evil(f"touch {tmp_path / 'owned'}")}, trap)
    assert_one_error(attempt(trap), r"trap\.pth: refused, it would run (posix|os|nt)\.system")
    assert not (tmp_path / "owned").exists()

    with torch.no_grad():
        other = timm.create_model("resnet18", num_classes=3).state_dict()
        wider = timm.create_model("cmt_nano", num_classes=3, dims=(40, 64, 96, 160)).state_dict()
    torch.save(other, tmp_path / "resnet.pth")
    torch.save(wider, tmp_path / "wider.pth")
    assert_one_error(attempt("resnet.pth"), r"(not weights of|do not fit)")
    assert_one_error(attempt("wider.pth"), r"(not weights of|do not fit|different networks)")
    assert_one_error(attempt("gone.pth"), "gone.pth: no such file")
    assert not any((tmp_path / "runs").glob("*/model.safetensors"))


def test_an_unknown_model_is_answered_with_its_neighbours(photos, tmp_path):
    assert_one_error(run_cli("train", photos, "--model", "cmt_smal", cwd=tmp_path), "cmt_smal", "did you mean.*cmt_")
    assert_one_error(run_cli("info", "cmt_nan", cwd=tmp_path), "did you mean cmt_nano")
    assert_one_error(run_cli("models", "vgg", cwd=tmp_path), "no model of ours matches 'vgg'")


def test_a_full_disk_is_one_line_and_leaves_no_torn_file(photos, trained, tmp_path):
    words = ("train", photos, "--recipe", "demo", "--epochs", "1", "--batch-size", "8", "--out", "run")
    done = run_cli(*words, cwd=tmp_path, file_limit=1_000_000)
    assert_one_error(done, r"last\.ckpt: cannot be written", "free some space")
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []

    run, _ = trained
    target = tmp_path / "kept.safetensors"
    target.write_bytes(b"what stood here before")
    done = run_cli("convert", run, target, "--overwrite", cwd=tmp_path, file_limit=1_000_000)
    assert_one_error(done, r"kept\.safetensors: cannot be written")
    assert target.read_bytes() == b"what stood here before"


def test_ctrl_c_saves_says_how_to_go_on_and_that_works(photos, tmp_path):
    epochs = 5
    words = ("train", photos, "--recipe", "demo", "--epochs", epochs, "--batch-size", "8", "--out", "my run")
    with subprocess.Popen(
        command_line(*words), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        said = ""
        for line in child.stderr:
            said += line
            if line.startswith("epoch 1/"):
                child.send_signal(signal.SIGINT)
                break
        rest = child.stderr.read()
        said += rest
        assert child.wait(timeout=60) == 130, said
    assert "Traceback" not in said
    assert (tmp_path / "my run" / "checkpoints" / "last.ckpt").is_file()
    hint = re.search(r"go on with: cmtvision (.*)$", said, re.MULTILINE)
    assert hint, said
    changed = run_cli(*shlex.split(hint[1]), "--set", "optim.lr=1", cwd=tmp_path)
    assert_one_error(changed, "--set: a resumed run keeps its recipe")
    done = run_cli(*shlex.split(hint[1]), "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["epochs"] == epochs
    rows = list(csv.DictReader((tmp_path / "my run" / "metrics.csv").read_text().splitlines()))
    assert [int(row["epoch"]) for row in rows] == list(range(epochs))


def test_a_model_of_timm_is_trained_into_a_folder_of_its_own_name(photos, tmp_path):
    words = ("--model", "resnet18", "--epochs", "1", "--batch-size", "8", "--set", "train.max_steps=1")
    done = run_cli("train", photos, *words, "--set", "augment.auto_augment=null", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert re.fullmatch(r"runs/photos-resnet18-\d{8}-\d{6}", found["out"])
    kept = json.loads((tmp_path / found["out"] / "run.json").read_text())
    assert 0 < found["evaluation"]["num_images"] == kept["num_val"] < 36
    shown = run_cli("info", found["out"], "--json", cwd=tmp_path)
    assert json.loads(shown.stdout)["total"]["parameters"] == 11_176_512 + 3 * 512 + 3


def test_info_and_models_tell_the_known_figures(tmp_path):
    info = json.loads(run_cli("info", "cmt_s", "--json", cwd=tmp_path).stdout)
    assert info["total"]["parameters"] == 26_256_160
    assert info["total"]["macs"] / 1e9 == pytest.approx(4.032, rel=0.001)
    smaller = json.loads(
        run_cli("info", "cmt_s", "--img-size", "160", "--num-classes", "10", "--json", cwd=tmp_path).stdout
    )
    assert smaller["input_size"] == [3, 160, 160]
    assert smaller["layers"][-1]["output"] == [1, 10]
    assert smaller["total"]["parameters"] < info["total"]["parameters"]
    rows = {row["name"]: row for row in json.loads(run_cli("models", "--json", cwd=tmp_path).stdout)}
    assert rows["cmt_ti"]["parameters"] == 9_492_426
    assert rows["cmt_ti"]["paper_top1"] == 79.1
    assert rows["cmt_ti"]["weights"].endswith("cmt_tiny.pth")
    assert rows["cmt_nano"]["weights"] is None


def test_the_console_script_is_the_same_program(tmp_path):
    script = Path(sys.executable).parent / "cmtvision"
    done = subprocess.run([script, "--version"], cwd=tmp_path, capture_output=True, check=True)
    assert done.stdout.startswith(b"cmtvision ")


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ((), r"https://\S+/cmt_tiny\.pth: cannot be fetched .*; put the file at \S+/hub/checkpoints/cmt_tiny\.pth,"),
        (("--model", "resnet18"), r"timm/resnet18\.a1_in1k cannot be fetched from the Hugging Face Hub \("),
    ],
)
def test_fine_tuning_without_a_network_is_one_line_and_leaves_nothing(photos, tmp_path, monkeypatch, options, where):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")  # nobody listens: no network, wherever the test runs
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    done = run_cli("train", photos, "--recipe", "finetune", *options, cwd=tmp_path)
    assert_one_error(done, where, r"Connection refused, asked by the proxy 127\.0\.0\.1", "--weights FILE")
    assert len(done.stderr.splitlines()) == 1  # no plan above it
    assert not (tmp_path / "runs").exists()
    assert not list(tmp_path.rglob("*.pth"))
