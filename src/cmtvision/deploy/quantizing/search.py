"""Which layers compute in 8 bits: measured sensitivity, measured time, and an accuracy budget.

1. Each group of layers alone goes to 8 bits, and the change of the logits on calibration images is its noise.
2. The runtime's profile gives each layer's time, in 8 bits and not.
3. Three choices are candidates: all layers; those that the profile says are faster in 8 bits; the convolutions and
   linear layers that are not depthwise. In each, groups are put back, most noise for the least time first, until
   the accuracy on the evaluation images is within the budget.
4. Those within it run in interleaved rounds, and the fastest is taken.
"""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cmtvision.deploy.quantizing.calibration import Forward, Photos, Progress
from cmtvision.deploy.quantizing.quantized import Accuracy, Candidate, Layer, Rest, Speed

MIN_WEIGHTS = 0.5  # share of the weights that must be in 8 bits for a network to be called quantised
_NOISE_PHOTOS = 64
_ROUNDS = 11
_ROUND_SECONDS = 0.05
_LARGE_KINDS = ("conv", "1x1 conv", "linear")


class Backend(Protocol):
    """The interface of a runtime's quantiser; it chooses its own type of model.

    Attributes:
        name: the runtime's name.
        rest: precision of what is not in 8 bits.
        layers: the layers that could be in 8 bits, known after ``calibrate``.
    """

    name: str
    rest: Rest
    layers: list[Layer]

    def calibrate(self, images: Iterable[npt.NDArray[np.float32]]) -> None:
        """Collect ranges from inputs (B, C, H, W)."""

    def reference(self) -> Any:
        """The fp32 graph."""

    def built(self, int8: frozenset[str]) -> Any:
        """The graph as it ships with these layers in 8 bits."""

    def simulated(self, int8: frozenset[str]) -> Any:
        """A graph with the same logits up to rounding that is quick to build."""

    def open(self, model: Any, rest: Rest | None = None, batch: int = 16) -> Forward:
        """Ready to run."""

    def times(self, model: Any, images: npt.NDArray[np.float32]) -> dict[str, float]:
        """Milliseconds of each layer."""

    def save(self, model: Any, folder: Path) -> list[str]:
        """Write the runtime's files. Returns their names, the one to open first."""

    def read(self, folder: Path) -> Any:
        """What ``save`` wrote."""

    def weight_only(self) -> Any:
        """The graph with only its stored weights in 8 bits."""


