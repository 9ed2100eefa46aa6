"""What is chosen for annotated images where nobody named a recipe, and what is refused of one."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from cmtvision.artefact import Artefact, write_artefact
from cmtvision.data import write_sample_scenes
from cmtvision.data.annotations import read_segmentation
from cmtvision.detection.task import DETECTION
from cmtvision.engine import fit
from cmtvision.engine.dense.build import build_dense
from cmtvision.engine.dense.choose import settings_for
from cmtvision.errors import CheckpointError, ConfigError
from cmtvision.recipe import load_recipe
from cmtvision.segmentation.task import SEGMENTATION, SegmentationEvaluation, SegmentationTask


@pytest.mark.parametrize(
    ("size", "side", "longest"),
    [((128, 128), 128, 213), ((180, 240), 192, 320), ((480, 640), 480, 800), ((9, 9), 64, 107)],
)
def test_small_images_are_not_enlarged(size, side, longest):
    index = SimpleNamespace(train=[SimpleNamespace(size=size)] * 3)
    chosen = settings_for(index, load_recipe("segment"))
    assert chosen == {"scene.size": [side, side], "scene.eval_short_side": side, "scene.eval_longest": longest}
    anchors = "model.options.anchor_scale"
    assert settings_for(index, load_recipe("detect")).get(anchors) == (0.5 if side <= 256 else None)
    assert anchors not in settings_for(index, load_recipe("detect", ["model.name=cmt_ti_fcos"]))


def test_photos_keep_the_size_of_the_recipe():
    index = SimpleNamespace(train=[SimpleNamespace(size=(1200, 800)), SimpleNamespace(size=(600, 800))])
    assert settings_for(index, load_recipe("detect")) == {}


def test_a_missing_library_of_figures_is_named_before_anything_is_read(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(ConfigError, match=r"cmtvision\[detection\]"):
        DETECTION.check(load_recipe("detect"))
    with pytest.raises(ConfigError, match=r"cmtvision\[detection\]"):
        DETECTION.evaluate(tmp_path / "run", tmp_path / "images")
    SEGMENTATION.check(load_recipe("segment"))


SMALL = ["model.name=cmt_nano_retinanet", "model.options.fpn_width=16"]


def trained_detector(folder):
    """A detector of two classes, which is in a folder as training leaves it."""
    built = build_dense(load_recipe("detect", SMALL), 2, False)
    artefact = Artefact(
        built.architecture, built.arguments, ["a", "b"], built.preprocess, model=built.model, task="detection"
    )
    write_artefact(folder, artefact)
    return built.model


def test_the_weights_of_a_detector_begin_one_with_other_classes(tmp_path):
    run = tmp_path / "run"
    before = trained_detector(run)
    for weights in (run, run / "model.safetensors"):
        built = build_dense(load_recipe("detect", [*SMALL, f"model.weights={weights}"]), 3, False)
        old, new = before.state_dict(), built.model.state_dict()
        anew = [key for key in new if old[key].shape != new[key].shape]
        assert anew == ["network.head.classification_head.cls_logits.weight",
                        "network.head.classification_head.cls_logits.bias"]  # fmt: skip
        assert all(torch.equal(old[key], new[key]) for key in new if key not in anew)
        (said,) = built.notes
        assert said.startswith(f"{len(new) - 2} of {len(new)} tensors are from {run}")
        assert said.endswith("2 begin anew")
        assert built.model.arguments["frozen_norms"]


def test_a_segmenter_begins_with_the_backbone_of_a_detector_and_none_with_another_backbone(tmp_path):
    run = tmp_path / "run"
    before = trained_detector(run)
    built = build_dense(load_recipe("segment", ["model.name=cmt_nano_fpn", f"model.weights={run}"]), 3, False)
    old, new = before.network.backbone.body.state_dict(), built.model.encoder.model.state_dict()
    assert old.keys() == new.keys()
    assert all(torch.equal(old[key], new[key]) for key in new)
    with pytest.raises(CheckpointError, match="another backbone's weights"):
        build_dense(load_recipe("segment", ["model.name=resnet18_fpn", f"model.weights={run}"]), 3, False)


def test_a_full_memory_is_answered_with_settings_that_the_task_has(monkeypatch, tmp_path):
    def full(*args, **how):
        raise torch.OutOfMemoryError

    monkeypatch.setattr("pytorch_lightning.Trainer.fit", full)
    write_sample_scenes(tmp_path / "scenes", "segmentation", scenes=6, size=64)
    settings = ["model.name=cmt_nano_fpn", "scene.size=[64,64]", "data.workers=0", "train.device=cpu"]
    with pytest.raises(ConfigError, match=r"a smaller train\.batch_size.*scene\.size") as caught:
        fit(load_recipe("segment", settings), tmp_path / "scenes", tmp_path / "run", task=SEGMENTATION)
    assert "auto" not in str(caught.value)


@pytest.mark.parametrize("task", [DETECTION, SEGMENTATION])
def test_a_recipe_is_checked_before_the_data_is_read(task, tmp_path):
    name = {"detection": "detect", "segmentation": "segment"}[task.kind]
    with pytest.raises(ConfigError, match=r"set scene\.hflip"):
        task.read(load_recipe(name, ["augment.hflip=0"]), tmp_path / "gone")
    with pytest.raises(ConfigError, match="give a number"):
        task.read(load_recipe(name, ["train.batch_size=auto"]), tmp_path / "gone")


def test_a_note_about_the_images_is_said_once(monkeypatch, tmp_path):
    scenes = write_sample_scenes(tmp_path / "scenes", "segmentation", scenes=6, size=64).directory
    index = replace(read_segmentation(scenes), notes=["a file is odd"])
    monkeypatch.setattr("cmtvision.engine.dense.task.read_annotated_as_the_run", lambda *_: index)
    monkeypatch.setattr(
        SegmentationTask, "evaluated", lambda *_, **__: SegmentationEvaluation(counts=None, figures=None)
    )
    predictor = SimpleNamespace(card=None, classes=index.classes, network=None, device="cpu", inputs_for=lambda _: None)
    assert SEGMENTATION.measure(predictor, tmp_path, scenes).notes == ["a file is odd"]
