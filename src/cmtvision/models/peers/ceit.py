"""CeiT: "Incorporating Convolution Designs into Visual Transformers" (Yuan et al., ICCV 2021, arXiv 2103.11816).

    image -> image-to-tokens (I2T) -> [class token, patch tokens] + E -> 12 blocks -> LCA -> LayerNorm -> linear

    I2T:    conv 7x7, stride 2 -> BN -> max pool 3x3, stride 2 -> conv 4x4, stride 4: one token for 16 x 16 pixels
    block:  x = x + MHSA(LN(x));  x = x + LeFF(LN(x))
    LCA:    the class tokens after all blocks, c = [c_1 .. c_L] + E'; the last is the query, all are keys and values:
            y = c_L + Attention(LN(c))_L;  y = y + MLP(LN(y))

Written from the paper; the state dict has the names, order and shapes of the released networks, so that their files
load as they are. Order of reading: this file, i2t.py, leff.py, lca.py. Drop path is applied to the residual branches of
the blocks, not in the LCA. The logits depend on the LCA's class token only, so the LeFF of the last block, which
changes patch tokens alone, gets a gradient of zero, as in the paper's network.

Shapes: B batch, D channels, H W grid of tokens, N = H*W patch tokens, L blocks.
"""

from collections.abc import Mapping
from functools import partial
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import (
    Attention,
    DropPath,
    calculate_drop_path_rates,
    get_device_dtype,
    global_pool_nlc,
    resample_abs_pos_embed,
    to_2tuple,
)
from timm.models import build_model_with_cfg, register_model
from torch import nn

from cmtvision.errors import CheckpointError
from cmtvision.models.peers.i2t import ImageToTokens
from cmtvision.models.peers.lca import LayerwiseClassAttention
from cmtvision.models.peers.leff import Grid, LocallyEnhancedFFN
from cmtvision.models.recompute import recomputed
from cmtvision.models.timm_private import feature_take_indices, generate_default_cfgs, update_model_input_size
from cmtvision.models.weight_sources import load_file, read_by_us, refuse_missing_weights
from cmtvision.weights.files import pick_weights

__all__ = ["CeiT"]

ADVICE = "train it (`cmtvision train`), or name a file: pretrained_cfg_overlay={'file': 'ceit.pth'}"
POOLINGS = ("token", "avg", "max", "avgmax", "")


