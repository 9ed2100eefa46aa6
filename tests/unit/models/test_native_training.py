"""Native loops in training: as near to float64 as PyTorch's own operations, and never where they do not fit."""

import os
import platform
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

import cmtvision  # noqa: F401  # registers the models
from cmtvision.models.accelerate import accelerate
from cmtvision.models.accelerate.modules import FastIRFFN, MapLayerNorm, TokenLinear
from cmtvision.models.accelerate.native import differentiable
from cmtvision.models.accelerate.native.library import library
from cmtvision.models.cmt.irffn import InvertedResidualFFN

needs_compiler = pytest.mark.skipif(library() is None, reason="no compiler for native loops here")
Maps = torch.channels_last
NOTHING = ("conv_norm.bias", "project.bias")  # a norm follows: their gradients are rounding errors


@pytest.fixture(autouse=True)
def two_threads():
    """What is added up differently, and which attention is too small, depends on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def counted(monkeypatch):
    """How often each native function was called."""
    counts = dict.fromkeys(("inside_irffn", "layer_norm", "attention"), 0)

    def counting(name, function):
        def call(*arguments):
            counts[name] += 1
            return function(*arguments)

        return call

    for name in counts:
        monkeypatch.setattr(differentiable, name, counting(name, getattr(differentiable, name)))
    return counts


def irffn(dim, hidden):
    torch.manual_seed(dim)
    module = InvertedResidualFFN(dim, hidden).train()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def results(module, x, slope, half=False):
    """Output, gradients and statistics of a step."""
    module = deepcopy(module)
    x = x.clone().contiguous(memory_format=Maps).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        out = module(x)
    out.backward(slope.to(out.dtype))
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    return {"out": out.detach(), "x": x.grad, **gradients, **dict(module.named_buffers())}


def distance(found, expected):
    return float((found.double() - expected).norm() / expected.double().norm().clamp(min=1e-12))


@needs_compiler
@pytest.mark.parametrize(
    ("dim", "hidden", "height", "width"),
    [(46, 165, 8, 6), (16, 40, 5, 5), (8, 64, 1, 1), (8, 37, 1, 4), (8, 37, 3, 1), (8, 32, 60, 45), (92, 331, 7, 9)],
)
def test_equals_float64_inside_an_irffn(dim, hidden, height, width, counted):
    plain = irffn(dim, hidden)
    fast = FastIRFFN(deepcopy(plain)).train()
    x, slope = torch.randn(2, 16 if height * width < 9 else 4, dim, height, width).unbind(0)
    exact = results(plain.double(), x.double(), slope.double())
    plain.float()
    for half, most in ((False, 2e-5), (True, 0.1)):
        found, other = results(fast, x, slope, half), results(plain, x, slope, half)
        assert list(found) == list(other)
        for name, expected in exact.items():
            if name not in NOTHING and expected.is_floating_point():
                allowed = max(most / 100, 5 * distance(other[name], expected))
                assert distance(found[name], expected) < min(most * 3, allowed), (name, half)
            elif name not in NOTHING:
                assert torch.equal(found[name], expected)
    assert counted["inside_irffn"] == 2


@needs_compiler
def test_equals_float64_far_from_zero():
    """Variances are sums of squares: a mean that is large beside them must not cost their digits."""
    plain = irffn(8, 48)
    with torch.no_grad():
        plain.expand.bias.add_(300)
        plain.expand_norm.weight.zero_()  # nor may a norm of scale zero be divided by it
        plain.expand_norm.bias.fill_(50)
    fast = FastIRFFN(deepcopy(plain)).train()
    x, slope = torch.randn(4, 8, 9, 7), torch.randn(4, 8, 9, 7)
    exact = results(plain.double(), x.double(), slope.double())
    found = results(fast, x, slope)
    for name in ("out", "expand_norm.running_mean", "expand_norm.running_var", "project.weight", "project_norm.weight"):
        torch.testing.assert_close(found[name].double(), exact[name], rtol=2e-3, atol=2e-3, msg=name)


@needs_compiler
@pytest.mark.parametrize("channels", [32, 46, 92, 129, 368])
def test_equals_float64_in_a_layer_norm(channels, counted):
    x = (3 + 2 * torch.randn(2, channels, 7, 5)).contiguous(memory_format=Maps)
    weight, bias, slope = torch.randn(channels), torch.randn(channels), torch.randn_like(x)

    def step(x, weight, bias, slope, function):
        inputs = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
        out = function(*inputs)
        return out.detach(), *torch.autograd.grad(out, inputs, slope)

    def plain(x, weight, bias):
        return F.layer_norm(x.permute(0, 2, 3, 1), (channels,), weight, bias, 1e-6).permute(0, 3, 1, 2)

    def fast(x, weight, bias):
        return differentiable.layer_norm(x, weight, bias, 1e-6)

    exact = step(x.double(), weight.double(), bias.double(), slope.double(), plain)
    for found, expected in zip(step(x, weight, bias, slope, fast), exact, strict=True):
        assert distance(found, expected) < 1e-6
    half = step(x.bfloat16(), weight, bias, slope.bfloat16(), fast)
    assert half[0].dtype == half[1].dtype == torch.bfloat16
    for found, expected in zip(half, exact, strict=True):
        assert distance(found, expected) < 0.02


@needs_compiler
@pytest.mark.parametrize(
    ("batch", "queries", "keys", "heads", "width"),
    [
        (2, 100, 25, 4, 46),
        (2, 1, 1, 1, 1),
        (3, 7, 3, 2, 46),
        (2, 20, 17, 1, 8),
        (2, 49, 64, 3, 33),
        (1, 400, 90, 2, 64),
    ],
)
@pytest.mark.parametrize("with_bias", [False, True])
def test_equals_float64_in_attention(batch, queries, keys, heads, width, with_bias):
    q, slope = torch.randn(2, batch, queries, heads, width).unbind(0)
    k, v = torch.randn(2, batch, keys, heads, width).unbind(0)
    bias = 2 * torch.randn(1, heads, queries, keys) if with_bias else None
    scale = width**-0.5

    def step(function, slope, *tensors):
        inputs = [tensor.clone().requires_grad_() for tensor in tensors if tensor is not None]
        out = function(*inputs)
        return out.detach(), *torch.autograd.grad(out, inputs, slope)

    def plain(q, k, v, bias=None):
        scores = q.transpose(1, 2) @ k.permute(0, 2, 3, 1) * scale
        scores = scores if bias is None else scores + bias
        return (scores.softmax(dim=-1) @ v.transpose(1, 2)).transpose(1, 2)

    def fast(q, k, v, bias=None):
        assert differentiable.attends(q, k, v, bias)
        return differentiable.attention(q, k, v, bias, scale)

    doubles = [None if tensor is None else tensor.double() for tensor in (q, k, v, bias)]
    exact = step(plain, slope.double(), *doubles)
    halves = (q.bfloat16(), k.bfloat16(), v.bfloat16(), bias)
    for tensors, slopes, most in (((q, k, v, bias), slope, 3e-6), (halves, slope.bfloat16(), 0.03)):
        for found, expected in zip(step(fast, slopes, *tensors), exact, strict=True):
            assert (found.double() - expected).norm() <= most * expected.norm() + 1e-6


@needs_compiler
def test_attention_bears_scores_far_apart_and_far_away():
    q = torch.full((1, 4, 1, 8), 30.0, requires_grad=True)
    k, v = torch.randn(2, 1, 5, 1, 8).unbind(0)
    bias = torch.tensor([0.0, -1e4, 500.0, -500.0, 80.0]).expand(1, 1, 4, 5).contiguous().requires_grad_()
    out = differentiable.attention(q, k, v, bias, 8**-0.5)
    gradients = torch.autograd.grad(out.square().sum(), [q, bias])
    torch.testing.assert_close(out, v[:, 2:3].expand_as(out), rtol=1e-5, atol=1e-5)
    assert all(gradient.isfinite().all() for gradient in gradients)


@needs_compiler
@pytest.mark.parametrize("strange", [float("nan"), float("inf")])
def test_what_is_no_number_stays_none(strange):
    """A run that diverges is seen by its loss."""
    x = torch.randn(2, 64, 5, 5).contiguous(memory_format=Maps)
    x[1, 7, 2, 3] = strange
    assert not differentiable.layer_norm(x, torch.ones(64), torch.zeros(64), 1e-6)[1, :, 2, 3].isfinite().any()
    assert not FastIRFFN(irffn(64, 128)).train()(x).isfinite().all()
    for place in range(3):
        tokens = [torch.randn(2, 9, 2, 32) for _ in range(3)]
        tokens[place][1, 4, 1, 5] = float("nan")
        assert differentiable.attention(*tokens, None, 0.2)[1, 4, 1].isnan().any()


@needs_compiler
@pytest.mark.parametrize("options", [{"momentum": None}, {"momentum": 0.3}, {"track_running_stats": False}])
def test_running_statistics_are_those_of_the_modules(options, counted):
    plain = InvertedResidualFFN(8, 48, norm_layer=lambda n, **dd: nn.BatchNorm2d(n, **options, **dd)).train()
    fast = FastIRFFN(deepcopy(plain)).train()
    for _ in range(3):
        x = (2 + torch.randn(3, 8, 5, 4)).contiguous(memory_format=Maps)
        plain(x)
        fast(x)
    assert counted["inside_irffn"] == 3
    assert list(fast.state_dict()) == list(plain.state_dict())
    for (name, found), expected in zip(fast.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, msg=name)


@needs_compiler
def test_a_network_trains_as_in_float64_and_twice_the_same(counted):
    """Ten steps; a rounding error in one is a difference in the next, so losses are compared, not weights."""

    def losses(model, dtype):
        torch.manual_seed(1)
        model = model.to(dtype).train().to(memory_format=Maps)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        images = torch.randn(8, 3, 64, 64).to(dtype).contiguous(memory_format=Maps)
        labels = torch.arange(8) % 3
        found = []
        for _ in range(10):
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.detach().double())
        return torch.stack(found)

    torch.manual_seed(0)
    plain = timm.create_model("cmt_micro", num_classes=3)
    exact = losses(deepcopy(plain), torch.float64)
    found = losses(accelerate(deepcopy(plain)), torch.float32)
    assert min(counted.values()) > 0
    assert exact[-1] < exact[0] / 2
    torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-4)
    assert torch.equal(losses(accelerate(deepcopy(plain)), torch.float32), found)


@needs_compiler
def test_a_block_that_is_computed_twice_counts_once():
    def step(checkpointing):
        torch.manual_seed(0)
        model = accelerate(timm.create_model("cmt_micro", num_classes=3)).train().to(memory_format=Maps)
        model.set_grad_checkpointing(checkpointing)
        images = torch.randn(4, 3, 64, 64).contiguous(memory_format=Maps)
        model(images).square().sum().backward()
        return [*model.buffers(), *(parameter.grad for parameter in model.parameters())]

    for found, expected in zip(step(True), step(False), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_compiler_sees_a_network_without_them_in_one_piece(counted):
    model = accelerate(timm.create_model("cmt_nano", num_classes=3)).train().to(memory_format=Maps)
    images = torch.randn(2, 3, 32, 32).contiguous(memory_format=Maps)
    torch.compile(model, backend="eager", fullgraph=True)(images).sum().backward()
    assert set(counted.values()) == {0}


def test_what_they_do_not_know_is_pytorchs(counted):
    x = torch.randn(2, 64, 6, 5).contiguous(memory_format=Maps)

    def fast():
        return FastIRFFN(irffn(64, 128)).train()

    seen = fast()
    watched = []
    seen.conv_norm.register_forward_hook(lambda *_: watched.append(True))
    held = fast()
    held.expand_norm.eval()
    other = fast()
    other.project = nn.Sequential(other.project)
    for module in (seen, held, other, fast().eval()):
        module(x)
    fast().double()(x.double())
    fast()(x.contiguous())
    norm = MapLayerNorm(timm.layers.LayerNorm2d(64)).train()
    norm(x.contiguous())
    norm.double()(x.double())
    assert watched == [True]
    assert set(counted.values()) == {0}
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert not differentiable.trains(mode.from_tensor(x))
        assert not differentiable.attends(*[mode.from_tensor(torch.randn(1, 4, 2, 8))] * 3, None)
    wide = fast()
    wide.project = nn.Conv2d(128, 64, 3, padding=1)
    wide(x)
    assert counted["inside_irffn"] == 0
    one = torch.randn(1, 4, torch.get_num_threads() + 1, 8)
    assert differentiable.attends(one, one, one, None) == (library() is not None)
    assert not differentiable.attends(one[:, :, :0], one[:, :, :0], one[:, :, :0], None)
    few = FastIRFFN(irffn(8, 16)).train()  # fewer channels than there are lanes, where vectors are long
    assert few(torch.randn(2, 8, 3, 3).contiguous(memory_format=Maps)).isfinite().all()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        fast()(torch.randn(1, 64, 1, 1))


def step_of_each():
    """Gradients of a step of a LayerNorm, an IRFFN and attention."""
    torch.manual_seed(0)
    modules = [MapLayerNorm(timm.layers.LayerNorm2d(64)).train(), FastIRFFN(irffn(64, 128)).train()]
    x = torch.randn(2, 64, 6, 5, dtype=torch.float32, device="cpu").contiguous(memory_format=Maps)
    tokens = torch.randn(3, 2, 4, 2, 8, dtype=torch.float32, device="cpu")
    return modules, x, tokens


def gradients_of(modules, x, tokens):
    found = []
    for module in modules:
        y = x.clone(memory_format=torch.preserve_format).requires_grad_()
        out = module(y)
        (out * x).sum().backward()
        found += [y.grad, *(parameter.grad for parameter in module.parameters())]
        module.zero_grad()
    asked = [one.clone().requires_grad_() for one in tokens]
    assert differentiable.attends(*asked, None) == (library() is not None)
    if library() is not None:
        differentiable.attention(*asked, None, 0.3).square().sum().backward()
        found += [one.grad for one in asked]
    return found


@pytest.mark.parametrize("setting", ["float64", "bfloat16", "meta"])
def test_the_default_type_and_device_change_nothing(setting):
    modules, x, tokens = step_of_each()
    expected = gradients_of(modules, x, tokens)
    device = torch.device("meta" if setting == "meta" else "cpu")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if setting == "meta" else getattr(torch, setting))
    try:
        with device:
            found = gradients_of(modules, x, tokens)
    finally:
        torch.set_default_dtype(before)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_what_was_kept_may_come_back_in_another_layout():
    modules, x, tokens = step_of_each()
    expected = gradients_of(modules, x, tokens)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: t.detach().numpy().copy(order="C"), lambda kept: torch.from_numpy(kept.copy(order="C"))
    ):
        found = gradients_of(modules, x, tokens)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_a_bias_that_is_spread_over_heads_is_pytorchs():
    q = torch.randn(2, 20, 4, 8)
    assert not differentiable.attends(q, q, q, torch.randn(1, 1, 20, 20))
    assert not differentiable.attends(q, q, q, torch.randn(1, 4, 1, 20))
    assert differentiable.attends(q, q, q, torch.randn(1, 4, 20, 20)) == (library() is not None)
    assert not differentiable.attends(q, q.to("meta"), q, None)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # of forward derivatives
def test_whoever_follows_the_operations_sees_all_of_them(counted):
    norm = MapLayerNorm(timm.layers.LayerNorm2d(64)).train()
    x = torch.randn(2, 64, 6, 5).contiguous(memory_format=Maps)
    slope = torch.randn_like(x)
    with FlopCounterMode(display=False):
        norm(x)
    traced = make_fx(lambda y: norm(y) + 0)(x)
    torch.testing.assert_close(traced(x), norm(x))
    once = counted["layer_norm"]
    assert once == (library() is not None)  # the last one here
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(norm(forward_ad.make_dual(x, slope))).tangent
    assert tangent is not None
    torch.func.grad(lambda y: norm(y).square().sum())(x)
    torch.vmap(lambda y: norm(y[None])[0])(x)
    assert counted["layer_norm"] == once


OUT_OF_MEMORY = """
import resource, torch
from cmtvision.models.accelerate.native import differentiable
torch.set_num_threads(2)
q, k, v = torch.randn(1, 1, 8, 32), torch.randn(1, 40000, 8, 32), torch.randn(1, 40000, 8, 32)
assert differentiable.attends(q, k, v, None)
differentiable.attention(q, k[:, :8].contiguous(), v[:, :8].contiguous(), None, 1.0)  # its threads are there
here = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (here + 30_000_000,) * 2)
try:
    differentiable.attention(q, k, v, None, 1.0)
