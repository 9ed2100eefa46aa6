"""The Keras family's HDF5 files (package keras_cv_attention_models), read into our layout.

Two networks share their layer names there. Ports of the released weights (``CMT*_torch``) have one position bias a
stage, ``stack{s}_pos_emb``; that package's own CMT-Ti has one per block, over relative offsets,
``stack{s}_block{b}_light_mhsa_pos_emb``. These names distinguish the two.

In the file: one group per layer, in it the layer's arrays, kernels as (kh, kw, in, out), depthwise ones as
(kh, kw, C, 1). What ``model.save`` wrote has the layers in a group ``model_weights``. Only arrays are read: no
attribute, no model configuration, and no link to another file.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cmtvision.errors import CheckpointError

StateDict = dict[str, torch.Tensor]
Layers = dict[str, StateDict]

MAX_BYTES = 2**30  # the largest network takes 0.2 GB; a small torn or malicious file can claim any size

# Keras's name of an array, and that of the package's PyTorch backend -> ours
_ARRAYS = {
    "kernel": "weight",
    "depthwise_kernel": "weight",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
    "positional_embedding": "table",
    "bb": "table",
    **{name: name for name in ("weight", "bias", "running_mean", "running_var")},
}

_LAYERS = {
    **{f"stem_{n}_conv": f"stem.conv{n}" for n in "123"},
    **{f"stem_{n}_bn": f"stem.norm{n}" for n in "123"},
    "features_conv": "final.conv",
    "features_bn": "final.norm",
    "predictions": "head",
}
_STAGE_LAYERS = {"down_sampleconv": "downsample.conv", "ln": "downsample.norm", "pos_emb": "position_bias"}
_BLOCK_LAYERS = {
    "dw_conv": "lpu.conv",
    "attn_ln": "norm1",
    "light_mhsa_query_conv": "lmhsa.q",
    "light_mhsa_kv_sr_dw_conv": "lmhsa.kv_conv",
    "light_mhsa_kv_sr_bn": "lmhsa.kv_norm",
    "light_mhsa_kv_sr_ln": "lmhsa.kv_norm",
    "light_mhsa_key_value_conv": "lmhsa.kv",  # K, then V, in one kernel: split below
    "light_mhsa_pos_emb": "lmhsa.position_bias",
    "light_mhsa_output": "lmhsa.proj",
    "ffn_ln": "norm2",
    "ffn_1_conv": "irffn.expand",
    "ffn_1_bn": "irffn.expand_norm",
    "ffn_dw_conv": "irffn.conv",
    "ffn_2_bn": "irffn.conv_norm",
    "ffn_3_conv": "irffn.project",
    "ffn_3_bn": "irffn.project_norm",
}
_STAGE_NAME = re.compile(r"stack([1-4])_(?:block(\d{1,3})_)?(\w+)")
_OPTIONAL = ("lmhsa.kv_conv", "lmhsa.kv_norm", "lmhsa.position_bias")  # not in every block, or not in both networks


def read_keras_state_dict(path: str | Path) -> StateDict:
    """Read the weights of a CMT of the Keras family into the layout of ``CMT.state_dict()``.

    Args:
        path: an .h5 file written by ``model.save_weights`` or ``model.save``, with Keras on TensorFlow or PyTorch.

    Returns:
        Parameter and buffer name -> float32 tensor. Ports of the released weights fit ``cmt_{ti,xs,s,b}``, their
        tables being (1, h, Hq, Wq, Hk, Wk); the family's own CMT-Ti fits ``cmt_ti_kecam``, its tables being
        (h, 2H-1, 2W-1). A file without classifier gives a state dict without ``head``.

    Raises:
        CheckpointError: not an HDF5 file, torn, or not a CMT of that family (the layer is named).
    """
    layers = _read_layers(Path(path))
    state: StateDict = {}
    for layer, arrays in layers.items():
        name = _our_name(layer)
        if name is None:
            raise CheckpointError(f"{path}: layer {layer!r} does not belong to a CMT of keras_cv_attention_models")
        for array, value in _convert(f"{path}: layer {layer!r}", layer, name, arrays).items():
            if array in state:
                raise CheckpointError(f"{path}: layer {layer!r} is there twice, as batch and as layer norm")
            state[array] = value
    _check_whole(str(path), state)
    return state


def _read_layers(path: Path) -> Layers:
    """Layer name -> {Keras's array name: array} for every layer that has arrays."""
    try:
        import h5py
    except ImportError as error:
        raise CheckpointError(f"{path}: reading HDF5 needs h5py; pip install 'cmtvision[keras]'") from error
    try:
        with h5py.File(path, "r") as file:
            # hard links only, here and in visititems: a link may lead to another file
            whole_model = isinstance(file.get("model_weights", getlink=True), h5py.HardLink)
            root = file["model_weights"] if whole_model else file
            if not isinstance(root, h5py.Group):
                raise CheckpointError(f"{path}: 'model_weights' is not a group; the file is not one of Keras")
            items: list[tuple[str, Any]] = []
            root.visititems(lambda name, item: items.append((name, item)))
            datasets = [(name, item) for name, item in items if isinstance(item, h5py.Dataset)]
            _check_arrays(path, datasets)
            layers: Layers = {}
            for name, dataset in datasets:
                layer, leaf = name.split("/")[0], name.split("/")[-1].split(":")[0]
                if leaf in layers.setdefault(layer, {}):
                    raise CheckpointError(f"{path}: layer {layer!r} has {leaf!r} twice; nested models are not read")
                layers[layer][leaf] = torch.from_numpy(dataset[()].astype("float32"))
            return layers
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: not a whole HDF5 file ({reason}); fetch it again") from error


def _check_arrays(path: Path, datasets: list[tuple[str, Any]]) -> None:
    """Refuse what no weights file contains, before any array is read."""
    if not datasets:
        raise CheckpointError(f"{path}: no weights in it; expected what Keras's model.save_weights writes")
    total = 0
    for name, dataset in datasets:
        if dataset.external or dataset.is_virtual:
            raise CheckpointError(f"{path}: {name} keeps its values in another file, which is not read")
        if dataset.dtype.kind != "f" or not dataset.shape:
            raise CheckpointError(f"{path}: {name} is not an array of numbers; the file is not Keras weights")
        total += 4 * math.prod(dataset.shape)
    if total > MAX_BYTES:
        raise CheckpointError(f"{path}: claims {total / 2**30:.0f} GiB of weights; no CMT has more than 1 GiB")


def _our_name(layer: str) -> str | None:
    """Our module's name for a layer's, None if there is none."""
    if layer in _LAYERS:
        return _LAYERS[layer]
    match = _STAGE_NAME.fullmatch(layer)
    if match is None:
        return None
    stage, block, rest = match.groups()
    if block is None:
        return f"stages.{int(stage) - 1}.{_STAGE_LAYERS[rest]}" if rest in _STAGE_LAYERS else None
    return f"stages.{int(stage) - 1}.blocks.{int(block) - 1}.{_BLOCK_LAYERS[rest]}" if rest in _BLOCK_LAYERS else None


def _convert(where: str, layer: str, name: str, arrays: Mapping[str, torch.Tensor]) -> StateDict:
    """One layer's arrays under our names, in our axis order."""
    unknown = sorted(set(arrays) - set(_ARRAYS))
    if unknown:
        raise CheckpointError(f"{where} has an unknown array {unknown[0]!r}")
    found = {_ARRAYS[key]: value for key, value in arrays.items()}
    wanted = {"table"} if layer.endswith("pos_emb") else {"weight"}
    if layer.endswith(("_bn", "_ln")):
        wanted = {"weight", "bias", "running_mean", "running_var"} if layer.endswith("_bn") else {"weight", "bias"}
    if len(found) < len(arrays) or not wanted <= set(found) <= wanted | {"bias"}:
        raise CheckpointError(f"{where} has {sorted(arrays)}, not its usual arrays")
    if "table" in found:
        to_grids = _offset_bias if ".blocks." in name else _grid_bias
        return {f"{name}.table": to_grids(where, found["table"])}
    if layer.endswith("_bn"):
        found["num_batches_tracked"] = torch.zeros((), dtype=torch.long)
    elif not layer.endswith("_ln"):
        found["weight"] = _kernel(where, layer, name, found["weight"])
    if not name.endswith("lmhsa.kv"):
        return {f"{name}.{key}": value for key, value in found.items()}
    stem = name.removesuffix("kv")
    if found["weight"].shape[0] % 2:
        raise CheckpointError(f"{where}: {found['weight'].shape[0]} outputs do not halve into keys and values")
    halves = {key: value.chunk(2) for key, value in found.items()}
    return {f"{stem}{'kv'[i]}.{key}": half[i].clone() for key, half in halves.items() for i in range(2)}


def _kernel(where: str, layer: str, name: str, kernel: torch.Tensor) -> torch.Tensor:
    """Keras's axis order -> PyTorch's: (out, in, kh, kw), depthwise (C, 1, kh, kw), linear (out, in)."""
    if layer == "predictions" or layer.endswith("_output"):
        if kernel.ndim == 2:
            return kernel.t().contiguous()
    elif kernel.ndim == 4:
        order = (2, 3, 0, 1) if layer.endswith("dw_conv") else (3, 2, 0, 1)
        kernel = kernel.permute(order).contiguous()
        if not name.endswith(("lmhsa.q", "lmhsa.kv")):
            return kernel
        if kernel.shape[2:] == (1, 1):
            return kernel.flatten(1)  # their 1x1 convolution is our linear layer
    raise CheckpointError(f"{where}: its kernel is of shape {tuple(kernel.shape)}, which that layer never has")


def _grid_bias(where: str, table: torch.Tensor) -> torch.Tensor:
    """(h, N, M) of a stage -> (1, h, Hq, Wq, Hk, Wk); the grids are square, as every file of the family has them."""
    if table.ndim == 3:
        heads, queries, keys = table.shape
        query_side, key_side = math.isqrt(queries), math.isqrt(keys)
        if query_side**2 == queries and key_side**2 == keys:
            return table.reshape(1, heads, query_side, query_side, key_side, key_side)
    raise CheckpointError(f"{where}: a bias of shape {tuple(table.shape)} is not over square grids of queries and keys")


def _offset_bias(where: str, table: torch.Tensor) -> torch.Tensor:
    """(h, (2H-1)*(2W-1)) of a block -> (h, 2H-1, 2W-1), horizontal offsets last."""
    if table.ndim == 2:
        side = math.isqrt(table.shape[1])
        if side**2 == table.shape[1] and side % 2:
            return table.reshape(-1, side, side)
    raise CheckpointError(f"{where}: a bias of shape {tuple(table.shape)} is not over the offsets of a square grid")


def _check_whole(path: str, state: StateDict) -> None:
    """Every block of every stage has its layers, and all blocks of a stage have the same ones.

    Raises:
        CheckpointError: naming the first layer that is missing.
    """
    modules = {name.rpartition(".")[0] for name in state}
    own = any(name.endswith("lmhsa.position_bias") for name in modules)
    kinds = [kind for kind in dict.fromkeys(_BLOCK_LAYERS.values()) if kind not in (*_OPTIONAL, "lmhsa.kv")]
    wanted = [name for name in _LAYERS.values() if name != "head"]
    for stage in range(4):
        in_stage = [name for name in modules if name.startswith(f"stages.{stage}.")]
        wanted += [f"stages.{stage}.downsample.conv", f"stages.{stage}.downsample.norm"]
        if not own:
            wanted.append(f"stages.{stage}.position_bias")
        optional = [kind for kind in _OPTIONAL if any(name.endswith(f".{kind}") for name in in_stage)]
        blocks = [int(name.split(".")[3]) for name in in_stage if ".blocks." in name]
        for block in range(max(blocks, default=0) + 1):
            wanted += [f"stages.{stage}.blocks.{block}.{kind}" for kind in (*kinds, "lmhsa.k", *optional)]
    missing = [_their_name(name) for name in wanted if name not in modules]
    if missing:
        raise CheckpointError(f"{path}: layer {missing[0]!r} is missing, {len(missing)} in all; fetch it again")


def _their_name(name: str) -> str:
    """The layer of Keras that one of our modules comes from, for messages."""
    parts = name.split(".", 4)
    if parts[0] != "stages":
        return next(theirs for theirs, ours in _LAYERS.items() if ours == name)
    prefix = f"stack{int(parts[1]) + 1}_"
    if parts[2] != "blocks":
        return prefix + next(theirs for theirs, ours in _STAGE_LAYERS.items() if name.endswith(ours))
    kind = parts[4] + "v" if parts[4] == "lmhsa.k" else parts[4]
    return f"{prefix}block{int(parts[3]) + 1}_" + next(t for t, ours in _BLOCK_LAYERS.items() if ours == kind)