class Block(nn.Module):
    """One CeiT block: self-attention and LeFF. Input and output (B, 1+N, D), class token first."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        hidden_dim: int,
        norm_eps: float = 1e-6,
        drop_path_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps, **dd)  # made first: the released order of tensors
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps, **dd)
        self.attn = Attention(dim, num_heads, qkv_bias=True, attn_drop=attn_drop_rate, proj_drop=proj_drop_rate, **dd)
        self.leff = LocallyEnhancedFFN(dim, hidden_dim, proj_drop_rate=proj_drop_rate, **dd)
        self.drop_path1 = DropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()
        self.drop_path2 = DropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()

    def forward(self, x: torch.Tensor, grid: Grid) -> torch.Tensor:
        """Tokens (B, 1+N, D) and their grid (H, W) -> tokens (B, 1+N, D)."""
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        return x + self.drop_path2(self.leff(self.norm2(x), grid))


class CeiT(nn.Module):
    """The CeiT network.

    Args:
        img_size: side of the image in pixels, or (H, W); multiples of patch_size. Fixes the position embedding.
        in_chans: channels of the image.
        num_classes: width of the classifier; 0 for none.
        global_pool: what the classifier sees: 'token' (the LCA's class token, the paper's), 'avg', 'max' or 'avgmax'
            of the patch tokens after the last block, '' for all tokens.
        patch_size: pixels per token, in each direction.
        embed_dim: D, channels of the tokens; a multiple of num_heads.
        depth: L, number of blocks.
        num_heads: attention heads of blocks and LCA.
        mlp_ratio: expansion of the LeFF and of the LCA's MLP.
        stem_width: channels of the low-level features.
        stem_kernel: side of their convolution's kernel, odd.
        stem_stride: its stride; the max pool after it halves once more.
        dynamic_img_size: accept any image whose sides are multiples of patch_size, resampling the position embedding;
            else only img_size.
        norm_eps: eps of all LayerNorms.
        drop_rate: dropout before the classifier.
        pos_drop_rate: dropout after the position embedding.
        proj_drop_rate: dropout after each attention, LeFF and MLP.
        attn_drop_rate: dropout of attention weights.
        drop_path_rate: drop path of the last block; the others rise linearly from 0.
        device: where parameters are made.
        dtype: their type.

    Raises:
        ValueError: where sizes, widths and heads do not fit each other.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        patch_size: int = 16,
        embed_dim: int = 192,
        depth: int = 12,
        num_heads: int = 3,
        mlp_ratio: float = 4.0,
        stem_width: int = 64,
        stem_kernel: int = 7,
        stem_stride: int = 2,
        dynamic_img_size: bool = False,
        norm_eps: float = 1e-6,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} is not a multiple of num_heads {num_heads}")
        _check_pooling(global_pool)
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.global_pool = global_pool
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.num_prefix_tokens = 1
        self.patch_size = patch_size
        self.dynamic_img_size = dynamic_img_size
        self.grad_checkpointing = False
        self.feature_info = [
            {"num_chs": embed_dim, "reduction": patch_size, "module": f"blocks.{i}"} for i in range(depth)
        ]
        self.img_size, self.grid_size = _sizes(img_size, patch_size)
        num_patches = self.grid_size[0] * self.grid_size[1]
        hidden_dim = int(embed_dim * mlp_ratio)
        drop_path_rates: list[float] = calculate_drop_path_rates(drop_path_rate, depth)  # type: ignore[assignment]
        rates = {"proj_drop_rate": proj_drop_rate, "attn_drop_rate": attn_drop_rate}

        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim, **dd))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + num_patches, embed_dim, **dd))
        self.pos_layer_embed: nn.Parameter | None = nn.Parameter(torch.empty(1, depth, embed_dim, **dd))
        self.i2t = ImageToTokens(in_chans, stem_width, embed_dim, stem_kernel, stem_stride, patch_size, **dd)
        self.pos_drop = nn.Dropout(pos_drop_rate)
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, hidden_dim, norm_eps, drop_path_rate=drop_path, **rates, **dd)
            for drop_path in drop_path_rates
        )
        self.lca: nn.Module | None = LayerwiseClassAttention(embed_dim, num_heads, hidden_dim, norm_eps, **rates, **dd)
        self.norm: nn.Module = nn.LayerNorm(embed_dim, eps=norm_eps, **dd)
        self.head_drop = nn.Dropout(drop_rate)
        self.head: nn.Module = nn.Linear(embed_dim, num_classes, **dd) if num_classes > 0 else nn.Identity()
        self.init_weights(needs_reset=False)

    @torch.jit.ignore
    def init_weights(self, needs_reset: bool = True) -> None:
        """Initialise as the paper does; with needs_reset every tensor is written, norms and buffers too.

        Linear layers, class token and position embedding from a normal of standard deviation 0.02, biases 0, the
        embedding of layers 0, convolutions as PyTorch has them.
        """
        self.apply(partial(_init_module, needs_reset=needs_reset))
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        if self.pos_layer_embed is not None:
            nn.init.zeros_(self.pos_layer_embed)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Group parameters by depth, for layer-wise learning rates: I2T and embeddings, block by block, the rest."""
        last = r"^(?:lca|pos_layer_embed|norm)"
        return {
            "stem": r"^(?:cls_token|pos_embed|i2t)",
            "blocks": r"^blocks\.(\d+)" if coarse else [(r"^blocks\.(\d+)", None), (last, (99999,))],
        }

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay beyond biases and norms: class token and the two embeddings of positions."""
        return {"cls_token", "pos_embed", "pos_layer_embed"} & {name for name, _ in self.named_parameters()}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory: keep only the tokens between blocks and recompute the rest in the backward pass."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The linear classifier."""
        return self.head

    @torch.jit.ignore
    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier; pooling, train mode, device and dtype stay unless another pooling is named."""
        if global_pool is not None:
            _check_pooling(global_pool)
            self.global_pool = global_pool
        self.num_classes = num_classes
        self.head = nn.Identity()
        if num_classes > 0:
            self.head = nn.Linear(self.embed_dim, num_classes, **get_device_dtype(self))
            _init_module(self.head, needs_reset=True)
        self.head.train(self.training)

    @torch.jit.ignore
    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Change the image size (H, W) in pixels: the position embedding is resampled once, in place."""
        before = self.grid_size
        self.img_size, self.grid_size = _sizes(img_size, self.patch_size)
        resampled = resample_abs_pos_embed(self.pos_embed.detach(), list(self.grid_size), list(before))
        self.pos_embed = nn.Parameter(resampled, requires_grad=self.pos_embed.requires_grad)
        update_model_input_size(self, self.img_size)

    @torch.jit.ignore
    def load_pretrained(self, checkpoint_path: str | Path) -> None:
        """Load a released checkpoint or any other file of weights, adapting classifier, channels and size.

        timm calls this for ``pretrained=True`` (`custom_load`), so that files are read by our safe reader.

        Raises:
            CheckpointError: where the file cannot be read safely or belongs to another network.
        """
        load_file(self, checkpoint_path, partial(checkpoint_filter_fn, source=str(checkpoint_path)))

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """The patch tokens after chosen blocks, and the output of forward_features.

        Args:
            x: image (B, in_chans, H, W).
            indices: blocks to return: the last n for a number, all for None.
            return_prefix_tokens: give (patch tokens, class token (B, 1, D)) instead, the class token of that block.
            norm: apply the final LayerNorm to what is returned.
            stop_early: do not run blocks after the last one asked for.
            output_fmt: 'NCHW' for maps (B, D, H, W), 'NLC' for tokens (B, N, D).
            intermediates_only: return them alone.

        Returns:
            The intermediates; or (final features, intermediates).
        """
        assert output_fmt in ("NCHW", "NLC"), "output_fmt must be NCHW or NLC"
        take_indices, max_index = feature_take_indices(len(self.blocks), indices)
        x, grid = self._embed(x)
        if torch.jit.is_scripting() or not stop_early:  # noqa: SIM108  # a scripted ModuleList cannot be sliced
            blocks = self.blocks
        else:
            blocks = self.blocks[: max_index + 1]
        class_tokens: list[torch.Tensor] = []  # L of (B, 1, D)
        taken: list[torch.Tensor] = []
        for i, block in enumerate(blocks):
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x = _recomputed(block, x, grid)
            else:
                x = block(x, grid)
            class_tokens.append(x[:, :1])
            if i in take_indices:
                taken.append(self.norm(x) if norm else x)
        intermediates = [y[:, 1:] for y in taken]
        if output_fmt == "NCHW":
            intermediates = [y.transpose(1, 2).reshape(y.shape[0], -1, grid[0], grid[1]) for y in intermediates]
        if not torch.jit.is_scripting() and return_prefix_tokens:
            intermediates = [(y, whole[:, :1]) for y, whole in zip(intermediates, taken, strict=True)]  # type: ignore[misc]
        if intermediates_only:
            return intermediates
        if len(class_tokens) == len(self.blocks):
            x = self._finish(x, class_tokens)
        return x, intermediates

    @torch.jit.ignore
    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the chosen blocks do not need: later blocks; with the head also the LCA, whose output it reads.

        If the head stays and blocks are removed, the LCA uses the class tokens of the remaining ones.

        Returns:
            The indices of the blocks that forward_intermediates will return.
        """
        take_indices, max_index = feature_take_indices(len(self.blocks), indices)
        self.blocks = self.blocks[: max_index + 1]
        if self.pos_layer_embed is not None:
            kept_layers = self.pos_layer_embed.detach()[:, : max_index + 1].clone()
            self.pos_layer_embed = nn.Parameter(kept_layers, requires_grad=self.pos_layer_embed.requires_grad)
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.lca = None
            self.pos_layer_embed = None
            self.reset_classifier(0, "")
        kept: list[int] = take_indices
        return kept

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Image (B, in_chans, H, W) -> tokens (B, 1+N, D): the LCA's class token, then those of the last block."""
        x, grid = self._embed(x)
        class_tokens: list[torch.Tensor] = []
        for block in self.blocks:
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x = _recomputed(block, x, grid)
            else:
                x = block(x, grid)
            class_tokens.append(x[:, :1])
        return self._finish(x, class_tokens)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Tokens (B, 1+N, D) -> logits (B, num_classes), or the pooled vector before the classifier."""
        x = self.head_drop(global_pool_nlc(x, pool_type=self.global_pool, num_prefix_tokens=self.num_prefix_tokens))
        return x if pre_logits else self.head(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Image (B, in_chans, H, W) -> logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def _embed(self, x: torch.Tensor) -> tuple[torch.Tensor, Grid]:
        """Image -> tokens with their positions (B, 1+N, D), and their grid (H, W)."""
        self._check_size(x)
        x = self.i2t(x)  # (B, D, H, W)
        grid = (x.shape[2], x.shape[3])
        pos_embed: torch.Tensor = self.pos_embed
        if self.dynamic_img_size:
            old_size = [self.grid_size[0], self.grid_size[1]]
            pos_embed = resample_abs_pos_embed(pos_embed, [grid[0], grid[1]], old_size)
        class_token = self.cls_token.expand(x.shape[0], -1, -1)
        x = torch.cat([class_token, x.flatten(2).transpose(1, 2)], dim=1) + pos_embed
        return self.pos_drop(x), grid

    def _finish(self, x: torch.Tensor, class_tokens: list[torch.Tensor]) -> torch.Tensor:
        """Replace the last class token by the LCA's output, and normalise all tokens."""
        if self.lca is not None and self.pos_layer_embed is not None:
            layers = torch.cat(class_tokens, dim=1) + self.pos_layer_embed  # (B, L, D)
            x = torch.cat([self.lca(layers), x[:, 1:]], dim=1)
        return self.norm(x)

    def _check_size(self, x: torch.Tensor) -> None:
        height, width = x.shape[2], x.shape[3]
        if self.dynamic_img_size:
            torch._assert(height % self.patch_size == 0, "image height is not a multiple of patch_size")
            torch._assert(width % self.patch_size == 0, "image width is not a multiple of patch_size")
        else:
            torch._assert(height == self.img_size[0], "image height is not img_size; set dynamic_img_size=True")
            torch._assert(width == self.img_size[1], "image width is not img_size; set dynamic_img_size=True")


