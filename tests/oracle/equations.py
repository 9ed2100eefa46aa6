"""The paper's equations once more, slowly: numpy, float64, loops over kernel offsets, nothing shared with src/.

Maps are (B, C, H, W) arrays. Weights come as a dict of arrays under the module's own parameter names; ``under`` picks
what stands below a prefix. Everything is in evaluation mode: BatchNorm uses its running statistics.
"""

import math

import numpy as np

Array = np.ndarray
Weights = dict[str, Array]


def under(weights: Weights, prefix: str) -> Weights:
    """The weights below a prefix, without it."""
    return {name[len(prefix) + 1 :]: value for name, value in weights.items() if name.startswith(prefix + ".")}


def gelu(x: Array) -> Array:
    """x times the normal distribution function of x."""
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def silu(x: Array) -> Array:
    """x times its logistic."""
    return x / (1 + np.exp(-x))


def batch_norm(x: Array, w: Weights, eps: float = 1e-5) -> Array:
    """Normalise each channel with the running statistics."""
    out = np.empty_like(x)
    for c in range(x.shape[1]):
        normal = (x[:, c] - w["running_mean"][c]) / math.sqrt(w["running_var"][c] + eps)
        out[:, c] = normal * w["weight"][c] + w["bias"][c]
    return out


def layer_norm(x: Array, w: Weights, eps: float) -> Array:
    """Normalise the channels of each position."""
    out = np.empty_like(x)
    for b, i, j in np.ndindex(x.shape[0], x.shape[2], x.shape[3]):
        v = x[b, :, i, j]
        out[b, :, i, j] = (v - v.mean()) / math.sqrt(((v - v.mean()) ** 2).mean() + eps) * w["weight"] + w["bias"]
    return out


def conv(x: Array, w: Weights, stride: int = 1, padding: int = 0) -> Array:
    """Convolution: at each output position the sum over kernel offsets of a matrix times the input's channels."""
    kernel = w["weight"]  # (out, in, kh, kw)
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    height = (x.shape[2] - kernel.shape[2]) // stride + 1
    width = (x.shape[3] - kernel.shape[3]) // stride + 1
    out = np.zeros((x.shape[0], kernel.shape[0], height, width))
    for i, j, di, dj in np.ndindex(height, width, kernel.shape[2], kernel.shape[3]):
        out[:, :, i, j] += np.einsum("oc,bc->bo", kernel[:, :, di, dj], x[:, :, i * stride + di, j * stride + dj])
    return out + w["bias"][None, :, None, None]


def depthwise(x: Array, w: Weights, stride: int = 1, padding: int = 0) -> Array:
    """Depthwise convolution: the same, each channel on its own."""
    kernel = w["weight"]  # (C, 1, kh, kw)
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    height = (x.shape[2] - kernel.shape[2]) // stride + 1
    width = (x.shape[3] - kernel.shape[3]) // stride + 1
    out = np.zeros((x.shape[0], kernel.shape[0], height, width))
    for i, j, di, dj in np.ndindex(height, width, kernel.shape[2], kernel.shape[3]):
        out[:, :, i, j] += kernel[:, 0, di, dj] * x[:, :, i * stride + di, j * stride + dj]
    return out + w["bias"][None, :, None, None]


def fill_up(x: Array, k: int) -> Array:
    """Zeros at the bottom and right until k divides the map."""
    height, width = math.ceil(x.shape[2] / k) * k, math.ceil(x.shape[3] / k) * k
    out = np.zeros((*x.shape[:2], height, width))
    out[:, :, : x.shape[2], : x.shape[3]] = x
    return out


def linear(tokens: Array, w: Weights) -> Array:
    """(B, N, in) -> (B, N, out)."""
    return np.einsum("oc,bnc->bno", w["weight"], tokens) + w["bias"]


def stem(x: Array, w: Weights) -> Array:
    """Three times conv 3x3, GELU, BN; the first halves the resolution."""
    for n, stride in ((1, 2), (2, 1), (3, 1)):
        x = batch_norm(gelu(conv(x, under(w, f"conv{n}"), stride, 1)), under(w, f"norm{n}"))
    return x


def lpu(x: Array, w: Weights) -> Array:
    """LPU(x) = DWConv(x) + x."""
    return depthwise(x, under(w, "conv"), padding=1) + x


def irffn(x: Array, w: Weights) -> Array:
    """IRFFN(x) = Conv(F(Conv(x))), F(y) = DWConv(y) + y, with the activations and norms of the released code."""
    x = batch_norm(gelu(conv(x, under(w, "expand"))), under(w, "expand_norm"))
    x = batch_norm(gelu(depthwise(x, under(w, "conv"), padding=1) + x), under(w, "conv_norm"))
    return batch_norm(conv(x, under(w, "project")), under(w, "project_norm"))


def lmhsa(x: Array, w: Weights, heads: int, k: int, bias: Array | None) -> Array:
    """LMHSA, one query, one head at a time; bias (heads, queries, keys)."""
    batch, dim, height, width = x.shape
    small = x
    if k > 1:
        small = batch_norm(depthwise(fill_up(x, k), under(w, "kv_conv"), stride=k), under(w, "kv_norm"))
    tokens = np.stack([x[:, :, i, j] for i, j in np.ndindex(height, width)], axis=1)
    reduced = np.stack([small[:, :, i, j] for i, j in np.ndindex(*small.shape[2:])], axis=1)
    q, key, value = linear(tokens, under(w, "q")), linear(reduced, under(w, "k")), linear(reduced, under(w, "v"))
    d = dim // heads
    mixed = np.zeros_like(tokens)
    for b, h, n in np.ndindex(batch, heads, tokens.shape[1]):
        part = slice(h * d, (h + 1) * d)
        scores = np.array([q[b, n, part] @ key[b, m, part] for m in range(key.shape[1])]) / math.sqrt(d)
        if bias is not None:
            scores = scores + bias[h, n]
        weights = np.exp(scores - scores.max())
        weights = weights / weights.sum()
        mixed[b, n, part] = sum(weights[m] * value[b, m, part] for m in range(key.shape[1]))
    out = linear(mixed, under(w, "proj"))
    image = np.zeros_like(x)
    for n, (i, j) in enumerate(np.ndindex(height, width)):
        image[:, :, i, j] = out[:, n]
    return image


def block(x: Array, w: Weights, heads: int, k: int, bias: Array | None, eps: float = 1e-6) -> Array:
    """x = LPU(x); x = x + LMHSA(LN(x)); x = x + IRFFN(LN(x))."""
    x = lpu(x, under(w, "lpu"))
    x = x + lmhsa(layer_norm(x, under(w, "norm1"), eps), under(w, "lmhsa"), heads, k, bias)
    return x + irffn(layer_norm(x, under(w, "norm2"), eps), under(w, "irffn"))


def stage(x: Array, w: Weights, depth: int, heads: int, k: int) -> Array:
    """2x2 convolution of stride 2, LayerNorm, then the blocks, which share the stage's bias."""
    x = layer_norm(conv(fill_up(x, 2), under(w, "downsample.conv"), stride=2), under(w, "downsample.norm"), 1e-5)
    bias = None
    if "position_bias.table" in w:
        bias = resampled_bias(w["position_bias.table"][0], x.shape[2:], k)
    for n in range(depth):
        own = w.get(f"blocks.{n}.lmhsa.position_bias.table")
        theirs = bias if own is None else resampled_bias(own[0], x.shape[2:], k)
        x = block(x, under(w, f"blocks.{n}"), heads, k, theirs)
    return x


def head(x: Array, w: Weights) -> Array:
    """1x1 conv, BN, SiLU, mean over the map, linear: (B, C, H, W) -> (B, classes)."""
    x = silu(batch_norm(conv(x, under(w, "final.conv")), under(w, "final.norm")))
    return linear(x.mean(axis=(2, 3))[:, None], under(w, "head"))[:, 0]


def cubic(t: float, a: float = -0.75) -> float:
    """Keys' cubic convolution kernel."""
    t = abs(t)
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0


def resize_matrix(size: int, new_size: int) -> Array:
    """Bicubic resampling of a line as a matrix (new_size, size): centres aligned by halves, borders repeated."""
    matrix = np.zeros((new_size, size))
    for i in range(new_size):
        position = (i + 0.5) * size / new_size - 0.5
        for tap in range(math.floor(position) - 1, math.floor(position) + 3):
            matrix[i, min(max(tap, 0), size - 1)] += cubic(position - tap)
    return matrix


def resampled_bias(table: Array, grid: tuple[int, ...], k: int) -> Array:
    """A table (heads, Hq, Wq, Hk, Wk) on another grid of queries and its grid of keys, as (heads, queries, keys)."""
    keys = [math.ceil(side / k) for side in grid]
    for axis, side in zip((1, 2, 3, 4), (*grid, *keys), strict=True):
        if table.shape[axis] != side:
            table = np.moveaxis(np.tensordot(resize_matrix(table.shape[axis], side), table, (1, axis)), 0, axis)
    return table.reshape(table.shape[0], grid[0] * grid[1], keys[0] * keys[1])
