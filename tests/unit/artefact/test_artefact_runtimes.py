"""Every runtime behind one interface: same answers of a small network, settings that arrive, faults in one line."""

import io
import json
import os
import shutil
import subprocess
import sys
import warnings
import zipfile
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from data_files import photo
from torch import nn

import cmtvision
from cmtvision.artefact import Artefact, Predictor, read_artefact, write_artefact, write_export_card
from cmtvision.artefact import card as card_module
from cmtvision.artefact import files as files_module
from cmtvision.artefact.card import Card, read_card
from cmtvision.artefact.runtimes import openvino as runtime_openvino
from cmtvision.artefact.runtimes.base import arithmetic_of
from cmtvision.artefact.runtimes.open import device_for, open_runtime
from cmtvision.artefact.runtimes.openvino import HINTS, import_openvino, openvino_core
from cmtvision.artefact.runtimes.torch import _check_archive
from cmtvision.data import Preprocess
from cmtvision.engine import evaluate
from cmtvision.engine.distributed.processes import Processes
from cmtvision.errors import CheckpointError, ConfigError
from cmtvision.machine import default_threads, instruction_sets, saturates_int8, usable_cores

CONTRACT = Preprocess((24, 32), 0.9, "bicubic", (0.5, 0.4, 0.3), (0.25, 0.2, 0.3))
CLASSES = ["a", "b", "c", "d"]
RUNTIMES = ["onnx", "openvino", "torch"]
FILES = {"onnx": ["model.onnx"], "openvino": ["model.xml", "model.bin"], "torch": ["model.pt2"]}


