"""The networks. Importing this package registers them with timm."""

from typing import Any

import timm

from cmtvision.errors import ConfigError
from cmtvision.models.cmt import CMT
from cmtvision.models.variants import VARIANTS, Variant

__all__ = ["CMT", "VARIANTS", "Variant", "create_model", "list_models"]

_FAMILIES = ("cmt_*",)


def list_models() -> list[str]:
    """The names of the models this package adds to timm."""
    names: list[str] = timm.list_models(list(_FAMILIES))
    return names


def create_model(name: str, **kwargs: Any) -> Any:
    """timm.create_model, with a did-you-mean for names that neither timm nor this package knows.

    Raises:
        ConfigError: an unknown name, or an argument the model does not take.
    """
    base = name.partition(".")[0]
    if "/" not in name and not name.startswith(("hf-hub:", "local-dir:")) and not timm.is_model(base):
        from difflib import get_close_matches

        close = get_close_matches(base, list_models(), 2, cutoff=0.5) or get_close_matches(base, timm.list_models(), 2)
        hint = f"did you mean {' or '.join(close)}?" if close else "`cmtvision models` lists them"
        raise ConfigError(f"unknown model {name!r}; {hint}")
    try:
        return timm.create_model(name, **kwargs)
    except TypeError as error:
        raise ConfigError(f"model {name!r}: {error}") from error
