"""Detectors and segmenters from recipes."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import timm

from cmtvision.artefact.card import CARD_FILE, DENSE, Card, model_folder
from cmtvision.artefact.files import MODEL_FILE
from cmtvision.engine.build import BuiltModel, build_preprocess
from cmtvision.engine.dense.trained import load_fitting
from cmtvision.errors import ConfigError
from cmtvision.models.dense import create_dense
from cmtvision.recipe import Recipe
from cmtvision.recipe.schema import SceneSection
from cmtvision.weights import read_state_dict

_RATES = ("drop_path_rate", "attn_drop_rate", "proj_drop_rate")
_OF_DETECTORS = (
    "fpn_width", "finest_stride", "anchor_scale", "score_threshold", "nms_threshold", "max_detections",
    "rois_per_image",
)  # fmt: skip
_BY_NAME = ("kind", "backbone", "num_classes")  # of a network's arguments: what its name and classes say


def scene_of(recipe: Recipe) -> SceneSection:
    """The recipe's section on scenes, with its defaults where it says nothing."""
    return recipe.scene or SceneSection()


def build_dense(recipe: Recipe, num_classes: int, resume: bool) -> BuiltModel:
    """The recipe's detector or segmenter, with the weights that the recipe names: of a classifier for its backbone, or
    whatever fits of another detector or segmenter.

    Raises:
        ConfigError, CheckpointError, FetchError: as of ``create_dense``; settings that such a network does not have.
    """
    section = recipe.model
    for key in ("rel_pos", "drop_rate"):
        if getattr(section, key) is not None:
            raise ConfigError(f"model.{key}: of a backbone alone; set model.options.{key} instead")
    rates = {key: rate for key in _RATES if (rate := getattr(section, key))}
    source: dict[str, Any] = {}
    trained: Path | None = None  # the weights of a detector or segmenter
    if section.weights == "pretrained":
        source = {"pretrained": not resume}
    elif section.weights is not None and not resume:
        path, folder = Path(section.weights), model_folder(section.weights)
        file = path / MODEL_FILE if path.is_dir() else path
        if (folder / CARD_FILE).is_file() and Card.read(folder).task in DENSE:
            trained = file
        else:
            source = {"weights": file}
    options = dict(section.options)
    frozen = options.pop("frozen_norms", section.weights is not None)
    decoder = {key: options.pop(key) for key in list(options) if key.startswith("decoder_")}
    own: dict[str, Any] = {"decoder_arguments": decoder} if decoder else {}
    own |= {key: options.pop(key) for key in list(options) if key in _OF_DETECTORS}
    model = create_dense(
        section.name,
        num_classes,
        in_chans=section.in_chans,
        img_size=section.img_size,
        frozen_norms=bool(frozen),
        grad_checkpointing=section.grad_checkpointing,
        backbone_arguments={**rates, **options},
        **own,
        **source,
    )
    notes = () if trained is None else (load_fitting(model, read_state_dict(trained), trained),)
    arguments = {key: value for key, value in model.arguments.items() if key not in _BY_NAME}
    scene = scene_of(recipe)
    cfg = timm.get_pretrained_cfg(model.arguments["backbone"], allow_unregistered=True)
    preprocess = build_preprocess(recipe, SimpleNamespace(pretrained_cfg=cfg.to_dict() if cfg is not None else {}))
    return BuiltModel(model, section.name, arguments, preprocess, (scene.eval_short_side, scene.eval_longest), notes)