except RuntimeError as error:
    print(error)
"""


@needs_compiler
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_no_memory_is_an_error_like_any_other():
    done = subprocess.run([sys.executable, "-c", OUT_OF_MEMORY], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "cmt_attention: not enough memory", done.stderr


@pytest.mark.parametrize("as_convolution", [False, True])
def test_a_linear_layer_is_one_however_it_is_computed(as_convolution):
    plain = nn.Linear(24, 36)
    fast = TokenLinear(plain).train()
    fast.as_convolution = as_convolution
    assert fast.weight is plain.weight
    x = torch.randn(3, 10, 24, requires_grad=True)
    slope = torch.randn(3, 10, 36)
    inputs = [x, plain.weight, plain.bias]
    expected = torch.autograd.grad(plain(x), inputs, slope)
    out = fast(x)
    assert out.is_contiguous()
    torch.testing.assert_close(out, plain(x))
    torch.testing.assert_close(torch.autograd.grad(out, inputs, slope), expected)
    assert fast(torch.randn(5, 24)).shape == (5, 36)
    with torch.autocast("cpu", torch.bfloat16):
        assert fast(x).dtype == torch.bfloat16
    assert fast.double()(x.double()).dtype == torch.float64


@needs_compiler
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the narrower vectors are those of x86-64")
@pytest.mark.parametrize("instructions", [("-mavx2", "-mfma"), ()], ids=["avx2", "sse2"])
def test_narrower_vectors_compute_the_same(instructions, tmp_path):
    """What a processor without AVX-512 compiles: the tests of numbers, in a process of its own."""
    (tmp_path / "narrower.py").write_text(
        "import os\n"
        "import cmtvision.models.accelerate.native.library as library\n"
        "flags = [flag for flag in library.FLAGS if flag != '-march=native']\n"
        f"library.FLAGS = (*flags, *{instructions})\n"
        "assert library.library() is not None\n"
    )
    here = Path(__file__)
    options = ["-p", "narrower", "-q", "-p", "no:cacheprovider", "-o", "addopts=", "-n", "0"]
    ignored = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    words = ["-k", "(float64 or pytorchs or shifted or far or exact) and not know"]
    command = [sys.executable, "-m", "pytest", *options, *ignored, *words, here, here.with_name("test_native.py")]
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout
