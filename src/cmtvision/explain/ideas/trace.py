"""What happens inside a CMT for one image, recorded through hooks: the network is run as it is, and only once.

Nothing is computed again except the attention matrix, which the fused path never has in memory: it follows from the
queries, keys and bias that the network itself computed (``AttentionTrace.weights``).

Shapes: C channels, H W grid, N = H*W queries, M reduced keys, h heads, d head width. There is no batch: one image.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn

from cmtvision.errors import ConfigError
from cmtvision.models import CMT
from cmtvision.models.cmt.irffn import InvertedResidualFFN
from cmtvision.models.cmt.lmhsa import LightweightAttention
from cmtvision.models.cmt.lpu import LocalPerceptionUnit
from cmtvision.models.cmt.position import Grid, key_grid, whole_bias


@dataclass
class LocalTrace:
    """A depthwise 3x3 convolution of the LPU or the IRFFN at work.

    Attributes:
        before: its input (C, H, W).
        conv: what it gives, without the identity beside it, (C, H, W).
        kernel: its weights (C, 3, 3), and ``shift`` its bias (C,).
        identity: whether the input is added to what it gives.
    """

    before: torch.Tensor
    conv: torch.Tensor
    kernel: torch.Tensor
    shift: torch.Tensor
    identity: bool = True

    @property
    def after(self) -> torch.Tensor:
        """What goes on: ``conv`` plus the input, (C, H, W)."""
        return self.conv + self.before if self.identity else self.conv

    @property
    def change(self) -> float:
        """The norm of ``conv`` relative to that of the input."""
        return float(self.conv.norm() / self.before.norm().clamp_min(1e-12))


@dataclass
class AttentionTrace:
    """One attention module at work.

    Attributes:
        q: queries (h, N, d).
        k, v: keys and values (h, M, d).
        bias: B (h, N, M), None where there is none.
        mixed: what the module itself made of them, softmax(q k^T / sqrt(d) + B) v, before its last linear layer (N, C).
        grid: (H, W) of the queries.
        kv_stride: k, the reduction of the keys' grid.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    bias: torch.Tensor | None
    mixed: torch.Tensor
    grid: Grid
    kv_stride: int

    @property
    def keys(self) -> Grid:
        """(H, W) of the keys."""
        return key_grid(self.grid, self.kv_stride)

    @cached_property
    def scores(self) -> torch.Tensor:
        """The content alone: q k^T / sqrt(d), (h, N, M)."""
        products: torch.Tensor = self.q @ self.k.transpose(-2, -1)
        return products * float(self.q.shape[-1] ** -0.5)

    def weights(self, with_bias: bool = True) -> torch.Tensor:
        """The attention (h, N, M), each row of sum 1; also as it would be without B."""
        total: torch.Tensor = self.scores if self.bias is None or not with_bias else self.scores + self.bias
        return total.softmax(dim=-1)


@dataclass
class BlockTrace:
    """One block: its stage and place in it, both from 1, and its three parts; None where the network lacks one."""

    stage: int
    place: int
    attention: AttentionTrace
    lpu: LocalTrace | None = None
    irffn: LocalTrace | None = None

    @property
    def name(self) -> str:
        """'stage 3, block 2'."""
        return f"stage {self.stage}, block {self.place}"


@dataclass
class Trace:
    """One image's way through a CMT.

    Attributes:
        image: the network's input (C, H, W).
        stem: the map after each of the stem's three convolutions (width, H/2, W/2).
        stages: the map after each stage (dim, H/s, W/s), s = 4, 8, 16, 32.
        blocks: every block, in the order of the data.
        pooled: the vector before the classifier.
        logits: (classes,), or the pooled vector again where there is no classifier.
    """

    image: torch.Tensor
    stem: list[torch.Tensor] = field(default_factory=list)
    stages: list[torch.Tensor] = field(default_factory=list)
    blocks: list[BlockTrace] = field(default_factory=list)
    pooled: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    logits: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    def of_stage(self, stage: int) -> list[BlockTrace]:
        """The blocks of a stage, from 1."""
        return [block for block in self.blocks if block.stage == stage]

    def stride(self, stage: int) -> int:
        """Pixels of the image from one position of a stage, from 1, to the next."""
        return int(2 ** (stage + 1))

    @property
    def lacks(self) -> list[str]:
        """The paper's ideas that this network does not have, in the paper's words."""
        first = self.blocks[0]
        reduces = any(block.attention.kv_stride > 1 for block in self.blocks)
        wanting = {
            "the Local Perception Unit": first.lpu is None,
            "the reduced grid of keys and values": not reduces,
            "the position bias B": first.attention.bias is None,
            "the depthwise convolution of the IRFFN": first.irffn is None,
            "the identity beside the IRFFN's convolution": first.irffn is not None and not first.irffn.identity,
        }
        return [idea for idea, lacking in wanting.items() if lacking]


