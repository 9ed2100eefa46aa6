"""The teacher of a distillation: opened from timm or from a run folder, fed with the student's images, never trained.

B batch, C channels of the image, D width of the map in front of the classifier, h w its grid.
"""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.data import resolve_model_data_config
from torch import nn

from cmtvision.artefact import read_artefact
from cmtvision.artefact.files import CARD_FILE, MODEL_FILE
from cmtvision.data import Preprocess
from cmtvision.engine.build import weight_arguments
from cmtvision.errors import CheckpointError, ConfigError
from cmtvision.models import create_model
from cmtvision.models.weight_sources import HOSTED
from cmtvision.recipe import Recipe
from cmtvision.weights import from_official, is_official, read_state_dict
from cmtvision.weights.fetch import FetchError


class Teacher:
    """A frozen network that looks at the student's images as it is used to see them.

    Args:
        name: what messages call it.
        model: the network; put in eval mode, its parameters take no gradient.
        preprocess: its own size, mean and std.
        student: the student's; images come normalised by its mean and std.
        fixed_size: it takes images of its own size only.
        order: for each class of the student its number among the teacher's, None where both are in one order.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        preprocess: Preprocess,
        student: Preprocess,
        fixed_size: bool,
        order: Sequence[int] | None = None,
    ) -> None:
        self.name = name
        self.model = model.eval().requires_grad_(False)
        self.size = preprocess.size if fixed_size else None
        self._order = None if order is None else torch.tensor(order)
        # (x * student's std + student's mean - own mean) / own std, as one product and one sum
        own_mean, own_std, mean, std = (
            torch.tensor(values, dtype=torch.float64)[:, None, None]
            for values in (preprocess.mean, preprocess.std, student.mean, student.std)
        )
        self._scale, self._shift = (std / own_std).float(), ((mean - own_mean) / own_std).float()  # (C, 1, 1)
        self._same_pixels = (preprocess.mean, preprocess.std) == (student.mean, student.std)

    def to(self, device: torch.device | str) -> "Teacher":
        """Move it to a device; it also follows the images by itself."""
        self.model.to(device)
        self._scale, self._shift = self._scale.to(device), self._shift.to(device)
        self._order = None if self._order is None else self._order.to(device)
        return self

    @torch.no_grad()
    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Float32 logits (B, classes) in the student's order, of images as the student sees them."""
        logits = self.model(self.images(images)).float()
        return logits if self._order is None else logits[:, self._order]

    @torch.no_grad()
    def features(self, images: torch.Tensor) -> torch.Tensor:
        """The float32 map (B, D, h, w) in front of the classifier."""
        images = self.images(images)
        features = self.model.forward_features(images)  # type: ignore[operator]
        return feature_map(features, self.model, images, self.name).float()

    def images(self, images: torch.Tensor) -> torch.Tensor:
        """The student's images (B, C, H, W) in the teacher's normalisation and, where it takes no other, its size."""
        if self._scale.device != images.device:
            self.to(images.device)
        if not self._same_pixels:
            images = images * self._scale + self._shift
        if self.size is not None and tuple(images.shape[2:]) != self.size:
            images = resized(images, self.size)
        return images


def open_teacher(recipe: Recipe, classes: Sequence[str], student: Preprocess) -> Teacher:
    """The recipe's teacher, on the CPU. Random states of the caller stay as they are only if it keeps them itself.

    Args:
        recipe: ``distill`` names it.
        classes: of the data, in the order of the student's logits.
        student: the student's preprocess contract.

    Raises:
        ConfigError: an unknown teacher, one of other classes or channels, or one without weights.
        CheckpointError: weights that cannot be read or do not fit.
    """
    wanted = str(recipe.distill.teacher)
    folder = Path(wanted).parent if Path(wanted).name == CARD_FILE else Path(wanted)
    if (folder / CARD_FILE).is_file():
        return _from_run(folder, recipe, classes, student)
    if Path(wanted).exists():
        raise ConfigError(
            f"distill.teacher {wanted}: no {CARD_FILE} in it; expected a run folder that `cmtvision train` finished, "
            "or the name of a timm model with distill.weights"
        )
    if "/" in wanted and not wanted.startswith(HOSTED):
        raise ConfigError(
            f"distill.teacher {wanted}: no such folder; expected a run folder that `cmtvision train` finished, or the "
            "name of a timm model"
        )
    return _from_timm(wanted, recipe, classes, student)


