"""Networks that the user named: one of ours with other widths, depths or options, known to timm under a name.

``register`` makes a name known in this process. ``remember`` also writes it down, one small JSON file a name in the
user's data folder (XDG_DATA_HOME/cmtvision/models), and importing the package registers what is written there. One
file each, so that processes that write at the same time lose nothing and a damaged file costs one name. What a run
keeps is never such a name but what it stands for (``expand``): a run folder opens where nobody registered anything.
"""

import inspect
import json
import logging
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from timm.models import PretrainedCfg, get_pretrained_cfg, is_model, model_entrypoint, register_model

from cmtvision.errors import CheckpointError, ConfigError
from cmtvision.models.cmt import CMT
from cmtvision.models.timm_private import generate_default_cfgs
from cmtvision.models.variants import VARIANTS
from cmtvision.user_folders import home_folder
from cmtvision.weights.files import atomic_write

__all__: list[str] = []  # timm adds the names that are registered

FORMAT = 1
MIN_PIXELS, MAX_PIXELS = 32, 4096
_MAX_BYTES = 10_000
_LEGAL_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_NOT_STRUCTURE = {
    "self", "img_size", "in_chans", "num_classes", "device", "dtype",
    "drop_path_rate", "attn_drop_rate", "proj_drop_rate",
}  # fmt: skip
"""What the data or the recipe says, not the network's name."""

_log = logging.getLogger(__name__)
default_cfgs: dict[str, Any] = {}  # where timm's register_model looks


@dataclass(frozen=True)
class Definition:
    """What a name stands for: a model of ours, the side of its image in pixels, and further constructor arguments."""

    base: str
    input_size: int
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
        What the name stands for now.

    Raises:
        ConfigError: a name that is taken or not legal, an unknown base, an option that CMT does not have or take.
    """
    definition = check_definition(base, options, input_size)
    check_name(name, definition, overwrite)
    if _definitions.get(name) == definition and is_model(name):
        return definition
    cfg = replace(
        _cfg_of(base), url="", origin_url=None, input_size=(3, definition.input_size, definition.input_size),
        pool_size=(definition.input_size // 32, definition.input_size // 32), architecture=name, tag=None,
    )  # fmt: skip
    default_cfgs.update(generate_default_cfgs({name: cfg}))

    def create(pretrained: bool = False, pretrained_cfg: Any = None, **kwargs: Any) -> Any:
        options = {key: tuple(value) if isinstance(value, list) else value for key, value in definition.options.items()}
        arguments = {"img_size": definition.input_size, **options, **kwargs}
        if not pretrained_cfg or isinstance(pretrained_cfg, str):
            pretrained_cfg = _cfg_of(f"{name}.{pretrained_cfg}" if pretrained_cfg else name).to_dict()
        return model_entrypoint(base)(pretrained=pretrained, pretrained_cfg=pretrained_cfg, **arguments)

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"{base} at {definition.input_size} px with {definition.options}."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm's, on a name that is given anew on purpose
        register_model(create)
    _definitions[name] = definition
    return definition


def remember(name: str, definition: Definition, made_by: str = "", overwrite: bool = False) -> Path:
    """Register a network and write it down for later processes.

    Args:
        name: as for ``register``.
        definition: what it stands for.
        made_by: the command that made it, for whoever reads the file.
        overwrite: replace what the name stood for.

    Returns:
        The file; deleting it forgets the name.

    Raises:
        ConfigError: as ``register``; or a file that cannot be written.
    """
    path = registry_folder() / f"{name}.json"
    check_name(name, definition, overwrite)
    if path.exists() and not overwrite and _read_or_none(path) != definition:
        raise ConfigError(f"{path}: is there already and says something else; choose another name, or use --overwrite")
    register(name, definition.base, definition.options, definition.input_size, overwrite)
    card = {"format": FORMAT, **asdict(definition), "made_by": made_by}
    text = json.dumps(card, indent=2) + "\n"
    try:
        atomic_write(path, lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))
    except CheckpointError as error:
        reason = str(error.__cause__ or error)
        raise ConfigError(
            f"{path}: the name cannot be written down ({reason}); set XDG_DATA_HOME to a folder of yours"
        ) from None
    return path


def register_remembered() -> None:
    """Register what was written down. Never raises: files that cannot be used are named in one warning."""
    try:
        files = sorted(registry_folder().glob("*.json"))
    except (OSError, ConfigError):  # no such folder for us, or no home
        return
    faults = []
    for path in files:
        try:
            definition = _read(path)
            register(path.stem, definition.base, definition.options, definition.input_size)
        except (ConfigError, OSError) as error:
            faults.append(str(error) if str(path) in str(error) else f"{path}: {error}")
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        _log.warning("a model of yours is left out: %s; delete or mend that file%s", faults[0], more)


def registered_names() -> list[str]:
    """The names registered in this process, remembered ones included, sorted."""
    return sorted(_definitions)


def expand(name: str) -> Definition | None:
    """What a registered name stands for; None for any other name."""
    return _definitions.get(name)


def registry_folder() -> Path:
    """Where names are written down; it need not be there. Raises ConfigError where there is no home folder."""
    chosen, home = os.environ.get("XDG_DATA_HOME"), home_folder()
    if chosen:
        return Path(chosen) / "cmtvision" / "models"
    if home is None:
        raise ConfigError("no home folder to write names of models down in; set XDG_DATA_HOME to a folder of yours")
    return home / ".local" / "share" / "cmtvision" / "models"


def check_name(name: str, definition: Definition | None = None, overwrite: bool = False) -> None:
    """Raise ConfigError where a name is not legal or stands for another network."""
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
    """A definition of which each part makes sense.

    Raises:
        ConfigError: naming the part.
    """
    if base not in VARIANTS:
        raise ConfigError(f"base {base!r}: expected one of {', '.join(VARIANTS)}")
    row = VARIANTS[base]
    side = row.input_size if input_size is None else input_size
    if not _is_count(side) or not MIN_PIXELS <= side <= MAX_PIXELS:
        raise ConfigError(f"input_size: got {side!r}, expected pixels, {MIN_PIXELS} to {MAX_PIXELS}")
    known = set(inspect.signature(CMT.__init__).parameters) - _NOT_STRUCTURE
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
        raise ConfigError(f"options: dims {list(dims)} are no multiples of num_heads {list(heads)}")
    return Definition(base, side, plain)


def _check_value(key: str, value: Any, example: Any) -> None:
    """A value of the kind that the table holds, or any plain value where the table holds none."""
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


def _read(path: Path) -> Definition:
    if path.stat().st_size > _MAX_BYTES:
        raise ConfigError(f"{path}: larger than {_MAX_BYTES // 1000} kB, not a model's definition")
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise ConfigError(f"{path}: not JSON") from None
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        found = card.get("format") if isinstance(card, dict) else type(card).__name__
        raise ConfigError(f"{path}: got format {found!r}, expected {FORMAT}")
    try:
        return check_definition(str(card.get("base")), card.get("options") or {}, card.get("input_size"))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _read_or_none(path: Path) -> Definition | None:
    try:
        return _read(path)
    except (ConfigError, OSError):
        return None