def as_cmt(network: nn.Module, name: str = "this model") -> CMT:
    """The network itself. Raises ConfigError where it is no CMT, whose ideas could be watched."""
    if not isinstance(network, CMT):
        raise ConfigError(
            f"{name}: {type(network).__name__} is no CMT, so its ideas cannot be watched; take cmt_nano to cmt_b, "
            "a run of one of them, or the ladder's rungs 2 to 5"
        )
    return network


def trace(network: CMT, image: torch.Tensor) -> Trace:
    """Run an image (C, H, W) through a network and record what happens; the network is left as it was.

    All tensors of the trace are float32 on the CPU.
    """
    found = Trace(_kept(image))
    with _recording(network, found):
        logits = evaluated(network, image)
    found.logits = logits
    return found


def evaluated(network: CMT, image: torch.Tensor) -> torch.Tensor:
    """The logits (classes,) of one image (C, H, W), in evaluation mode, on the CPU; the mode is restored."""
    parameter = next(network.parameters())
    training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            return _kept(network(image[None].to(parameter))[0])
    finally:
        network.train(training)


@contextmanager
def _recording(network: CMT, found: Trace) -> Iterator[None]:
    """Hooks on a network that write into a trace; removed in the end, whatever happens."""
    with ExitStack() as hooks:

        def listen(module: nn.Module, act: Callable[[Any, Any], None]) -> None:
            handle = module.register_forward_hook(lambda _, inputs, output: act(inputs, output))
            hooks.callback(handle.remove)

        for norm in (network.stem.norm1, network.stem.norm2, network.stem.norm3):
            listen(norm, lambda _, output: found.stem.append(_kept(output[0])))
        for number, stage in enumerate(network.stages, 1):
            for place, block in enumerate(stage.blocks, 1):  # type: ignore[arg-type]
                _listen_to_block(listen, block, number, place, found)
            listen(stage, lambda _, output: found.stages.append(_kept(output[0])))

        def pool(inputs: Any, _: Any) -> None:
            found.pooled = _kept(inputs[0][0])

        listen(network.head, pool)
        yield


def _listen_to_block(listen: Any, block: Any, stage: int, place: int, found: Trace) -> None:
    attention: LightweightAttention = block.lmhsa
    heard: dict[str, Any] = {}

    def keep(name: str) -> Callable[[Any, Any], None]:
        return lambda inputs, output: heard.update({name: (inputs, output)})

    for name in ("q", "k", "v", "proj"):
        listen(getattr(attention, name), keep(name))
    if isinstance(block.lpu, LocalPerceptionUnit):
        listen(block.lpu.conv, keep("lpu"))
    if isinstance(block.irffn, InvertedResidualFFN):
        listen(block.irffn.conv, keep("irffn"))
    if attention.position_bias is not None:
        listen(attention.position_bias, keep("bias"))
    listen(attention, keep("attention"))

    def finish(_: Any, output: Any) -> None:
        inputs = heard["attention"][0]
        irffn = _local(heard["irffn"], block.irffn.conv, _adds_identity(block.irffn)) if "irffn" in heard else None
        bias = heard["bias"][1] if "bias" in heard else inputs[1] if len(inputs) > 1 else None
        split = {name: _heads(heard[name][1][0], attention.num_heads) for name in ("q", "k", "v")}
        found.blocks.append(
            BlockTrace(
                stage,
                place,
                AttentionTrace(
                    **split,
                    bias=None if bias is None else _kept(whole_bias(bias, split["q"].shape[1])[0]),
                    mixed=_kept(heard["proj"][0][0][0]),
                    grid=(output.shape[2], output.shape[3]),
                    kv_stride=attention.kv_stride,
                ),
                lpu=_local(heard["lpu"], block.lpu.conv) if "lpu" in heard else None,
                irffn=irffn,
            )
        )

    listen(block, finish)


def _local(heard: tuple[Any, Any], conv: Any, identity: bool = True) -> LocalTrace:
    inputs, output = heard
    kernel = _kept(conv.weight[:, 0])
    shift = _kept(conv.bias) if conv.bias is not None else torch.zeros(len(kernel))
    return LocalTrace(_kept(inputs[0][0]), _kept(output[0]), kernel, shift, identity)


def _adds_identity(ffn: InvertedResidualFFN) -> bool:
    """Whether this IRFFN keeps the paper's shortcut: of the variant without it, only the sum differs."""
    return type(ffn).neighbours is InvertedResidualFFN.neighbours


def _heads(tokens: torch.Tensor, num_heads: int) -> torch.Tensor:
    """(N, C) -> (h, N, d)."""
    return _kept(tokens.reshape(len(tokens), num_heads, -1).transpose(0, 1))


def _kept(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", torch.float32).clone()
