"""The Triton kernels in Triton's interpreter, on the CPU. test_kernels.py runs this file in a process of its own,
since Triton decides at its import whether it interprets:
TRITON_INTERPRET=1 pytest tests/unit/models/kernels_interpreted.py
"""

import copy
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import cmtvision  # noqa: F401  # registers the models
from cmtvision.models.accelerate import accelerate
from cmtvision.models.accelerate.kernels import attention_by_kernel, depthwise_by_kernel, use_kernels
from cmtvision.models.accelerate.kernels.attention import attention
from cmtvision.models.accelerate.kernels.depthwise import depthwise
from cmtvision.models.accelerate.kernels.launching import split
from cmtvision.models.cmt import CMT

# what float32, float16 and bfloat16 round to, with room for sums
TOLERANCES = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 4e-2}


def close(ours: torch.Tensor, exact: torch.Tensor, tolerance: float, what: str = "") -> None:
    scale = max(1.0, float(exact.detach().abs().max()))
    difference = float((ours.detach().double() - exact.detach()).abs().max())
    assert difference <= tolerance * scale, f"{what}: {difference} of {scale}"


def map_of(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape).to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()


def plain_depthwise(
    x: torch.Tensor, weight: torch.Tensor, *vectors: torch.Tensor | None, identity: bool, gelu: bool
) -> torch.Tensor:
    bias, scale, shift = vectors
    z = F.conv2d(x, weight, bias, padding=1, groups=weight.shape[0])
    z = z + x if identity else z
    z = F.gelu(z) if gelu else z
    return z if scale is None or shift is None else z * scale[:, None, None] + shift[:, None, None]


# several blocks of positions and of channels, neither a multiple; single rows and columns; one and two images
@pytest.mark.parametrize(
    ("shape", "with_bias", "affine", "identity", "gelu"),
    [
        ((2, 70, 5, 7), True, True, True, True),
        ((1, 130, 3, 2), True, False, True, False),
        ((1, 3, 1, 9), True, False, True, True),
        ((2, 64, 4, 4), False, False, False, True),
        ((2, 6, 3, 5), False, True, True, False),
        ((1, 5, 1, 1), True, True, False, True),
    ],
)
def test_depthwise(shape: tuple[int, ...], with_bias: bool, affine: bool, identity: bool, gelu: bool) -> None:
    C = shape[1]
    vectors = [torch.randn(C, requires_grad=True) if there else None for there in (with_bias, affine, affine)]
    inputs = [map_of(*shape), torch.randn(C, 1, 3, 3, requires_grad=True), *vectors]
    out = depthwise(*inputs, identity=identity, gelu=gelu)
    assert out.is_contiguous(memory_format=torch.channels_last)
    compare(out, inputs, lambda *exact: plain_depthwise(*exact, identity=identity, gelu=gelu), torch.float32)


def compare(out: torch.Tensor, inputs: list[torch.Tensor | None], plain: Any, dtype: torch.dtype) -> None:
    """Values and all gradients against the plain path in float64."""
    there = [x for x in inputs if x is not None]
    exact_inputs = [None if x is None else x.detach().double().requires_grad_() for x in inputs]
    exact = plain(*exact_inputs)
    close(out, exact, TOLERANCES[dtype], "values")
    gradient = torch.randn(exact.shape).to(dtype)
    ours = torch.autograd.grad(out, there, gradient.to(out.dtype))
    theirs = torch.autograd.grad(exact, [x for x in exact_inputs if x is not None], gradient.double())
    for number, (a, b, x) in enumerate(zip(ours, theirs, there, strict=True)):
        assert a.shape == x.shape
        assert a.dtype == x.dtype
        close(a, b, TOLERANCES[dtype], f"gradient of input {number}")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_depthwise_adds_up_in_float32(dtype: torch.dtype) -> None:
    inputs = [map_of(2, 20, 6, 6, dtype=dtype), *(torch.randn(s, requires_grad=True) for s in ((20, 1, 3, 3), (20,)))]
    out = depthwise(*inputs)
    assert out.dtype == dtype
    compare(out, [*inputs, None, None], lambda *e: plain_depthwise(*e, identity=True, gelu=True), dtype)