@torch.jit.ignore
def _recomputed(block: nn.Module, x: torch.Tensor, grid: Any) -> torch.Tensor:
    return recomputed(block, x, grid)


def _sizes(img_size: int | tuple[int, int], patch_size: int) -> tuple[Grid, Grid]:
    """Image (H, W) in pixels, and its grid of tokens."""
    height, width = to_2tuple(img_size)
    if min(height, width) < 1 or height % patch_size or width % patch_size:
        raise ValueError(f"img_size {img_size}: expected positive multiples of {patch_size} px, the patch size")
    return (int(height), int(width)), (int(height) // patch_size, int(width) // patch_size)


def _check_pooling(global_pool: str) -> None:
    # an AssertionError, as in timm's transformers
    assert global_pool in POOLINGS, f"global_pool {global_pool!r}: expected one of {', '.join(map(repr, POOLINGS))}"


def _init_module(module: nn.Module, needs_reset: bool) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif needs_reset and hasattr(module, "reset_parameters"):
        module.reset_parameters()  # type: ignore[operator]


def checkpoint_filter_fn(
    state_dict: Mapping[str, torch.Tensor], model: nn.Module, source: str = "the state dict"
) -> dict[str, torch.Tensor]:
    """Make a released or native state dict loadable into a model, which may differ in size.

    The classifier and the first convolution are left as they are: timm adapts those. A state dict that already fits
    comes back unchanged.

    Raises:
        CheckpointError: where the weights belong to another network, naming which one if it is a CeiT.
    """
    if any(not isinstance(value, torch.Tensor) for value in state_dict.values()):
        state_dict = pick_weights(state_dict, use_ema=True, source=source)
    state = dict(state_dict)
    target = model.state_dict()
    table, wanted = state.get("pos_embed"), target["pos_embed"]
    same_network = table is not None and table.ndim == 3 and table.shape[2] == wanted.shape[2]
    if table is not None and same_network and table.shape[1] != wanted.shape[1]:
        grid: Grid = model.grid_size  # type: ignore[assignment]
        state["pos_embed"] = _resample_square(table, grid, source)
    _check_fit(state, target, source)
    return state


def _resample_square(table: torch.Tensor, grid: Grid, source: str) -> torch.Tensor:
    """Resample a position embedding (1, 1+N, D), which does not say its grid, from a square one."""
    side = isqrt(table.shape[1] - 1)
    if side * side != table.shape[1] - 1:
        raise CheckpointError(
            f"{source}: its position embedding, of {table.shape[1] - 1} tokens, has no square grid; load it at the "
            "img_size it was trained at, then call set_input_size"
        )
    resampled: torch.Tensor = resample_abs_pos_embed(table, list(grid), [side, side])
    return resampled


def _check_fit(state: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor], source: str) -> None:
    missing = [name for name in target if name not in state and not name.startswith("head.")]
    unknown = [name for name in state if name not in target and not name.startswith("head.")]
    wrong = [name for name in target if name in state and not _fits(name, state[name], target[name])]
    if wrong:
        shapes = f"{tuple(state[wrong[0]].shape)} not {tuple(target[wrong[0]].shape)}"
        what = f"{len(wrong)} tensors have other shapes ({wrong[0]}: {shapes})"
    elif missing:
        what = f"{len(missing)} tensors are missing (first: {missing[0]})"
    elif unknown:
        what = f"{len(unknown)} tensors have no place in the model (first: {unknown[0]})"
    else:
        return
    theirs = _recognise(state)
    hint = f"; it looks like {theirs}" if theirs else "; check the model's name"
    raise CheckpointError(f"{source}: not weights of this model, {what}{hint}")


