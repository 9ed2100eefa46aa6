"""CeiT against a slow restatement of its equations: plain tensor operations, float64, nothing shared with src/.

Weights are sine waves in the released layout, BatchNorm statistics and the embeddings of positions and layers too.
"""

import math
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from cmtvision.models.peers.ceit import CeiT
from cmtvision.models.peers.i2t import ImageToTokens
from cmtvision.models.peers.lca import LayerwiseClassAttention
from cmtvision.models.peers.leff import LocallyEnhancedFFN

Weights = dict[str, Tensor]


def filled(module: nn.Module) -> Weights:
    """Fill a module, tensor by tensor in its own order, with sine waves; returns its weights in float64."""
    weights = {}
    for i, (name, tensor) in enumerate(module.state_dict().items()):
        if not tensor.is_floating_point():
            continue
        k = torch.arange(tensor.numel(), dtype=torch.float64)
        value = torch.sin(0.7 * i + 0.37 * k + 0.01 * k * k.sqrt()).reshape(tensor.shape)  # no two rows alike
        if name.endswith("running_var"):
            value = 1 + 0.3 * value
        elif name.endswith("running_mean"):
            value = 0.1 * value
        elif tensor.ndim == 1:
            value = 1 + 0.1 * value if name.endswith("weight") else 0.05 * value
            if name.endswith("backbone.bn.weight"):
                value[::2] *= -1  # where the norm turns signs round, a pool in front of it takes another maximum
        elif tensor.ndim != 3:  # those with three dimensions are class token and embeddings: full size
            value = value * (2 / tensor[0].numel()) ** 0.5
        tensor.copy_(value)
        weights[name] = tensor.double()
    return weights


def under(w: Weights, prefix: str) -> Weights:
    return {name[len(prefix) + 1 :]: value for name, value in w.items() if name.startswith(prefix + ".")}


def image(*shape: int) -> Tensor:
    x = torch.arange(math.prod(shape), dtype=torch.float64)
    return (torch.sin(0.013 * x + 0.3) + 0.5 * torch.sin(0.00071 * x * x.sqrt() + 0.3)).reshape(shape)


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def batch_norm(x: Tensor, w: Weights) -> Tensor:
    per_channel = (1, -1, 1, 1)
    normal = (x - w["running_mean"].view(per_channel)) / (w["running_var"].view(per_channel) + 1e-5).sqrt()
    return normal * w["weight"].view(per_channel) + w["bias"].view(per_channel)


def layer_norm(x: Tensor, w: Weights) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / ((centred**2).mean(-1, keepdim=True) + 1e-6).sqrt() * w["weight"] + w["bias"]


def windows(x: Tensor, kernel: int, stride: int, padding: int, outside: float = 0.0) -> Tensor:
    """All windows of a padded map: (B, C, H', W', kernel, kernel)."""
    batch, channels, height, width = x.shape
    padded = torch.full((batch, channels, height + 2 * padding, width + 2 * padding), outside, dtype=x.dtype)
    padded[:, :, padding : padding + height, padding : padding + width] = x
    return padded.unfold(2, kernel, stride).unfold(3, kernel, stride)


def conv(x: Tensor, w: Weights, stride: int = 1, padding: int = 0) -> Tensor:
    seen = windows(x, w["weight"].shape[2], stride, padding)
    rows = seen.permute(0, 2, 3, 1, 4, 5).flatten(3)  # (B, H', W', C*k*k)
    out = (rows @ w["weight"].flatten(1).T).permute(0, 3, 1, 2)
    return out + w["bias"].view(1, -1, 1, 1) if "bias" in w else out


def depthwise(x: Tensor, w: Weights) -> Tensor:
    seen = windows(x, 3, 1, 1)
    return (seen * w["weight"][None, :, 0, None, None]).sum((4, 5)) + w["bias"].view(1, -1, 1, 1)


def linear(x: Tensor, w: Weights) -> Tensor:
    return x @ w["weight"].T + w["bias"]


