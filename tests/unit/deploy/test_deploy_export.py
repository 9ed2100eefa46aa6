"""Exports: what is written answers as the model does, in every runtime; what does not is never kept."""

import errno
import shutil
import sys
from dataclasses import replace
from importlib import resources

import numpy as np
import pytest
import timm
import torch

import cmtvision
from cmtvision.artefact import Artefact, Predictor, write_artefact
from cmtvision.data import Preprocess
from cmtvision.data.idx import read_idx
from cmtvision.deploy import export as export_function
from cmtvision.deploy.exporting import onnx_file
from cmtvision.deploy.exporting.form import export_form
from cmtvision.errors import CheckpointError, ConfigError, ExportError
from cmtvision.machine import instruction_sets
from random_weights import randomise

CONTRACT = Preprocess((32, 32), 0.9, "bicubic", (0.5, 0.4, 0.6), (0.25, 0.3, 0.2))
CLASSES = ["a", "b", "c", "d", "e"]
LARGER = [
    pytest.param(name, to, marks=pytest.mark.every_size)
    for name in ("cmt_ti", "cmt_xs", "cmt_s", "cmt_b")
    for to in ("onnx", "openvino", "torch")
]


def build(name="cmt_nano", preprocess=CONTRACT, task="single-label", **arguments):
    model = randomise(timm.create_model(name, num_classes=len(CLASSES), **arguments)).eval()
    return Artefact(name, arguments, CLASSES, preprocess, task=task, model=model)


@pytest.fixture(scope="module")
def artefact():
    return build(img_size=32)


@pytest.fixture(scope="module")
def photos():
    """Twelve of the bundled photos, (28, 28) uint8."""
    bundled = resources.files("cmtvision.data") / "fashion_mnist" / "t10k-images-idx3-ubyte.gz"
    return list(read_idx(bundled, (10_000, 28, 28))[:12])


@pytest.fixture(scope="module")
def made(artefact, photos, tmp_path_factory):
    """Exports of the same model, each made once: made(to, precision)."""
    root, done = tmp_path_factory.mktemp("exports"), {}

    def make(to, precision="fp32"):
        key = f"{to}-{precision}"
        if key not in done:
            done[key] = cmtvision.export(artefact, to, root / key, precision=precision, images=photos)
        return done[key]

    return make


def logits_of(folder, photos):
    return cmtvision.load(folder, device="cpu").logits(photos)


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "openvino", "torch"])
def test_every_runtime_gives_the_models_own_answers(to, made, artefact, photos, tmp_path):
    exported = made(to)
    expected = Predictor(artefact, "cpu").logits(photos[:3])
    moved = shutil.copytree(exported.folder, tmp_path / "elsewhere")  # nothing in it depends on where it was made
    torch.testing.assert_close(logits_of(moved, photos[:3]), expected, rtol=1e-4, atol=1e-4)
    assert cmtvision.load(moved).preprocess == artefact.preprocess
    block = exported.card.export
    assert (block.runtime, block.precision, block.img_size) == (to, "fp32", (32, 32))
    assert block.verification["batches"] == [1, 2, 7]
    assert block.verification["num_images"] == 12
    assert block.verification["passed"] is True
    assert 0 < block.verification["max_difference"] < 1e-4
    siblings = {path.name for path in exported.folder.parent.iterdir()}
    assert not [name for name in siblings if name.startswith(".")]  # nothing temporary is left


@pytest.mark.slow
def test_an_onnx_file_is_checked_and_tells_nothing_of_the_machine(made):
    import onnx

    content = (made("onnx").folder / "model.onnx").read_bytes()
    assert b"site-packages" not in content
    assert str(resources.files("cmtvision")).encode() not in content
    model = onnx.load_from_string(content)
    assert model.opset_import[0].version == 18
    ends = (model.graph.input[0], model.graph.output[0])
    assert [one.name for one in ends] == ["images", "logits"]
    assert all(one.type.tensor_type.shape.dim[0].dim_param for one in ends)
    assert {one.key: one.value for one in model.metadata_props}["architecture"] == "cmt_nano"