class FromPixels(nn.Module):
    """A network with scale, normalisation and layout in front of it."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(CONTRACT, name))[:, None, None])

    def forward(self, pixels):
        return self.network((pixels.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(1)
    layers = nn.Conv2d(3, 8, 3, 2, 1), nn.GELU(), nn.Conv2d(8, 16, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(16, len(CLASSES))).eval()


@pytest.fixture(scope="module")
def reference(network):
    return Predictor(Artefact("cmt_nano", {}, CLASSES, CONTRACT, model=deepcopy(network)), "cpu")


def export_onnx(network, folder, example):
    how = {"dynamo": True, "opset_version": 18, "dynamic_shapes": ({0: torch.export.Dim("batch")},), "verbose": False}
    with warnings.catch_warnings():  # of the exporter's own insides
        warnings.simplefilter("ignore")
        program = torch.onnx.export(network, (example,), input_names=["images"], output_names=["logits"], **how)
    program.save(folder / "model.onnx")


@pytest.fixture(scope="module")
def exports(network, reference, tmp_path_factory):
    """An export of the same network for each runtime, and 'pixels', an ONNX one with the arithmetic inside."""

    folders = {name: tmp_path_factory.mktemp(name) for name in (*RUNTIMES, "pixels")}
    export_onnx(network, folders["onnx"], torch.zeros(2, 3, *CONTRACT.size))
    export_onnx(FromPixels(network).eval(), folders["pixels"], torch.zeros(2, *CONTRACT.size, 3, dtype=torch.uint8))
    openvino = import_openvino()
    openvino.save_model(
        openvino_core().read_model(folders["onnx"] / "model.onnx"),
        folders["openvino"] / "model.xml",
        compress_to_fp16=False,
    )
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(network, (torch.zeros(2, 3, *CONTRACT.size),), dynamic_shapes=(shapes[0],))
    torch.export.save(program, folders["torch"] / "model.pt2")
    for name, folder in folders.items():
        runtime = "onnx" if name == "pixels" else name
        block = {"runtime": runtime, "file": FILES[runtime][0], "files": FILES[runtime], "precision": "fp32"}
        block |= {"img_size": list(CONTRACT.size), "preprocess_inside": name == "pixels"}
        write_export_card(folder, reference.artefact, block)
    return folders


@pytest.fixture
def copy(exports, tmp_path):
    """A copy of an export, to be damaged."""

    def copied(name):
        return shutil.copytree(exports[name], tmp_path / name)

    return copied


IMAGES = [photo(40 + i, 60, seed=i) for i in range(6)] + [photo(30, 30).convert("L")]


@pytest.mark.parametrize("name", [*RUNTIMES, "pixels"])
def test_every_runtime_gives_the_networks_logits_for_batches_of_any_size(name, exports, reference):
    expected = reference.logits(IMAGES)
    predictor = cmtvision.load(exports[name], device="cpu", threads=1)
    for count in (1, 2, 7, 5, 1):
        assert torch.allclose(predictor.logits(IMAGES[:count]), expected[:count], atol=1e-5), count
    batch = torch.from_numpy(np.stack([predictor.inputs(image) for image in IMAGES]))
    assert torch.allclose(predictor.forward(batch), expected, atol=1e-5)
    assert predictor.forward(batch[:0]).shape == (0, len(CLASSES))
    found = [one.label for one in predictor.predict(IMAGES, batch_size=3)]
    assert found == [one.label for one in reference.predict(IMAGES)]
    assert (predictor.classes, predictor.task, predictor.preprocess) == (CLASSES, "single-label", CONTRACT)


@pytest.mark.parametrize("name", [*RUNTIMES, "pixels", "network"])
def test_a_batch_reaches_its_runtime_in_the_memory_where_it_is(name, exports, reference, monkeypatch):
    predictor = reference if name == "network" else cmtvision.load(exports[name], device="cpu", threads=1)
    holder, attribute = (predictor, "runtime") if name == "network" else (predictor.runtime, "runtime")
    inner, given, gave = getattr(holder, attribute), [], []

    def spy(batch):
        given.append(batch)
        gave.append(inner(batch))
        return gave[-1]

    monkeypatch.setattr(holder, attribute, spy)
    batch = torch.from_numpy(np.stack([predictor.inputs(image) for image in IMAGES]))
    logits = predictor.forward(batch)
    assert given[0].ctypes.data == batch.data_ptr()
    assert logits.data_ptr() == gave[0].ctypes.data


def test_a_card_is_read_once_however_it_is_opened(exports, reference, tmp_path, monkeypatch):
    write_artefact(tmp_path / "run", reference.artefact)
    read, original = [], card_module.read_card
    monkeypatch.setattr(card_module, "read_card", lambda folder: read.append(folder) or original(folder))
    monkeypatch.setattr(files_module, "_network", lambda *_: deepcopy(reference.artefact.model))
    folders = [tmp_path / "run", *exports.values()]
    for folder in folders:
        cmtvision.load(folder, device="cpu")
    assert read == folders


def test_any_file_of_a_model_opens_it_and_no_other(exports, copy):
    for name in RUNTIMES:
        for file in (*FILES[name], "model.json"):
            assert cmtvision.load(exports[name] / file, device="cpu").runtime.name == name
    folder = copy("onnx")
    (folder / "other.onnx").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"other\.onnx: not of the model .* that is model\.onnx"):
        cmtvision.load(folder / "other.onnx")


def test_threads_and_streams_reach_the_runtime(exports, monkeypatch):
    onnx = cmtvision.load(exports["onnx"], device="cpu", threads=3).runtime.runtime
    assert onnx.session.get_session_options().intra_op_num_threads == 3
    openvino = cmtvision.load(exports["openvino"], threads=1, streams=2)
    openvino.logits(IMAGES)
    compiled = openvino.runtime.runtime.compiled(4)  # seven images in two parts of at most four
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
    assert openvino.runtime.runtime.settings["NUM_STREAMS"] == "2"
    assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"
    before = torch.get_num_threads()
    try:
        cmtvision.load(exports["torch"], device="cpu", threads=before + 1)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert default_threads() == 5
    onnx = cmtvision.load(exports["onnx"], device="cpu").runtime.runtime
    assert onnx.session.get_session_options().intra_op_num_threads == 5
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert 1 <= default_threads() == usable_cores() <= len(os.sched_getaffinity(0))


def test_openvino_compiles_for_the_sizes_that_come_and_only_so_many(exports, reference):
    predictor = cmtvision.load(exports["openvino"])
    runtime = predictor.runtime.runtime
    expected = reference.logits(IMAGES)
    sizes = []
    for count in (7, 4, 4, 1, 6, 1, 2, 2, 3, 3, 6, 5, 5):
        assert torch.allclose(predictor.logits(IMAGES[:count]), expected[:count], atol=1e-5), count
        sizes.append(sorted(runtime.sizes))
    # what comes for the first time runs in the graph for a few more
    assert sizes[:6] == [[7], [7], [4, 7], [4, 7], [4, 7], [1, 4, 7]]
    assert sizes[-1] == [1, 2, 3, 4, 6, 7]  # 5 came after six sizes had a graph of their own
    fresh = cmtvision.load(exports["openvino"])
    for count in (7, 1):
        fresh.logits(IMAGES[:count])
    assert sorted(fresh.runtime.runtime.sizes) == [1, 7]  # not in the graph for 7: six sevenths would be wasted


def test_all_openvino_models_share_one_core_that_stays(exports):
    """With two of them that overlap, the next signal would kill the process where the processor has AMX."""
    one, other = cmtvision.load(exports["openvino"]), cmtvision.load(exports["openvino"])
    assert one.runtime.runtime.core is other.runtime.runtime.core is openvino_core("another")


@pytest.mark.parametrize(
    ("precision", "available", "arithmetic"),
    [
        ("fp32", {"fp16", "bf16", "int8"}, "fp32"),
        ("fp16", {"fp16", "bf16"}, "fp16"),
        ("fp16", {"bf16", "int8"}, "fp32"),  # bf16 is coarser than what was asked for
        ("bf16", {"bf16"}, "bf16"),
        ("bf16", {"fp16"}, "fp32"),  # fp16 ends at 65504
        ("int8", {"int8", "bf16"}, "int8"),
        ("int8", {"bf16"}, "fp32"),
        ("int8-bf16", {"int8", "bf16"}, "int8-bf16"),
        ("int8-bf16", {"int8"}, "int8"),
        ("int8-weights", {"int8", "bf16"}, "fp32"),
        ("int8-weights-bf16", {"int8", "bf16"}, "bf16"),
    ],
)
def test_a_model_is_computed_in_what_was_asked_for_or_in_fp32(precision, available, arithmetic):
    assert arithmetic_of(precision, available) == arithmetic


MACHINES = [{"fp32"}, {"fp32", "int8"}, {"fp32", "int8", "bf16"}, {"fp32", "int8", "bf16", "fp16"}]


@pytest.mark.parametrize(
    "has", [None, *MACHINES], ids=lambda has: "this machine" if has is None else "-".join(sorted(has))
)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8-weights-bf16"])
def test_openvino_is_told_an_arithmetic_that_the_device_has(precision, has, exports, copy, reference, monkeypatch):
    """Left to itself it computes an fp16 file in bf16 where a processor has bf16 and no fp16."""
    here = runtime_openvino.capabilities(openvino_core(), "CPU")
    assert "fp32" in here
    if has is not None and not has <= here:
        pytest.skip(f"this processor computes in {here}")
    if has is not None:
        monkeypatch.setattr(runtime_openvino, "capabilities", lambda core, target: has)
    has = has or here
    folder = copy("openvino")
    damage(folder, precision=precision)
    predictor = cmtvision.load(folder, device="cpu")
    logits = predictor.logits(IMAGES)
    runtime = predictor.runtime.runtime
    told = runtime.compiled(len(IMAGES)).get_property("INFERENCE_PRECISION_HINT").get_type_name()
    wanted = precision.split("-")[-1]
    assert told == (HINTS[wanted] if wanted in has else "f32")
    assert predictor.runtime.arithmetic == (wanted if wanted in has else "fp32")
    if told == "f32":
        assert torch.allclose(logits, reference.logits(IMAGES), atol=1e-5)


SATURATING = """
import json, sys
import numpy as np
import cmtvision
from cmtvision.artefact.runtimes.openvino import import_openvino
from cmtvision.artefact import Card, write_export_card
from cmtvision.data import Preprocess

