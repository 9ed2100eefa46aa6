"""What a run learns: all that differs between tasks. The rest of a run (order, schedule, saving, stopping) is one code.

``Classification`` is a task; detection and segmentation bring their own and hand them to ``fit``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from cmtvision.artefact import Artefact
from cmtvision.data import DatasetIndex
from cmtvision.engine.build import BuiltModel
from cmtvision.engine.distributed.processes import Processes
from cmtvision.engine.loaders import TrainLoader
from cmtvision.engine.plan import RunPlan
from cmtvision.recipe import Recipe
from cmtvision.trust.block import TrustBlock
from cmtvision.trust.fit import Bank


class Place(NamedTuple):
    """Where a batch stands: its epoch, its number within it (no two of a run's processes share one), and the epoch
    of the schedule, which a time limit may take ahead.
    """

    epoch: int
    step: int
    scheduled: int


class Objective(Protocol):
    """The loss of one batch.

    Attributes:
        distiller: what learns beside the network, kept in checkpoints; None for nothing.
    """

    distiller: nn.Module | None

    def __call__(self, network: Any, batch: Any, place: Place) -> torch.Tensor:
        """The loss, a scalar.

        Args:
            network: to call with images: the network, compiled where the recipe says so.
            batch: what the training loader gives; its last element are the images' numbers in the loader's list.
            place: where the batch stands.
        """


class Judged(NamedTuple):
    """What held-out images say of a network: figures for metrics.csv, and the one to choose by, higher is better."""

    figures: dict[str, float]
    score: float


@dataclass(frozen=True)
class Final:
    """The end of a run.

    Attributes:
        artefact: what is kept, without figures and provenance.
        evaluation: of the held-out images, with ``summary()`` and ``to_dict()``; None where there are none.
        trust, bank: its calibration; None where there is none.
    """

    artefact: Artefact
    evaluation: Any = None
    trust: TrustBlock | None = None
    bank: Bank | None = None


class Task(Protocol):
    """What a run learns. A task keeps nothing of a run: the same one serves any number of them.

    Attributes:
        command: what a person types to train.
        figures: names of what ``judge`` measures, the columns of metrics.csv.
        smaller: the settings that help where memory is too small, in words.
    """

    command: str
    figures: tuple[str, ...]
    smaller: str

    def read(self, recipe: Recipe, data: str | Path) -> Any:
        """The images: an index with ``classes``, ``train``, ``val``, ``test``, ``skipped`` and ``fingerprint``, whose
        samples have a ``path``. Raises DataError for data that cannot be used.
        """

    def listing(self, index: Any) -> DatasetIndex:
        """The images as the run folder lists them, with the classes that are in each."""

    def in_parts(self, index: Any, listing: DatasetIndex) -> Any:
        """The index with its images in the parts that a listing has them in, and without those that are not there."""

    def build(self, recipe: Recipe, index: Any, resume: bool) -> BuiltModel:
        """The network with its weights; where a run is resumed, without those it began with."""

    def batch_size(
        self, recipe: Recipe, built: BuiltModel, device: torch.device, index: Any, processes: Processes
    ) -> int:
        """Images at a time in each process."""

    def train_loader(
        self, index: Any, built: BuiltModel, recipe: Recipe, batch_size: int, processes: Processes
    ) -> TrainLoader:
        """The training images, changed at random."""

    def val_loader(self, index: Any, built: BuiltModel, recipe: Recipe, batch_size: int, processes: Processes) -> Any:
        """This process's share of the held-out images."""

    def objective(self, recipe: Recipe, index: Any, built: BuiltModel, device: torch.device) -> Objective:
        """What is minimised."""

    def judge(self, network: nn.Module, loader: Any, plan: RunPlan, device: torch.device) -> Judged:
        """What the held-out images say of a network, which is on the device; every process must call it."""

    def said(self, row: dict[str, Any]) -> Sequence[str]:
        """The figures of a row of metrics.csv, for a person."""

    def finish(self, plan: RunPlan, index: Any, built: BuiltModel, network: nn.Module) -> Final:
        """Evaluate the final network once more as everyone will use it; every process must call it."""