@pytest.mark.slow
def test_a_frozen_batch_is_refused(made):
    import onnx

    model = onnx.load(made("onnx").folder / "model.onnx")
    example = torch.zeros(2, 3, 32, 32)
    onnx_file._check_shape(model, example)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    with pytest.raises(ExportError, match="frozen at 2"):
        onnx_file._check_shape(model, example)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("to", "precision", "stored"), [("onnx", "fp16", "FLOAT16"), ("onnx", "bf16", "BFLOAT16"), ("torch", "bf16", None)]
)
def test_less_precise_exports_are_half_as_large(to, precision, stored, made, artefact, photos):
    exported = made(to, precision)
    assert exported.num_bytes < 0.62 * made(to).num_bytes
    expected = Predictor(artefact, "cpu").logits(photos)
    found = logits_of(exported.folder, photos)
    assert found.dtype == torch.float32
    difference = float((found - expected).abs().max())
    assert difference > 1e-4  # it is another arithmetic
    assert difference <= (1e-2 if precision == "fp16" else 5e-2) * max(1, float(expected.abs().max()))
    if stored is not None:
        import onnx

        graph = onnx.load(exported.folder / "model.onnx").graph
        large = [one for one in graph.initializer if np.prod(one.dims) >= 1000]
        assert large
        assert {onnx.TensorProto.DataType.Name(one.data_type) for one in large if one.data_type != 7} == {stored}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_openvino_stores_half_the_bytes_unless_fp32(precision, made):
    weights = made("openvino").folder / "model.bin"
    exported = made("openvino", precision)
    assert (exported.folder / "model.bin").stat().st_size < 0.55 * weights.stat().st_size
    computed_in = exported.card.export.verification["arithmetic"]
    assert computed_in == cmtvision.load(exported.folder).runtime.arithmetic
    assert computed_in in (precision, "fp32")  # as this processor has it


@pytest.mark.slow
def test_pixels_in_a_gray_rectangular_multi_label_model(photos, tmp_path):
    gray = build("cmt_nano", Preprocess((32, 32), 1.0, "bilinear", (0.3,), (0.4,), 1), "multi-label", in_chans=1)
    before = [value.clone() for value in gray.model.state_dict().values()]
    done = cmtvision.export(gray, "onnx", tmp_path / "out", img_size=(32, 64), preprocess_inside=True, images=photos)
    assert all(torch.equal(a, b) for a, b in zip(before, gray.model.state_dict().values(), strict=True))
    import onnxruntime

    session = onnxruntime.InferenceSession(done.folder / "model.onnx", providers=["CPUExecutionProvider"])
    assert (session.get_inputs()[0].type, session.get_inputs()[0].shape[1:]) == ("tensor(uint8)", [32, 64, 1])
    predictor = cmtvision.load(done.folder, device="cpu")
    assert (predictor.task, predictor.preprocess.size) == ("multi-label", (32, 64))
    gray.model.set_input_size((32, 64))
    wide = replace(gray, preprocess=replace(gray.preprocess, size=(32, 64)))
    torch.testing.assert_close(
        predictor.logits(photos[:5]), Predictor(wide, "cpu").logits(photos[:5]), rtol=1e-4, atol=1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize("to", ["openvino", "torch"])
def test_another_size_with_pixels_in(to, artefact, photos, tmp_path):
    done = cmtvision.export(artefact, to, tmp_path / "out", img_size=48, preprocess_inside=True, images=photos)
    assert done.card.preprocess == replace(CONTRACT, size=(48, 48))
    assert artefact.model.img_size == (32, 32)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "to"), [("ceit_nano", "onnx"), ("vit_nano", "openvino"), ("ceit_nano", "torch")])
def test_other_networks_too(name, to, photos, tmp_path):
    assert cmtvision.export(build(name), to, tmp_path / "out", img_size=32, images=photos).verification.passed


def test_a_network_of_timm_is_exported_in_its_own_form_for_inference():
    model = randomise(timm.create_model("repvit_m0_9", num_classes=3)).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        before = model(images)
        form = export_form(model, "onnx", (64, 64))
        after = form(images)
    assert (before - after).abs().max() < 1e-4 * (before.max() - before.min())
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in form.modules())
    assert any(isinstance(part, torch.nn.BatchNorm2d) for part in model.modules())


@pytest.mark.parametrize(("name", "to"), LARGER)
def test_every_size_at_1e_4(name, to, photos, tmp_path):
    model = timm.create_model(name)
    size = model.img_size
    contract = Preprocess(size, 0.875, "bicubic", (0.5,) * 3, (0.25,) * 3)
    found = cmtvision.export(build(name, contract), to, tmp_path / "out", images=photos[:8], tolerance=1e-4)
    assert found.verification.relative <= 1e-4


def damaged(monkeypatch, change):
    """From now on model.onnx is changed behind the writer's back: change(model) edits the graph."""
    import onnx

    def write(network, example, folder, *args, **kwargs):
        files = onnx_file.write_onnx(network, example, folder, *args, **kwargs)
        model = onnx.load(folder / files[0])
        change(model)
        onnx.save(model, folder / files[0])
        return files

    monkeypatch.setattr(sys.modules["cmtvision.deploy.exporting.export"], "write_onnx", write)