def _fits(name: str, given: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Whether the shapes agree, apart from what timm adapts: the classifier, and the channels of the image."""
    if name == "i2t.backbone.conv.weight" and given.ndim == wanted.ndim:
        return given.shape[:1] + given.shape[2:] == wanted.shape[:1] + wanted.shape[2:]
    return name.startswith("head.") or given.shape == wanted.shape


def _recognise(state: Mapping[str, torch.Tensor]) -> str:
    """The CeiT whose width and depth a state dict has, '' where it is none."""
    if "cls_token" not in state or "pos_layer_embed" not in state:
        return ""
    shape = (state["cls_token"].shape[-1], state["pos_layer_embed"].shape[1])
    return next((name for name, row in NETWORKS.items() if shape == (row["embed_dim"], row["depth"])), "")


# The paper's table; the 384 px networks have the values of those at 224 px.
NETWORKS: dict[str, dict[str, Any]] = {
    "ceit_tiny_patch16_224": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "ceit_small_patch16_224": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "ceit_base_patch16_224": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    # Ours, not the paper's: for 32 px, within 10% of cmt_nano's multiply-adds, with the skeleton of vit_nano (8 px a
    # token, so 4 x 4 tokens, width 64, 6 blocks of 2 heads) and all three of CeiT's ideas. I2T keeps the paper's pool
    # and its patches of 4 x 4 features; only the convolution in front is smaller, 3x3 with stride 1 to 16 channels.
    "ceit_nano": {
        "embed_dim": 64,
        "depth": 6,
        "num_heads": 2,
        "patch_size": 8,
        "stem_width": 16,
        "stem_kernel": 3,
        "stem_stride": 1,
    },
    # for 64 px, by the rule in small.py
    "ceit_micro": {
        "embed_dim": 48,
        "depth": 5,
        "num_heads": 2,
        "patch_size": 8,
        "stem_width": 12,
        "stem_kernel": 3,
        "stem_stride": 1,
    },
}


def _cfg(side: int, **kwargs: Any) -> dict[str, Any]:
    return {
        "url": "",
        "custom_load": True,
        "num_classes": 1000,
        "input_size": (3, side, side),
        "pool_size": None,
        "fixed_input_size": True,
        "crop_pct": 0.875 if side == 224 else 1.0,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "i2t.backbone.conv",
        "classifier": "head",
        "paper_name": "Incorporating Convolution Designs into Visual Transformers",
        "paper_ids": "arXiv:2103.11816",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "ceit_nano.untrained": _cfg(32),
        "ceit_micro.untrained": _cfg(64),
        "ceit_tiny_patch16_224.untrained": _cfg(224),
        "ceit_small_patch16_224.untrained": _cfg(224),
        "ceit_base_patch16_224.untrained": _cfg(224),
        "ceit_tiny_patch16_384.untrained": _cfg(384),
        "ceit_small_patch16_384.untrained": _cfg(384),
    }
)


def _create_ceit(name: str, row: str, side: int, pretrained: bool, **kwargs: Any) -> CeiT:
    """Make a registered CeiT through timm: the values of a row of NETWORKS at an image size, with changes."""
    refuse_missing_weights(name, pretrained, kwargs, ADVICE)
    feature_cfg = {"out_indices": 3, "feature_cls": "getter", **kwargs.pop("feature_cfg", {})}
    read_by_us(name, pretrained, kwargs)
    model: CeiT = build_model_with_cfg(
        CeiT,
        name,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=feature_cfg,
        **{"img_size": side, **NETWORKS[row], **kwargs},
    )
    return model


@register_model
def ceit_nano(pretrained: bool = False, **kwargs: Any) -> CeiT:
    """CeiT-nano, ours: 0.46M parameters, for 32 px (4 x 4 tokens), at the multiply-adds of CMT-nano."""
    return _create_ceit("ceit_nano", "ceit_nano", 32, pretrained, **kwargs)


@register_model
def ceit_micro(pretrained: bool = False, **kwargs: Any) -> CeiT:
    """CeiT-micro, ours: for 64 px (8 x 8 tokens), at the multiply-adds of CMT-micro."""
    return _create_ceit("ceit_micro", "ceit_micro", 64, pretrained, **kwargs)


@register_model
def ceit_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> CeiT:
    """CeiT-T: 6.36M parameters, 1.40 GMACs at 224 px, 76.4% ImageNet top-1 in the paper."""
    return _create_ceit("ceit_tiny_patch16_224", "ceit_tiny_patch16_224", 224, pretrained, **kwargs)


@register_model
def ceit_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> CeiT:
    """CeiT-S: 24.20M parameters, 4.76 GMACs at 224 px, 82.0% ImageNet top-1 in the paper."""
    return _create_ceit("ceit_small_patch16_224", "ceit_small_patch16_224", 224, pretrained, **kwargs)


@register_model
def ceit_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> CeiT:
    """CeiT-B: 94.41M parameters at 224 px."""
    return _create_ceit("ceit_base_patch16_224", "ceit_base_patch16_224", 224, pretrained, **kwargs)


@register_model
def ceit_tiny_patch16_384(pretrained: bool = False, **kwargs: Any) -> CeiT:
    """CeiT-T at 384 px; a checkpoint of 224 px loads, its position embedding resampled."""
    return _create_ceit("ceit_tiny_patch16_384", "ceit_tiny_patch16_224", 384, pretrained, **kwargs)


@register_model
def ceit_small_patch16_384(pretrained: bool = False, **kwargs: Any) -> CeiT:
    """CeiT-S at 384 px; a checkpoint of 224 px loads, its position embedding resampled."""
    return _create_ceit("ceit_small_patch16_384", "ceit_small_patch16_224", 384, pretrained, **kwargs)
