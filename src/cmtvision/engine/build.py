"""From a recipe to the parts of a run: the model with its weights, and its preprocess contract."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config
from torch import nn

from cmtvision.artefact.files import MODEL_FILE
from cmtvision.data import Preprocess
from cmtvision.errors import CheckpointError, ConfigError, DataError
from cmtvision.models import build_shapes_only, create_model
from cmtvision.models.accelerate import accelerate
from cmtvision.models.registry import check_name, has_fixed_size
from cmtvision.models.user_models import expand
from cmtvision.models.weight_sources import HOSTED, fetch_weights, loader_arguments
from cmtvision.recipe import ModelSection, Recipe
from cmtvision.weights import from_official, is_official, read_state_dict
from cmtvision.weights.fetch import FetchError


@dataclass(frozen=True)
class BuiltModel:
    """A model made from a recipe, the name and arguments that make it again, and its preprocess contract.

    ``sides`` are those of a card, for detection and segmentation; ``notes`` are for a person, about its weights.
    """

    model: nn.Module
    architecture: str
    arguments: dict[str, Any]
    preprocess: Preprocess
    sides: tuple[int | None, int | None] = (None, None)
    notes: tuple[str, ...] = ()

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(C, H, W) of the network's input."""
        return (self.preprocess.channels, *self.preprocess.size)


def portable(recipe: Recipe) -> Recipe:
    """The recipe with a model that the user described replaced by what that stands for, so that a run opens anywhere.

    Raises:
        ConfigError: options of the recipe that do not go together with the model's.
    """
    teacher = recipe.distill.weights
    if teacher is not None and teacher != "pretrained" and Path(teacher).exists():  # it is opened again on resume
        distill = recipe.distill.model_copy(update={"weights": str(Path(teacher).resolve())})
        recipe = recipe.model_copy(update={"distill": distill})
    own = expand(recipe.model.name)
    if own is None:
        return recipe
    given = recipe.model.model_dump(exclude_unset=True)
    settings = {key: value for key, value in own.options.items() if key in type(recipe.model).model_fields}
    options = {key: value for key, value in own.options.items() if key not in settings}
    chosen = {key: value for key, value in given.items() if value is not None}
    model = {"img_size": own.input_size, **settings, **chosen}
    model |= {"name": own.base, "options": {**options, **recipe.model.options}}
    try:
        section = ModelSection.model_validate(model)
    except ValueError as error:
        raise ConfigError(f"model {recipe.model.name!r}: {error}") from error
    return recipe.model_copy(update={"model": section})


def fetch_pretrained(recipe: Recipe, resume: bool = False) -> None:
    """Download what the recipe takes as 'pretrained', of the model and of the teacher, before anything begins.

    A resumed run needs only its teacher's.

    Raises:
        ConfigError: an unknown teacher, or a model without released weights.
        FetchError: weights that could not be fetched.
    """
    model, distill = recipe.model, recipe.distill
    if model.weights == "pretrained" and not resume:
        weight_arguments(model.name, model.weights, model.use_ema)  # refuses models that have none
        fetch_weights(model.name)
    if distill.teacher is not None and distill.weights == "pretrained":
        try:
            check_name(distill.teacher)
        except ConfigError as error:
            raise ConfigError(f"distill.teacher: {error}; a run folder goes into distill.weights") from error
        try:
            fetch_weights(distill.teacher)
        except FetchError as error:
            raise error.of_setting("distill.weights") from error


def build_model(recipe: Recipe, num_classes: int, resume: bool = False) -> BuiltModel:
    """Create the recipe's model for training, with its weights where the recipe names some.

    Args:
        recipe: what the run is.
        num_classes: width of the classifier.
        resume: a checkpoint of the run will be loaded, so that the weights it began with are not looked for.

    Raises:
        ConfigError: an unknown model or an option it does not have.
        CheckpointError: weights that cannot be fetched or read, or belong to another model.
    """
    section = recipe.model
    refused = loader_arguments(section.options)
    if refused:
        raise ConfigError(f"model.options.{refused[0]}: says where weights come from; use model.weights")
    structure = structure_of(section, section.img_size)
    rates = dropout_rates(section) | ({"drop_path_rate": section.drop_path_rate} if section.drop_path_rate else {})
    source = weight_arguments(section.name, None if resume else section.weights, section.use_ema)
    try:
        model = create_model(section.name, num_classes=num_classes, **structure, **rates, **source)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"weights {section.weights}: do not fit {section.name} ({reason})") from error
    accelerate(model)
    if section.grad_checkpointing:
        model.set_grad_checkpointing()
    architecture = section.name
    if architecture.startswith(HOSTED):  # a run opens without the place that describes its network
        architecture = model.pretrained_cfg["architecture"]
        described = dict(getattr(model, "pretrained_model_args", {}))
        structure = {**{key: described[key] for key in described if key not in ("num_classes", *rates)}, **structure}
    return BuiltModel(model, architecture, structure, build_preprocess(recipe, model))


