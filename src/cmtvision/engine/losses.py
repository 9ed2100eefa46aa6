"""Training losses: cross-entropy, binary cross-entropy or the asymmetric loss, with or without class weights.

Photo i, class c, logit z, target t within 0..1; every loss is a mean over the B photos of the batch:

    cross_entropy   -sum_c t_c log softmax(z)_c
    bce             -mean_c [t_c log p_c + (1 - t_c) log(1 - p_c)],  p = sigmoid(z)
    asymmetric      -mean_c [t_c (1 - p_c)^g+ log p_c + (1 - t_c) q_c^g- log(1 - q_c)],  q = max(p - shift, 0)

bce for one label a photo is that of "ResNet strikes back" (Wightman et al., 2021); mixed photos keep their proportional
targets, where that paper may also round them up to 1. asymmetric is Ridnik et al., ICCV 2021, whose code sums over
batch and classes; the mean keeps a learning rate good for any batch and number of classes.

Label smoothing e gives t (1 - e) + e / C for one label and for several. Targets of single-label data that come as
(B, C) were smoothed where they were mixed; those of multi-label data are smoothed here, mixed or not.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from cmtvision.recipe import LossSection, Recipe

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def build_loss(recipe: Recipe, class_counts: Sequence[int]) -> Loss:
    """The recipe's loss: (logits (B, C), targets) -> scalar, at least float32.

    Targets are class numbers (B,) int64, or (B, C) float: soft labels of mixed photos, or multi-hot rows where
    ``data.multi_label`` is true.

    Args:
        recipe: ``loss``, ``augment.label_smoothing`` and ``data.class_balance`` decide.
        class_counts: training photos of each class, in the order of the logits.
    """
    weights = class_weights(class_counts) if recipe.data.class_balance == "loss" else None
    smoothing = recipe.augment.label_smoothing
    if recipe.data.multi_label:
        return _MultiLabelLoss(recipe.loss, smoothing, weights)
    return _SingleLabelLoss(recipe.loss, smoothing, weights)


def class_weights(class_counts: Sequence[int]) -> torch.Tensor:
    """Weights (C,) float32, inverse to how often a class occurs, whose mean over all training labels is 1.

    A class without photos gets 1; it never occurs, so nothing reads it.
    """
    counts = torch.tensor(list(class_counts), dtype=torch.float64)
    present = counts > 0
    share = counts.sum() / max(1, int(present.sum()))
    return torch.where(present, share / counts.clamp(min=1), 1.0).float()


def asymmetric_loss(logits: torch.Tensor, targets: torch.Tensor, section: LossSection) -> torch.Tensor:
    """The asymmetric loss of each element, (B, C); the module's docstring has the formula.

    Unlike some implementations it keeps the gradient of the focusing factors, as the paper's equation does.
    """
    probability = logits.sigmoid()
    found = F.logsigmoid(logits)  # log p
    if section.gamma_positive:
        found = found * (1 - probability) ** section.gamma_positive
    if section.probability_shift:
        shifted = (probability - section.probability_shift).clamp(min=0)
        absent = torch.log1p(-shifted)  # finite: shifted is at most 1 - shift
    else:
        shifted, absent = probability, F.logsigmoid(-logits)
    if section.gamma_negative:
        absent = absent * shifted**section.gamma_negative
    return -(targets * found + (1 - targets) * absent)


class _SingleLabelLoss:
    """One label a photo; with class weights each photo's whole loss is multiplied by its class's weight.

    A mixed photo weighs what its parts weigh, by their shares; the mass that smoothing spreads does not count. So the
    mean is over photos, never over weights, and mixing changes no photo's say in the epoch.
    """

    def __init__(self, section: LossSection, smoothing: float, weights: torch.Tensor | None) -> None:
        self.section, self.smoothing, self.weights = section, smoothing, weights

    def __call__(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = _at_least_float32(logits)
        if targets.ndim == 1 and self.section.name == "cross_entropy":
            losses = F.cross_entropy(logits, targets, label_smoothing=self.smoothing, reduction="none")  # (B,)
            return (losses if self.weights is None else losses * self._photo_weights(logits, targets)).mean()
        soft = targets if targets.ndim == 2 else self._one_hot(targets, logits)
        soft = soft.to(logits.dtype)
        if self.section.name == "cross_entropy":
            losses = F.cross_entropy(logits, soft, reduction="none")
        else:
            losses = F.binary_cross_entropy_with_logits(logits, soft, reduction="none").mean(dim=1)
        return (losses if self.weights is None else losses * self._photo_weights(logits, targets)).mean()

    def _one_hot(self, targets: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        return _smoothed(F.one_hot(targets, logits.shape[1]).to(logits.dtype), self.smoothing)

    def _photo_weights(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        assert self.weights is not None
        self.weights = weights = self.weights.to(logits.device)
        if targets.ndim == 1:
            return weights[targets]
        # smoothing is affine, so what it added can be taken out again: t = (1 - e) hard + e / C
        return (targets.to(weights.dtype) @ weights - self.smoothing * weights.mean()) / (1 - self.smoothing)


class _MultiLabelLoss:
    """Any number of labels a photo; class weights multiply what a label that is there costs, its absence costs 1."""

    def __init__(self, section: LossSection, smoothing: float, weights: torch.Tensor | None) -> None:
        self.section, self.smoothing, self.weights = section, smoothing, weights

    def __call__(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = _at_least_float32(logits)
        soft = _smoothed(targets, self.smoothing).to(logits.dtype)
        if self.section.name == "bce":
            losses = F.binary_cross_entropy_with_logits(logits, soft, reduction="none")  # (B, C)
        else:
            losses = asymmetric_loss(logits, soft, self.section)
        if self.weights is not None:
            self.weights = weights = self.weights.to(logits.device)
            losses = losses * (1 + targets.to(logits.dtype) * (weights - 1))
        return losses.mean()


def _smoothed(targets: torch.Tensor, smoothing: float) -> torch.Tensor:
    return targets * (1 - smoothing) + smoothing / targets.shape[1]


def _at_least_float32(logits: torch.Tensor) -> torch.Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
