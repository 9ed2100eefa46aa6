"""A bundle in an empty virtual environment with three packages: the run's own answers, and no torch in sight."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import venv
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_process import assert_one_error, run_cli
from PIL import Image

import cmtvision
from cmtvision.artefact.card import read_card
from cmtvision.artefact.run.exports import BUNDLE_PACKAGE, BUNDLE_SOURCES
from cmtvision.deploy import export
from cmtvision.deploy.bundling.bundle import write_bundle
from cmtvision.errors import CheckpointError, ConfigError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def exported(trained, photos, tmp_path_factory):
    run, _ = trained
    images = sorted(photos.rglob("*.png"))[::5]
    return export(run, "onnx", tmp_path_factory.mktemp("export") / "onnx", images=images).folder


@pytest.fixture(scope="module")
def bundle(exported, tmp_path_factory):
    return write_bundle(exported, tmp_path_factory.mktemp("shipped") / "bundle")


@pytest.fixture(scope="module")
def empty_python(bundle, tmp_path_factory):
    """The Python of a new virtual environment with the bundle's requirements and nothing else."""
    home = tmp_path_factory.mktemp("empty") / "venv"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    how = ["--quiet", "--disable-pip-version-check", "--retries", "1", "--only-binary", ":all:"]
    install = [python, "-m", "pip", "install", *how, "-r", bundle / "requirements.txt"]
    done = subprocess.run(install, capture_output=True, text=True, check=False, timeout=500)
    unreachable = "NewConnectionError|Temporary failure in name resolution|Network is unreachable|ConnectTimeout"
    if done.returncode and re.search(unreachable, done.stderr):
        pytest.skip("pip reaches no package index, so no empty environment can be made here")
    assert done.returncode == 0, done.stderr
    return python


def run(python, *words, cwd, **more):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")} | more
    return subprocess.run(
        [python, *map(str, words)], cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=200
    )


_LOOK = """
import json, sys
import numpy as np
from predict import Predictor
predictor = Predictor(threads=1)
images = sys.argv[2:]
np.savez(sys.argv[1], inputs=np.stack([predictor.inputs(image) for image in images]), logits=predictor.logits(images))
some = [open(images[0], "rb").read(), bytearray(open(images[0], "rb").read()), open(images[0], "rb")]
some += [images[0], predictor.preprocess.prepare(images[0]), np.stack([predictor.preprocess.prepare(images[0])])]
assert [len(predictor.predict(one, top=1)) for one in some] == [1] * len(some)
assert (len(predictor.predict([])), predictor.logits([]).shape) == (0, (0, len(predictor.classes)))
refused = []
for images, more in ((None, {}), ([None], {}), ("gone.png", {}), ([], {"top": 0}), ([], {"batch_size": 0})):
    try:
        predictor.predict(images, **more)
    except Exception as error:
        refused.append(type(error).__name__)
assert refused == ["DataError"] * 3 + ["ConfigError"] * 2, refused
absent = []
for name in ("torch", "timm", "torchvision", "cmtvision", "onnx", "safetensors"):
    try:
        __import__(name)
    except ImportError:
        absent.append(name)
print(json.dumps(absent))
"""


