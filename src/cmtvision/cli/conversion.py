"""Weights from one kind of file to another: recognised, tried in their network, and only then written."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cmtvision.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    import torch

    from cmtvision.artefact.card import Card

Layout = Literal["official", "native"]
StateDict = Mapping[str, "torch.Tensor"]
_PICKLES = (".pth", ".pt", ".ckpt", ".tar")
_FIRST_STAGE_STRIDE = 4


@dataclass(frozen=True)
class Converted:
    """The result: the network, its layout, and its numbers of tensors and learned values."""

    model: str
    layout: str
    num_tensors: int
    parameters: int


def convert_weights(
    source: Path, target: Path, layout: Layout | None = None, use_ema: bool = True, model: str | None = None
) -> Converted:
    """Read weights, find the network they belong to, load them into it, and write them.

    Args:
        source: .pth, .safetensors, Keras .h5, or a run folder.
        target: .safetensors or .pth; the latter holds {'model': weights}, as the released files do.
        layout: 'official' or 'native' names and shapes; None: official for .pth where there is one, else native.
        use_ema: prefer a training checkpoint's averaged weights.
        model: the network's name in timm; None recognises ours by their shapes.

    Raises:
        ConfigError: a suffix that cannot be written, an unknown model.
        CheckpointError: weights that cannot be read, belong to no known network, or do not fit the layout.
    """
    from cmtvision.weights import from_official, is_official, read_state_dict, to_official, write_safetensors
    from cmtvision.weights.files import write_pth

    if target.suffix not in (".safetensors", *_PICKLES):
        raise ConfigError(f"{target}: cannot write files of this kind; name it .safetensors or .pth")
    state = read_state_dict(source / "model.safetensors" if source.is_dir() else source, use_ema=use_ema)
    native = from_official(state) if is_official(state) else state
    options = _options_of_run(source)
    name, parameters = _find_network(native, source, model, options)
    by_default = layout is None and target.suffix in _PICKLES and not options and _has_official_layout(native)
    official = layout == "official" or by_default
    written = dict(to_official(native) if official else native)
    chosen = "official" if official else "native"
    if target.suffix == ".safetensors":
        write_safetensors(written, target, {"layout": chosen, "model": name})
    else:
        write_pth({"model": written}, target)
    return Converted(name, chosen, len(written), parameters)


def _has_official_layout(state: StateDict) -> bool:
    """Whether there is one position bias per stage, over square grids: the only kind in the released code."""
    tables = [value for name, value in state.items() if name.endswith("position_bias.table")]
    shared = "stages.0.position_bias.table" in state
    return shared and all(table.ndim == 6 and table.shape[2] == table.shape[3] for table in tables)


def _options_of_run(source: Path) -> dict[str, Any]:
    """The arguments of a run's network that its weights do not show (``lpu``, ``dims``, ...); {} for a plain file."""
    from cmtvision.artefact.files import constructor_arguments

    told, card = ("in_chans", "img_size", "rel_pos"), _card(source)
    return {k: v for k, v in constructor_arguments(card).items() if k not in told} if card is not None else {}


def _card(source: Path) -> "Card | None":
    """model.json of a run folder; None for a plain file of weights, or a folder without it."""
    from cmtvision.artefact.card import CARD_FILE, Card

    return Card.read(source) if (source / CARD_FILE).is_file() else None


def _find_network(state: StateDict, source: Path, name: str | None, options: dict[str, Any]) -> tuple[str, int]:
    """The name of the network that weights belong to, tried by loading them, and its number of parameters."""
    from cmtvision.models import VARIANTS, list_models

    card = _card(source) if name is None else None
    name = card.architecture if card is not None else name
    if name is not None:
        fault, parameters = _try(name, state, options)
        if fault:
            raise CheckpointError(f"{source}: not weights of {name}, {fault}")
        return name, parameters
    known = [*VARIANTS, "cmt_ti_kecam", *list_models("ceit_*")]
    for candidate in known:
        fault, parameters = _try(candidate, state, {})
        if not fault:
            return candidate, parameters
    raise CheckpointError(
        f"{source}: weights of no model of ours (tried {', '.join(known)}); name another with --model"
    )


def _try(name: str, state: StateDict, options: dict[str, Any]) -> tuple[str, int]:
    """Load weights into a network on the meta device. Returns what does not fit ('' if all does) and its size."""
    import torch

    from cmtvision.models import create_model

    with torch.device("meta"):
        model = create_model(name, **_arguments(name, state), **options)
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    given = {key: tuple(value.shape) for key, value in state.items()}
    missing, unknown = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    other = sorted(key for key in wanted.keys() & given.keys() if wanted[key] != given[key])
    if missing:
        return f"{len(missing)} tensors are missing (first: {missing[0]})", 0
    if unknown:
        return f"{len(unknown)} tensors have no place in it (first: {unknown[0]})", 0
    if other:
        key = other[0]
        return f"{len(other)} tensors have other shapes ({key}: {given[key]} not {wanted[key]})", 0
    model.load_state_dict(state, strict=True, assign=True)
    return "", sum(parameter.numel() for parameter in model.parameters())


def _arguments(name: str, state: StateDict) -> dict[str, Any]:
    """The arguments of a network that its weights show: classes, channels, image size, kind of position bias."""
    import timm

    cfg = timm.get_pretrained_cfg(name, allow_unregistered=True)
    found: dict[str, Any] = {}
    classifier = getattr(cfg, "classifier", None)
    if isinstance(classifier, str):
        head = state.get(f"{classifier}.weight")
        found["num_classes"] = 0 if head is None else head.shape[0]
    first = getattr(cfg, "first_conv", None)
    stem = state.get(f"{first}.weight") if isinstance(first, str) else None
    if stem is not None and stem.ndim == 4:
        found["in_chans"] = stem.shape[1]
    if not name.startswith("cmt_") or name.startswith("cmt_ladder_"):
        return found
    shared = state.get("stages.0.position_bias.table")
    table = shared if shared is not None else state.get("stages.0.blocks.0.lmhsa.position_bias.table")
    if table is None:
        found["rel_pos"] = "none"
    elif table.ndim == 6:
        found["rel_pos"] = "stage" if shared is not None else "block"
        found["img_size"] = (table.shape[2] * _FIRST_STAGE_STRIDE, table.shape[3] * _FIRST_STAGE_STRIDE)
    elif table.ndim == 3:  # over offsets: 2 x side - 1
        found["rel_pos"] = "relative"
        found["img_size"] = tuple((side + 1) // 2 * _FIRST_STAGE_STRIDE for side in table.shape[1:])
    return found