def structure_of(section: ModelSection, img_size: int | tuple[int, int] | None = None) -> dict[str, Any]:
    """What a recipe's network is made with beyond its name: what its card will say of it.

    Args:
        section: the recipe's.
        img_size: of its images in pixels, said where the network is made for one size; others take any as they are.
    """
    structure: dict[str, Any] = {"in_chans": section.in_chans}
    if img_size is not None and timm.is_model(section.name.partition(".")[0]) and has_fixed_size(section.name):
        structure["img_size"] = img_size
    if section.rel_pos is not None:
        structure["rel_pos"] = section.rel_pos
    return structure | section.options


def dropout_rates(section: ModelSection) -> dict[str, Any]:
    """The rates of dropout that a recipe gives its network; a classifier's may be 0 on purpose."""
    rates: dict[str, Any] = {} if section.drop_rate is None else {"drop_rate": section.drop_rate}
    return rates | {name: rate for name in ("attn_drop_rate", "proj_drop_rate") if (rate := getattr(section, name))}


def shapes_of(section: ModelSection, num_classes: int) -> tuple[Any, tuple[int, int, int]]:
    """A recipe's network without values, and the (C, H, W) of its input; see ``build_shapes_only``."""
    described = structure_of(section) | dropout_rates(section)
    shapes: tuple[Any, tuple[int, int, int]] = build_shapes_only(section.name, section.img_size, num_classes, described)
    return shapes


def build_preprocess(recipe: Recipe, model: Any) -> Preprocess:
    """The evaluation transform of a model (whose ``pretrained_cfg`` is read), with what the recipe overrides.

    Raises:
        ConfigError: values that do not fit.
    """
    config = dict(resolve_model_data_config(model))
    size = recipe.model.img_size
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
        config["input_size"] = (recipe.model.in_chans, height, width)
    given = {key: value for key, value in recipe.preprocess.model_dump().items() if value is not None}
    try:
        return replace(Preprocess.from_timm(config), **given)
    except DataError as error:
        raise ConfigError(f"recipe: {error}") from error


def weight_arguments(name: str, weights: str | None, use_ema: bool) -> dict[str, Any]:
    """The arguments of create_model that load a recipe's weights: a file, a run folder, or the released ones.

    Raises:
        ConfigError: a model without released weights.
        CheckpointError: a file that cannot be read.
    """
    if weights is None:
        return {}
    if weights == "pretrained":
        if not name.startswith(HOSTED) and not timm.is_model_pretrained(name):
            raise ConfigError(f"model {name!r} has no released weights; give model.weights a file or leave it out")
        return {"pretrained": True}
    path = Path(weights)
    state = read_state_dict(path / MODEL_FILE if path.is_dir() else path, use_ema=use_ema)
    if is_official(state):
        state = from_official(state)
    overlay: dict[str, Any] = {"state_dict": state, "custom_load": False}
    # timm compares these with the wanted model to decide whether classifier and first convolution must be adapted
    cfg = timm.get_pretrained_cfg(name)
    if cfg is not None:
        head = state.get(f"{cfg.classifier}.weight") if isinstance(cfg.classifier, str) else None
        overlay["num_classes"] = head.shape[0] if head is not None else 0
        stem = state.get(f"{cfg.first_conv}.weight") if isinstance(cfg.first_conv, str) else None
        if isinstance(stem, torch.Tensor) and cfg.input_size is not None:
            overlay["input_size"] = (stem.shape[1], *cfg.input_size[1:])
    return {"pretrained": True, "pretrained_cfg_overlay": overlay}