openvino = import_openvino()
from openvino import opset13 as op
images = op.parameter([-1, 64, 8, 8], np.float32, name="images")
rounded = op.fake_quantize(images, *map(np.float32, (0, 255, 0, 255)), 256)
weights = op.constant(np.full((2, 64, 1, 1), 127, np.float32))
weights = op.fake_quantize(weights, *map(np.float32, (-127, 127, -127, 127)), 255)
maps = op.convolution(rounded, weights, [1, 1], [0, 0], [0, 0], [1, 1])
logits = op.reduce_mean(maps, op.constant(np.array([2, 3])), False)
folder = sys.argv[1]
openvino.save_model(openvino.Model([logits], [images]), f"{folder}/model.xml", compress_to_fp16=False)
card = Card("cmt_nano", {}, ["a", "b"], Preprocess((8, 8), 1.0, "bicubic", (0.0,) * 64, (1.0,) * 64, 64))
files = ["model.xml", "model.bin"]
block = {"runtime": "openvino", "file": files[0], "files": files, "precision": "int8", "img_size": [8, 8]}
from pathlib import Path
write_export_card(Path(folder), card, block)
runtime = cmtvision.load(folder, device="cpu").runtime
print(json.dumps([runtime(np.full((1, 64, 8, 8), 255, np.float32)).tolist()[0], runtime.arithmetic]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("instructions", [None, "AVX2"])
def test_8_bits_mean_the_same_on_every_processor(instructions, tmp_path):
    """Without VNNI oneDNN's sum of 64 products of 255 and 127 ends at half of what it is."""
    environment = {**os.environ, **({} if instructions is None else {"ONEDNN_MAX_CPU_ISA": instructions})}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SATURATING, tmp_path],
        capture_output=True, text=True, check=False, timeout=200, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    logits, arithmetic = json.loads(done.stdout)
    assert logits == pytest.approx([255 * 127 * 64] * 2, rel=1e-6)
    assert arithmetic == ("int8" if instructions is None and not saturates_int8() else "fp32")


def test_onnx_runtime_is_told_not_to_saturate(exports):
    options = cmtvision.load(exports["onnx"], device="cpu").runtime.runtime.session.get_session_options()
    assert options.get_session_config_entry("session.x64quantprecision") == "1"


def test_who_asked_for_another_arithmetic_is_told(copy, caplog, monkeypatch):
    monkeypatch.setattr(runtime_openvino, "capabilities", lambda core, target: {"fp32"})
    folder = copy("openvino")
    damage(folder, precision="fp16")
    with caplog.at_level("INFO", "cmtvision"):
        cmtvision.load(folder, device="cpu")
    assert caplog.messages == [f"{folder}: fp16 model computed in fp32: openvino has nothing else on this device"]


def damage(folder, **changes):
    card = json.loads((folder / "model.json").read_text())
    card["export"] |= changes
    (folder / "model.json").write_text(json.dumps(card))


def one_line(error, *words):
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_card_of_another_model_is_refused(copy, name):
    folder = copy(name)
    card = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**card, "classes": ["a", "b"]}))
    with pytest.raises(CheckpointError) as error:
        cmtvision.load(folder, device="cpu")
    one_line(error, FILES[name][0], "2 classes", "(4,)")
    card["preprocess"]["size"] = card["export"]["img_size"] = [64, 64]
    (folder / "model.json").write_text(json.dumps(card))
    with pytest.raises(CheckpointError) as error:
        cmtvision.load(folder, device="cpu")
    one_line(error, FILES[name][0], "(3, 64, 64)")


