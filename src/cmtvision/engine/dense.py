"""What detection and segmentation have in common as tasks of the engine: their recipes, networks and loaders."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import timm
from torch.utils.data import DataLoader

from cmtvision.artefact.card import model_folder
from cmtvision.artefact.files import MODEL_FILE
from cmtvision.artefact.run.names import SPLIT_FILE
from cmtvision.data import EpochSampler, Preprocess
from cmtvision.data.annotations import AnnotationIndex
from cmtvision.data.annotations.splits import images_of, take_annotated_split
from cmtvision.data.training.dense_augment import DenseAugment, DenseTransform
from cmtvision.data.whole_image import WholeImage
from cmtvision.engine.build import BuiltModel, build_preprocess
from cmtvision.engine.distributed.processes import Processes
from cmtvision.engine.evaluation.evaluate import Split, choose_samples
from cmtvision.engine.loaders import TrainLoader, loader_settings
from cmtvision.errors import ConfigError
from cmtvision.models.dense import create_dense
from cmtvision.recipe import DataSection, Recipe
from cmtvision.recipe.schema import SceneSection

_RATES = ("drop_path_rate", "attn_drop_rate", "proj_drop_rate")
_BY_NAME = ("kind", "backbone", "num_classes")  # of a network's arguments: what its name and classes say


def scene_of(recipe: Recipe) -> SceneSection:
    """The recipe's section on scenes, with its defaults where it says nothing."""
    return recipe.scene or SceneSection()


def build_dense(recipe: Recipe, num_classes: int, resume: bool) -> BuiltModel:
    """The recipe's detector or segmenter, its backbone with the weights that the recipe names.

    Raises:
        ConfigError, CheckpointError, FetchError: as of ``create_dense``; settings that such a network does not have.
    """
    section = recipe.model
    for key in ("rel_pos", "drop_rate"):
        if getattr(section, key) is not None:
            raise ConfigError(f"model.{key}: of a backbone alone; set model.options.{key} instead")
    rates = {key: rate for key in _RATES if (rate := getattr(section, key))}
    source: dict[str, Any] = {}
    if section.weights == "pretrained":
        source = {"pretrained": not resume}
    elif section.weights is not None and not resume:
        path = Path(section.weights)
        source = {"weights": path / MODEL_FILE if path.is_dir() else path}
    options = dict(section.options)
    frozen = options.pop("frozen_norms", section.weights is not None)
    decoder = {key: options.pop(key) for key in list(options) if key.startswith("decoder_")}
    own: dict[str, Any] = {"decoder_arguments": decoder} if decoder else {}
    own |= {key: options.pop(key) for key in list(options) if key in _OWN}
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
    arguments = {key: value for key, value in model.arguments.items() if key not in _BY_NAME}
    scene = scene_of(recipe)
    cfg = timm.get_pretrained_cfg(model.arguments["backbone"], allow_unregistered=True)
    preprocess = build_preprocess(recipe, SimpleNamespace(pretrained_cfg=cfg.to_dict() if cfg is not None else {}))
    return BuiltModel(model, section.name, arguments, preprocess, (scene.eval_short_side, scene.eval_longest))


_OWN = (
    "fpn_width",
    "finest_stride",
    "anchor_scale",
    "score_threshold",
    "nms_threshold",
    "max_detections",
    "rois_per_image",
)


def whole_image(built: BuiltModel) -> WholeImage:
    """How an image becomes the network's input for evaluation."""
    return WholeImage(built.preprocess, *built.sides)


def train_transform(recipe: Recipe, preprocess: Preprocess, void: int = 255) -> DenseTransform:
    """How a training image is changed at random."""
    scene = scene_of(recipe)
    augment = DenseAugment(scene.size, scene.scale, scene.short_sides, scene.longest, scene.hflip, scene.photometric)
    return DenseTransform(preprocess, augment, void)


def dense_train_loader(
    dataset: Any, recipe: Recipe, batch_size: int, processes: Processes, collate: Callable[..., Any]
) -> TrainLoader:
    """The loader of training images: order and changes depend on seed, epoch and image alone."""
    sampler = EpochSampler(
        len(dataset.samples), recipe.seed, rank=processes.rank, num_replicas=processes.world_size,
        repeats=recipe.data.repeated_aug,
    )  # fmt: skip
    settings = loader_settings(recipe.data, processes.local_world_size)
    return TrainLoader(dataset, sampler, batch_size=batch_size, drop_last=True, collate_fn=collate, **settings)


def dense_eval_loader(
    dataset: Any, data: DataSection, batch_size: int, processes: Processes, collate: Callable[..., Any]
) -> DataLoader[Any]:
    """The loader of this process's share of the images to evaluate, in order."""
    settings = loader_settings(data, processes.local_world_size)
    share: Any = processes.share(len(dataset.samples))
    return DataLoader(dataset, batch_size=batch_size, sampler=share, shuffle=False, collate_fn=collate, **settings)


def as_the_run(folder: str | Path, index: AnnotationIndex[Any], fingerprint: str) -> AnnotationIndex[Any]:
    """The index with a run's own images in the parts that the run had them in, wherever they are now.

    Raises:
        DataError: the run's split cannot be read.
    """
    split = model_folder(folder) / SPLIT_FILE
    return take_annotated_split(index, split, fingerprint) if split.is_file() else index


def part_of(index: AnnotationIndex[Any], split: Split) -> tuple[list[Any], str]:
    """The images of a split, and which these are: for 'val', data without a held-out part is taken whole.

    Raises:
        DataError: there are none, or for 'val' none but images that the run was trained on.
    """
    chosen, said = choose_samples(images_of(index), split)
    wanted = {one.path for one in chosen}
    return [one for one in index.samples if one.path in wanted], said
