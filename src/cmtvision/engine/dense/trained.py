"""The weights of a trained detector or segmenter for a new one, which may have other classes or be of another kind."""

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from cmtvision.errors import CheckpointError

_BACKBONES = ("network.backbone.body.", "encoder.encoder.model.", "encoder.model.")
"""What the names of a backbone's tensors begin with: in a detector, in a segmenter that enlarges the last map (see
``LastEnlarged``), in any other segmenter."""


def load_fitting(model: nn.Module, state: Mapping[str, torch.Tensor], where: object) -> str:
    """Load every tensor that has the same name and shape in both; a backbone's have the same name in every kind.

    Args:
        model: the new network.
        state: the trained one's.
        where: the name of its file for an error.

    Returns:
        How many tensors were loaded, in words.

    Raises:
        CheckpointError: less than half of the backbone fits, so that it is another network's.
    """
    own = model.state_dict()
    before, now = _backbone(state), _backbone(own)
    named = {now + key.removeprefix(before) if key.startswith(before) else key: value for key, value in state.items()}
    fitting = {key: value for key, value in named.items() if key in own and own[key].shape == value.shape}
    inside = [key for key in own if key.startswith(now)]
    found = sum(key in fitting for key in inside)
    if 2 * found < len(inside):
        raise CheckpointError(f"{where}: another backbone's weights, {found} of {len(inside)} tensors fit")
    model.load_state_dict(fitting, strict=False)
    return f"{len(fitting)} of {len(own)} tensors are from {where}; {len(own) - len(fitting)} begin anew"


def _backbone(names: Iterable[str]) -> str:
    names = list(names)
    return next((prefix for prefix in _BACKBONES if any(name.startswith(prefix) for name in names)), _BACKBONES[0])