@pytest.mark.parametrize("name", RUNTIMES)
def test_torn_files_are_refused_by_their_hash_and_then_by_the_runtime(copy, name):
    folder = copy(name)
    file = folder / FILES[name][-1]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="SHA-256") as error:
        cmtvision.load(folder, device="cpu")
    one_line(error, FILES[name][-1])
    torn = folder / FILES[name][0]
    torn.write_bytes(torn.read_bytes()[:300])
    card = read_card(folder)
    block = {key: value for key, value in card["export"].items() if key != "sha256"}
    write_export_card(folder, card, {**block, "files": FILES[name]})
    with pytest.raises(CheckpointError) as error:
        cmtvision.load(folder, device="cpu")
    one_line(error, FILES[name][0], "cannot open it")
    file.unlink()
    with pytest.raises(CheckpointError, match="missing"):
        cmtvision.load(folder, device="cpu")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"file": "../onnx/model.onnx"}, "plain name"),
        ({"sha256": {"model.onnx": "0", "/etc/passwd": "0"}}, "plain name"),
        ({"sha256": {"model.onnx": "0", "..\\x": "0"}}, "plain name"),
        ({"sha256": {"model.onnx": "0", "": "0"}}, "plain name"),
        ({"sha256": {}}, "SHA-256"),
        ({"file": "model.xml"}, r"\.onnx file"),
        ({"runtime": "tensorrt"}, "tensorrt"),
        ({"precision": "float32"}, "precision 'float32', expected one of fp32, fp16"),
        ({"img_size": [24, 33]}, "export the model again"),
        ({"img_size": 24}, "model.json"),
        ({"sha256": {f"f{i}": "0" for i in range(99)} | {"model.onnx": "0"}}, "99|100 files"),
    ],
)
def test_a_block_that_makes_no_sense_is_one_clear_line(copy, changes, words):
    folder = copy("onnx")
    damage(folder, **changes)
    with pytest.raises(CheckpointError, match=words) as error:
        cmtvision.load(folder)
    one_line(error, "model.json")


