"""Detectors that find nothing cannot be said to agree."""

import numpy as np
import pytest
import torch
from PIL import Image

from cmtvision.artefact import Artefact
from cmtvision.artefact.dense import DetectionPredictor
from cmtvision.data import Preprocess
from cmtvision.deploy.exporting.dense import verified_dense
from cmtvision.deploy.verifying_dense import verify_dense
from cmtvision.errors import ExportError
from cmtvision.models.detectors import create_detector


def predictor(**arguments):
    torch.manual_seed(0)
    model = create_detector("retinanet", "cmt_nano", 2, fpn_width=16, **arguments).eval()
    how = {key: value for key, value in model.arguments.items() if key not in ("kind", "backbone", "num_classes")}
    preprocess = Preprocess((64, 64), 1.0, "bilinear", (0.5,) * 3, (0.2,) * 3)
    artefact = Artefact("cmt_nano_retinanet", how, ["a", "b"], preprocess, task="detection", model=model)
    return DetectionPredictor(artefact.card, model), artefact


@pytest.fixture
def images():
    return [Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))]


def test_no_finding_is_no_agreement(images, monkeypatch):
    (first, artefact), (second, _) = predictor(score_threshold=0.99), predictor(score_threshold=0.99)
    with torch.no_grad():
        for parameter in second.network.parameters():
            parameter.normal_(std=0.01)
    found = verify_dense(first, second, images)
    assert found.num_compared == 0
    assert not found.passed
    assert "0 findings" not in found.headline()
    (reason,) = found.reasons
    assert "--images" in reason
    monkeypatch.setattr(DetectionPredictor, "open", lambda *_: second)
    with pytest.raises(ExportError, match=r"is not verified: nothing was found in the one image.*nothing was kept"):
        verified_dense(artefact, None, images, None, None)


def test_what_is_found_by_both_is_compared(images):
    found = verify_dense(predictor(score_threshold=0.0)[0], predictor(score_threshold=0.0)[0], images)
    assert found.passed
    assert found.num_compared > 0