def test_depthwise_takes_any_memory() -> None:
    """An NCHW map, a gradient of one value seen everywhere, a weight in channels-last memory."""
    conv = nn.Conv2d(6, 6, 3, padding=1, groups=6).to(memory_format=torch.channels_last)
    x = torch.randn(2, 6, 4, 5, requires_grad=True)
    depthwise(x, conv.weight, conv.bias).sum().backward()
    ours = x.grad, conv.weight.grad, conv.bias.grad
    x.grad = conv.weight.grad = conv.bias.grad = None
    F.gelu(conv(x) + x).sum().backward()
    for a, b in zip(ours, (x.grad, conv.weight.grad, conv.bias.grad), strict=True):
        close(a, b, 1e-5)


def tokens(B: int, count: int, h: int, d: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(B, count, h * d).to(dtype).requires_grad_()


def heads(x: torch.Tensor, h: int) -> torch.Tensor:
    return x.unflatten(-1, (h, -1)).transpose(1, 2)  # (B, h, N, d), as lmhsa.py has it


@pytest.mark.parametrize(
    ("B", "h", "N", "M", "d"),
    [(2, 2, 70, 49, 46), (1, 1, 130, 16, 64), (2, 1, 5, 25, 52), (1, 3, 36, 36, 76), (1, 1, 9, 64, 8), (3, 1, 2, 1, 32),
     (1, 1, 40, 130, 20)],
)  # fmt: skip
def test_attention(B: int, h: int, N: int, M: int, d: int) -> None:
    inputs = [tokens(B, N, h, d), tokens(B, M, h, d), tokens(B, M, h, d), torch.randn(1, h, N, M, requires_grad=True)]
    out = attention(*(heads(x, h) for x in inputs[:3]), inputs[3])
    compare(out, inputs, lambda q, k, v, b: plain_attention(heads(q, h), heads(k, h), heads(v, h), b), torch.float32)


def plain_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5 + bias).softmax(-1) @ v


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_attention_in_half_precision_with_a_float32_bias(dtype: torch.dtype) -> None:
    inputs = [*(tokens(2, n, 2, 24, dtype) for n in (33, 9, 9)), torch.randn(1, 2, 33, 9, requires_grad=True)]
    out = attention(*(heads(x, 2) for x in inputs[:3]), inputs[3])
    assert out.dtype == dtype
    compare(out, inputs, lambda q, k, v, b: plain_attention(heads(q, 2), heads(k, 2), heads(v, 2), b), dtype)


def test_attention_with_large_scores_and_a_frozen_bias() -> None:
    """The largest score of a row is taken off before exp; without a gradient of the bias its kernel does not run."""
    q, k, v = (torch.randn(1, 1, n, 16) for n in (6, 5, 5))
    bias = 200 * torch.randn(1, 1, 6, 5)
    out = attention(q.requires_grad_(), k, v, bias)
    close(out, plain_attention(*(x.double() for x in (q, k, v, bias))), 1e-5)
    (gradient,) = torch.autograd.grad(out.sum(), q)
    assert gradient.isfinite().all()


