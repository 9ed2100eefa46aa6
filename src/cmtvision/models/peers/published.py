"""Published figures of the systems (published.yaml), to compare with; nothing here was measured by this project."""

from functools import cache
from importlib import resources
from typing import Any

import timm
import yaml
from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass

__all__ = [
    "CocoResult",
    "Published",
    "TransferResult",
    "find_published",
    "list_coco",
    "list_published",
    "list_transfer",
]

_STRICT = ConfigDict(extra="forbid")
_FIGURES = {
    "top1": "top-1",
    "parameters_m": "parameters",
    "gflops": "FLOPs",
    "images_per_second_v100": "images/s on a V100",
}


@dataclass(frozen=True, config=_STRICT)
class Published:
    """One system's published figures on ImageNet-1k; None for those not published.

    Attributes:
        top1: accuracy in percent.
        parameters_m: parameters in millions.
        gflops: multiply-adds of one image in units of 10^9, which the literature calls FLOPs.
        images_per_second_v100: images per second on one V100.
        source: the publication; if several are combined, each with its figures.
        system: its name in the literature.
        model: its name in this package or timm, None where neither has it.
        img_size: side of the test image in pixels, None where it is the one that the network is made for.
        tag: of the weights that were measured, among timm's of that name.
    """

    top1: float | None = None
    parameters_m: float | None = None
    gflops: float | None = None
    images_per_second_v100: float | None = None
    source: str = ""
    system: str = ""
    model: str | None = None
    img_size: int | None = None
    tag: str | None = None


@dataclass(frozen=True, config=_STRICT)
class TransferResult:
    """Top-1 in percent of one system fine-tuned on other data sets; img_size in pixels, None where not printed."""

    system: str
    model: str | None
    source: str
    img_size: int | None = None
    cifar10: float | None = None
    cifar100: float | None = None
    cars: float | None = None
    flowers: float | None = None
    pets: float | None = None


@dataclass(frozen=True, config=_STRICT)
class CocoResult:
    """Average precision in percent on COCO val2017 (1x schedule) of a detector with one system as backbone.

    gflops: multiply-adds in units of 10^9 at 1280 x 800.
    """

    system: str
    model: str | None
    source: str
    detector: str
    gflops: float | None = None
    box_ap: float | None = None
    box_ap50: float | None = None
    box_ap75: float | None = None
    box_ap_small: float | None = None
    box_ap_medium: float | None = None
    box_ap_large: float | None = None
    mask_ap: float | None = None
    mask_ap50: float | None = None
    mask_ap75: float | None = None


def list_published() -> list[Published]:
    """Every ImageNet row of the file as it was printed, one for each system and source."""
    return list(_read()[0])


def list_transfer() -> list[TransferResult]:
    """Every row of fine-tuning on smaller data sets."""
    return list(_read()[1])


def list_coco() -> list[CocoResult]:
    """Every row of detection and instance segmentation on COCO."""
    return list(_read()[2])


def find_published(name: str) -> Published | None:
    """The published ImageNet figures of a model of this package or of timm at its own size; None if there are none.

    Args:
        name: a model's name; a timm tag after it ('cmt_s.in1k') is ignored.

    Returns:
        Each figure from the first row that has it; ``source`` says which row each figure comes from if there is more
        than one.
    """
    base = name.partition(".")[0]
    rows = [row for row in _read()[0] if row.model == base and _at_its_own_size(row)]
    if not rows:
        return None
    found: dict[str, Any] = {}
    givers: dict[str, list[str]] = {}
    for row in rows:
        new = {key: value for key in _FIGURES if key not in found and (value := getattr(row, key)) is not None}
        if new:
            found.update(new)
            givers[row.source] = [_FIGURES[key] for key in new]
    if len(givers) == 1:
        source = next(iter(givers))
    else:
        source = "; ".join(f"{', '.join(keys)}: {giver}" for giver, keys in givers.items())
    return Published(**found, source=source, system=rows[0].system, model=base)


def _at_its_own_size(row: Published) -> bool:
    cfg = timm.get_pretrained_cfg(row.model, allow_unregistered=True) if row.model and row.img_size else None
    return cfg is None or cfg.input_size[-1] == row.img_size


@cache
def _read() -> tuple[list[Published], list[TransferResult], list[CocoResult]]:
    text = resources.files("cmtvision.models.peers").joinpath("published.yaml").read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    sources = content["sources"]

    def rows(section: str) -> list[dict[str, Any]]:
        return [{**row, "source": sources[row["source"]]} for row in content[section]]

    return (
        TypeAdapter(list[Published]).validate_python(rows("imagenet")),
        TypeAdapter(list[TransferResult]).validate_python(rows("transfer")),
        TypeAdapter(list[CocoResult]).validate_python(rows("coco")),
    )
