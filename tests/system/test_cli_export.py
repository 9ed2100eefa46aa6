"""``cmtvision export`` and ``verify`` as a person types them: a run, its export, and the same figures from both."""

import json
import shutil

import pytest
from cli_process import assert_one_error, run_cli

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """(export folder, the finished process) of the trained run as ONNX."""
    out = tmp_path_factory.mktemp("export") / "onnx"
    done = run_cli("export", trained[0], "--to", "onnx", "--out", out, "--json", cwd=out.parent)
    assert done.returncode == 0, done.stderr
    return out, done


def test_an_export_says_where_it_is_and_how_it_was_verified(exported, trained):
    out, done = exported
    (said,) = json.loads(done.stdout)
    run = json.loads((trained[0] / "run.json").read_text())
    assert said["folder"] == str(out)
    assert said["export"] == json.loads((out / "model.json").read_text())["export"]
    assert said["export"]["verification"]["num_images"] == run["num_val"]  # all that the run held out
    assert said["bytes"] == (out / "model.onnx").stat().st_size
    assert said["classes"] == ["bag", "sandal", "trouser"]


def test_an_export_is_evaluated_on_the_photos_that_the_run_held_out(exported, trained, mixed_photos, tmp_path):
    found = [
        json.loads(run_cli("eval", model, mixed_photos, "--json", cwd=tmp_path).stdout)
        for model in (trained[0], exported[0])
    ]
    assert found[1]["split"] == "val"
    assert found[1]["num_images"] == found[0]["num_images"]
    assert found[1]["confusion"] == found[0]["confusion"]
    assert found[1]["loss"] == pytest.approx(found[0]["loss"], abs=1e-5)


def test_verify_passes_the_export_and_fails_another_crop(exported, trained, tmp_path):
    done = run_cli("verify", trained[0], exported[0], "--num-images", "5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "passed" in done.stdout
    cropped = shutil.copytree(exported[0], tmp_path / "cropped")
    card = json.loads((cropped / "model.json").read_text())
    card["preprocess"]["crop_pct"] = 0.7
    (cropped / "model.json").write_text(json.dumps(card))
    done = run_cli("verify", trained[0], cropped, "--json", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "crop_pct 1.0 and 0.7" in json.loads(done.stdout)["reasons"][0]


def test_several_sizes_are_several_folders_and_a_failed_one_is_none(trained, tmp_path):
    run = shutil.copytree(trained[0], tmp_path / "run")
    sizes = ("--img-size", "32", "--img-size", "64x32")
    done = run_cli("export", run, "--to", "torch", *sizes, "--num-images", "3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (run / "exports").iterdir()) == ["torch-fp32-32", "torch-fp32-64x32"]
    assert done.stdout.count("verified on 3 images") == 2
    done = run_cli("export", run, "--to", "torch", "--overwrite", "--tolerance", "1e-12", cwd=tmp_path)
    assert done.returncode == 1
    assert "differs from the model" in done.stderr
    assert "nothing was kept" in done.stderr
    assert (run / "exports" / "torch-fp32-32" / "model.json").is_file()  # the good one from before
    assert len(list((run / "exports").iterdir())) == 2


def test_a_bundle(trained, tmp_path):
    done = run_cli("export", trained[0], "--to", "onnx", "--bundle", "--out", "b", "--num-images", "3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "b" / "model.onnx").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    assert not (tmp_path / "b" / "export").exists()


def test_a_bundle_of_a_model_named_by_its_file_goes_beside_it(trained, tmp_path):
    run = shutil.copytree(trained[0], tmp_path / "run")
    done = run_cli("export", run / "model.json", "--to", "onnx", "--bundle", "--num-images", "3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (run / "exports").iterdir()] == ["bundle-fp32-32"]
    (tmp_path / "file").write_text("in the way")
    done = run_cli("export", run, "--to", "onnx", "--bundle", "--out", tmp_path / "file" / "b", cwd=tmp_path)
    assert_one_error(done, "file/b: cannot be written")


@pytest.mark.parametrize(
    ("words", "patterns"),
    [
        (("--to", "onnx", "--opset", "9"), [r"opset 9: expected 18 to"]),
        (("--to", "onxx"), ["onnx"]),
        (("--to", "openvino", "--bundle"), ["--bundle", "--to onnx"]),
        (("--to", "torch", "--img-size", "32by32"), ["--img-size '32by32'"]),
        (("--to", "torch", "--images", "no-such.jpg"), [r"no-such\.jpg"]),
    ],
)
def test_bad_options_are_one_line(words, patterns, trained, tmp_path):
    done = run_cli("export", trained[0], *words, "--out", "out", cwd=tmp_path)
    assert_one_error(done, *patterns)
    assert list(tmp_path.iterdir()) == []


def test_a_run_whose_photos_are_gone_asks_for_images(trained, tmp_path):
    run = shutil.copytree(trained[0], tmp_path / "run")
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**facts, "data": str(tmp_path / "gone")}))
    done = run_cli("export", run, "--to", "torch", cwd=tmp_path)
    assert_one_error(done, "gone", "--images")