def test_gradients_are_the_slopes_of_the_values() -> None:
    """Finite differences of the kernels themselves, in a random direction of all inputs."""
    x = [map_of(1, 4, 3, 4), *(torch.randn(s, requires_grad=True) for s in ((4, 1, 3, 3), (4,), (4,), (4,)))]
    q = [torch.randn(s, requires_grad=True) for s in ((1, 2, 6, 8), (1, 2, 5, 8), (1, 2, 5, 8), (1, 2, 6, 5))]
    for function, inputs in ((depthwise, x), (attention, q)):
        away = [torch.randn_like(v) for v in inputs]
        weights = torch.randn_like(function(*inputs))

        def value(step: float, f: Any = function, v: Any = inputs, d: Any = away, w: Any = weights) -> torch.Tensor:
            moved = [a.detach() + step * b for a, b in zip(v, d, strict=True)]
            return (f(*moved).double() * w).sum()

        slope = (value(1e-2) - value(-1e-2)) / 2e-2
        gradients = torch.autograd.grad(function(*inputs), inputs, weights)
        predicted = sum((g * a).sum() for g, a in zip(gradients, away, strict=True))
        torch.testing.assert_close(predicted.double(), slope, rtol=5e-3, atol=5e-3)


def test_the_operators_of_the_compiler_are_the_same() -> None:
    x = [map_of(1, 5, 3, 4), *(torch.randn(s, requires_grad=True) for s in ((5, 1, 3, 3), (5,), (5,), (5,)))]
    q = [torch.randn(s, requires_grad=True) for s in ((1, 2, 6, 8), (1, 2, 5, 8), (1, 2, 5, 8), (1, 2, 6, 5))]
    by_operator = torch.ops.cmtvision.depthwise(*x, True, True), torch.ops.cmtvision.attention(*q)
    for out, same, inputs in zip(by_operator, (depthwise(*x), attention(*q)), (x, q), strict=True):
        assert torch.equal(out, same)
        for a, b in zip(*(torch.autograd.grad(y.square().sum(), inputs) for y in (out, same)), strict=True):
            assert torch.equal(a, b)


