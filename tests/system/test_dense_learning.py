"""A detector and a segmenter learn a few images by heart: what they are trained on is what they are measured by."""

from dataclasses import replace

import pytest

import cmtvision
from cmtvision.artefact.dense import DetectionPredictor
from cmtvision.data import write_sample_scenes
from cmtvision.detection.task import DETECTION
from cmtvision.engine import fit
from cmtvision.recipe import load_recipe
from cmtvision.segmentation.task import SEGMENTATION

pytestmark = pytest.mark.slow

ALWAYS_THE_SAME = [
    "scene.size=[64,64]", "scene.scale=[1,1]", "scene.hflip=0", "scene.photometric=0", "scene.eval_short_side=64",
    "optim.lr_base_batch=null", "optim.weight_decay=0", "schedule.warmup_epochs=5", "train.eval_every=1000",
    "train.device=cpu", "train.threads=1", "train.loggers=[]", "data.workers=0", "ema.decay=0.9",
]  # fmt: skip


def learned(folder, task, recipe, images, settings):
    """The evaluation of a network on the images that it was trained on."""
    data = folder / "scenes"
    write_sample_scenes(data, task.kind, scenes=10, size=64)
    recipe = load_recipe(recipe, [*ALWAYS_THE_SAME, f"train.batch_size={images.stop - images.start}", *settings])
    index = task.read(recipe, data)
    few = index.train[images]
    return fit(recipe, data, folder / "run", task=task, index=replace(index, train=few, val=few)).evaluation


@pytest.mark.parametrize(
    ("kind", "options"),
    [("retinanet", "finest_stride: 4, nms_threshold: 0.4"), ("maskrcnn", "rois_per_image: 64")],
)
def test_a_detector_learns_one_image_by_heart(tmp_path, kind, options):
    options = f"model.options={{fpn_width: 64, anchor_scale: 0.5, {options}}}"
    settings = [f"model.name=cmt_nano_{kind}", options, "optim.lr=1e-3", "schedule.epochs=100"]
    found = learned(tmp_path, DETECTION, "detect", slice(1, 2), settings)
    assert found.boxes.num_objects == 2
    assert found.boxes.ap50 > 0.95
    assert found.boxes.ap > 0.7
    if kind == "maskrcnn":
        assert found.masks.ap50 > 0.95
    # what a person is shown without a word on confidence are these two objects
    predictor = cmtvision.load(tmp_path / "run")
    assert predictor.min_score == found.point.score
    shown = predictor.predict(found.samples[0].path)[0]
    assert sorted(shown.labels) == sorted(found.samples[0].labels)
    for wrong in ("0.5", float("nan"), 2, None, True):
        metrics = predictor.card.metrics | {"min_score": wrong}
        assert DetectionPredictor(replace(predictor.card, metrics=metrics), None).min_score == 0.5


def test_a_segmenter_learns_eight_images_by_heart(tmp_path):
    settings = [
        "model.name=cmt_nano_unet", "model.options={decoder_channels: [64, 48, 32, 24, 16]}", "optim.lr=4e-3",
        "schedule.epochs=240",
    ]  # fmt: skip
    found = learned(tmp_path, SEGMENTATION, "segment", slice(0, 8), settings)
    assert found.figures.mean_iou > 0.95
