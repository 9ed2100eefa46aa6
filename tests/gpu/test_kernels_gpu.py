"""The Triton kernels on a GPU: values, gradients, types, whole networks, torch.compile, and what "auto" chooses.

Run where there is one: pytest tests/gpu. The same mathematics in Triton's interpreter:
tests/unit/models/test_kernels.py.
"""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import cmtvision  # noqa: F401  # registers the models
from cmtvision.models.accelerate import accelerate
from cmtvision.models.accelerate.kernels import choices, depthwise_by_kernel, forget_choices, use_kernels

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
    # Triton 3.9 announces another default of 3.10; the tolerances here hold for both
    pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION"),
]
TOLERANCES = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 4e-2}
DTYPES = list(TOLERANCES)


@pytest.fixture(autouse=True)
def _exact_products() -> Iterator[None]:
    """float32 as float32: PyTorch's convolutions take TF32 unless told not to."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield
    torch.backends.cudnn.allow_tf32 = before


def compare(function: Any, plain: Any, inputs: list[torch.Tensor], dtype: torch.dtype) -> None:
    """Values and gradients against the plain path in float64; the same bits when run again."""
    exact_inputs = [x.detach().double().requires_grad_() for x in inputs]
    out, exact = function(*inputs), plain(*exact_inputs)
    gradient = torch.randn_like(out)
    ours = [out, *torch.autograd.grad(out, inputs, gradient)]
    again = function(*inputs)
    for a, b in zip(ours, [again, *torch.autograd.grad(again, inputs, gradient)], strict=True):
        assert torch.equal(a, b)
    theirs = [exact, *torch.autograd.grad(exact, exact_inputs, gradient.double())]
    largest = max(float(one.detach().abs().max()) for one in theirs)
    for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        scale = max(float(b.detach().abs().max()), 0.1 * largest)  # with one key, some gradients are zero
        difference = float((a.detach().double() - b.detach()).abs().max()) / scale
        assert difference <= TOLERANCES[dtype], f"{number}: {difference}"


def vector(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device="cuda", requires_grad=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(8, 256, 56, 56), (3, 165, 40, 41), (16, 2048, 7, 7), (2, 46, 13, 9), (1, 3, 1, 1)])
def test_depthwise(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    from cmtvision.models.accelerate.kernels.depthwise import depthwise

    def plain(x: Any, w: Any, b: Any, s: Any, t: Any) -> torch.Tensor:
        z = F.conv2d(x, w, b, padding=1, groups=w.shape[0]) + x
        return F.gelu(z) * s[:, None, None] + t[:, None, None]

    x = torch.randn(shape, device="cuda", dtype=dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    C = shape[1]
    compare(depthwise, plain, [x, vector(C, 1, 3, 3), vector(C), vector(C), vector(C)], dtype)
    compare(
        lambda x, w: depthwise(x, w, gelu=False),
        lambda x, w: F.conv2d(x, w, padding=1, groups=C) + x,
        [x, vector(C, 1, 3, 3)],
        dtype,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("B", "h", "N", "M", "d"),
    [(8, 1, 3136, 49, 64), (8, 2, 784, 49, 46), (4, 8, 64, 64, 76), (3, 4, 36, 36, 52), (2, 1, 1600, 100, 64),
     (2, 1, 500, 256, 64), (1, 3, 5, 1, 32)],
)  # fmt: skip
def test_attention(B: int, h: int, N: int, M: int, d: int, dtype: torch.dtype) -> None:
    from cmtvision.models.accelerate.kernels.attention import attention

    def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return (q @ k.transpose(-2, -1) * d**-0.5 + bias).softmax(-1) @ v

    tokens = [torch.randn(B, n, h, d, device="cuda", dtype=dtype).transpose(1, 2).requires_grad_() for n in (N, M, M)]
    compare(attention, plain, [*tokens, vector(1, h, N, M)], dtype)


def step(model: nn.Module, images: torch.Tensor, run: Any = None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    logits = (run or model)(images)
    logits.float().square().mean().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


def network(name: str) -> tuple[nn.Module, torch.Tensor]:
    model = accelerate(timm.create_model(name, num_classes=10, drop_rate=0.0)).train()
    model.cuda().to(memory_format=torch.channels_last)
    side = timm.get_pretrained_cfg(name).input_size[-1]
    return model, torch.randn(4, 3, side, side, device="cuda").contiguous(memory_format=torch.channels_last)


def assert_gradients_agree(gradients: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """The bias before a BatchNorm, or of the keys, has rounding errors for a gradient: the others set its scale."""
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for key, gradient in gradients.items():
        atol = 2e-3 * float(expected[key].abs().max()) + 1e-5 * largest
        torch.testing.assert_close(
            gradient, expected[key], rtol=1e-2, atol=atol, msg=lambda said, key=key: f"{key}: {said}"
        )


@pytest.mark.parametrize("name", ["cmt_nano", "cmt_ti", "cmt_s", "cmt_b"])
def test_a_network_with_and_without(name: str) -> None:
    model, images = network(name)
    reference = copy.deepcopy(model)
    with use_kernels("off"):
        expected, expected_gradients = step(reference, images)
    with use_kernels("on"):
        logits, gradients = step(model, images)
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert_gradients_agree(gradients, expected_gradients)
    with torch.inference_mode(), use_kernels("on"):
        ours = model.eval()(images)
    with torch.inference_mode(), use_kernels("off"):
        torch.testing.assert_close(ours, model(images), rtol=1e-3, atol=1e-3 * float(ours.abs().max()))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # inductor's own
def test_compiled_network_has_the_kernels() -> None:
    torch.compiler.reset()
    model, images = network("cmt_nano")
    reference = copy.deepcopy(model)
    with use_kernels("off"):
        expected, expected_gradients = step(reference, images)
    with use_kernels("on"):
        logits, gradients = step(model, images, torch.compile(model, fullgraph=True, dynamic=False))
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    assert_gradients_agree(gradients, expected_gradients)


def test_auto_measures_each_shape_once_and_takes_the_faster() -> None:
    forget_choices()
    model, images = network("cmt_nano")
    model.set_grad_checkpointing()  # counts saved tensors: a measurement must not be among them
    with use_kernels("auto"), torch.autocast("cuda", torch.bfloat16):
        step(model, images)
        measured = choices()
        step(model, images)
    assert measured
    assert choices() == measured
    for choice in measured.values():
        assert choice.kernel == (choice.kernel_seconds * 1.03 < choice.plain_seconds)


def test_auto_leaves_nchw_maps_alone() -> None:
    conv = nn.Conv2d(64, 64, 3, padding=1, groups=64).cuda()
    with use_kernels("auto"):
        assert depthwise_by_kernel(torch.randn(2, 64, 8, 8, device="cuda"), conv) is None


def test_more_elements_than_int32_counts() -> None:
    """Offsets are 64 bits wide: the last image of a map of more than 2^31 values."""
    from cmtvision.models.accelerate.kernels.depthwise import depthwise

    if torch.cuda.mem_get_info()[0] < 12 * 2**30:
        pytest.skip("needs 12 GiB")
    x = torch.ones((33, 1024, 256, 256), device="cuda", dtype=torch.float16).contiguous(
        memory_format=torch.channels_last
    )
    x[-1].mul_(2)
    out = depthwise(x, torch.ones(1024, 1, 3, 3, device="cuda"), gelu=False)
    assert float(out[-1, 5, 100, 100]) == 20
    assert float(out[-2, 5, 100, 100]) == 10