def test_second_derivatives_are_refused() -> None:
    x = map_of(1, 2, 3, 3)
    (gradient,) = torch.autograd.grad(depthwise(x, torch.randn(2, 1, 3, 3)).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def network() -> CMT:
    model = timm.create_model("cmt_nano", num_classes=5, drop_rate=0.0, depths=(1, 1, 1, 1))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics and affines that a mistake would show
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    return accelerate(model).to(memory_format=torch.channels_last)


def step(model: nn.Module, images: torch.Tensor, mode: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    with use_kernels(mode):
        logits = model(images)
        logits.square().sum().backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters()}


def spied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernels that ran, by name."""
    from cmtvision.models.accelerate.kernels import attention as a
    from cmtvision.models.accelerate.kernels import depthwise as d

    ran: list[str] = []
    for module in (a, d):
        for name in ("_run_forward", "_run_backward", *(["_run_bias"] if module is a else [])):
            run = getattr(module, name)

            def called(*args: Any, run: Any = run, at: str = f"{module.__name__[-9:]}{name}", **kwargs: Any) -> Any:
                ran.append(at)
                return run(*args, **kwargs)

            monkeypatch.setattr(module, name, called)
    return ran


@pytest.mark.parametrize("training", [True, False])
def test_a_network_with_and_without(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward of cmt_nano, one block a stage; frozen BatchNorms fold into the kernel."""
    ran = spied(monkeypatch)
    model = network().train(training)
    images = torch.randn(4 if training else 1, 3, 32, 32)
    reference = copy.deepcopy(model)
    plain, plain_gradients = step(reference, images, "off")
    assert ran == []
    exact, exact_gradients = step(copy.deepcopy(model).double(), images.double(), "off")
    logits, gradients = step(model, images, "on")
    assert ran.count("attention_run_forward") == ran.count("attention_run_bias") == 4
    assert ran.count("depthwise_run_backward") == 8  # an LPU and an IRFFN a block
    pairs = [("logits", logits, plain, exact)]
    pairs += [(name, g, plain_gradients[name], exact_gradients[name]) for name, g in gradients.items()]
    for name, ours, theirs, expected in pairs:
        # a BatchNorm over the few values that stage 4 has here multiplies rounding: float32 errs by as much without us
        allowed = 4 * float((theirs - expected).abs().max()) + 1e-5 * max(1.0, float(expected.abs().max()))
        assert float((ours - expected).abs().max()) <= allowed, name
    for (name, ours), (_, theirs) in zip(model.named_buffers(), reference.named_buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5, msg=name)


def test_under_autocast_no_less_exact() -> None:
    conv, act = nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.GELU()
    x = map_of(2, 6, 5, 5, dtype=torch.float16)  # the interpreter cuts bfloat16 off instead of rounding
    exact = F.gelu(conv(x.float()) + x.float())
    with torch.autocast("cpu", torch.float16), use_kernels("on"):
        ours, theirs = depthwise_by_kernel(x, conv, act), act(conv(x) + x)
    assert ours is not None
    assert ours.dtype == theirs.dtype
    assert (ours - exact).abs().mean() <= (theirs - exact).abs().mean()


def test_where_the_plain_path_is_taken() -> None:
    """What a kernel would compute otherwise than the network's own modules goes to the modules."""
    x, conv, act = map_of(1, 4, 5, 5), nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.GELU()
    q, bias = torch.randn(1, 1, 4, 8), torch.randn(1, 1, 4, 4)
    with use_kernels("on"):
        assert depthwise_by_kernel(x, conv, act) is not None
        assert depthwise_by_kernel(x, conv, nn.GELU("tanh")) is None
        assert depthwise_by_kernel(x, conv, nn.ReLU()) is None
        assert depthwise_by_kernel(x.double(), conv) is None
        for other in ({"padding": 0}, {"stride": 2}, {"dilation": 2, "padding": 2}, {"padding_mode": "circular"}):
            assert depthwise_by_kernel(x, nn.Conv2d(4, 4, 3, **({"padding": 1, "groups": 4} | other))) is None
        assert depthwise_by_kernel(x, nn.Conv2d(4, 4, 3, padding=1)) is None
        assert attention_by_kernel(q, q, q, bias, 0.0) is not None
        assert attention_by_kernel(q, q, q, bias, 0.1) is None
        assert attention_by_kernel(q, q, q, None, 0.0) is None
        assert attention_by_kernel(q, q, q, bias.expand(2, -1, -1, -1), 0.0) is None
        wide = torch.randn(1, 1, 4, 130)
        assert attention_by_kernel(wide, wide, wide, bias, 0.0) is None
        many = torch.randn(1, 1, 257, 8)
        assert attention_by_kernel(q, many, many, torch.randn(1, 1, 4, 257), 0.0) is None
        seen: list[torch.Tensor] = []
        conv.register_forward_hook(lambda module, inputs, output: seen.append(output))
        assert depthwise_by_kernel(x, conv, act) is None
    with use_kernels("auto"):  # times nothing but GPUs
        assert attention_by_kernel(q, q, q, bias, 0.0) is None


def test_parts_of_a_sum_cover_it() -> None:
    for amount in (1, 63, 64, 65, 3136, 100_000):
        for others in (1, 7, 5000):
            parts, size = split(amount, others, 64)
            assert size % 64 == 0
            assert (parts - 1) * size < amount <= parts * size


def test_many_parts() -> None:
    """More positions, queries and images than one program takes: sums over parts."""
    inputs = [map_of(2, 3, 9, 11), torch.randn(3, 1, 3, 3, requires_grad=True), torch.randn(3, requires_grad=True)]
    out = depthwise(*inputs)
    compare(out, [*inputs, None, None], lambda *e: plain_depthwise(*e, identity=True, gelu=True), torch.float32)
    inputs = [tokens(3, n, 1, 16) for n in (260, 4, 4)] + [torch.randn(1, 1, 260, 4, requires_grad=True)]
    out = attention(*(heads(x, 1) for x in inputs[:3]), inputs[3])
    compare(out, inputs, lambda q, k, v, b: plain_attention(heads(q, 1), heads(k, 1), heads(v, 1), b), torch.float32)
