"""Every variant through PyTorch's compilers and exporters: same numbers out."""

import copy
import io
import shutil
from typing import Any

import pytest
import timm
import torch
from networks import CMTS, LARGER

from cmtvision.models.cmt import CMT
from random_weights import randomise

FAST = ("cmt_nano",)
EACH = [
    pytest.param(
        name,
        marks=() if name in FAST else [pytest.mark.slow, *([pytest.mark.every_size] if name in LARGER else [])],
    )
    for name in CMTS
]
# one of each kind: larger variants differ in numbers only, and take minutes more
KINDS = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in ("cmt_nano", "cmt_ti_kecam")]
ONE_EACH = (1, 1, 1, 1)  # blocks of a stage: what compiles one compiles twelve, in a twelfth of the time
# scripting and tracing are deprecated in PyTorch, and still what many users and timm's own tests do
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:.*deprecated.*:UserWarning"
)


def build(name: str, **kwargs: Any) -> torch.nn.Module:
    return randomise(timm.create_model(name, num_classes=5, **kwargs)).eval()


def images(model: torch.nn.Module, size: tuple[int, int] | None = None, batch: int = 2) -> torch.Tensor:
    height, width = size or model.img_size
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def agree(ours: torch.Tensor, expected: torch.Tensor) -> None:
    scale = float(expected.detach().abs().max())
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4 * scale)


@pytest.mark.slow
@pytest.mark.parametrize("name", EACH)
def test_export_of_a_fixed_size(name: str) -> None:
    model = build(name)
    x = images(model)
    program = torch.export.export(model, (x,))
    agree(program.module()(x), model(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_export_with_dynamic_batch(name: str) -> None:
    model = build(name, depths=ONE_EACH)
    x = images(model)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    for batch in (1, 3):
        agree(program.module()(images(model, batch=batch)), model(images(model, batch=batch)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cmt_nano", "cmt_ti_kecam"])
def test_export_with_dynamic_size(name: str) -> None:
    """Height and width as multiples of 32, free; the tables are resampled inside the exported program."""
    model = build(name, depths=ONE_EACH)
    height, width = torch.export.Dim("h", min=2, max=40), torch.export.Dim("w", min=2, max=40)
    program = torch.export.export(model, (images(model, (96, 128)),), dynamic_shapes=({2: 32 * height, 3: 32 * width},))
    for size in ((64, 64), (160, 96), (96, 128)):
        agree(program.module()(images(model, size)), model(images(model, size)))


@pytest.mark.parametrize("name", EACH)
def test_compile_in_one_graph(name: str) -> None:
    torch.compiler.reset()
    model = build(name, depths=ONE_EACH) if name in FAST else build(name)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    agree(compiled(images(model)), model(images(model)))


@pytest.mark.slow
def test_compiled_model_sees_a_second_size() -> None:
    """One graph a size: with dynamic=True or left to itself, torch.compile works too but reasons for a minute."""
    torch.compiler.reset()
    model = build("cmt_nano", depths=ONE_EACH)
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=False)
    for size in ((32, 32), (64, 32), (50, 75)):
        agree(compiled(images(model, size)), model(images(model, size)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cmt_nano", "cmt_ti_kecam"])
def test_compile_training_step(name: str) -> None:
    torch.compiler.reset()
    model = build(name, img_size=64, drop_rate=0.0, depths=ONE_EACH).train()
    reference = copy.deepcopy(model)
    x = images(model)
    loss = torch.compile(model, fullgraph=True, backend="aot_eager")(x).square().mean()
    loss.backward()
    expected = reference(x).square().mean()
    expected.backward()
    agree(loss, expected)
    for (key, p), (_, q) in zip(model.named_parameters(), reference.named_parameters(), strict=True):
        atol = 1e-3 * float(q.grad.abs().max()) + 1e-5
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=atol, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.slow
def test_compile_with_checkpointing() -> None:
    torch.compiler.reset()
    model = build("cmt_nano", drop_rate=0.0, depths=ONE_EACH).train()
    reference = copy.deepcopy(model)
    model.set_grad_checkpointing()
    x = images(model)
    torch.compile(model, backend="aot_eager")(x).square().mean().backward()
    reference(x).square().mean().backward()
    agree(model.stem.conv1.weight.grad, reference.stem.conv1.weight.grad)
    for (key, a), (_, b) in zip(model.named_buffers(), reference.named_buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor compiles C++")
@pytest.mark.filterwarnings("ignore")  # inductor's own
def test_compile_with_inductor() -> None:
    torch.compiler.reset()
    model = build("cmt_nano", depths=ONE_EACH)
    agree(torch.compile(model, fullgraph=True)(images(model)), model(images(model)))


@pytest.mark.parametrize(
    ("name", "rel_pos"),
    [*(pytest.param(*p.values, "own", marks=p.marks) for p in EACH), ("cmt_nano", "block"), ("cmt_nano", "none")],
)
def test_script(name: str, rel_pos: str) -> None:
    model = build(name, scriptable=True, **({} if rel_pos == "own" else {"rel_pos": rel_pos}))
    scripted = torch.jit.script(model)
    agree(scripted(images(model)), model(images(model)))
    agree(scripted(images(model, (50, 75))), model(images(model, (50, 75))))  # the tables are resampled there too
    buffer = io.BytesIO()
    torch.jit.save(scripted, buffer)
    buffer.seek(0)
    agree(torch.jit.load(buffer)(images(model)), model(images(model)))


@pytest.mark.parametrize("name", KINDS)
def test_trace(name: str) -> None:
    model = build(name)
    traced = torch.jit.trace(model, images(model))
    agree(traced(images(model, batch=3)), model(images(model, batch=3)))


@pytest.mark.parametrize("name", EACH)
def test_fx(name: str) -> None:
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    model = build(name)
    train_nodes, eval_nodes = get_graph_node_names(model, tracer_kwargs=_timm_tracer())
    assert train_nodes == eval_nodes
    extractor = create_feature_extractor(
        model, ["stages.2.blocks.0.add_1", eval_nodes[-1]], tracer_kwargs=_timm_tracer()
    )
    out = extractor(images(model))
    agree(out[eval_nodes[-1]], model(images(model)))


def _timm_tracer() -> dict[str, Any]:
    from timm.models import get_notrace_functions, get_notrace_modules

    return {"leaf_modules": get_notrace_modules(), "autowrap_functions": get_notrace_functions()}


def test_explicit_attention_scripts_too() -> None:
    with torch.no_grad():
        timm.layers.set_fused_attn(False)
        try:
            model = randomise(CMT(img_size=32, dims=(8, 16, 24, 32), depths=(1, 1, 1, 1), num_classes=5)).eval()
        finally:
            timm.layers.set_fused_attn(True)
        assert not model.stages[0].blocks[0].lmhsa.fused_attn
        x = torch.randn(2, 3, 32, 32)
        agree(torch.jit.script(model)(x), model(x))
