"""Learning from a teacher (see teacher.py), whose part of the loss joins that of the labels.

Student logits z, teacher logits t, temperature T; every part is a mean over the photos of the batch:

    soft     T^2 KL(softmax(t / T) || softmax(z / T))                                   (Hinton et al., 2015)
    hard     cross-entropy of z with the teacher's decision, argmax t                   (DeiT, Touvron et al., 2021)
    feature  1 - cosine(P f, g) at every place of the student's map, averaged: f and g are the maps in front of the
             two classifiers, P a learned 1x1 convolution to the teacher's width

With ``data.multi_label`` each class is a yes or no of its own: soft is T^2 times the Bernoulli KL, hard the binary
cross-entropy with the teacher's decisions at probability 0.5, both averaged over the classes as the losses there are.

The teacher sees the very photos that the student sees, cropped and mixed as they are, in its own normalisation, and
resized where it takes one size only. Where the two maps have different grids, the teacher's is resized to the
student's: no gradient flows through it, and the backward of a resize is not deterministic on a GPU.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from cmtvision.engine.build import build_preprocess
from cmtvision.engine.distillation.teacher import Teacher, feature_map, open_teacher, resized
from cmtvision.errors import ConfigError
from cmtvision.recipe import DistillSection, Recipe


class Distiller(nn.Module):
    """The teacher's part of the loss.

    parameters() and state_dict() hold the feature projection alone, and nothing for soft and hard: the teacher is not
    trained, averaged or saved.

    Args:
        section: what is matched, and how.
        teacher: the network to learn from.
        multi_label: each class is a yes or no of its own.
        projection: for feature distillation, student's width -> teacher's width.
    """

    def __init__(
        self, section: DistillSection, teacher: Teacher, multi_label: bool = False, projection: nn.Conv2d | None = None
    ) -> None:
        super().__init__()
        self.section = section
        self.multi_label = multi_label
        self.projection = projection
        self._hidden = [teacher]  # a Teacher is no module, and the list keeps whatever becomes of it out of the tree

    @property
    def teacher(self) -> Teacher:
        """The network to learn from."""
        return self._hidden[0]

    def student_forward(self, student: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The student's logits (B, classes), and for feature distillation its map (B, D, h, w) from the same pass."""
        if self.section.kind != "feature":
            return student(images), None
        features = student.forward_features(images)  # type: ignore[operator]
        logits = student.forward_head(features)  # type: ignore[operator]
        return logits, feature_map(features, student, images, "the student")

    def forward(self, images: torch.Tensor, logits: torch.Tensor, features: torch.Tensor | None = None) -> torch.Tensor:
        """The teacher's part of the loss, a float32 scalar, not yet multiplied by alpha.

        Args:
            images: (B, C, H, W) as the student saw them.
            logits: the student's, (B, classes).
            features: the student's map, where ``student_forward`` gave one.
        """
        if self.section.kind == "feature":
            if features is None or self.projection is None:
                raise ValueError("feature distillation needs the features that student_forward gives")
            return feature_loss(self.projection(features), self.teacher.features(images))
        wanted = self.teacher.logits(images)
        if self.section.kind == "hard":
            return hard_loss(logits.float(), wanted, self.multi_label)
        return soft_loss(logits.float(), wanted, self.section.temperature, self.multi_label)


def build_distiller(
    recipe: Recipe,
    classes: Sequence[str],
    student: nn.Module,
    input_size: Sequence[int],
    device: torch.device | str,
) -> Distiller | None:
    """The recipe's distiller, or None where it names no teacher.

    Neither the random state nor the student's mode and statistics change; the projection's first weights depend on the
    recipe's seed alone.

    Args:
        recipe: ``distill`` decides.
        classes: of the data, in the order of the student's logits.
        student: the network to train, as ``build_model`` gives it.
        input_size: of its images, ending in (H, W).
        device: where the teacher works.

    Raises:
        ConfigError: an unknown teacher, one of other classes or channels, one without weights or without a map, or
            settings that feature distillation cannot go with.
        CheckpointError: weights that cannot be read or do not fit.
    """
    if recipe.distill.teacher is None:
        return None
    _check(recipe)
    preprocess = build_preprocess(recipe, student)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)  # not torch.manual_seed: it would reseed every GPU as well
        teacher = open_teacher(recipe, classes, preprocess).to(device)
        projection = None
        if recipe.distill.kind == "feature":
            images = torch.zeros(1, preprocess.channels, *tuple(input_size)[-2:])
            width = _student_map(student, images).shape[1]
            torch.default_generator.manual_seed(recipe.seed)
            projection = nn.Conv2d(width, teacher.features(images.to(device)).shape[1], 1).to(device)
    return Distiller(recipe.distill, teacher, recipe.data.multi_label, projection)


def soft_loss(logits: torch.Tensor, wanted: torch.Tensor, temperature: float, multi_label: bool) -> torch.Tensor:
    """T^2 times the divergence of the student's probabilities from the teacher's, both softened by the temperature."""
    logits, wanted = logits / temperature, wanted / temperature
    if multi_label:
        chance = wanted.sigmoid()
        yes = chance * (F.logsigmoid(wanted) - F.logsigmoid(logits))
        no = (1 - chance) * (F.logsigmoid(-wanted) - F.logsigmoid(-logits))
        return (yes + no).mean() * temperature**2
    divergence = F.kl_div(logits.log_softmax(dim=1), wanted.log_softmax(dim=1), reduction="batchmean", log_target=True)
    return divergence * temperature**2


def hard_loss(logits: torch.Tensor, wanted: torch.Tensor, multi_label: bool) -> torch.Tensor:
    """Cross-entropy with what the teacher decides."""
    if multi_label:
        return F.binary_cross_entropy_with_logits(logits, (wanted >= 0).to(logits.dtype))
    return F.cross_entropy(logits, wanted.argmax(dim=1))


def feature_loss(projected: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """1 - cosine of two maps (B, D, h, w) and (B, D, h', w'), at every place of the first; within 0..2."""
    if wanted.shape[2:] != projected.shape[2:]:
        wanted = resized(wanted, projected.shape[2:])
    return (1 - F.cosine_similarity(projected.float(), wanted, dim=1)).mean()


def _check(recipe: Recipe) -> None:
    """Feature distillation takes the student apart into its map and its head: refuse what that would leave undone."""
    if recipe.distill.kind != "feature":
        return
    if recipe.model.freeze == "backbone":
        raise ConfigError("distill.kind feature: with model.freeze=backbone no map can learn; use soft or hard")
    if recipe.train.compile:
        raise ConfigError("distill.kind feature: train.compile compiles whole networks only; set it to false")
    if recipe.train.strategy == "fsdp":
        raise ConfigError("distill.kind feature: train.strategy fsdp gathers whole networks only; use ddp")


def _student_map(student: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The student's map of some images, in eval mode; every part's own mode comes back."""
    modes = {module: module.training for module in student.modules()}
    device = next(student.parameters()).device
    try:
        student.eval()
        with torch.no_grad():
            features = student.forward_features(images.to(device))  # type: ignore[operator]
            return feature_map(features, student, images, "the student")
    finally:
        for module, training in modes.items():
            module.training = training
