"""How a schedule meets a time limit (``train.max_minutes``): it is shortened to end in time, not cut off.

The learning rate follows the place in the schedule, counted in its steps. As long as there is time enough, each step of
training is one step of the schedule. Where the steps that are left would take longer than the time that is left, each
counts for more: its stride is (schedule left) / (steps that fit). The stride is fitted again after every step, from the
time that steps, evaluations and what follows training have taken so far, which compensates for a machine that becomes
busy.
"""

import time
from math import ceil
from typing import Any

from cmtvision.recipe.choices import EVALUATION_RATE

_WARM = 2  # the first steps reserve memory and choose kernels; what they take says nothing of the others
_NEEDED = 3  # timed steps before anything is concluded from them
_SHARE = 0.05  # of the steps to come: the window that the time of a step is averaged over
_WINDOW = 20  # and its least number of steps


class Pace:
    """Where a run stands in its schedule.

    Args:
        total: optimiser steps of the schedule.
        steps_per_epoch: of them in an epoch.
        seconds: time limit of the whole run; None for none.
        evaluations: held-out photos for each training photo, and how many epochs lie between two evaluations.
        reading: seconds that reading the held-out photos takes, beside what the network does with them.
        most: steps of training that there may be at most; None for as many as the schedule has.
        spent: seconds of the limit that were over when this was made.
        after: seconds that whatever follows the final evaluation will take.

    Attributes:
        position: steps of the schedule that are done.
        stride: steps of the schedule that a step of training counts for, at least 1.
    """

    def __init__(
        self,
        total: int,
        steps_per_epoch: int,
        seconds: float | None = None,
        evaluations: tuple[float, int] = (0.0, 1),
        reading: float = 0.0,
        most: int | None = None,
        spent: float = 0.0,
        after: float = 0.0,
    ) -> None:
        self.total, self.steps_per_epoch, self.seconds = total, steps_per_epoch, seconds
        self.position, self.stride = 0.0, 1.0
        self._share, self._between = evaluations
        self._reading, self._most = reading, most
        self._begun, self._spent_before, self._after = time.perf_counter(), spent, after
        self._step = 0
        self._timed = 0
        self._time = self._steps = 0.0  # sums over the window
        self._last = self._begun
        self._evaluations: list[float] = []  # seconds of each pass over the held-out photos

    @property
    def spent(self) -> float:
        """Seconds of the limit that are over, earlier parts of a resumed run included."""
        return self._spent_before + time.perf_counter() - self._begun

    @property
    def epoch(self) -> int:
        """The schedule's epoch, from 0."""
        return int(self.position / self.steps_per_epoch)

    @property
    def done(self) -> bool:
        """Whether the schedule is at its end, or the time is."""
        return self.position >= self.total - 1e-6 or self._left() <= 0

    @property
    def steps_left(self) -> int:
        """Steps of training that are left at this stride."""
        return max(0, ceil((self.total - self.position) / self.stride - 1e-6))

    @property
    def epochs_left(self) -> float:
        """The same in epochs of training."""
        return self.steps_left / self.steps_per_epoch

    @property
    def steps_in_all(self) -> int:
        """Steps that training will have taken at its end."""
        return self._step + self.steps_left

    def begin(self, step: int) -> None:
        """Training begins, or goes on, after ``step`` steps; what came before was not training."""
        if step != self._step:  # a run of an earlier version, which kept no place
            self.position, self._step = float(step), step
        self._last = time.perf_counter()

    def advance(self, step: int) -> None:
        """Step number ``step`` of training is over; calling it twice for a step does nothing more."""
        if step == self._step:
            return
        now = time.perf_counter()
        self.position += self.stride * (step - self._step)
        self._timed += step - self._step
        if self._timed > _WARM:
            keep = 1 - 1 / max(_WINDOW, _SHARE * self.steps_left)
            self._time = self._time * keep + now - self._last
            self._steps = self._steps * keep + step - self._step
        self._step, self._last = step, now

    def fit(self) -> None:
        """Choose the stride with which schedule and time end together."""
        if self.seconds is None or self._timed < _WARM + _NEEDED:
            return
        step, evaluation = self._time / self._steps, self._evaluation_seconds()
        fitting = (self._left() - evaluation) / (step + evaluation / self.steps_per_epoch / self._between)
        left = self.total - self.position
        if self._most is not None:
            left = min(left, self._most - self._step)
        self.stride = max(1.0, left / max(1.0, fitting))

    def evaluated(self, begun: float) -> None:
        """A pass over the held-out photos that began at ``begun`` (of time.perf_counter) is over."""
        self._last = time.perf_counter()
        self._evaluations.append(self._last - begun)

    def state_dict(self) -> dict[str, float]:
        """What a resumed run needs."""
        place = {"position": self.position, "steps_per_epoch": self.steps_per_epoch, "stride": self.stride}
        return place | {"spent": self.spent, "step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a saved run stood; what it had spent is added to what this process has."""
        self.position, self.stride, self._step = state["position"], state["stride"], int(state["step"])
        if state["steps_per_epoch"] != self.steps_per_epoch:  # photos were added or removed since
            self.position = round(self.position / state["steps_per_epoch"] * self.steps_per_epoch, 6)
        self.add_spent(state["spent"])

    def add_spent(self, seconds: float) -> None:
        """Count seconds of the limit that were over before."""
        self._spent_before += seconds

    def _evaluation_seconds(self) -> float:
        """Seconds of the next pass over the held-out photos; supposed until the first one was timed."""
        if self._evaluations:
            return self._evaluations[-1]
        step = self._time / self._steps if self._steps else 0.0
        return self._share * step * self.steps_per_epoch / EVALUATION_RATE + self._reading

    def _left(self) -> float:
        """Seconds for what is left of training, without the final evaluation and what comes after it."""
        if self.seconds is None:
            return float("inf")
        # the final evaluation reads every photo anew, as the first one did
        final = self._evaluations[0] if self._evaluations else self._evaluation_seconds()
        return self.seconds - self.spent - self._after - final