@pytest.mark.slow
def test_an_export_with_a_changed_weight_is_refused(artefact, photos, tmp_path, monkeypatch):
    from onnx import numpy_helper

    def change(model):
        weight = next(one for one in model.graph.initializer if len(one.dims) == 4)
        values = numpy_helper.to_array(weight).copy()
        values[0, 0, 0, 0] += 0.05
        weight.CopyFrom(numpy_helper.from_array(values, weight.name))

    damaged(monkeypatch, change)
    with pytest.raises(ExportError, match=r"logits differ by .* nothing was kept"):
        cmtvision.export(artefact, "onnx", tmp_path / "out" / "onnx", images=photos)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_full_disk_leaves_nothing(artefact, photos, tmp_path, monkeypatch):
    def full(network, example, folder, *rest):
        (folder / "model.pt2").write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys.modules["cmtvision.deploy.exporting.export"], "write_torch", full)
    with pytest.raises(CheckpointError, match="No space left"):
        cmtvision.export(artefact, "torch", tmp_path / "out" / "torch", images=photos)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.slow
def test_only_an_export_is_ever_replaced(artefact, photos, tmp_path, made, monkeypatch):
    out = shutil.copytree(made("torch").folder, tmp_path / "out")
    with pytest.raises(ConfigError, match="already exists"):
        cmtvision.export(artefact, "torch", out, images=photos)
    old = (out / "model.json").read_text()
    cmtvision.export(artefact, "torch", out, images=photos[:5], overwrite=True)
    assert (out / "model.json").read_text() != old
    precious = write_artefact(tmp_path / "run", artefact)
    for folder in (precious, tmp_path):
        with pytest.raises(ConfigError, match="other than an export"):
            cmtvision.export(artefact, "torch", folder, images=photos, overwrite=True)
    assert (precious / "model.safetensors").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"to": "onnx", "opset": 17}, "opset 17: expected 18 to 2"),
        ({"to": "onnx", "opset": 99}, "opset 99: expected 18 to 2"),
        ({"to": "openvino", "opset": 18}, "opset: a setting of ONNX"),
        ({"to": "onnx", "compiled": True}, "compiled: native code of PyTorch"),
        ({"to": "tensorrt"}, "runtime 'tensorrt': expected onnx, openvino, torch"),
        ({"to": "onnx", "precision": "int4"}, "precision 'int4': expected fp32, fp16, bf16"),
        ({"to": "torch", "img_size": 0}, "image size 0x0"),
        ({"to": "torch", "images": None}, "--images"),
        ({"to": "torch", "num_images": 0}, "number of images 0"),
        ({"to": "torch", "tolerance": -1.0}, "tolerance -1.0"),
        ({"to": "torch", "out": None}, "say where to write"),
    ],
)
def test_options_that_make_no_sense_are_one_line(options, words, artefact, photos, tmp_path):
    with pytest.raises(ConfigError, match=words) as error:
        cmtvision.export(artefact, **{"out": tmp_path / "out", "images": photos[:2], **options})
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("to", "absent", "extra"),
    [
        ("onnx", "onnx", "onnx"),
        ("onnx", "onnxscript", "onnx"),
        ("onnx", "onnxruntime", "onnx"),
        ("openvino", "openvino", "openvino"),
        ("openvino", "onnxscript", "openvino"),
    ],
)
def test_a_missing_runtime_names_the_extra(to, absent, extra, artefact, photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(ConfigError, match=rf"needs {absent}: pip install 'cmtvision\[{extra}\]'"):
        cmtvision.export(artefact, to, tmp_path / "out", images=photos)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_openvino_needs_no_onnxruntime(artefact, photos, tmp_path, monkeypatch):
    """Its extra does not bring it."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert cmtvision.export(artefact, "openvino", tmp_path / "out", images=photos[:2]).verification.passed


def test_a_missing_compiler_is_named(artefact, photos, tmp_path):
    import torch._inductor.config as inductor

    # pytest's monkeypatch would take the setting away when it undoes: it is no attribute of the object that is patched
    with (
        inductor.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(ConfigError, match=r"needs a C\+\+ compiler"),
    ):
        cmtvision.export(artefact, "torch", tmp_path / "out", compiled=True, images=photos)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor compiles C++")
@pytest.mark.filterwarnings("ignore")  # inductor's own
def test_native_code(photos, tmp_path):
    artefact = build(img_size=32, depths=(1, 1, 1, 1))
    done = cmtvision.export(artefact, "torch", tmp_path / "out", compiled=True, images=photos)
    assert done.card.export.compiled
    assert list(done.card.export.instructions) == instruction_sets()
    expected = Predictor(artefact, "cpu").logits(photos[:3])
    torch.testing.assert_close(logits_of(done.folder, photos[:3]), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_later_opset(artefact, photos, tmp_path):
    done = cmtvision.export(artefact, "onnx", tmp_path / "out", opset=20, images=photos)
    assert done.card.export.opset == 20


@pytest.mark.slow
def test_an_export_cannot_be_exported_again(made, photos, tmp_path):
    with pytest.raises(CheckpointError, match="give the run it comes from"):
        cmtvision.export(made("torch").folder, "onnx", tmp_path / "out", images=photos)


def test_the_name_means_the_function():
    assert cmtvision.deploy.export is export_function is cmtvision.export