def test_a_newer_format_names_the_version_to_install(copy):
    folder = copy("onnx")
    card = json.loads((folder / "model.json").read_text())
    card |= {"format_version": 6}
    card["provenance"]["exported"]["cmtvision"] = "7.1.0"
    (folder / "model.json").write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match=r"format 6, .* 1, 2, 3, 4 and 5; .*cmtvision>=7\.1\.0") as error:
        cmtvision.load(folder)
    one_line(error)


def test_what_is_written_must_make_sense_too(exports, reference, tmp_path):
    block = {
        "runtime": "onnx",
        "file": "model.onnx",
        "files": ["model.onnx"],
        "precision": "fp32",
        "img_size": [24, 32],
    }
    with pytest.raises(CheckpointError, match=r"model\.onnx: cannot be read"):
        write_export_card(tmp_path, reference.artefact, block)
    for changes in ({"files": ["../model.onnx", "model.onnx"]}, {"files": []}, {"img_size": None}):
        with pytest.raises(CheckpointError, match="export block"):
            write_export_card(tmp_path, reference.artefact, {**block, **changes})
    assert not (tmp_path / "model.json").exists()
    card = Card.from_dict(read_card(exports["onnx"]))
    assert card.export is not None
    assert Card.from_dict(json.loads(json.dumps(card.to_dict()))) == card
    assert card.provenance["exported"]["cmtvision"]


