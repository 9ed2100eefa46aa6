"""Evaluation of several labels a photo: against the definition, torchmetrics, and any order of the photos."""

import json
import warnings
from pathlib import Path

import pytest
import torch

from cmtvision.data import Skipped
from cmtvision.engine.evaluation.multilabel import average_precisions, mean_average_precision, multilabel_evaluation
from cmtvision.errors import CheckpointError, DataError

CLASSES = ["ant", "bee", "cat", "dog"]
N = 60


@pytest.fixture
def answers():
    """Logits with many ties, and targets of which the last class has none."""
    generator = torch.Generator().manual_seed(0)
    targets = (torch.rand(N, 4, generator=generator) < 0.3).float()
    targets[:, 3] = 0
    logits = ((torch.randn(N, 4, generator=generator) + targets) * 3).round() / 3
    return logits, targets


def evaluation(logits, targets, **more):
    paths = [Path(f"{i}.png") for i in range(len(logits))]
    return multilabel_evaluation(CLASSES, logits, targets, "val", paths, **more)


def test_average_precision_equals_its_definition(answers):
    logits, targets = answers
    for c, value in enumerate(average_precisions(logits, targets)):
        s, true = logits[:, c].tolist(), targets[:, c].tolist()
        shares = []
        for i in range(N):
            if true[i]:
                at_least = [j for j in range(N) if s[j] >= s[i]]
                shares.append(sum(true[j] for j in at_least) / len(at_least))
        assert value == (pytest.approx(sum(shares) / len(shares), rel=1e-14) if shares else None)


def test_it_is_what_torchmetrics_computes(answers):
    logits, targets = answers
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchmetrics' own imports
        from torchmetrics.classification import MultilabelAveragePrecision
    each = MultilabelAveragePrecision(num_labels=3, average=None)(logits[:, :3].sigmoid(), targets[:, :3].long())
    ours = average_precisions(logits, targets)
    assert ours[:3] == pytest.approx(each.tolist(), abs=1e-6)
    assert ours[3] is None
    assert mean_average_precision(logits, targets) == pytest.approx(float(each.mean()), abs=1e-6)


def test_no_order_of_the_photos_changes_a_single_bit(answers):
    logits, targets = answers
    first = evaluation(logits, targets)
    for seed in range(5):
        order = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
        again = evaluation(logits[order], targets[order])
        assert json.dumps(again.to_dict()) == json.dumps(first.to_dict())


def test_small_case_by_hand():
    # ranks of ant: yes .9, no .8, yes .4 -> (1 + 2/3) / 2; bee: yes and no tied -> 1/2; cat: perfect; dog: no photos
    logits = torch.tensor([[2.2, 0.5, 3.0, -1.0], [1.4, 0.5, -3.0, 2.0], [-0.4, -9.0, -2.0, -1.0]])
    targets = torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]])
    found = evaluation(logits, targets, skipped=[Skipped(Path("bad.png"), "damaged")])
    assert found.average_precision == pytest.approx([5 / 6, 0.5, 1.0, None])
    assert found.mean_average_precision == pytest.approx((5 / 6 + 0.5 + 1) / 3)
    assert (found.images, found.claimed, found.correct) == ([2, 1, 1, 0], [2, 2, 1, 1], [1, 1, 1, 0])
    assert found.classes_without_photos == 1
    assert found.exact_match == 1
    assert found.micro() == pytest.approx({"precision": 3 / 6, "recall": 3 / 4, "f1": 6 / 10})
    assert found.macro() == pytest.approx({"precision": 2 / 3, "recall": 2.5 / 3, "f1": (0.5 + 2 / 3 + 1) / 3})
    dog = found.per_class()[3]
    assert (dog.recall, dog.precision, dog.f1) == (None, 0.0, 0.0)
    assert found.predictions[0].labels == (0, 1, 2) == found.predictions[0].predicted
    assert found.predictions[1].predicted == (0, 1, 3)
    expected = torch.nn.functional.binary_cross_entropy(logits.double().sigmoid(), targets.double())
    assert found.loss == pytest.approx(float(expected))
    written = json.loads(json.dumps(found.to_dict()))
    assert written["task"] == "multi-label"
    assert written["map"] == found.summary()["map"] == found.mean_average_precision
    assert written["per_class"][3]["average_precision"] is None
    assert written["skipped"] == [{"path": "bad.png", "reason": "damaged"}]
    assert found.headline() == "mAP: 77.78%, F1 60.00%, all labels right: 1/3"


def test_a_class_that_is_never_claimed_counts_as_precision_zero():
    found = evaluation(torch.full((2, 4), -1.0), torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0]]))
    assert found.per_class()[0].precision is None
    assert found.macro() == found.micro() == {"precision": 0.0, "recall": 0.0, "f1": 0.0}


def test_what_cannot_be_measured_is_one_line(answers):
    logits, targets = answers
    with pytest.raises(DataError, match="no photo to evaluate has any label"):
        evaluation(logits, torch.zeros_like(targets))
    with pytest.raises(DataError, match="no photo to evaluate has any label"):
        mean_average_precision(logits[:0], targets[:0])
    broken = logits.clone()
    broken[3, 1] = float("nan")
    with pytest.raises(CheckpointError, match="not numbers"):
        evaluation(broken, targets)
