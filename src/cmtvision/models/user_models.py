"""User-defined networks: one of ours with other widths, depths or options, given by a name or a recipe's file.

``register`` makes a name known to timm in this process. A recipe (``cmtvision scale --out small.yaml``) names one for
every process: ``--model small.yaml`` is the network of its section ``model``. A run never stores such a name but
its definition (``expand``), so a run folder opens anywhere.
"""

import inspect
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from timm.models import PretrainedCfg, get_pretrained_cfg, is_model, model_entrypoint, register_model

from cmtvision.errors import ConfigError
from cmtvision.models.cmt import CMT
from cmtvision.models.cmt.variants import VARIANTS
from cmtvision.models.ladder.parts import OPTIONS
from cmtvision.models.timm_private import generate_default_cfgs
from cmtvision.recipe import load_recipe

__all__: list[str] = []  # timm adds the names that are registered

MIN_PIXELS, MAX_PIXELS = 32, 4096
_LEGAL_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_NOT_STRUCTURE = {
    "self", "parts", "img_size", "in_chans", "num_classes", "device", "dtype",
    "drop_path_rate", "attn_drop_rate", "proj_drop_rate",
}  # fmt: skip
"""What the data or the recipe says, not the network's name."""

default_cfgs: dict[str, Any] = {}  # where timm's register_model looks


@dataclass(frozen=True)
class Definition:
    """The definition of a name.

    Attributes:
        base: a model.
        input_size: side or (height, width) of its image in pixels; None for the model's own.
        options: further constructor arguments.
    """

    base: str
    input_size: int | tuple[int, int] | None
    options: dict[str, Any]


_definitions: dict[str, Definition] = {}


def register(
    name: str, base: str, options: Mapping[str, Any], input_size: int | None = None, overwrite: bool = False
) -> Definition:
    """Make a network known to timm in this process: ``timm.create_model(name)``.

    Args:
        name: lower-case letters, digits and _, beginning with a letter; not the name of another model.
        base: one of cmt_nano, cmt_ti, cmt_xs, cmt_s, cmt_b.
        options: arguments of ``CMT`` that differ from the base's.
        input_size: side of its image in pixels; None is the base's.
        overwrite: give the name to another network than it had, if it was registered here before.

    Returns:
        The new definition of the name.

    Raises:
        ConfigError: a name that is taken or not legal, an unknown base, an option that CMT does not have or take.
    """
    definition = check_definition(base, options, input_size)
    check_name(name, definition, overwrite)
    if _definitions.get(name) == definition and is_model(name):
        return definition
    side = VARIANTS[base].input_size if input_size is None else input_size
    cfg = replace(
        _cfg_of(base), url="", origin_url=None, input_size=(3, side, side), pool_size=(side // 32, side // 32),
        architecture=name, tag=None,
    )  # fmt: skip
    default_cfgs.update(generate_default_cfgs({name: cfg}))

    def create(pretrained: bool = False, pretrained_cfg: Any = None, **kwargs: Any) -> Any:
        options = {key: tuple(value) if isinstance(value, list) else value for key, value in definition.options.items()}
        arguments = {"img_size": side, **options, **kwargs}
        if not pretrained_cfg or isinstance(pretrained_cfg, str):
            pretrained_cfg = _cfg_of(f"{name}.{pretrained_cfg}" if pretrained_cfg else name).to_dict()
        return model_entrypoint(base)(pretrained=pretrained, pretrained_cfg=pretrained_cfg, **arguments)

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"{base} at {side} px with {definition.options}."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm's, on a name that is given again on purpose
        register_model(create)
    _definitions[name] = definition
    return definition


def registered_names() -> list[str]:
    """The names registered in this process, sorted."""
    return sorted(_definitions)


def expand(name: str) -> Definition | None:
    """The definition of a registered name or of a recipe's file (.yaml); None for any other name.

    Raises:
        ConfigError: no such file, or none that can be read.
    """
    return _of_recipe(name) if name.endswith((".yaml", ".yml")) else _definitions.get(name)


def _of_recipe(file: str) -> Definition:
    section = load_recipe(file).model
    if section.name.endswith((".yaml", ".yml")):
        raise ConfigError(f"{file}: describes its network by a recipe again, {section.name}; name the model itself")
    given: dict[str, Any] = {
        key: getattr(section, key) for key in ("in_chans", "rel_pos") if key in section.model_fields_set
    }
    return Definition(section.name, section.img_size, {**given, **section.options})


def check_name(name: str, definition: Definition | None = None, overwrite: bool = False) -> None:
    """Raise ConfigError if a name is invalid or means another network."""
    if not _LEGAL_NAME.fullmatch(name):
        raise ConfigError(
            f"model name {name!r}: expected at most 64 lower-case letters, digits and _, beginning with a letter"
        )
    known = _definitions.get(name)
    if known is not None:
        if known != definition and not overwrite:
            raise ConfigError(f"model name {name!r}: is another {known.base} already; choose another, or --overwrite")
    elif is_model(name):
        raise ConfigError(f"model name {name!r}: is a model already; choose another name")


def check_definition(base: str, options: Mapping[str, Any], input_size: int | None = None) -> Definition:
    """Validate every part of a definition.

    Raises:
        ConfigError: naming the part.
    """
    if base not in VARIANTS:
        raise ConfigError(f"base {base!r}: expected one of {', '.join(VARIANTS)}")
    row = VARIANTS[base]
    side = row.input_size if input_size is None else input_size
    if not _is_count(side) or not MIN_PIXELS <= side <= MAX_PIXELS:
        raise ConfigError(f"input_size: got {side!r}, expected pixels, {MIN_PIXELS} to {MAX_PIXELS}")
    known = set(inspect.signature(CMT.__init__).parameters) - _NOT_STRUCTURE | OPTIONS
    if not isinstance(options, Mapping):
        raise ConfigError(f"options: got {options!r}, expected arguments of CMT with their values")
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
    table = row.constructor_args()
    for key, value in plain.items():
        if key not in known:
            raise ConfigError(f"options: CMT has no argument {key!r}; it has {', '.join(sorted(known))}")
        _check_value(key, value, table.get(key))
    dims, heads = plain.get("dims", row.dims), plain.get("num_heads", row.num_heads)
    if any(dim % n for dim, n in zip(dims, heads, strict=True)):
        raise ConfigError(f"options: dims {list(dims)} are not multiples of num_heads {list(heads)}")
    return Definition(base, side, plain)


def _check_value(key: str, value: Any, example: Any) -> None:
    """A value of the table's type, or any plain value if the table has none."""
    if isinstance(example, tuple):
        fits = isinstance(value, list) and len(value) == len(example) and all(map(_is_count, value))
        expected = f"{len(example)} whole numbers, such as {list(example)}"
    elif isinstance(example, int):
        fits, expected = _is_count(value), f"a whole number, such as {example}"
    elif isinstance(example, float):
        fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1000
        expected = f"a number, such as {example}"
    else:
        fits, expected = isinstance(value, str | bool | int | float), "a plain value"
    if not fits:
        raise ConfigError(f"options: {key}: got {value!r}, expected {expected}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _cfg_of(name: str) -> PretrainedCfg:
    cfg = get_pretrained_cfg(name, allow_unregistered=False)
    assert cfg is not None
    return cfg
