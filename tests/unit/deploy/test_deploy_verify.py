"""Verification: alike models pass, and every way of being different is named."""

import hashlib
import json
import shutil
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
from cmtvision.deploy.verifying import verify
from cmtvision.errors import ConfigError, DataError
from random_weights import randomise

CONTRACT = Preprocess((32, 32), 1.0, "bicubic", (0.5,) * 3, (0.25,) * 3)


@pytest.fixture(scope="module")
def photos():
    bundled = resources.files("cmtvision.data") / "fashion_mnist" / "t10k-images-idx3-ubyte.gz"
    return list(read_idx(bundled, (10_000, 28, 28))[:9])


@pytest.fixture(scope="module")
def artefact():
    model = randomise(timm.create_model("cmt_nano", num_classes=3, img_size=32)).eval()
    return Artefact("cmt_nano", {"img_size": 32}, ["a", "b", "c"], CONTRACT, model=model)


@pytest.fixture(scope="module")
def run(artefact, tmp_path_factory):
    return write_artefact(tmp_path_factory.mktemp("models") / "run", artefact)


@pytest.fixture(scope="module")
def onnx_export(artefact, photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports") / "onnx"
    return cmtvision.export(artefact, "onnx", folder, images=photos).folder


def changed_card(folder, target, **changes):
    shutil.copytree(folder, target)
    card = json.loads((target / "model.json").read_text())
    for key, value in changes.items():
        card[key] = {**card[key], **value} if isinstance(value, dict) else value
    (target / "model.json").write_text(json.dumps(card))
    return target


class Faked:
    """A runtime that gives another's logits, changed."""

    name, precision, device = "torch", "fp32", "cpu"

    def __init__(self, real, change, precision="fp32"):
        self.real, self.change, self.precision = real, change, precision
        self.arithmetic = precision

    def __call__(self, batch):
        return self.change(self.real(batch))


def fake(artefact, change, precision="fp32", task="single-label"):
    card = replace(artefact.card, task=task)
    return Predictor(card, runtime=Faked(Predictor(artefact, "cpu").runtime, change, precision))


@pytest.mark.slow
def test_a_model_agrees_with_itself_and_with_its_export(run, onnx_export, photos):
    same = verify(run, run, photos)
    assert (same.passed, same.reasons, same.top1_agreement, same.num_images) == (True, [], 1.0, 9)
    seen = []
    found = verify(run, onnx_export, photos, progress=lambda done, total: seen.append((done, total)))
    assert found.passed
    assert 0 < found.max_difference < 1e-4 * max(1, found.scale)
    assert seen[-1] == (36, 36)  # the reference once, the other at three batch sizes
    assert json.loads(json.dumps(found.to_dict()))["batches"] == [1, 2, 7]


def test_the_figures_are_those_of_the_logits(artefact, run, photos):
    logits = Predictor(artefact, "cpu").logits(photos)
    shift = np.array([0, 0, 0.5], np.float32)
    found = verify(run, fake(artefact, lambda out: out + shift), photos)
    assert found.max_difference == pytest.approx(0.5, abs=1e-3)
    assert found.scale == pytest.approx(float(logits.abs().max()), abs=1e-4)
    alike = (logits.argmax(1) == (logits + torch.from_numpy(shift)).argmax(1)).float().mean()
    assert found.top1_agreement == pytest.approx(float(alike))
    assert not found.passed
    assert verify(run, fake(artefact, lambda out: out + shift * 1e-4), photos, tolerance=1e-3).passed


@pytest.mark.slow
def test_another_crop_is_named(run, onnx_export, photos, tmp_path):
    cropped = changed_card(onnx_export, tmp_path / "cropped", preprocess={"crop_pct": 0.8})
    found = verify(run, cropped, photos)
    assert not found.passed
    assert any("preprocessing differs (crop_pct 1.0 and 0.8)" in reason for reason in found.reasons)


@pytest.mark.slow
def test_normalisation_inside_the_graph_must_be_the_cards(run, artefact, photos, tmp_path):
    inside = cmtvision.export(artefact, "torch", tmp_path / "inside", preprocess_inside=True, images=photos).folder
    assert verify(run, inside, photos).passed
    lying = changed_card(inside, tmp_path / "lying", preprocess={"mean": [0.1, 0.5, 0.5]})
    assert any("mean [0.5, 0.5, 0.5] and [0.1, 0.5, 0.5]" in reason for reason in verify(run, lying, photos).reasons)


@pytest.mark.slow
def test_classes_in_another_order_are_named(run, onnx_export, photos, tmp_path):
    swapped = changed_card(onnx_export, tmp_path / "swapped", classes=["a", "c", "b"])
    found = verify(run, swapped, photos)
    assert found.reasons == ["the classes differ: number 1 is 'b' and 'c'"]
    assert found.to_dict()["max_difference"] is None


def test_another_task_is_named(run, artefact, photos):
    found = verify(run, fake(artefact, lambda out: out, task="multi-label"), photos)
    assert found.reasons == ["the task differs: single-label and multi-label"]


@pytest.mark.slow
def test_a_graph_that_froze_its_batch_is_named(run, onnx_export, photos, tmp_path):
    """Its shapes say the batch is free, and inside it is not: seen only by running it."""
    import onnx
    from onnx import helper

    frozen = shutil.copytree(onnx_export, tmp_path / "frozen")
    model = onnx.load(frozen / "model.onnx")
    last = next(node for node in model.graph.node if "logits" in node.output)
    last.output[0] = "free"
    model.graph.initializer.append(helper.make_tensor("shape", onnx.TensorProto.INT64, [2], [2, 3]))
    model.graph.node.append(helper.make_node("Reshape", ["free", "shape"], ["logits"]))
    onnx.save(model, frozen / "model.onnx")
    card = json.loads((frozen / "model.json").read_text())
    card["export"]["sha256"]["model.onnx"] = hashlib.sha256((frozen / "model.onnx").read_bytes()).hexdigest()
    (frozen / "model.json").write_text(json.dumps(card))
    found = verify(run, frozen, photos)
    assert not found.passed
    assert [reason.partition(":")[0] for reason in found.reasons][:2] == [
        "in batches of 1 it fails",
        "in batches of 7 it fails",
    ]


def test_no_numbers_are_no_agreement(run, artefact, photos):
    found = verify(run, fake(artefact, lambda out: np.where(out > 0, np.float32("nan"), out)), photos)
    assert not found.passed
    assert "logits that are not numbers" in found.reasons[0]
    assert found.to_dict()["max_difference"] is None


def refusing(out):
    raise Exception("not this one\nand more")  # onnxruntime's own kinds derive from Exception only


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (refusing, "fails: Exception: not this one"),
        (lambda out: np.where(out > 0, np.float32("nan"), out), "gives logits that are not numbers"),
    ],
)
def test_a_broken_reference_is_a_reason_as_a_broken_copy_is(run, artefact, photos, change, reason):
    broken = fake(artefact, change)
    first, second = verify(broken, run, photos), verify(run, broken, photos)
    assert first.reasons == [f"the first {reason}"]
    assert second.reasons == [f"in batches of {size} it {reason}" for size in (1, 2, 7)]
    for found in (first, second):
        assert (found.passed, found.max_difference, found.top1_agreement) == (False, np.inf, 0.0)
        assert found.to_dict()["max_difference"] is None
        assert found.to_dict()["relative"] is None


