"""Quantisation: real photos, real runtimes, a network of four blocks that was trained for a few seconds."""

import copy
import json
import sys
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch.nn import functional as F

import cmtvision  # noqa: F401  # registers the models
from cmtvision.artefact import Artefact, write_artefact
from cmtvision.artefact.files import read_card
from cmtvision.artefact.run.names import RUN_FILE
from cmtvision.data import Preprocess, read_dataset
from cmtvision.data.idx import read_idx
from cmtvision.deploy.quantizing.calibration import MIN_CALIBRATION, read_photos
from cmtvision.deploy.quantizing.half import fits_float16
from cmtvision.deploy.quantizing.profile import attribute
from cmtvision.deploy.quantizing.quantize import BudgetError, quantize
from cmtvision.deploy.quantizing.quantized import Accuracy
from cmtvision.errors import ConfigError, DataError, ExportError

CLASSES = {"trouser": 1, "dress": 3, "sandal": 5, "bag": 8}
SIZE = 32
ARGUMENTS = {
    "img_size": SIZE,
    "stem_width": 8,
    "dims": (16, 24, 32, 48),
    "depths": (1, 1, 1, 1),
    "num_heads": (1, 1, 1, 1),
    "mlp_ratio": 2.0,
    "head_width": 512,  # so that weights outweigh the graph, as they do in real networks
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Four classes of the bundled photos, 40 for training and 60 held out each, in train/ and val/."""
    bundled = Path(str(resources.files("cmtvision.data"))) / "fashion_mnist"
    pixels = read_idx(bundled / "t10k-images-idx3-ubyte.gz", (10_000, 28, 28))
    labels = read_idx(bundled / "t10k-labels-idx1-ubyte.gz", (10_000,))
    root = tmp_path_factory.mktemp("data") / "photos"
    for name, number in CLASSES.items():
        places = np.flatnonzero(labels == number)
        for part, chosen in (("train", places[:40]), ("val", places[40:100])):
            (root / part / name).mkdir(parents=True)
            for place in chosen:
                Image.fromarray(pixels[place]).save(root / part / name / f"{place:05}.png")
    return root


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch):
    """Which candidate is faster is no test's business: a few milliseconds a round will do."""
    monkeypatch.setattr("cmtvision.deploy.quantizing.search._ROUNDS", 3)
    monkeypatch.setattr("cmtvision.deploy.quantizing.search._ROUND_SECONDS", 0.005)
    monkeypatch.setattr("cmtvision.deploy.quantizing.search._NOISE_PHOTOS", 16)


@pytest.fixture(scope="module")
def artefact(photos):
    """A small CMT that recognises most of the held-out photos."""
    preprocess = Preprocess((SIZE, SIZE), 1.0, "bicubic", (0.5,) * 3, (0.5,) * 3)
    index = read_dataset(photos)
    images = torch.from_numpy(np.stack([preprocess(one.path) for one in index.train]))
    labels = torch.tensor([one.label for one in index.train])
    torch.manual_seed(0)
    model = timm.create_model("cmt_nano", num_classes=len(CLASSES), **ARGUMENTS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(8):
        for chosen in torch.randperm(len(images)).split(32):
            loss = F.cross_entropy(model(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    arguments = {key: list(value) if isinstance(value, tuple) else value for key, value in ARGUMENTS.items()}
    return Artefact("cmt_nano", arguments, index.classes, preprocess, metrics={"top1": 0.125}, model=model.eval())


@pytest.fixture(scope="module")
def run(artefact, tmp_path_factory):
    return write_artefact(tmp_path_factory.mktemp("run"), artefact)


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_eight_bits_within_the_budget(run, photos, tmp_path, runtime):
    pytest.importorskip({"onnx": "onnxruntime", "openvino": "nncf"}[runtime])
    found = quantize(run, runtime, tmp_path / "out", data=photos, calibration=32, max_drop=2.0)
    assert found.accuracy.before > 0.8 * found.num_images == 0.8 * 240
    assert found.accuracy.after >= found.accuracy.before - 0.02 * 240
    stored = _stored_bits(found.folder, runtime)
    kept = sum(layer.weights for layer in found.layers if not layer.int8)
    assert stored >= sum(layer.weights for layer in found.layers) - kept > 0
    assert all(layer.noise is not None and layer.noise >= 0 and layer.why for layer in found.layers)
    assert max(layer.noise for layer in found.layers) > 1e-6  # rounding to 8 bits does something
    assert sum(layer.ms_int8 for layer in found.layers) > 0
    assert sum(layer.ms_rest for layer in found.layers) > 0
    card, trust = (read_card(found.folder)[key] for key in ("export", "trust"))
    assert (card["runtime"], card["precision"]) == (runtime, "int8")
    assert (trust["num_images"], trust["distance"]) == (240, None)  # of its own logits
    verified = card["verification"]
    assert (verified["batches"], verified["num_images"]) == ([1, 2, 7], 16)
    assert 0 < verified["relative"] <= verified["tolerance"]
    assert verified["accuracy"]["lost"] == found.accuracy.lost
    report = json.loads((found.folder / "quantization.json").read_text())
    assert report["accuracy"]["after"] == found.accuracy.after
    assert len(report["layers"]) == len(found.layers)


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_weight_only_is_small_and_near(run, photos, tmp_path, runtime):
    pytest.importorskip({"onnx": "onnxruntime", "openvino": "nncf"}[runtime])
    found = quantize(run, runtime, tmp_path / "out", data=photos, num_images=120, weight_only=True)
    assert found.accuracy.lost + found.accuracy.gained <= 3
    assert _stored_bits(found.folder, runtime) > 20_000
    assert found.bytes_after < found.bytes_before / 2  # in a network this small a graph weighs as much as its weights
    assert found.num_calibration == 0
    assert found.layers == []
    metrics = read_card(found.folder)["metrics"]
    assert metrics["top1"] == found.accuracy.after / 120
    assert metrics["num_images"] == 120
    assert metrics["fp32"]["top1"] == 0.125


@pytest.mark.slow
def test_outlier_channels_are_put_back_or_refused(artefact, photos, tmp_path, monkeypatch):
    """One hidden channel is so large that 8 bits have no steps left for the others; fp32 does not mind it."""
    pytest.importorskip("onnxruntime")
    damaged = replace(artefact, model=copy.deepcopy(artefact.model))
    with torch.no_grad():
        for stage in damaged.model.stages:
            ffn = stage.blocks[0].irffn
            ffn.expand.weight[0] = 0
            ffn.expand.bias[0] = 1e5
            ffn.project.weight[:, 0] = 0
    options = {"data": photos, "calibration": 48, "max_drop": 1.0}
    found = quantize(damaged, "onnx", tmp_path / "some", **options)
    assert found.accuracy.before > 0.8 * found.num_images
    assert found.accuracy.drop <= 1.0
    back = [layer for layer in found.layers if layer.why == "put back for accuracy"]
    assert back
    assert not any(layer.int8 for layer in back)
    assert max(layer.noise for layer in back) > 0.01
    assert max(layer.noise for layer in back) == max(layer.noise for layer in found.layers)
    monkeypatch.setattr("cmtvision.deploy.quantizing.search.MIN_WEIGHTS", 0.99)
    with pytest.raises(BudgetError, match=r"no 8-bit network within 1 points.*--max-drop") as caught:
        quantize(damaged, "onnx", tmp_path / "all", **options)
    assert "\n" not in str(caught.value)
    table = caught.value.to_dict()["groups"]
    assert table
    assert all(row["noise"] is not None and row["ms_int8"] is not None for row in table)
    assert not (tmp_path / "all").exists()


def _stored_bits(folder, runtime):
    """Numbers that the file stores as 8-bit integers."""
    if runtime == "onnx":
        import onnx

        graph = onnx.load(folder / "model.onnx").graph
        return sum(int(np.prod(one.dims)) for one in graph.initializer if one.data_type == onnx.TensorProto.INT8)
    from cmtvision.artefact.runtimes.openvino import openvino_core

    model = openvino_core().read_model(folder / "model.xml")
    constants = [op for op in model.get_ops() if op.get_type_name() == "Constant"]
    return sum(op.get_data().size for op in constants if op.get_element_type().get_type_name() == "i8")


def test_too_few_photos_to_calibrate(artefact, photos):
    arguments = (artefact.classes, artefact.preprocess)
    with pytest.raises(DataError, match=f"calibration 8: too few photos.*{MIN_CALIBRATION} or more"):
        read_photos(photos, photos, *arguments, calibration=8)
    with pytest.raises(ConfigError, match="does not say what it was trained on; give DATA"):
        read_photos(photos, None, *arguments)


def test_the_record_of_the_current_folder_is_not_the_artefacts(artefact, photos, tmp_path, monkeypatch):
    (tmp_path / RUN_FILE).write_text(json.dumps({"data": str(photos)}))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="without a folder: does not say what it was trained on; give DATA"):
        read_photos(None, None, artefact.classes, artefact.preprocess)


def test_a_folder_with_too_few_photos(artefact, photos, tmp_path):
    for name in CLASSES:
        (tmp_path / name).mkdir()
        for file in sorted((photos / "train" / name).iterdir())[:10]:
            (tmp_path / name / file.name).symlink_to(file.resolve())
    with pytest.raises(DataError, match="20 photos to calibrate with, 32 are the least"):
        read_photos(tmp_path, tmp_path, artefact.classes, artefact.preprocess)
    ranges, held_out = read_photos(tmp_path, tmp_path, artefact.classes, artefact.preprocess, calibration=None)
    assert (len(ranges), len(held_out)) == (0, 20)


def test_calibration_and_evaluation_photos_are_apart(artefact, photos):
    ranges, held_out = read_photos(
        photos, photos, artefact.classes, artefact.preprocess, calibration=50, num_images=30, seed=1
    )
    assert (len(ranges), len(held_out)) == (50, 30)
    seen = {one.tobytes() for one in ranges.pixels()}
    assert not any(one.tobytes() in seen for one in held_out.pixels())
    again, _ = read_photos(photos, photos, artefact.classes, artefact.preprocess, calibration=50, seed=1)
    assert {one.tobytes() for one in again.pixels()} == seen


def test_photos_beyond_the_limit_are_read_again(artefact, photos, monkeypatch):
    monkeypatch.setattr("cmtvision.deploy.quantizing.calibration.MOST_KEPT", 10 * SIZE * SIZE * 3 + 1)
    _, held_out = read_photos(None, photos, artefact.classes, artefact.preprocess, num_images=25)
    prepared = []
    prepare = Preprocess.prepare
    monkeypatch.setattr(Preprocess, "prepare", lambda self, image: prepared.append(image) or prepare(self, image))
    first, second = (np.concatenate(list(held_out.batches(4))) for _ in range(2))
    assert np.array_equal(first, second)
    assert np.array_equal(first, np.stack([artefact.preprocess(path) for path in held_out.sources]))
    assert prepared[:40] == [*held_out.sources, *held_out.sources[10:]]
    assert [len(batch) for batch in held_out.batches(4, most=9)] == [4, 4, 1]


@pytest.mark.slow
def test_a_graph_of_one_batch_only_is_refused(artefact, photos, tmp_path, monkeypatch):
    """What was measured is the graph in memory; what a user opens is the file."""
    pytest.importorskip("onnxruntime")
    import onnx

    from cmtvision.deploy.quantizing.quantize_onnx import OnnxQuantizer

    class Frozen(OnnxQuantizer):
        def save(self, model, folder):
            files = super().save(model, folder)
            frozen = onnx.load(folder / "model.onnx")
            for value in (frozen.graph.input[0], frozen.graph.output[0]):
                value.type.tensor_type.shape.dim[0].dim_value = 1
            onnx.save(frozen, folder / "model.onnx")
            self.saved = model
            return files

        def read(self, folder):
            return self.saved

    monkeypatch.setattr("cmtvision.deploy.quantizing.quantize_onnx.OnnxQuantizer", Frozen)
    with pytest.raises(ExportError, match=r"^the 8-bit export .*; nothing was kept$"):
        quantize(artefact, "onnx", tmp_path / "out", data=photos, num_images=20, weight_only=True, max_drop=None)
    assert not (tmp_path / "out").exists()


def test_accuracy_counts_changes_photo_by_photo():
    before = np.array([True, True, True, False, False] * 40)
    after = before.copy()
    after[:5] = [False, True, True, True, True]
    found = Accuracy.compare(before, after)
    assert (found.before, found.after, found.lost, found.gained) == (120, 121, 1, 2)
    assert found.drop == pytest.approx(-0.5)
    low, high = found.interval
    assert low < found.drop < high < 2.0


def test_time_of_conversions_counts_to_the_layer_they_prepare():
    nodes = [(["quantise"], 2.0), (["a", "gelu"], 1.0), (["norm"], 0.5), (["b", "c"], 4.0), (["out"], 0.25)]
    assert attribute(nodes, ["a", "b", "c"]) == {"a": 3.0, "b": 2.25, "c": 2.5}


def test_refused_options(artefact, tmp_path):
    with pytest.raises(ConfigError, match="quantize to 'torch': expected onnx, openvino"):
        quantize(artefact, "torch", tmp_path / "out")
    with pytest.raises(ConfigError, match="rest 'fp16': expected fp32, bf16"):
        quantize(artefact, "onnx", tmp_path / "out", rest="fp16")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="choose another --out"):
        quantize(artefact, "onnx", tmp_path / "out", overwrite=True)


@pytest.mark.parametrize("number", [float("nan"), -1.0])
def test_refused_budgets(artefact, tmp_path, number):
    with pytest.raises(ConfigError, match=f"max_drop {number}: expected points of top-1, 0 or more"):
        quantize(artefact, "onnx", tmp_path / "out", max_drop=number)


def test_calibration_photos_for_weights_alone_are_refused(artefact, tmp_path):
    with pytest.raises(ConfigError, match="calibration: storing only the weights in 8 bits needs no photos"):
        quantize(artefact, "onnx", tmp_path / "out", weight_only=True, calibration=40)


def test_packages_and_arithmetic_are_looked_for_before_photos_are(artefact, tmp_path, monkeypatch):
    options = {"out": tmp_path / "out", "data": tmp_path / "nowhere"}
    with pytest.raises(ConfigError, match="rest bf16: ONNX Runtime computes in fp32"):
        quantize(artefact, "onnx", rest="bf16", **options)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"needs onnxruntime: pip install 'cmtvision\[onnx\]'$"):
        quantize(artefact, "onnx", **options)


def test_a_missing_nncf_is_told_before_photos_are_read(artefact, tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(ConfigError, match=r"needs nncf .*: pip install 'cmtvision\[openvino\]'$"):
        quantize(artefact, "openvino", tmp_path / "out", data=tmp_path / "nowhere")


def test_what_float16_cannot_hold_stays_float32():
    steady = np.linspace(-2, 2, 4096, dtype=np.float32)
    assert fits_float16(steady.reshape(64, 64))
    tiny = np.full((2048, 1), 6e-8, np.float32)  # scales: float16 has 5.96e-8 and then 1.19e-7
    assert not fits_float16(tiny * np.linspace(1, 3, 2048, dtype=np.float32)[:, None])
    assert not fits_float16(np.full(4096, 1e-8, np.float32))
    assert not fits_float16(np.full((64, 64), 7e4, np.float32))
    assert not fits_float16(np.full((64, 64), np.nan, np.float32))
    weight = np.full((64, 64), 0.05, np.float32)
    weight[0, 0] = 1e-9  # next to nothing beside the others
    assert fits_float16(weight)


def test_scales_are_written_as_they_are(tmp_path):
    """A layer of 2,048 channels: its tiny scales, and those of its bias, came back as other numbers."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    from cmtvision.deploy.quantizing.quantize_onnx import OnnxQuantizer

    scale = np.linspace(6e-8, 9e-8, 2048, dtype=np.float32)
    factors = np.linspace(0.5, 1.5, 2048, dtype=np.float32)
    tensors = [
        numpy_helper.from_array(np.ones((4, 2048), np.int8), "steps"),
        numpy_helper.from_array(scale, "scale"),
        numpy_helper.from_array(np.zeros(2048, np.int8), "zero"),
        numpy_helper.from_array(factors, "factors"),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["steps", "scale", "zero"], ["weight"], axis=1),
        helper.make_node("MatMul", ["images", "weight"], ["product"]),
        helper.make_node("Mul", ["product", "factors"], ["logits"]),
    ]
    ends = [helper.make_tensor_value_info(*end) for end in (
        ("images", TensorProto.FLOAT, ["B", 4]), ("logits", TensorProto.FLOAT, ["B", 2048]))]  # fmt: skip
    graph = helper.make_graph(nodes, "layer", ends[:1], ends[1:], tensors)
    quantizer = OnnxQuantizer.__new__(OnnxQuantizer)  # saving looks at nothing but the layers' names
    quantizer.layers = []
    quantizer.save(helper.make_model(graph), tmp_path)
    stored = [numpy_helper.to_array(one) for one in onnx.load(tmp_path / "model.onnx").graph.initializer]
    assert sum(one.dtype == np.float32 and np.array_equal(one, scale) for one in stored) == 1
    assert sum(one.dtype == np.float16 and one.size == 2048 for one in stored) == 1  # the factors, which it holds


def test_openvino_scales_are_written_as_they_are():
    openvino = pytest.importorskip("openvino")
    from cmtvision.deploy.quantizing.openvino_graph import compress_constants

    opset = openvino.opset13
    scale = np.linspace(6e-8, 9e-8, 512, dtype=np.float32)[:, None]
    steps = opset.convert(opset.constant(np.ones((512, 4), np.int8)), "f32")
    images = opset.parameter([1, 4], np.float32)
    ranges = [opset.constant(np.linspace(low, low + 1, 512, dtype=np.float32)[None]) for low in (0, 1, 0, 1)]
    product = opset.matmul(images, opset.multiply(steps, opset.constant(scale)), transpose_a=False, transpose_b=True)
    shifted = opset.add(product, opset.constant(np.linspace(1, 2, 512, dtype=np.float32)[None]))
    model = openvino.Model([opset.fake_quantize(shifted, *ranges, 256)], [images])
    compress_constants(model, opset)
    floats = [op.get_data() for op in model.get_ordered_ops() if op.get_type_name() == "Constant"]
    assert [one.dtype for one in floats if one.size == 512].count(np.float16) == 1  # what is added
    assert sum(one.dtype == np.float32 and np.array_equal(one, scale) for one in floats) == 1
