"""What a network says of a loader's images, brought together from all processes."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from cmtvision.engine.distributed.processes import SINGLE, Processes
from cmtvision.engine.evaluation.recorder import Keep

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Outputs:
    """What a network said of N photos, in the order of their indices, whichever process saw them.

    Where a photo has one class, a few numbers of each are kept and not its logits: 50,000 photos of 21,841 classes
    would have 4.4 GB of them.

    Attributes:
        indices: (N,) int64, each photo once.
        targets: (N,) class numbers, or (N, C) 0 and 1 where a photo may have several labels.
        logits: (N, C) float32 where a photo may have several labels, else (N, 0).
        losses: (N,) float64, cross-entropy in nats; the mean over the classes where a photo may have several labels.
        predicted: (N,) the class with the highest probability.
        probability, true_probability: (N,) float32, of that class and of the photo's own; of a calibrated model
            with its temperature.
        margin: (N,) float32, by how much that class leads the second most probable one; that probability, of one class.
        in_one, in_five: (N,) whether the photo's class is the first, or among the first five.
    """

    indices: torch.Tensor
    targets: torch.Tensor
    logits: torch.Tensor
    losses: torch.Tensor
    predicted: torch.Tensor
    probability: torch.Tensor
    true_probability: torch.Tensor
    margin: torch.Tensor
    in_one: torch.Tensor
    in_five: torch.Tensor

    def correct(self) -> int:
        """Photos whose class is the first."""
        return int(self.in_one.sum())

    def correct_among_five(self) -> int:
        """Photos whose class is among the first five."""
        return int(self.in_five.sum())

    def mean_loss(self) -> float:
        """Mean cross-entropy in nats (of all class decisions, where a photo may have several labels)."""
        return float(self.losses.mean())


def gather_logits(
    forward: Callable[[torch.Tensor], torch.Tensor],
    loader: Iterable[Any],
    processes: Processes = SINGLE,
    progress: Progress | None = None,
    total: int = 0,
    keep: Keep | None = None,
    temperature: float = 1.0,
) -> Outputs:
    """Run a network over a loader's photos and bring together what all processes saw.

    Args:
        forward: preprocessed images (B, C, H, W) -> logits (B, classes).
        loader: this process's share: (images, targets, indices).
        progress: called as progress(done, total), where done counts this process's share times the processes.
        total: photos in all.
        keep: called with the logits, targets and indices of each batch.
        temperature: logits are divided by it for probabilities, not for losses.
    """
    parts: list[tuple[torch.Tensor, ...]] = []
    done = 0
    for images, targets, indices in loader:
        logits = forward(images).float().cpu()
        parts.append((indices, targets, *_judged(logits, targets, temperature)))
        if keep is not None:
            keep(logits, targets, indices)
        done += len(indices)
        if progress is not None:
            progress(min(total, done * processes.world_size), total)
    own = tuple(torch.cat(column) for column in zip(*parts, strict=True))
    everyone = [torch.cat(column) for column in zip(*processes.gather(own), strict=True)]
    order = everyone[0].argsort()
    return Outputs(*(column[order] for column in everyone))


def _judged(logits: torch.Tensor, targets: torch.Tensor, temperature: float = 1.0) -> tuple[torch.Tensor, ...]:
    """What ``Outputs`` keeps of a batch, from ``logits`` on: of logits (B, C) and targets (B,) or (B, C)."""
    if targets.ndim == 2:
        losses = F.binary_cross_entropy_with_logits(logits.double(), targets.double(), reduction="none").mean(dim=1)
        nothing = torch.empty(len(logits))
        return logits, losses, *[nothing] * 6
    probabilities = (logits / temperature).softmax(dim=1)
    probability, predicted = probabilities.max(dim=1)  # of equal ones the first, as in ``Predictor``
    best = probabilities.topk(min(2, logits.shape[1])).values  # (B, 2), of one class (B, 1)
    margin = best[:, 0] - best[:, 1] if best.shape[1] > 1 else best[:, 0]
    own = probabilities.gather(1, targets[:, None])[:, 0]
    among = [
        (logits.topk(min(first, logits.shape[1])).indices == targets[:, None]).any(dim=1) for first in (1, 5)
    ]  # (B,)
    losses = F.cross_entropy(logits.double(), targets, reduction="none")
    nothing = logits.new_empty((len(logits), 0))  # a slice would keep all of them in memory
    return nothing, losses, predicted, probability, own, margin, *among


def network_forward(
    network: torch.nn.Module, device: torch.device, channels_last: bool
) -> Callable[[torch.Tensor], torch.Tensor]:
    """A forward pass of a network in training, as ``gather_logits`` wants it: eval mode, no gradients."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def forward(images: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            logits: torch.Tensor = network(images.to(device, memory_format=memory_format))
            return logits

    return forward


@contextmanager
def eval_mode(network: torch.nn.Module) -> Iterator[None]:
    """Eval mode; afterwards every module is in the mode that it had, frozen norms too."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