@pytest.mark.parametrize(("name", "package"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_a_runtime_that_is_not_installed_names_the_extra(exports, monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError) as error:
        cmtvision.load(exports[name])
    one_line(error, f"needs {package}: pip install 'cmtvision[{name}]'", str(exports[name]))


def test_options_that_a_runtime_does_not_have_are_refused(exports, reference, tmp_path):
    for name in ("onnx", "torch"):
        with pytest.raises(ConfigError, match=f"streams: a setting of OpenVINO, and this model runs in {name}"):
            cmtvision.load(exports[name], streams=2)
    for name, device in (
        ("onnx", "mps"),
        ("onnx", "cuda:1"),
        ("openvino", "cuda"),
        ("openvino", "gpu"),
        ("torch", "tpu"),
    ):
        if not (device.startswith("cuda") and torch.cuda.is_available()):
            with pytest.raises(ConfigError, match=f"device '{device}'"):
                cmtvision.load(exports[name], device=device)
    for options in ({"threads": 0}, {"streams": 0}):
        with pytest.raises(ConfigError, match="expected at least 1"):
            cmtvision.load(exports["openvino"], **options)
    predictor = cmtvision.load(exports["pixels"], device="cpu")
    with pytest.raises(ConfigError, match=r"expected \(B, 24, 32, 3\) uint8"):
        predictor.forward(torch.zeros(1, 3, 24, 32))


def test_an_export_has_no_network_and_a_run_folder_has(exports, reference, tmp_path):
    with pytest.raises(CheckpointError, match="export for onnx, without the network's weights"):
        read_artefact(exports["onnx"])
    with pytest.raises(CheckpointError, match="no PyTorch network in it"):
        _ = cmtvision.load(exports["onnx"]).artefact
    model = cmtvision.create_model("cmt_nano", num_classes=4).eval()
    square = Preprocess((32, 32), 1.0, "bicubic", (0.5,) * 3, (0.25,) * 3)
    folder = write_artefact(tmp_path / "run", Artefact("cmt_nano", {}, CLASSES, square, model=model))
    batch = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    runtime = open_runtime(folder, Card.read(folder), "cpu")
    assert (runtime.name, runtime.precision, runtime.device) == ("torch", "fp32", "cpu")
    with torch.no_grad():
        assert np.allclose(runtime(batch), model(torch.from_numpy(batch)).numpy(), atol=1e-5)
    with pytest.raises(ConfigError, match="streams"):
        cmtvision.load(folder, streams=2)


class Harmful:
    """Says so when it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("it was unpickled",))


def rewritten(file, changes, compression=zipfile.ZIP_STORED):
    """Replace members of a .pt2 archive, by the end of their names."""
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, next((new for end, new in changes.items() if name.endswith(end)), content))
        for name in [name for name in changes if name.startswith("model/")]:
            archive.writestr(name, changes[name])


@pytest.mark.parametrize(
    ("member", "words"),
    [
        ("sample_inputs/model.pt", "more than tensors"),
        ("model_weights_config.json", "would run code"),
        ("model/data/aotinductor/model/a.so", "holds native code"),
    ],
)
def test_a_pt2_file_with_objects_or_native_code_that_its_card_does_not_name_is_refused(copy, member, words):
    folder = copy("torch")
    harmful = io.BytesIO()
    torch.save({"a": Harmful()}, harmful)
    content = harmful.getvalue() if member.endswith(".pt") else b'{"config": {"x": {"use_pickle": true}}}'
    rewritten(folder / "model.pt2", {member: content})
    card = read_card(folder)
    write_export_card(folder, card, {**card["export"], "files": ["model.pt2"]})
    with pytest.raises(CheckpointError, match=words) as error:
        cmtvision.load(folder, device="cpu")
    one_line(error, "model.pt2")


def reopened(folder):
    """Open a folder whose model.pt2 was changed, with a card that names it as it is; the error."""
    card = read_card(folder)
    write_export_card(folder, card, {**card["export"], "files": ["model.pt2"]})
    with pytest.raises(CheckpointError) as error:
        cmtvision.load(folder, device="cpu")
    return error


@pytest.mark.parametrize("content", [b"[]", b'{"config": []}', b'{"config": {"x": 1}}', b"{", b"\xff", b"[" * 100_000])
def test_a_pt2_file_with_a_list_of_weights_that_makes_no_sense_is_one_line(copy, content):
    folder = copy("torch")
    rewritten(folder / "model.pt2", {"model_weights_config.json": content})
    one_line(reopened(folder), "model.pt2: PyTorch cannot open it")


def test_a_pt2_file_that_swells_when_it_is_read_is_refused_unread(copy, monkeypatch):
    folder = copy("torch")
    bomb = {"model_weights_config.json": b"0" * 50_000_000}
    rewritten(folder / "model.pt2", bomb, zipfile.ZIP_DEFLATED)
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda archive, name: pytest.fail(f"{name} was read"))
    one_line(reopened(folder), "model.pt2", "compressed")
    monkeypatch.undo()
    rewritten(folder / "model.pt2", bomb)
    one_line(reopened(folder), "model.pt2", "larger than 10 MB")


def test_of_a_pt2_file_only_what_could_hold_objects_is_read_by_us(exports, monkeypatch):
    real, seen = zipfile.ZipFile.read, []
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda archive, one: seen.append(one.filename) or real(archive, one))
    _check_archive(exports["torch"] / "model.pt2", compiled=False)
    assert seen
    assert not [name for name in seen if not name.endswith((".pt", "_config.json"))]


@pytest.mark.parametrize(
    ("name", "providers", "expected"),
    [
        (None, [], "cuda"),
        ("torch", [], "cuda"),
        ("openvino", [], "cpu"),
        ("onnx", ["CPUExecutionProvider"], "cpu"),
        ("onnx", ["CUDAExecutionProvider", "CPUExecutionProvider"], "cuda"),
        ("compiled", [], "cpu"),
    ],
)
def test_on_a_machine_with_a_gpu_only_what_can_use_it_takes_it(
    exports, reference, monkeypatch, name, providers, expected
):
    import onnxruntime

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    card = (
        reference.card if name is None else Card.from_dict(read_card(exports["torch" if name == "compiled" else name]))
    )
    if name == "compiled":
        card = replace(card, export=replace(card.export, compiled=True))
    assert device_for(card, "auto") == expected
    assert device_for(card, "cpu") == "cpu"
    assert device_for(card, "gpu") == "gpu"  # of OpenVINO only; the runtime refuses it where it is opened


class TwoProcesses(Processes):
    """The second of two, which hears nothing of the first."""

    def __init__(self):
        super().__init__(rank=1, world_size=2, local_rank=1, local_world_size=2)

    def first(self, work):
        return work()

    def gather(self, value):
        return [value]


@pytest.mark.parametrize(("name", "kind"), [("openvino", "cpu"), ("onnx", "cpu"), ("torch", "cuda")])
def test_several_processes_share_out_gpus_only_where_the_model_can_use_one(exports, tmp_path, monkeypatch, name, kind):
    module, asked = sys.modules["cmtvision.engine.evaluation.evaluate"], []

    @contextmanager
    def join(device_type):
        asked.append(device_type)
        yield TwoProcesses()

    def load(folder, device, threads, streams):
        asked.append(device)
        return cmtvision.load(folder, "cpu" if device.startswith("cuda") else device, threads, streams)

    for i, label in enumerate(CLASSES):
        (tmp_path / label).mkdir()
        IMAGES[i].save(tmp_path / label / "1.png")
    monkeypatch.setattr(module, "join_processes", join)
    monkeypatch.setattr(module, "load", load)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: len(asked) < 2)  # until the model is opened
    found = evaluate(exports[name], tmp_path, batch_size=2, workers=0, threads=1)
    assert asked == [kind, "cuda:1" if kind == "cuda" else "auto"]
    assert found.num_images == 2  # of four: the other half is the first one's


@pytest.mark.slow
def test_openvino_is_imported_without_its_telemetry():
    """It sends an event when it is imported, unless its telemetry package is absent."""
    look = (
        "import sys; from cmtvision.artefact.runtimes.openvino import import_openvino; openvino = import_openvino();"
        "from openvino.tools.ovc import telemetry_utils; print(telemetry_utils.tm.__name__);"
        "assert 'openvino_telemetry' not in sys.modules; import openvino_telemetry"
    )
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=False, timeout=200)
    assert (done.returncode, done.stdout.strip()) == (0, "openvino.tools.ovc.telemetry_stub"), done.stderr


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler warns of its own insides
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_a_compiled_package_opens_and_is_checked(network, reference, tmp_path):
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    program = torch.export.export(network, (torch.zeros(2, 3, *CONTRACT.size),), dynamic_shapes=shapes)
    torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    block = {"runtime": "torch", "file": "model.pt2", "files": ["model.pt2"], "precision": "fp32", "compiled": True}
    write_export_card(tmp_path, reference.artefact, {**block, "img_size": [24, 32]})
    predictor = cmtvision.load(tmp_path, device="cpu")
    expected = reference.logits(IMAGES)
    for count in (7, 1, 2):
        assert torch.allclose(predictor.logits(IMAGES[:count]), expected[:count], atol=1e-5)
    with pytest.raises(ConfigError, match="compiled for cpu"):
        cmtvision.load(tmp_path, device="cuda")
    damage(tmp_path, instructions=["avx_of_tomorrow", *instruction_sets()])
    with pytest.raises(CheckpointError, match="a processor with avx_of_tomorrow, which this one lacks"):
        cmtvision.load(tmp_path, device="cpu")
    damage(tmp_path, compiled=False, instructions=[])
    with pytest.raises(CheckpointError, match="holds native code"):
        cmtvision.load(tmp_path, device="cpu")
    damage(tmp_path, compiled=True)
    card = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps({**card, "classes": ["a", "b"]}))
    with pytest.raises(CheckpointError, match="2 classes"):
        cmtvision.load(tmp_path, device="cpu")
