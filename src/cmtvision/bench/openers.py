"""Opens a form: from what it is to a function that runs one forward pass on the images it was given.

Inputs are float32 images; a network in bfloat16 or float16 gets them cast within the pass, as its callers would have
to. On a GPU the images are there already: the copy from the host is not timed.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cmtvision.bench.forms import Form
from cmtvision.errors import CmtvisionError, ConfigError, first_line

Pass = Callable[[], Any]
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Opened:
    """A form in memory.

    Attributes:
        prepare: prepare(batch) gives the function that runs one pass of that many images.
        note: what is to be known of it, or None.
    """

    def __init__(self, prepare: Callable[[int], Pass], note: str | None = None) -> None:
        self.prepare, self.note = prepare, note


def open_form(form: Form, device: str, input_size: tuple[int, int, int]) -> Opened:
    """Build or open a form in this process, with its threads.

    Args:
        form: what to open.
        device: 'cpu', 'cuda' or 'mps'.
        input_size: (C, H, W) of one image, in pixels.

    Raises:
        CmtvisionError: a network that cannot be fused, a file that cannot be opened.
    """
    torch.set_num_threads(form.threads)
    if form.file is not None:
        return _open_export(form, form.file, device, input_size)
    return _open_network(form, device, input_size)


def images_like(input_size: tuple[int, int, int], batch: int) -> torch.Tensor:
    """Random images (B, C, H, W), always the same."""
    return torch.rand(batch, *input_size, generator=torch.Generator().manual_seed(0))


def _open_export(form: Form, file: Path, device: str, input_size: tuple[int, int, int]) -> Opened:
    from cmtvision.artefact.files import read_card
    from cmtvision.artefact.runtimes import in_words, open_runtime

    card = read_card(file)
    channels, height, width = input_size
    run = open_runtime(file, card, device=device, threads=form.threads)

    def prepare(batch: int) -> Pass:
        images = images_like(input_size, batch).numpy()
        if card["export"].get("preprocess_inside", False):
            images = (255 * images.reshape(batch, height, width, channels)).astype("uint8")  # (B, H, W, C)
        return lambda: run(images)

    return Opened(prepare, in_words(run))


def _open_network(form: Form, device: str, input_size: tuple[int, int, int]) -> Opened:
    model = form.target.build(form.img_size).eval().to(device)
    layout: torch.memory_format = torch.contiguous_format
    note: str | None = None
    fused = False
    if form.runtime != "eager":
        layout = torch.channels_last
        if form.runtime != "channels-last":
            model, note = _fused(model, form, input_size)
            fused = note is None
    dtype = _DTYPES.get(form.precision)
    if not fused:
        model = model.to(memory_format=layout)
        model = model if dtype is None else model.to(dtype)
    if dtype is None and form.precision not in ("fp32", "amp"):
        raise ConfigError(f"precision {form.precision!r}: PyTorch runs a network in fp32, bf16, fp16 or amp")
    autocast = form.precision == "amp"
    run = _compiled(model) if form.runtime == "compiled" else model

    def prepare(batch: int) -> Pass:
        images = images_like(input_size, batch).to(device).contiguous(memory_format=layout)

        def forward() -> torch.Tensor:
            with torch.inference_mode(), torch.autocast(device.partition(":")[0], torch.bfloat16, enabled=autocast):
                logits: torch.Tensor = run(images if dtype is None else images.to(dtype))
                return logits.float()

        return _captured(forward) if form.runtime == "cuda-graph" else forward

    return Opened(prepare, note)


def _fused(model: nn.Module, form: Form, input_size: tuple[int, int, int]) -> tuple[nn.Module, str | None]:
    """The fused network; where it cannot be, the network itself and why, unless fusing is what was asked for."""
    from cmtvision.deploy.fuse import fuse

    dtype = _DTYPES.get(form.precision, torch.float32)
    packed = False if form.runtime == "compiled" else None  # what is packed for oneDNN cannot be compiled
    try:
        return fuse(model, input_size[1:], dtype=dtype, packed=packed), None
    except CmtvisionError as error:
        if form.runtime == "fused":
            raise
        return model, f"not fused: {first_line(error)}"


def _compiled(model: nn.Module) -> Callable[..., torch.Tensor]:
    """torch.compile with weights frozen, which folds what is constant; batch sizes are compiled one by one."""
    import torch._inductor.config as inductor

    inductor.freezing = True  # this process runs one form only
    return torch.compile(model, dynamic=False)


def _captured(forward: Callable[[], torch.Tensor]) -> Pass:
    """The pass as one CUDA graph: kernels are launched together, from the same memory each time."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # autotuning and allocation happen here, not in the graph
        for _ in range(3):
            forward()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        forward()
    return graph.replay
