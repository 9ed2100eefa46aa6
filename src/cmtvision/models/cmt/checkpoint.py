"""Fit a state dict to a model: names, position bias tables, and a clear error if it belongs to another network."""

from collections.abc import Mapping

import torch
from torch import nn

from cmtvision.errors import CheckpointError
from cmtvision.models.cmt.position import resample_bias_grid, resample_embedding, resample_offsets
from cmtvision.models.cmt.variants import VARIANTS
from cmtvision.weights import from_official, is_official
from cmtvision.weights.files import pick_weights

StateDict = dict[str, torch.Tensor]


def checkpoint_filter_fn(
    state_dict: Mapping[str, torch.Tensor], model: nn.Module, source: str = "the state dict"
) -> StateDict:
    """Make a released or native state dict loadable into a model, which may differ in size and in its kind of bias.

    The classifier and the first convolution are left as they are: timm adapts those. A state dict that already fits
    comes back unchanged.

    Raises:
        CheckpointError: where the weights belong to another network, naming which one if it is ours.
    """
    if any(not isinstance(value, torch.Tensor) for value in state_dict.values()):
        state_dict = pick_weights(state_dict, use_ema=True, source=source)
    state = from_official(state_dict) if is_official(state_dict) else dict(state_dict)
    target = model.state_dict()
    state = _fit_embedding(state, target)
    state = _fit_bias(state, target, str(getattr(model, "rel_pos", "stage")), source)
    _check_fit(state, target, source)
    return state


def _fit_embedding(state: StateDict, target: Mapping[str, torch.Tensor]) -> StateDict:
    """Resample an absolute position embedding (1, dim, H, W) to the model's grid."""
    return {
        name: resample_embedding(value, wanted.shape[2], wanted.shape[3])
        if name.endswith("position_embedding.table")
        and (wanted := target.get(name, value)).shape[2:] != value.shape[2:]
        else value
        for name, value in state.items()
    }


def _is_bias(name: str) -> bool:
    return name.endswith("position_bias.table")


def _fit_bias(state: StateDict, target: Mapping[str, torch.Tensor], rel_pos: str, source: str) -> StateDict:
    """Resample bias tables to the model's grids; copy a stage's table to each of its blocks if they have their own."""
    tables = {name: table for name, table in state.items() if _is_bias(name)}
    places = {name: table for name, table in target.items() if _is_bias(name)}
    rest = {name: value for name, value in state.items() if not _is_bias(name)}
    if not tables or not places:
        return rest
    by_offset = any(table.ndim == 3 for table in tables.values())
    if by_offset != any(table.ndim == 3 for table in places.values()):
        theirs = (
            "over offsets; it belongs to cmt_ti_kecam" if by_offset else "over positions; it belongs to cmt_ti and kin"
        )
        raise CheckpointError(f"{source}: weights of another network than this model, their position bias is {theirs}")
    fitted = {}
    for name, wanted in places.items():
        stage_name = f"stages.{name.split('.')[1]}.position_bias.table"
        table = tables.get(name, tables.get(stage_name))
        if table is None:
            raise CheckpointError(
                f"{source}: its position bias is one per block, the model's is {rel_pos!r}; "
                "create the model with rel_pos='block'"
            )
        if table.ndim != wanted.ndim or _heads(table) != _heads(wanted):
            raise CheckpointError(
                f"{source}: {name} has shape {tuple(table.shape)}, the model wants {tuple(wanted.shape)}; "
                "they are different networks"
            )
        fitted[name] = _resample(table, wanted)
    return {**rest, **fitted}


def _heads(table: torch.Tensor) -> int:
    return table.shape[0] if table.ndim == 3 else table.shape[1]


def _resample(table: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    if table.shape == wanted.shape:
        return table
    if table.ndim == 3:
        return resample_offsets(table, wanted.shape[1], wanted.shape[2])
    return resample_bias_grid(table, *wanted.shape[2:])


def _check_fit(state: StateDict, target: Mapping[str, torch.Tensor], source: str) -> None:
    free = ("head.", "stem.conv1.weight")
    missing = [name for name in target if name not in state and not name.startswith(free)]
    unknown = [name for name in state if name not in target and not name.startswith(free)]
    wrong = [n for n in target if n in state and not n.startswith(free) and state[n].shape != target[n].shape]
    if not (missing or unknown or wrong):
        return
    theirs = _recognise(state)
    hint = f"; it looks like {theirs}" if theirs else "; check the model's name"
    if wrong:
        name = wrong[0]
        shapes = f"{tuple(state[name].shape)} not {tuple(target[name].shape)}"
        what = f"{len(wrong)} tensors have other shapes ({name}: {shapes})"
    elif missing:
        what = f"{len(missing)} tensors are missing (first: {missing[0]})"
    else:
        what = f"{len(unknown)} tensors have no place in the model (first: {unknown[0]})"
    raise CheckpointError(f"{source}: not weights of this model, {what}{hint}")


def _recognise(state: StateDict) -> str:
    """The variant whose widths and depths a state dict has, '' if it is none of ours."""
    dims = [state[name].shape[0] for i in range(4) if (name := f"stages.{i}.downsample.conv.weight") in state]
    depths = [sum(f"stages.{i}.blocks.{j}.norm1.weight" in state for j in range(99)) for i in range(4)]
    for name, row in VARIANTS.items():
        if tuple(dims) == row.dims and tuple(depths) == row.depths:
            of_keras_family = name == "cmt_ti" and "stages.0.blocks.0.lmhsa.q.bias" not in state
            return "cmt_ti_kecam" if of_keras_family else name
    return ""