def image_to_tokens(x: Tensor, w: Weights, stride: int, patch: int) -> Tensor:
    """Tokens (B, N, D), row by row."""
    kernel = w["backbone.conv.weight"].shape[2]
    x = batch_norm(conv(x, under(w, "backbone.conv"), stride, kernel // 2), under(w, "backbone.bn"))
    x = windows(x, 3, 2, 1, outside=-math.inf).amax((4, 5))
    x = conv(x, under(w, "proj"), stride=patch)
    return torch.stack([x[:, :, i, j] for i in range(x.shape[2]) for j in range(x.shape[3])], dim=1)


def leff(x: Tensor, w: Weights, height: int, width: int) -> Tensor:
    rows = [x[:, 1 + i * width : 1 + (i + 1) * width] for i in range(height)]
    y = torch.stack(rows, dim=1).permute(0, 3, 1, 2)  # (B, D, H, W)
    y = gelu(batch_norm(conv(y, under(w, "conv1")), under(w, "bn1")))
    y = gelu(batch_norm(depthwise(y, under(w, "conv2")), under(w, "bn2")))
    y = batch_norm(conv(y, under(w, "conv3")), under(w, "bn3"))
    return torch.stack([x[:, 0], *(y[:, :, i, j] for i in range(height) for j in range(width))], dim=1)


def attention(x: Tensor, w: Weights, heads: int, queries: slice) -> Tensor:
    """What the queries gather from all tokens, one head at a time."""
    dim = x.shape[-1]
    d = dim // heads
    projected = linear(x, under(w, "qkv"))
    q, k, v = projected[..., :dim], projected[..., dim : 2 * dim], projected[..., 2 * dim :]
    gathered = []
    for h in range(heads):
        part = slice(h * d, (h + 1) * d)
        scores = torch.einsum("bnd,bmd->bnm", q[:, queries, part], k[..., part]) / math.sqrt(d)
        assert scores.abs().max() < 100, "attention that looks at one token only"
        weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
        gathered.append(torch.einsum("bnm,bmd->bnd", weights, v[..., part]))
    return linear(torch.cat(gathered, dim=-1), under(w, "proj"))


def lca(x: Tensor, w: Weights, heads: int) -> Tensor:
    y = x[:, -1] + attention(layer_norm(x, under(w, "norm1")), under(w, "attn"), heads, slice(-1, None))[:, 0]
    hidden = gelu(linear(layer_norm(y, under(w, "norm2")), under(w, "feedforward.fc1")))
    return y + linear(hidden, under(w, "feedforward.fc2"))


def resampling(old: int, new: int) -> Tensor:
    """The matrix (new, old) of bicubic resampling along one axis, kernel parameter -1/2, widened when it shrinks."""
    scale = old / new
    widen = max(scale, 1.0)
    matrix = torch.zeros(new, old, dtype=torch.float64)
    for i in range(new):
        for j in range(old):
            t = abs((j + 0.5 - (i + 0.5) * scale) / widen)
            if t <= 1:
                matrix[i, j] = 1.5 * t**3 - 2.5 * t**2 + 1
            elif t < 2:
                matrix[i, j] = -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    return matrix / matrix.sum(1, keepdim=True)


def positions(w: Weights, side: int, height: int, width: int) -> Tensor:
    """The position embedding for a grid of tokens, from that of a square one."""
    grid = w["pos_embed"][0, 1:].reshape(side, side, -1)
    grid = torch.einsum("ih,jw,hwd->ijd", resampling(side, height), resampling(side, width), grid)
    return torch.cat([w["pos_embed"][0, :1], grid.reshape(height * width, -1)])[None]


def network(
    x: Tensor, w: Weights, heads: int, depth: int, side: int, stride: int = 2, patch: int = 4
) -> tuple[Tensor, Tensor]:
    """Logits (B, classes), and the normalised patch tokens of the last block (B, N, D)."""
    pixels = stride * 2 * patch
    height, width = x.shape[2] // pixels, x.shape[3] // pixels
    y = image_to_tokens(x, under(w, "i2t"), stride, patch)
    y = torch.cat([w["cls_token"].repeat(x.shape[0], 1, 1), y], dim=1)
    y = y + (w["pos_embed"] if (height, width) == (side, side) else positions(w, side, height, width))
    class_tokens = []
    for n in range(depth):
        b = under(w, f"blocks.{n}")
        y = y + attention(layer_norm(y, under(b, "norm1")), under(b, "attn"), heads, slice(None))
        y = y + leff(layer_norm(y, under(b, "norm2")), under(b, "leff"), height, width)
        class_tokens.append(y[:, 0])
    layers = torch.stack(class_tokens, dim=1) + w["pos_layer_embed"]
    final = under(w, "norm")
    return linear(layer_norm(lca(layers, under(w, "lca"), heads), final), under(w, "head")), layer_norm(y[:, 1:], final)


def agree(ours: Tensor, theirs: Tensor, tolerance: float = 1e-9) -> None:
    assert ours.shape == theirs.shape
    spread = float(theirs.max() - theirs.min())
    assert spread > 0.1, "an oracle that says nothing"
    assert (ours.detach().double() - theirs).abs().max() < tolerance * max(1.0, spread)


def set_fused(module: nn.Module, fused: bool) -> None:
    for part in module.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = fused


@pytest.mark.parametrize(("kernel", "stride", "patch_size", "size"), [(7, 2, 16, (32, 48)), (3, 1, 8, (24, 16))])
def test_image_to_tokens(kernel: int, stride: int, patch_size: int, size: tuple[int, int]) -> None:
    module = ImageToTokens(2, 5, 6, kernel, stride, patch_size).double().eval()
    w = filled(module)
    x = image(2, 2, *size)
    ours = module(x)
    assert ours.shape[2:] == (size[0] // patch_size, size[1] // patch_size)
    agree(ours.flatten(2).transpose(1, 2), image_to_tokens(x, w, stride, 4))


@pytest.mark.parametrize("grid", [(3, 5), (4, 1)])
def test_leff(grid: tuple[int, int]) -> None:
    module = LocallyEnhancedFFN(6, 20).double().eval()
    w = filled(module)
    x = image(2, 1 + grid[0] * grid[1], 6)
    agree(module(x, grid), leff(x, w, *grid))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("layers", [1, 7])
def test_lca(layers: int, fused: bool) -> None:
    module = LayerwiseClassAttention(12, 3, 30).double().eval()
    w = filled(module)
    set_fused(module, fused)
    x = image(2, layers, 12)
    agree(module(x), lca(x, w, 3)[:, None])


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("size", [(32, 32), (64, 32), (24, 40)])
def test_small_network(size: tuple[int, int], fused: bool) -> None:
    kwargs: dict[str, Any] = {"patch_size": 8, "stem_stride": 1, "stem_kernel": 3, "stem_width": 5}
    model = CeiT(32, num_classes=5, embed_dim=12, depth=3, num_heads=2, dynamic_img_size=True, **kwargs)
    w = filled(model.double().eval())
    set_fused(model, fused)
    x = image(2, 3, *size)
    logits, patches = network(x, w, heads=2, depth=3, side=4, stride=1)
    tolerance = 1e-9 if size == (32, 32) else 1e-5  # timm resamples embeddings in float32
    agree(model(x), logits, tolerance)
    features = model.forward_features(x)
    agree(features[:, 1:], patches, tolerance)
    agree(model.forward_head(features), logits, tolerance)


@pytest.mark.parametrize(
    ("name", "side", "heads"),
    [
        ("ceit_tiny_patch16_224", 224, 3),
        ("ceit_tiny_patch16_224", 256, 3),
        pytest.param("ceit_small_patch16_224", 224, 6, marks=pytest.mark.slow),
    ],
)
def test_released_sizes(name: str, side: int, heads: int) -> None:
    """The logits of the paper's networks, in single and in double precision; 256 px by set_input_size."""
    model = timm.create_model(name).eval()
    w = filled(model)
    x = image(1, 3, side, side)
    expected, patches = network(x.float().double(), w, heads=heads, depth=12, side=14)
    if side != 224:
        model.set_input_size(side)
    with torch.inference_mode():
        agree(model(x.float()), expected, 1e-5)
        agree(model.forward_features(x.float())[:, 1:], patches, 1e-5)
        agree(model.double()(x.float().double()), expected, 1e-9 if side == 224 else 1e-5)
