"""Opens a target: from what it is to a function that runs one forward pass on the images it was given.

Inputs are float32 images; a network in bfloat16 or float16 gets them cast within the pass, as its callers would have
to. On a GPU the images are there already: the copy from the host is not timed. Networks are in eval mode and inference
mode.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from cmtvision.bench.target import AS_TRAINED, Target
from cmtvision.errors import CmtvisionError, ConfigError, first_line

Pass: TypeAlias = Callable[[], Any]
Opened: TypeAlias = Callable[[int], Pass]  # from the images of a pass to the function that runs one
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def open_target(target: Target, device: str, input_size: tuple[int, int, int]) -> tuple[Opened, str | None]:
    """Build or open a target in this process.

    Args:
        target: what to open.
        device: 'cpu', 'cuda' or 'mps'.
        input_size: (C, H, W) of one image, in pixels.

    Returns:
        opened(batch) gives the function that runs one pass of that many images; and what is to be known of it, or None.

    Raises:
        CmtvisionError: a network that cannot be fused, a file that cannot be opened.
    """
    if target.file is not None:
        return _open_export(target, target.file, device, input_size)
    return _open_network(target, device, input_size)


def open_as_trained(model: nn.Module, device: str, input_size: Sequence[int]) -> Opened:
    """A network itself, in eval mode on the device, where it convolves in channels-last memory."""
    layout = torch.channels_last if is_convolutional(model) else torch.contiguous_format
    return _passes(model.eval().to(device).to(memory_format=layout), device, input_size, layout)


def is_convolutional(model: nn.Module) -> bool:
    """Whether a network convolves maps; cutting an image into patches that do not overlap is no such convolution."""
    return any(
        isinstance(module, nn.Conv2d) and any(k > s for k, s in zip(module.kernel_size, module.stride, strict=True))
        for module in model.modules()
    )


def images_like(input_size: Sequence[int], batch: int) -> torch.Tensor:
    """Random images (B, C, H, W), always the same."""
    return torch.rand(batch, *input_size, generator=torch.Generator().manual_seed(0))


def _open_export(
    target: Target, file: Path, device: str, input_size: tuple[int, int, int]
) -> tuple[Opened, str | None]:
    from cmtvision.artefact.card import Card
    from cmtvision.artefact.dense_graphs import open_graph
    from cmtvision.artefact.runtimes.base import in_words
    from cmtvision.artefact.runtimes.open import open_runtime

    card = Card.read(file)
    channels, height, width = input_size
    if target.is_dense:
        graph = open_graph(file, card, device, target.threads)

        def of_graph(batch: int) -> Pass:
            looked_at = images_like(input_size, batch)
            return lambda: graph(looked_at)

        return of_graph, None
    run = open_runtime(file, card, device=device, threads=target.threads)

    def opened(batch: int) -> Pass:
        images = images_like(input_size, batch).numpy()
        if card.export is not None and card.export.preprocess_inside:
            images = (255 * images.reshape(batch, height, width, channels)).astype("uint8")  # (B, H, W, C)
        return lambda: run(images)

    return opened, in_words(run)


def _open_network(target: Target, device: str, input_size: tuple[int, int, int]) -> tuple[Opened, str | None]:
    if target.runtime == AS_TRAINED:
        return open_as_trained(target.build(), device, input_size), None
    model = target.build().eval().to(device)
    layout: torch.memory_format = torch.contiguous_format
    note: str | None = None
    fused = False
    if target.runtime != "eager":
        layout = torch.channels_last
        if target.runtime != "channels-last":
            model, note = _fused(model, target, input_size)
            fused = note is None
    dtype = _DTYPES.get(target.precision)
    if not fused:
        model = model.to(memory_format=layout)
        model = model if dtype is None else model.to(dtype)
    if dtype is None and target.precision not in ("fp32", "amp"):
        raise ConfigError(f"precision {target.precision!r}: PyTorch runs a network in fp32, bf16, fp16 or amp")
    run = _compiled(model) if target.runtime == "compiled" else model
    opened = _passes(run, device, input_size, layout, dtype, target.precision == "amp")
    if target.runtime == "cuda-graph":
        return lambda batch: captured(opened(batch)), note
    return opened, note


def _passes(
    run: Callable[[torch.Tensor], Any],
    device: str,
    input_size: Sequence[int],
    layout: torch.memory_format,
    dtype: torch.dtype | None = None,
    autocast: bool = False,
) -> Opened:
    def opened(batch: int) -> Pass:
        images = images_like(input_size, batch).to(device).contiguous(memory_format=layout)

        def forward() -> Any:
            with torch.inference_mode(), torch.autocast(device.partition(":")[0], torch.bfloat16, enabled=autocast):
                found = run(images if dtype is None else images.to(dtype))
                return found.float() if isinstance(found, torch.Tensor) else found  # a detector's are boxes

        return forward

    return opened


def _fused(model: nn.Module, target: Target, input_size: tuple[int, int, int]) -> tuple[nn.Module, str | None]:
    """The fused network; where it cannot be, the network itself and why, unless fusing is what was asked for."""
    from cmtvision.models.accelerate.fusing.fuse import fuse

    dtype = _DTYPES.get(target.precision, torch.float32)
    # what is packed for oneDNN can neither be compiled nor take what autocast makes of a map
    packed = False if target.runtime == "compiled" or target.precision == "amp" else None
    try:
        return fuse(model, input_size[1:], dtype=dtype, packed=packed), None
    except CmtvisionError as error:
        if target.runtime == "fused":
            raise
        return model, f"not fused: {first_line(error)}"


def _compiled(model: nn.Module) -> Callable[..., torch.Tensor]:
    """torch.compile with weights frozen, which folds what is constant; batch sizes are compiled one by one."""
    import torch._inductor.config as inductor

    inductor.freezing = True  # this process runs one target only
    return torch.compile(model, dynamic=False)


def captured(step: Pass) -> Pass:
    """The same work as one CUDA graph: kernels are launched together, from and to the same memory each time."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # autotuning and allocation happen here, not in the graph
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    def replay(_kept: Pass = step) -> None:  # the images and weights that the graph reads live as long as the step
        graph.replay()

    return replay