def feature_map(features: torch.Tensor, model: nn.Module, images: torch.Tensor, name: str) -> torch.Tensor:
    """What timm's forward_features gives, as a map (B, D, h, w): NHWC is turned round, tokens go back to their grid.

    Raises:
        ConfigError: features that are no map.
    """
    if isinstance(features, torch.Tensor) and features.ndim == 4:
        return features.permute(0, 3, 1, 2) if str(getattr(model, "output_fmt", "NCHW")) == "NHWC" else features
    if isinstance(features, torch.Tensor) and features.ndim == 3:
        tokens = features[:, int(getattr(model, "num_prefix_tokens", 0) or 0) :]  # (B, h * w, D)
        height = round((tokens.shape[1] * images.shape[2] / images.shape[3]) ** 0.5)
        if height and tokens.shape[1] % height == 0:
            return tokens.transpose(1, 2).unflatten(2, (height, tokens.shape[1] // height))
    shape = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
    raise ConfigError(f"distill.kind feature: {name} has no map in front of its classifier ({shape}); use soft or hard")


def resized(images: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Images or maps (B, C, H, W) at another (height, width): bilinear, antialiased."""
    return F.interpolate(images, size=tuple(size), mode="bilinear", antialias=True)


def _from_run(folder: Path, recipe: Recipe, classes: Sequence[str], student: Preprocess) -> Teacher:
    if recipe.distill.weights not in (None, "pretrained"):
        raise ConfigError(f"distill.weights: {folder} is a run folder and has its own; leave distill.weights out")
    artefact = read_artefact(folder)
    channels = artefact.preprocess.channels
    if channels != student.channels:
        raise ConfigError(f"distill.teacher {folder}: it sees {channels} channel(s), the student {student.channels}")
    order = None
    if recipe.distill.kind != "feature":
        task = "multi-label" if recipe.data.multi_label else "single-label"
        found = artefact.task
        if found != task:
            raise ConfigError(f"distill.teacher {folder}: it is a {found} model, the data is {task}; use kind=feature")
        if sorted(artefact.classes) != sorted(classes):
            raise ConfigError(
                f"distill.teacher {folder}: it knows the classes {_few(artefact.classes)}, the data has "
                f"{_few(classes)}; expected the same ones, or set distill.kind=feature"
            )
        if artefact.classes != list(classes):
            order = [artefact.classes.index(name) for name in classes]
    fixed = _fixed_size(artefact.model)
    return Teacher(str(folder), artefact.model, artefact.preprocess, student, fixed, order)


def _from_timm(name: str, recipe: Recipe, classes: Sequence[str], student: Preprocess) -> Teacher:
    weights, channels = recipe.distill.weights, student.channels
    hosted = name.startswith(HOSTED)
    if not hosted:
        _check_name(name)
    if weights is None:
        raise ConfigError(f"distill.weights: a teacher needs weights; give 'pretrained' or a file for {name}")
    if hosted and weights != "pretrained":
        raise ConfigError(f"distill.weights: {name} has its own; leave distill.weights out")
    arguments: dict[str, Any] = {"pretrained": True}
    if not hosted:
        if weights == "pretrained" and not timm.is_model_pretrained(name):
            raise ConfigError(f"distill.teacher {name}: it has no released weights; give distill.weights a file")
        cfg = timm.get_pretrained_cfg(name)
        count = cfg.num_classes if weights == "pretrained" and cfg is not None else _head_width(name, weights)
        _check_count(name, count, recipe, classes)  # before anything is fetched
        arguments = {**weight_arguments(name, weights, True), "num_classes": count}
    try:
        model = create_model(name, in_chans=channels, **arguments)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"distill.weights {weights}: do not fit {name} ({reason})") from error
    except FetchError as error:
        raise error.of_setting("distill.weights") from error
    _check_count(name, int(model.num_classes), recipe, classes)
    config = {**resolve_model_data_config(model), "crop_mode": "center"}  # only size, mean and std are asked for
    config["input_size"] = (channels, *config["input_size"][1:])
    return Teacher(name, model, Preprocess.from_timm(config), student, _fixed_size(model))


def _check_name(name: str) -> None:
    """Refuse a name or tag that timm does not know, with a guess at what was meant."""
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        close = get_close_matches(base, timm.list_models(), 2)
        hint = f"did you mean {' or '.join(close)}?" if close else "expected a model of timm or a run folder"
        raise ConfigError(f"distill.teacher: unknown model {name!r}; {hint}")
    tags = [full.partition(".")[2] for full in timm.list_models(f"{base}.*", include_tags=True)]
    if tag and tag not in tags:
        close = get_close_matches(tag, tags, 1) or tags[:1]
        hint = f"did you mean {base}.{close[0]}?" if close else f"{base} has no weights by name"
        raise ConfigError(f"distill.teacher: unknown weights {name!r}; {hint}")


def _check_count(name: str, count: int, recipe: Recipe, classes: Sequence[str]) -> None:
    if recipe.distill.kind == "feature" or count == len(classes):
        return
    knows = f"it knows {count} classes" if count else "it has no classifier"
    raise ConfigError(
        f"distill.teacher {name}: {knows}, the data has {len(classes)}; give a run folder trained on these classes, or "
        "set distill.kind=feature"
    )


def _head_width(name: str, weights: str) -> int:
    """How many classes the classifier in a file of weights knows; 0 for none."""
    path = Path(weights)
    state = read_state_dict(path / MODEL_FILE if path.is_dir() else path)
    if is_official(state):
        state = from_official(state)
    cfg = timm.get_pretrained_cfg(name)
    classifier = cfg.classifier if cfg is not None else None
    key = classifier if isinstance(classifier, str) else next(iter(classifier or ("head",)))
    head = state.get(f"{key}.weight")
    return 0 if head is None else int(head.shape[0])


def _fixed_size(model: nn.Module) -> bool:
    return bool((getattr(model, "pretrained_cfg", None) or {}).get("fixed_input_size"))


def _few(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