def test_a_fault_at_one_batch_size_only(run, artefact, photos):
    found = verify(run, fake(artefact, lambda out: out + (len(out) == 7)), photos)
    assert [reason.partition(" logits")[0] for reason in found.reasons] == ["in batches of 7"]


def test_each_precision_has_its_criterion(run, artefact, photos):
    def off(out):
        return out + np.array([0.02, 0, 0], np.float32)

    scale = max(1, float(Predictor(artefact, "cpu").logits(photos).abs().max()))
    assert 5e-2 * scale > 0.02
    passed = {name: verify(run, fake(artefact, off, name), photos).passed for name in ("fp32", "bf16", "int8-bf16")}
    assert passed == {"fp32": False, "bf16": True, "int8-bf16": True}
    loose = {
        name: verify(run, fake(artefact, off, name), photos).tolerance for name in ("float32", "?", "int8-weights")
    }
    assert loose == {"float32": 1e-4, "?": 1e-4, "int8-weights": 0.5}  # nothing unknown is compared loosely


def test_a_less_precise_model_may_differ_on_one_undecided_image(run, artefact, photos):
    logits = Predictor(artefact, "cpu").logits(photos).numpy()
    best = np.sort(logits, axis=1)
    nearest = np.argsort(best[:, -1] - best[:, -2])

    def flipping(count):
        rows = logits[nearest[:count]]

        def change(out):
            out = out.copy()
            for row in out:
                if np.abs(rows - row).max(axis=1).min() < 1e-3:
                    row[row.argmin()] = row.max() + 1e-3
            return out

        return change

    def reasons(count, precision):
        found = verify(run, fake(artefact, flipping(count), precision), photos, tolerance=100.0)
        return found.reasons

    assert reasons(1, "fp16") == []
    assert reasons(2, "fp16") == ["2 of 9 images are decided differently"]


def test_multi_label_models_are_compared_class_by_class(artefact, photos):
    several = replace(artefact, task="multi-label")
    logits = Predictor(several, "cpu").logits(photos)
    assert (logits[:, 0] > 0).any()
    found = verify(
        Predictor(several, "cpu"),
        fake(artefact, lambda out: out * np.array([-1, 1, 1], np.float32), "bf16", "multi-label"),
        photos,
        tolerance=100.0,
    )
    assert found.top1_agreement == 0.0
    assert found.reasons == ["9 of 9 images are decided differently"]


def test_images_are_chosen_by_a_seed(run, photos, tmp_path):
    from PIL import Image

    folder = tmp_path / "photos" / "inner"
    folder.mkdir(parents=True)
    for number, pixels in enumerate(photos):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    found = verify(run, run, tmp_path / "photos", num_images=4)
    assert (found.num_images, found.passed) == (4, True)
    assert verify(run, run, [folder / "0.png"]).num_images == 1
    (folder / "0.png").write_text("no image")
    with pytest.raises(DataError, match=r"0\.png"):
        verify(run, run, tmp_path / "photos")


def test_what_cannot_be_compared_on_is_one_line(run, tmp_path):
    with pytest.raises(ConfigError, match="--images"):
        verify(run, run)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image in this folder"):
        verify(run, run, tmp_path / "empty")
    with pytest.raises(ConfigError, match="tolerance nan"):
        verify(run, run, tmp_path / "empty", tolerance=float("nan"))
