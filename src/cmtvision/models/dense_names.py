"""Names of networks for dense prediction: ``<backbone>_<kind>``, as ``cmt_s_retinanet`` or ``resnet50_upernet``."""

from collections.abc import Sequence
from difflib import get_close_matches

from cmtvision.errors import ConfigError
from cmtvision.models.cmt.variants import VARIANTS


def list_names(kinds: Sequence[str]) -> list[str]:
    """Each CMT with each kind; any other timm backbone makes a name as well."""
    return [f"{backbone}_{kind}" for backbone in VARIANTS for kind in kinds]


def split_name(name: str, kinds: Sequence[str], noun: str) -> tuple[str, str]:
    """The kind and the backbone in a name; ``noun`` says what it should be the name of.

    Raises:
        ConfigError: a name that does not end in a kind, with a did-you-mean.
    """
    backbone, _, kind = name.rpartition("_")
    if kind not in kinds or not backbone:
        close = get_close_matches(name, list_names(kinds), 1)
        hint = f"did you mean {close[0]}?" if close else f"expected BACKBONE_KIND, KIND one of {', '.join(kinds)}"
        raise ConfigError(f"unknown {noun} {name!r}; {hint}")
    return kind, backbone