class Search:
    """The search, step by step; see the module.

    Args:
        backend: calibrated, unless only its weights are to be stored in 8 bits.
        calibration: images for the noise; not used without ``run``.
        evaluation: images for the accuracy.
        max_drop: points of top-1 that may be lost; None for no limit.
        batch_size: images at a time for what is timed.
        progress: called as progress(done, total).
    """

    def __init__(
        self,
        backend: Backend,
        calibration: Photos,
        evaluation: Photos,
        max_drop: float | None,
        batch_size: int = 1,
        progress: Progress | None = None,
    ) -> None:
        self.backend, self.calibration, self.evaluation = backend, calibration, evaluation
        self.max_drop, self.batch_size = max_drop, batch_size
        self.layers = backend.layers
        self.groups: dict[str, list[Layer]] = {}
        for layer in self.layers:
            self.groups.setdefault(layer.group, []).append(layer)
        self.right = evaluation.right(evaluation.logits(backend.open(backend.reference(), "fp32")))
        self._models: dict[frozenset[str], Any] = {}
        self._progress, self._done = progress, 0
        self._total = len(self.groups) + 5  # times, three candidates, rounds

    def run(self) -> tuple[Candidate | None, list[Candidate]]:
        """The fastest candidate within the budget (None if there is none), and all of them."""
        self._measure_noise()
        self._measure_times()
        candidates = [self._within_budget(one) for one in self._choices()]
        fit = [one for one in candidates if one.within]
        if fit:
            forwards = {one.name: self.opened(self.model(one.int8), self.backend.rest) for one in fit}
            for one, times in zip(fit, self.rounds(forwards).values(), strict=True):
                one.ms = median(times)
        self._step()
        best = min(fit, key=lambda one: one.ms or 0.0) if fit else None
        self._explain(best)
        return best, candidates

    def model(self, int8: frozenset[str]) -> Any:
        """The graph as it ships with these layers in 8 bits, made once."""
        if int8 not in self._models:
            self._models[int8] = self.backend.built(int8)
        return self._models[int8]

    def accuracy(self, model: Any) -> Accuracy:
        """The accuracy of a graph on the evaluation images, against the fp32 graph."""
        logits = self.evaluation.logits(self.backend.open(model))
        return Accuracy.compare(self.right, self.evaluation.right(logits))

    def opened(self, model: Any, rest: Rest) -> Callable[[], Any]:
        """A run of one batch."""
        forward = self.backend.open(model, rest, self.batch_size)
        images = self._batch()
        return lambda: forward(images)

    def rounds(self, forwards: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
        """Milliseconds of a batch in interleaved rounds, so that disturbances affect all alike."""
        times: dict[str, list[float]] = {name: [] for name in forwards}
        repeats = {}
        for name, run in forwards.items():
            run()
            repeats[name] = max(1, int(_ROUND_SECONDS / max(_seconds(run, 2), 1e-6)))
        for _ in range(_ROUNDS):
            for name, run in forwards.items():
                times[name].append(1000 * _seconds(run, repeats[name]))
        return times

    def speed(self, model: Any) -> Speed:
        """The speed of a finished graph, against the unquantised one."""
        backend = self.backend
        forwards = {"int8": self.opened(model, backend.rest), "rest": self.opened(backend.reference(), backend.rest)}
        if backend.rest != "fp32":
            forwards["fp32"] = self.opened(backend.reference(), "fp32")
        times = self.rounds(forwards)
        ratio = median(rest / int8 for rest, int8 in zip(times["rest"], times["int8"], strict=True))
        middle = {name: median(values) for name, values in times.items()}
        return Speed(self.batch_size, middle["int8"], middle["rest"], middle.get("fp32", middle["rest"]), ratio)

    def _measure_noise(self) -> None:
        backend, photos = self.backend, self.calibration
        most = min(_NOISE_PHOTOS, len(photos))
        exact = photos.logits(backend.open(backend.reference(), "fp32"), most=most)
        power = float((exact**2).mean())
        for layers in self.groups.values():
            alone = frozenset(layer.name for layer in layers)
            found = photos.logits(backend.open(backend.simulated(alone), "fp32"), most=most)
            for layer in layers:
                layer.noise = float(((found - exact) ** 2).mean()) / power
            self._step()

    def _measure_times(self) -> None:
        everything = self.backend.times(self.model(frozenset(layer.name for layer in self.layers)), self._batch())
        nothing = self.backend.times(self.backend.reference(), self._batch())
        for layer in self.layers:  # one that the optimiser fused into its neighbour has no time of its own
            layer.ms_int8, layer.ms_rest = everything.get(layer.name, 0.0), nothing.get(layer.name, 0.0)
        self._step()

    def _choices(self) -> list[Candidate]:
        sets = {
            "all layers": self.layers,
            "faster by the profile": [
                layer for layers in self.groups.values() if self._gain(layers) > 0 for layer in layers
            ],
            "convolutions and linear layers": [layer for layer in self.layers if layer.kind in _LARGE_KINDS],
        }
        different: dict[frozenset[str], Candidate] = {}
        for name, layers in sets.items():
            int8 = frozenset(layer.name for layer in layers)
            if int8 not in different and self._is_quantised(int8):
                different[int8] = Candidate(name, int8)
        self._total -= len(sets) - len(different)
        return list(different.values())

    def _within_budget(self, candidate: Candidate) -> Candidate:
        """The candidate with as few groups put back as the budget allows; within=False where it cannot be met."""
        candidate.accuracy = self.accuracy(self.model(candidate.int8))
        candidate.within = self.meets(candidate.accuracy)
        if not candidate.within:
            self._put_back(candidate)
        self._step()
        return candidate

    def _put_back(self, candidate: Candidate) -> None:
        inside = [name for name, layers in self.groups.items() if layers[0].name in candidate.int8]
        order = sorted(inside, key=self._noise_for_time, reverse=True)

        def without(count: int) -> frozenset[str]:
            out = {layer.name for name in order[:count] for layer in self.groups[name]}
            return candidate.int8 - out

        most = max((count for count in range(len(order)) if self._is_quantised(without(count))), default=0)
        low, high = 0, most  # low misses the budget; the least count that meets it is in (low, high]
        while low + 1 < high:
            middle = (low + high) // 2
            if self.meets(self.accuracy(self.backend.simulated(without(middle)))):
                high = middle
            else:
                low = middle
        step = 1
        while 0 < high <= most:  # what ships may differ from the simulation by an image
            found = self.accuracy(self.model(without(high)))
            candidate.accuracy, candidate.int8, candidate.put_back = found, without(high), order[:high]
            candidate.within = self.meets(found)
            if candidate.within or high == most:
                return
            high, step = min(high + step, most), 2 * step

    def meets(self, accuracy: Accuracy) -> bool:
        """Whether an accuracy is within the budget."""
        return self.max_drop is None or accuracy.drop <= self.max_drop

    def _is_quantised(self, int8: frozenset[str]) -> bool:
        inside = sum(layer.weights for layer in self.layers if layer.name in int8)
        return inside >= MIN_WEIGHTS * sum(layer.weights for layer in self.layers)

    def _gain(self, layers: list[Layer]) -> float:
        return sum((layer.ms_rest or 0.0) - (layer.ms_int8 or 0.0) for layer in layers)

    def _noise_for_time(self, group: str) -> float:
        """Noise removed per millisecond lost; a group that costs nothing counts as a thousandth of a millisecond."""
        layers = self.groups[group]
        total = sum(layer.ms_rest or 0.0 for layer in self.layers)
        return (layers[0].noise or 0.0) / max(self._gain(layers), 1e-3 * total, 1e-6)

    def _explain(self, best: Candidate | None) -> None:
        for name, layers in self.groups.items():
            faster = self._gain(layers) > 0
            for layer in layers:
                layer.int8 = best is not None and layer.name in best.int8
                if best is None:
                    layer.why = "no choice of layers meets the budget"
                elif name in best.put_back:
                    layer.why = "put back for accuracy"
                elif layer.int8:
                    layer.why = "faster in 8 bits" if faster else "no faster by itself, in the fastest choice"
                else:
                    layer.why = "no faster in 8 bits" if not faster else "not in the fastest choice"

    def _batch(self) -> npt.NDArray[np.float32]:
        images = next(self.evaluation.batches(self.batch_size, most=self.batch_size))
        return np.resize(images, (self.batch_size, *images.shape[1:]))

    def _step(self) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(min(self._done, self._total), self._total)


def _seconds(run: Callable[[], Any], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats
