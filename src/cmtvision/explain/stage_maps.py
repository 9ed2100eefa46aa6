"""The map that a stage of a network gives, with its gradient: what Grad-CAM and the receptive field are made of.

A stage is whatever timm's ``feature_info`` names: a stage of CMT, a residual stage, a block of a ViT. Its output is
read by a hook, as the network's own tensor, so that a gradient reaches it, and is seen as a map (B, C, h, w) whether
the network keeps (B, C, h, w), (B, h, w, C) or tokens (B, P+N, C) of a grid.

Stages count from 1, as in the paper; -1 is the last.

Shapes: B batch, C channels, H W image in pixels, h w grid of the stage, N = h*w tokens, P prefix tokens (class token).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from cmtvision.errors import ConfigError

Classes: TypeAlias = torch.Tensor | int | None
"""Which class each image is explained for: (B,) indices, one for all, or None for the predicted ones."""


@dataclass(frozen=True)
class StageOutput:
    """One forward pass, seen at a stage.

    Attributes:
        output: the stage's output in the network's own layout, part of the graph of ``logits``.
        as_map: makes a map (B, C, h, w) of it, or of anything of its shape, such as its gradient.
        logits: (B, classes).
    """

    output: torch.Tensor
    as_map: Callable[[torch.Tensor], torch.Tensor]
    logits: torch.Tensor


def num_stages(network: nn.Module) -> int:
    """How many stages can be asked for; 0 where the network names none."""
    return len(_feature_info(network))


def stage_index(network: nn.Module, stage: int) -> int:
    """The place of a stage in Python's counting, from 0.

    Raises:
        ConfigError: a network without stages, or no such stage.
    """
    count = num_stages(network)
    if not count:
        raise ConfigError(f"{type(network).__name__} names no stages (timm's feature_info); choose another method")
    if stage == 0 or not -count <= stage <= count:
        raise ConfigError(f"stage {stage}: {type(network).__name__} has stages 1 to {count}; -1 is the last")
    return stage - 1 if stage > 0 else count + stage


def forward_to_stage(network: nn.Module, images: torch.Tensor, stage: int) -> StageOutput:
    """Run images (B, channels, H, W) through a network and keep a stage's output in the graph.

    The images must require a gradient, so that there is one even where the weights are frozen.

    Raises:
        ConfigError: no such stage, or one whose output is no map.
    """
    info = _feature_info(network)[stage_index(network, stage)]
    seen: list[Any] = []
    module = network.get_submodule(str(info["module"]))
    handle = module.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    try:
        with torch.enable_grad():
            logits = network(images)
    finally:
        handle.remove()
    if not seen:
        raise ConfigError(f"stage {stage} ({info['module']}) of {type(network).__name__} did not run on its own")
    output, as_map = _read(network, module, seen[-1], info, (images.shape[2], images.shape[3]), stage)
    return StageOutput(output, as_map, logits)


def chosen(logits: torch.Tensor, classes: Classes) -> torch.Tensor:
    """The class (B,) of each image to explain: those given, else the predicted ones.

    Raises:
        ConfigError: a class that the logits (B, classes) do not have, or another number of classes than of images.
    """
    if classes is None:
        return logits.argmax(dim=1)
    indices = torch.as_tensor(classes, dtype=torch.long, device=logits.device).expand(len(logits))
    if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < logits.shape[1]:
        raise ConfigError(f"class {int(indices.max())}: the network has {logits.shape[1]} classes, counted from 0")
    return indices


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; every module then returns to the mode that it was in."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def with_gradient(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The images on the network's device, as leaves that require a gradient."""
    device = next(network.parameters()).device
    return images.detach().to(device).requires_grad_()


def _feature_info(network: nn.Module) -> list[dict[str, Any]]:
    info: Any = getattr(network, "feature_info", None) or []
    modules = dict(network.named_modules())
    return [entry for entry in info if entry.get("module") in modules]


def _read(
    network: nn.Module, module: nn.Module, output: Any, info: dict[str, Any], size: tuple[int, int], stage: int
) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
    """The output's tensor, and what makes a map of it."""
    grid = (size[0] // int(info["reduction"]), size[1] // int(info["reduction"]))
    prefix = int(getattr(network, "num_prefix_tokens", 0) or 0)
    if isinstance(output, tuple) and len(output) == 3 and all(isinstance(side, int) for side in output[1:]):
        output, grid = output[0], output[1:]  # tokens with their grid, as our CvT and PVT give them
        prefix = int(getattr(module, "num_prefix_tokens", 0))
    if isinstance(output, torch.Tensor):
        channels = int(info["num_chs"])
        if output.ndim == 4 and output.shape[1] == channels:
            return output, lambda x: x
        if output.ndim == 4 and output.shape[3] == channels:
            return output, lambda x: x.permute(0, 3, 1, 2)
        if output.ndim == 3 and output.shape[1] - prefix == grid[0] * grid[1]:
            return output, lambda x: x[:, prefix:].transpose(1, 2).unflatten(2, grid)  # (B, C, h, w)
    shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
    raise ConfigError(f"stage {stage} of {type(network).__name__} gives {shape}, which is no map of the image")
