"""timm's interface for networks from transformers (CvT, PVT v1): pyramid of tokens, class token, head.

    image -> [tokens (in the last stage a class token) -> blocks -> map] x stages -> LayerNorm -> class token -> linear

Embeddings and blocks are those of transformers; their combination and timm's methods are here. cvt.py and pvt.py
build the stages.

Shapes: B batch, C channels, H W grid, N = H*W tokens, P prefix tokens (the class token: 0 or 1).
"""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from timm.layers import get_device_dtype, global_pool_nlc, trunc_normal_
from timm.models import build_model_with_cfg
from torch import nn

from cmtvision.errors import ConfigError
from cmtvision.models.recompute import recomputed
from cmtvision.models.timm_private import feature_take_indices
from cmtvision.models.weight_sources import load_file, read_by_us, refuse_missing_weights

__all__ = ["PyramidStage", "TokenPyramid", "checkpoint_filter_fn", "create_pyramid", "import_transformers"]

POOLINGS = ("token", "avg", "max", "avgmax", "")
INIT_STD = 0.02


def import_transformers(name: str) -> ModuleType:
    """The package transformers, for the model ``name``.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(f"{name} is built from the package transformers: pip install 'cmtvision[peers]'") from error
    return transformers


class PyramidStage(nn.Module):
    """Image or map -> tokens -> blocks.

    Args:
        embed: map (B, C', H', W') -> (tokens (B, P+N, C), H, W).
        blocks: each (tokens, H, W) -> tokens.
        num_prefix_tokens: P, how many leading tokens do not belong to the grid.
    """

    def __init__(self, embed: nn.Module, blocks: Sequence[nn.Module], num_prefix_tokens: int = 0) -> None:
        super().__init__()
        self.embed = embed
        self.blocks = nn.ModuleList(blocks)
        self.num_prefix_tokens = num_prefix_tokens
        self.grad_checkpointing = False

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, int, int]:
        """Map (B, C', H', W') -> tokens (B, P+N, C) and their grid H, W."""
        x, height, width = self.embed(x)  # (B, P+N, C)
        for block in self.blocks:
            if self.grad_checkpointing and self.training and torch.is_grad_enabled():
                x = recomputed(_OnGrid(block, height, width), x, None)
            else:
                x = block(x, height, width)
        return x, height, width

    def to_map(self, x: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Tokens (B, P+N, C) -> map (B, C, H, W)."""
        x = x[:, self.num_prefix_tokens :]
        return x.transpose(1, 2).reshape(x.shape[0], -1, height, width)


class _OnGrid(nn.Module):
    """A block with its grid filled in, for recomputing."""

    def __init__(self, block: nn.Module, height: int, width: int) -> None:
        super().__init__()
        self.block, self.height, self.width = block, height, width

    def forward(self, x: torch.Tensor, _: None) -> torch.Tensor:
        return self.block(x, self.height, self.width)


class TokenPyramid(nn.Module):
    """Stages, final norm and classifier with timm's methods. CvT and PVT are its subclasses.

    Args:
        stages: from the image to the last tokens; the last stage has a leading class token.
        norm: LayerNorm after the last stage.
        dims: channels of the stages.
        strides: pixels per token of the stages.
        in_chans: channels of the image.
        num_classes: width of the classifier; 0 for none.
        global_pool: 'token' (the class token, as published), 'avg', 'max', 'avgmax' over the grid, or '' for none.
        drop_rate: dropout before the classifier.

    Raises:
        ConfigError: an unknown pooling.
    """

    def __init__(
        self,
        stages: Sequence[PyramidStage],
        norm: nn.Module,
        dims: Sequence[int],
        strides: Sequence[int],
        in_chans: int,
        num_classes: int,
        global_pool: str,
        drop_rate: float,
    ) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.global_pool = _checked_pooling(global_pool)
        self.dims = tuple(dims)
        self.num_features = self.head_hidden_size = dims[-1]
        self.feature_info = [
            {"num_chs": dim, "reduction": stride, "module": f"stages.{i}"}
            for i, (dim, stride) in enumerate(zip(dims, strides, strict=True))
        ]
        self.stages = nn.ModuleList(stages)
        self.norm = norm
        self.head_drop = nn.Dropout(drop_rate)
        self.head: nn.Module = _classifier(dims[-1], num_classes, **get_device_dtype(self.norm))

    @property
    def num_prefix_tokens(self) -> int:
        """Leading tokens that do not belong to the grid in the output of forward_features."""
        return int(self.stages[-1].num_prefix_tokens)  # type: ignore[arg-type]

    def init_weights(self, needs_reset: bool = True) -> None:
        """Draw all weights again, as transformers does: truncated normal of std 0.02, biases 0, norms 1 and 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                _init_linear(module)
            elif needs_reset and hasattr(module, "reset_parameters"):
                module.reset_parameters()  # type: ignore[operator]
        for name, parameter in self.named_parameters():
            if _is_token(name):
                trunc_normal_(parameter, std=INIT_STD)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Group parameters by depth, for layer-wise learning rates: stem, stage by stage (coarse) or block by block."""
        if coarse:
            return {"stem": r"^stages\.0\.embed", "blocks": r"^stages\.(\d+)"}
        return {
            "stem": r"^stages\.0\.embed",
            "blocks": [
                (r"^stages\.(\d+)\.embed", (0,)),
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^norm", (99999,)),
            ],
        }

    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay beyond biases and norms: class token and position embeddings."""
        return {name for name, _ in self.named_parameters() if _is_token(name)}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory: keep only the tokens between blocks and recompute the rest in the backward pass."""
        for stage in self.stages:
            stage.grad_checkpointing = enable  # type: ignore[assignment]

    def get_classifier(self) -> nn.Module:
        """The linear classifier."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier; pooling, train mode, device and dtype stay unless another pooling is named."""
        if global_pool is not None:
            self.global_pool = _checked_pooling(global_pool)
        self.num_classes = num_classes
        self.head = _classifier(self.num_features, num_classes, **get_device_dtype(self))
        self.head.train(self.training)

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """The maps after chosen stages, and the output of forward_features.

        Args:
            x: image (B, in_chans, H, W).
            indices: stages to return: the last n for a number, all for None.
            norm: apply the final norm to the last stage's map (the others have none).
            stop_early: do not run stages after the last one asked for.
            output_fmt: 'NCHW', the only format.
            intermediates_only: return the maps alone.

        Returns:
            The maps (B, C, H/s, W/s) without class token; or (final tokens (B, P+N, C), maps).
        """
        assert output_fmt == "NCHW", "output_fmt must be NCHW"
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        self.check_image(x)
        maps: list[torch.Tensor] = []
        last = len(self.stages) - 1
        tokens = x
        for i, stage in enumerate(self.stages):
            if stop_early and i > max_index:
                break
            tokens, height, width = stage(x)
            if i == last:
                normed = self.norm(tokens)
                tokens, shown = normed, normed if norm else tokens
            else:
                shown = tokens
            x = stage.to_map(shown, height, width)  # type: ignore[operator]
            if i in take_indices:
                maps.append(x)
        return maps if intermediates_only else (tokens, maps)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the chosen stages do not need: later stages, and with them the final norm and the classifier.

        Returns:
            The indices of the stages that forward_intermediates will return.
        """
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        cut = max_index < len(self.stages) - 1
        self.stages = self.stages[: max_index + 1]
        self.num_features = self.head_hidden_size = self.dims[max_index]
        if prune_norm or cut:
            self.norm = nn.Identity()
        if prune_head or cut:
            self.reset_classifier(0, "")
        kept: list[int] = take_indices
        return kept

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Image (B, in_chans, H, W) -> normed tokens (B, P+N, C) of the last stage, class token first."""
        self.check_image(x)
        last = len(self.stages) - 1
        for i, stage in enumerate(self.stages):
            tokens, height, width = stage(x)
            if i < last:
                x = stage.to_map(tokens, height, width)  # type: ignore[operator]
        return self.norm(tokens)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Tokens (B, P+N, C) -> logits (B, num_classes), or the pooled vector before the classifier."""
        x = global_pool_nlc(x, pool_type=self.global_pool, num_prefix_tokens=self.num_prefix_tokens)
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Image (B, in_chans, H, W) -> logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def check_image(self, x: torch.Tensor) -> None:
        """Raise ConfigError for an image (B, in_chans, H, W) of a size or channels that the network does not take."""
        if x.ndim != 4 or x.shape[1] != self.in_chans:
            raise ConfigError(
                f"{type(self).__name__} takes images (B, {self.in_chans}, H, W), got {tuple(x.shape)}; "
                "create it with another in_chans for other channels"
            )

    def weights_from(self, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A state dict of transformers, or one of this class, with this class's names."""
        raise NotImplementedError

    def load_pretrained(self, checkpoint_path: str | Path) -> None:
        """Load a file of weights, of transformers or of this class (timm calls it for ``pretrained=True``).

        Raises:
            CheckpointError: where the file cannot be read safely.
        """
        load_file(self, checkpoint_path, checkpoint_filter_fn)


def checkpoint_filter_fn(state_dict: dict[str, torch.Tensor], model: TokenPyramid) -> dict[str, torch.Tensor]:
    """timm's hook between reading weights and loading them; it leaves the network's own weights as they are."""
    return model.weights_from(state_dict)


def create_pyramid(cls: Any, name: str, pretrained: bool, advice: str, **kwargs: Any) -> Any:
    """Make a registered network of a subclass through timm; files of weights are read by our safe reader.

    Raises:
        ConfigError: ``pretrained`` without a source of weights; the message ends with ``advice``.
    """
    refuse_missing_weights(name, pretrained, kwargs, advice)
    feature_cfg = {"out_indices": (0, 1, 2), "feature_cls": "getter", **kwargs.pop("feature_cfg", {})}
    read_by_us(name, pretrained, kwargs)
    return build_model_with_cfg(
        cls, name, pretrained, pretrained_filter_fn=checkpoint_filter_fn, feature_cfg=feature_cfg, **kwargs
    )


def _classifier(width: int, num_classes: int, **dd: Any) -> nn.Module:
    if num_classes == 0:
        return nn.Identity()
    head = nn.Linear(width, num_classes, **dd)
    _init_linear(head)
    return head


def _init_linear(module: nn.Linear | nn.Conv2d) -> None:
    trunc_normal_(module.weight, std=INIT_STD)
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def _is_token(name: str) -> bool:
    return name.endswith(("cls_token", "position_embeddings"))


def _checked_pooling(global_pool: str) -> str:
    if global_pool not in POOLINGS:
        raise ConfigError(f"global_pool {global_pool!r}: expected one of {', '.join(map(repr, POOLINGS))}")
    return global_pool
