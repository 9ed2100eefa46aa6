"""Every loss against its equation, written out again in float64 and without broadcasting."""

import math

import pytest
import torch

from cmtvision.data.training.augment import mixer
from cmtvision.engine.losses import build_loss, class_weights
from cmtvision.recipe import Recipe

COUNTS = [60, 30, 10, 0]
B, C = 5, 4


def recipe(name="cross_entropy", multi_label=False, balance="none", smoothing=0.1, **loss):
    return Recipe.model_validate(
        {
            "data": {"multi_label": multi_label, "class_balance": balance},
            "loss": {"name": name, **loss},
            "augment": {"label_smoothing": smoothing},
        }
    )


@pytest.fixture
def logits():
    return torch.randn(B, C, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 4


LABELS = torch.tensor([0, 2, 1, 2, 0])
MULTI_HOT = torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 0], [0, 0, 1, 0]], dtype=torch.float32)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def smoothed(label, e):
    return [(1 - e) * (c == label) + e / C for c in range(C)]


def cross_entropy(row, target):
    total = math.log(sum(math.exp(z) for z in row))
    return -sum(t * (z - total) for z, t in zip(row, target, strict=True))


def bce(row, target):
    terms = [t * math.log(sigmoid(z)) + (1 - t) * math.log(1 - sigmoid(z)) for z, t in zip(row, target, strict=True)]
    return -sum(terms) / C


def mean(values):
    values = list(values)
    return sum(values) / len(values)


@pytest.mark.parametrize(("name", "equation"), [("cross_entropy", cross_entropy), ("bce", bce)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_single_label_losses_equal_their_equations(logits, name, equation, smoothing):
    loss = build_loss(recipe(name, smoothing=smoothing), COUNTS)
    expected = mean(
        equation(row, smoothed(y, smoothing)) for row, y in zip(logits.tolist(), LABELS.tolist(), strict=True)
    )
    assert loss(logits, LABELS).item() == pytest.approx(expected, rel=1e-12)
    # the same labels as soft targets, smoothed beforehand, are the same loss: smoothing happens once
    soft = torch.tensor([smoothed(y, smoothing) for y in LABELS.tolist()], dtype=torch.float64)
    assert loss(logits, soft).item() == pytest.approx(expected, rel=1e-12)


def test_weights_are_inverse_to_frequency_with_mean_one_over_the_training_set():
    weights = class_weights(COUNTS).tolist()
    assert weights == pytest.approx([100 / 180, 100 / 90, 100 / 30, 1.0])
    assert sum(w * n for w, n in zip(weights, COUNTS, strict=True)) / 100 == pytest.approx(1)
    assert class_weights([0, 0]).tolist() == [1, 1]


@pytest.mark.parametrize(("name", "equation"), [("cross_entropy", cross_entropy), ("bce", bce)])
def test_class_weights_multiply_a_photos_whole_loss(logits, name, equation):
    loss = build_loss(recipe(name, balance="loss"), COUNTS)
    w = [100 / 180, 100 / 90, 100 / 30, 1.0]
    rows = list(zip(logits.tolist(), LABELS.tolist(), strict=True))
    expected = mean(w[y] * equation(row, smoothed(y, 0.1)) for row, y in rows)
    assert loss(logits, LABELS).item() == pytest.approx(expected, rel=1e-6)
    soft = torch.tensor([smoothed(y, 0.1) for y in LABELS.tolist()])
    assert loss(logits, soft).item() == pytest.approx(expected, rel=1e-6)
    # a photo mixed of classes 0 and 2 weighs what its parts weigh
    mixed = torch.tensor([[0.7 * a + 0.3 * b for a, b in zip(smoothed(0, 0.1), smoothed(2, 0.1), strict=True)]])
    expected = (0.7 * w[0] + 0.3 * w[2]) * equation(logits[0].tolist(), mixed[0].tolist())
    assert loss(logits[:1], mixed).item() == pytest.approx(expected, rel=1e-6)


def test_what_our_mixer_gives_is_taken_as_smoothed(logits):
    made = recipe()
    _, soft = mixer(made.augment, C)(torch.zeros(B, 3, 8, 8), LABELS, seed=1)
    expected = mean(cross_entropy(row, target) for row, target in zip(logits.tolist(), soft.tolist(), strict=True))
    assert build_loss(made, COUNTS)(logits, soft).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_bce_of_several_labels(logits, smoothing):
    loss = build_loss(recipe("bce", True, smoothing=smoothing), COUNTS)
    rows = zip(logits.tolist(), MULTI_HOT.tolist(), strict=True)
    expected = mean(bce(row, [t * (1 - smoothing) + smoothing / C for t in target]) for row, target in rows)
    assert loss(logits, MULTI_HOT).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("negative", "positive", "shift"), [(4, 0, 0.05), (2, 1, 0), (0, 0, 0), (1, 2, 0.2)])
def test_asymmetric_loss_equals_its_equation(logits, negative, positive, shift):
    def equation(z, t):
        p = sigmoid(z)
        q = max(p - shift, 0)
        return -(t * (1 - p) ** positive * math.log(p) + (1 - t) * q**negative * math.log(1 - q))

    focus = {"gamma_negative": negative, "gamma_positive": positive, "probability_shift": shift}
    loss = build_loss(recipe("asymmetric", True, smoothing=0.0, **focus), COUNTS)
    pairs = zip(logits.flatten().tolist(), MULTI_HOT.flatten().tolist(), strict=True)
    assert loss(logits, MULTI_HOT).item() == pytest.approx(mean(equation(z, t) for z, t in pairs), rel=1e-9)


def test_easy_negatives_give_no_gradient_and_extreme_logits_no_nan():
    loss = build_loss(recipe("asymmetric", True, smoothing=0.0), [1, 1])
    logits = torch.tensor([[-5.0, -200.0], [200.0, 200.0]], requires_grad=True)
    value = loss(logits, torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
    value.backward()
    assert logits.grad[0].tolist() == [0, 0]  # probability below the shift
    assert torch.isfinite(value)
    assert torch.isfinite(logits.grad).all()


def test_weights_of_several_labels_count_for_what_is_there(logits):
    loss = build_loss(recipe("bce", True, "loss", smoothing=0.0), COUNTS)
    w = [100 / 180, 100 / 90, 100 / 30, 1.0]
    terms = []
    for row, target in zip(logits.tolist(), MULTI_HOT.tolist(), strict=True):
        for c in range(C):
            p = sigmoid(row[c])
            terms.append(-w[c] * math.log(p) if target[c] else -math.log(1 - p))
    assert loss(logits, MULTI_HOT).item() == pytest.approx(mean(terms), rel=1e-6)


@pytest.mark.parametrize(
    ("made", "targets"), [(recipe(), LABELS), (recipe("bce"), LABELS), (recipe("asymmetric", True), MULTI_HOT)]
)
def test_half_precision_logits_are_computed_in_float32(logits, made, targets):
    loss = build_loss(made, COUNTS)
    half = logits.bfloat16()
    assert loss(half, targets).dtype == torch.float32
    assert torch.equal(loss(half, targets), loss(half.float(), targets))