def test_in_an_empty_environment_it_sees_the_same_pixels_and_gives_the_same_answers(
    trained, mixed_photos, bundle, empty_python, tmp_path
):
    folder, _ = trained
    odd = [mixed_photos / "bag" / name for name in ("deep.png", "palette.png", "cmyk.jpg", "alpha.png", "rotated.jpg")]
    large = tmp_path / "large.jpg"
    with Image.open(odd[-1]) as picture:
        exif = picture.getexif()
        exif[0x0112] = 8
        picture.resize((301, 97), Image.Resampling.BICUBIC).save(large, exif=exif)
    images = [*odd, large, *sorted((mixed_photos / "sandal").glob("*.png"))]
    (tmp_path / "look.py").write_text(f"import sys; sys.path.insert(0, {str(bundle)!r})\n{_LOOK}")
    done = run(empty_python, tmp_path / "look.py", tmp_path / "seen.npz", *images, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["torch", "timm", "torchvision", "cmtvision", "onnx", "safetensors"]
    seen, own = np.load(tmp_path / "seen.npz"), cmtvision.load(folder, device="cpu")
    assert np.array_equal(seen["inputs"], np.stack([own.preprocess(image) for image in images]))
    assert np.abs(seen["logits"] - own.logits(images).numpy()).max() < 1e-4

    done = run(empty_python, bundle / "predict.py", *images, "--json", "--top", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["failed"] == []
    for row, one in zip(found["predictions"], own.predict(images, top_k=2), strict=True):
        assert (row["label"], row["labels"]) == (one.label, one.labels)
        assert [item["label"] for item in row["top"]] == [name for name, _ in one.top]
        assert row["probability"] == pytest.approx(one.probability, abs=1e-4)
    shown = run(empty_python, bundle / "predict.py", images[0], "--top", "1", cwd=tmp_path).stdout
    assert re.fullmatch(rf"{re.escape(str(images[0]))}: \w+ [\d.]+%\n", shown)


def test_in_an_empty_environment_what_is_wrong_is_one_line(mixed_photos, bundle, empty_python, tmp_path):
    good, notes = mixed_photos / "bag" / "deep.png", mixed_photos / "trouser" / "notes.png"
    done = run(empty_python, bundle / "predict.py", notes, tmp_path / "gone.png", good, "--json", cwd=tmp_path)
    assert done.returncode == 2
    found = json.loads(done.stdout)
    assert [row["image"] for row in found["predictions"]] == [str(good)]
    assert [row["image"] for row in found["failed"]] == [str(notes), str(tmp_path / "gone.png")]
    first, second = done.stderr.splitlines()
    assert first.startswith("error: ")
    assert "it is text" in first
    assert "no such file" in second

    odd = tmp_path / os.fsdecode("é".encode() + b"\xff.png")  # in a terminal that knows neither
    shutil.copyfile(good, odd)
    for more in ([], ["--json"]):
        done = run(
            empty_python, "-X", "utf8=0", bundle / "predict.py", odd, *more, cwd=tmp_path, PYTHONIOENCODING="ascii"
        )
        assert (done.returncode, done.stderr) == (0, "")
    assert os.fsencode(json.loads(done.stdout)["predictions"][0]["image"]) == os.fsencode(odd)

    broken = tmp_path / "broken"
    subprocess.run(["cp", "-r", bundle, broken], check=True)
    (broken / "model.onnx").write_bytes((bundle / "model.onnx").read_bytes()[:1000])
    done = run(empty_python, broken / "predict.py", good, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: .*model\.onnx: not the file that model\.json describes.*\n", done.stderr)
    (broken / "model.json").write_text("{")
    done = run(empty_python, broken / "predict.py", good, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: .*model\.json: not the card of a bundle .*\n", done.stderr)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda card: card["export"].pop("file"), "'file' is missing"),
        (lambda card: card["export"].pop("preprocess_inside"), "'preprocess_inside' is missing"),
        (lambda card: card.pop("classes"), "'classes' is missing"),
        (lambda card: card.update(export=[]), "bundle the model again"),
        (lambda card: card["preprocess"].pop("mean"), "bundle the model again"),
    ],
)
def test_a_card_with_a_hole_is_one_line(change, words, mixed_photos, bundle, tmp_path):
    broken = shutil.copytree(bundle, tmp_path / "broken")
    card = json.loads((broken / "model.json").read_text())
    change(card)
    (broken / "model.json").write_text(json.dumps(card))
    done = run(sys.executable, broken / "predict.py", mixed_photos / "bag" / "deep.png", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"error: .*model\.json: not the card of a bundle .*{words}.*\n", done.stderr)


@pytest.mark.parametrize("absent", ["onnxruntime", "PIL", "numpy"])
def test_a_missing_package_is_one_line(absent, mixed_photos, bundle, tmp_path):
    script = (
        f"import runpy, sys; sys.modules[{absent!r}] = None; sys.path.insert(0, {str(bundle)!r});"
        f"sys.argv = ['predict.py', {str(mixed_photos / 'bag' / 'deep.png')!r}];"
        f"runpy.run_path({str(bundle / 'predict.py')!r}, run_name='__main__')"
    )
    done = run(sys.executable, "-c", script, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    file = re.escape(str(bundle / "requirements.txt"))
    assert re.fullmatch(rf"error: needs {absent}: pip install -r {file}\n", done.stderr)


def test_onnxruntime_of_another_name_will_do(exported, tmp_path, monkeypatch):
    """onnxruntime-gpu is the same module in a package of another name."""
    import onnxruntime

    def version(name):
        if name == "onnxruntime":
            raise PackageNotFoundError(name)
        return "12.3.4"

    monkeypatch.setattr("cmtvision.deploy.bundling.bundle.version", version)
    monkeypatch.setattr(onnxruntime, "__version__", "1.99.0+cu13")
    folder = write_bundle(exported, tmp_path / "b")
    assert "onnxruntime>=1.99.0,<2" in (folder / "requirements.txt").read_text().split()


def test_a_quantised_model_is_shipped_with_its_own_accuracy(exported, tmp_path):
    card = read_card(exported)
    assert isinstance(card["metrics"]["top1"], float)
    card["metrics"] |= {"num_images": 70, "top1": 0.9, "quantized": {"num_images": 60, "top1": 0.8125}}
    for task, words in (
        ("single-label", "81.25% of 60 held-out photos"),
        ("multi-label", "81.25% of the labels of 60"),
    ):
        copy = shutil.copytree(exported, tmp_path / f"export-{task}")
        (copy / "model.json").write_text(json.dumps({**card, "task": task}))
        readme = (write_bundle(copy, tmp_path / f"bundle-{task}") / "README.md").read_text()
        assert f"| accuracy | {words}" in readme
        assert "90.00%" not in readme


def test_load_opens_a_bundle_and_evaluation_an_export(trained, mixed_photos, exported, bundle, tmp_path):
    folder, _ = trained
    images = sorted((mixed_photos / "sandal").glob("*.png"))
    own = cmtvision.load(folder, device="cpu").logits(images)
    assert torch.allclose(cmtvision.load(bundle, device="cpu").logits(images), own, atol=1e-4)
    before = json.loads((folder / "evaluation.json").read_text())
    for model in (exported, exported / "model.onnx"):
        found = cmtvision.evaluate(model, mixed_photos, device="cpu", workers=0)
        assert found.split == before["split"] == "val"  # the photos that the run held out
        assert found.confusion.tolist() == before["confusion"]


def test_pixels_in_the_graph_evaluate_and_bundle_as_floats_do(trained, mixed_photos, photos, tmp_path):
    folder, _ = trained
    images = sorted(photos.rglob("*.png"))[::5]
    inside = export(folder, "onnx", tmp_path / "pixels", images=images, preprocess_inside=True).folder
    assert cmtvision.load(inside).inputs(images[0]).dtype == np.uint8
    before = json.loads((folder / "evaluation.json").read_text())
    found = cmtvision.evaluate(inside, mixed_photos, device="cpu", workers=0)
    assert found.confusion.tolist() == before["confusion"]
    done = run(sys.executable, write_bundle(inside, tmp_path / "b") / "predict.py", images[0], "--json", cwd=tmp_path)
    (said,) = json.loads(done.stdout)["predictions"]
    (own,) = cmtvision.load(folder, device="cpu").predict(images[:1])
    assert said["label"] == own.label
    assert said["probability"] == pytest.approx(own.probability, abs=1e-4)


def test_predict_and_eval_take_an_export(trained, mixed_photos, exported, tmp_path):
    folder, _ = trained
    image = mixed_photos / "bag" / "deep.png"
    done = run_cli("predict", exported, image, "--threads", "1", "--json", cwd=tmp_path)
    (said,) = json.loads(done.stdout)["predictions"]
    (own,) = cmtvision.load(folder, device="cpu").predict([image])
    assert (said["label"], said["probability"]) == (own.label, pytest.approx(own.probability, abs=1e-4))
    done = run_cli("eval", exported, mixed_photos, "--threads", "1", "--json", cwd=tmp_path)
    before = json.loads((folder / "evaluation.json").read_text())
    assert json.loads(done.stdout)["confusion"] == before["confusion"]
    done = run_cli("predict", exported, image, "--streams", "2", cwd=tmp_path)
    assert_one_error(done, "streams: a setting of OpenVINO, and this model runs in onnx")


def test_a_bundle_is_made_of_an_onnx_export_and_overwrites_nothing(trained, exported, bundle, tmp_path):
    before = (bundle / "README.md").read_text()
    assert "3: bag, sandal, trouser" in before
    assert re.search(r"verified \| logits within .* of the trained model's on \d+ images", before)
    with pytest.raises(ConfigError, match="already exists"):
        write_bundle(exported, bundle)
    assert write_bundle(exported, bundle, overwrite=True) == bundle
    with pytest.raises(ConfigError, match="a PyTorch model; a bundle is made of an export for onnx"):
        write_bundle(trained[0], tmp_path / "b")
    with pytest.raises(CheckpointError, match=r"no model\.json"):
        write_bundle(tmp_path, tmp_path / "b")
    assert not (tmp_path / "b").exists()
    assert sorted(line.partition(">")[0] for line in (bundle / "requirements.txt").read_text().split()) == [
        "numpy",
        "onnxruntime",
        "pillow",
    ]


def test_what_is_bundled_is_our_own_source_and_needs_three_packages_only(bundle):
    root = Path(cmtvision.__file__).parent
    for name in BUNDLE_SOURCES:
        source = (root / name).read_bytes()
        assert (bundle / BUNDLE_PACKAGE / name).read_bytes() == source
        for node in ast.walk(ast.parse(source)):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found = {module.partition(".")[0] for module in modules}
            assert found <= {*sys.stdlib_module_names, "numpy", "PIL", "onnxruntime"}, name
