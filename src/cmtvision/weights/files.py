"""Files of weights, read without ever executing their content.

A pickle is read by PyTorch's restricted unpickler: tensors, plain containers and argparse.Namespace (the released
training checkpoints carry their arguments in one) and nothing else; anything more is refused by name.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from cmtvision.errors import CheckpointError
from cmtvision.files import atomic_write
from cmtvision.weights.pickles import suspicious_names

StateDict = dict[str, torch.Tensor]

_EMA_KEYS = ("model_ema", "state_dict_ema")
_MODEL_KEYS = ("model", "state_dict")


def read_state_dict(path: str | Path, use_ema: bool = True) -> StateDict:
    """Read the weights in a file: a released .pth (training checkpoint or flat), safetensors, or Keras HDF5.

    Args:
        path: the file; .safetensors, .h5/.hdf5, or anything torch.save wrote.
        use_ema: take a training checkpoint's averaged weights where it has them, else its plain ones.

    Returns:
        Parameter name -> tensor, on the CPU, in the layout of the file (see weights.official).

    Raises:
        CheckpointError: a missing, torn or unknown file, or a pickle that contains more than weights.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file of weights")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in (".h5", ".hdf5"):
        from cmtvision.weights.keras import read_keras_state_dict

        return read_keras_state_dict(path)
    return pick_weights(read_pickle(path), use_ema, str(path))


def pick_weights(checkpoint: Any, use_ema: bool, source: str) -> StateDict:
    """Find the weights in what a checkpoint holds: averaged ones first when use_ema, then plain, then flat.

    Raises:
        CheckpointError: where no dictionary of tensors is in it.
    """
    if isinstance(checkpoint, Mapping):
        keys = (*_EMA_KEYS, *_MODEL_KEYS) if use_ema else _MODEL_KEYS
        for key in keys:
            inner = checkpoint.get(key)
            if isinstance(inner, Mapping) and inner:
                return pick_weights(inner, use_ema, source)
        if checkpoint and all(isinstance(value, torch.Tensor) for value in checkpoint.values()):
            return {str(key).removeprefix("module."): value for key, value in checkpoint.items()}
    found = (
        ", ".join(sorted(map(str, checkpoint))[:6]) if isinstance(checkpoint, Mapping) else type(checkpoint).__name__
    )
    raise CheckpointError(
        f"{source}: holds no model weights (found: {found}); expected a state dict or a 'model' entry"
    )


def write_safetensors(state_dict: Mapping[str, torch.Tensor], path: str | Path, metadata: dict[str, str]) -> None:
    """Write weights and a text block to a safetensors file, whole or not at all.

    Raises:
        CheckpointError: if it cannot be written; an existing file is left unchanged.
    """
    path = Path(path)
    # safetensors refuses tensors that share memory or have gaps; a copy of each has neither
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state_dict.items()}

    def write(temporary: str) -> None:
        try:
            save_file(tensors, temporary, metadata={"format": "pt", **metadata})
        except SafetensorError as error:  # a full disk is one too
            raise OSError(str(error)) from error

    atomic_write(path, write)


def write_pth(content: Any, path: str | Path) -> None:
    """torch.save, whole or not at all. Raises CheckpointError if it cannot be written."""
    atomic_write(Path(path), lambda temporary: torch.save(content, temporary))


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).splitlines()[0]


def _read_safetensors(path: Path) -> StateDict:
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a whole safetensors file ({_reason(error)}); fetch or write it again"
        ) from error


def read_pickle(path: Path) -> Any:
    """What torch.save wrote: tensors, plain containers and argparse.Namespace.

    Raises:
        CheckpointError: a torn file, or one with anything else in it, by name.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises its own, zipfile's, and many of Python's on a torn file
        names = suspicious_names(path)
        if names:
            raise CheckpointError(
                f"{path}: refused, it would run {names[0]} when read; a checkpoint may hold tensors and plain "
                "containers only. Ask its author for safetensors"
            ) from None
        raise CheckpointError(f"{path}: not a whole checkpoint of torch.save; fetch or write it again") from error
