"""Stand-ins for the processes of ``bench``: they answer at once, and write down what they were asked."""

from cmtvision.bench.limits import limit_kinds
from cmtvision.bench.measure import measure
from cmtvision.bench.products import Sizes
from cmtvision.bench.record import speed_record
from cmtvision.bench.workers import WorkerError

SMALL = Sizes(products=[(16, 32, 48), (64, 64, 64)], graphs=[(16, 32, 48)], maps=[(1, 16, 8, 32, 3)], memory=2**16,
              caches=[2**12])  # fmt: skip
FP32, COPY = "fp32 torch.mm 32x32x32", "copy copy 4096"


def measure_speed(targets, **options):
    """The record that ``cmtvision bench`` would make of targets."""
    return speed_record(measure(targets, limits=limit_kinds(targets), **options))


class KnownWorkers:
    """Processes of which a pass takes 0.1 s; of the machine's limits they know what they are given.

    Args:
        limits: the answers about limits, in turn; where there is none left, the process dies.
        failures: reasons, by the name of the target, the question and the batch.

    Attributes:
        asked: the name of the target, the question and its arguments, of all questions in turn.
    """

    def __init__(self, limits=None, failures=None):
        self.limits, self.failures = limits, failures or {}
        self.asked, self.started, self.left = [], 0, []

    def __enter__(self):
        return self

    def __exit__(self, *error):
        assert self.left == []

    def start(self):
        self.started += 1
        self.left.append(KnownWorker(self))
        return self.left[-1]

    def dismiss(self, worker):
        self.left.remove(worker)


class KnownWorker:
    ended = False

    def __init__(self, workers):
        self._workers, self._name = workers, None

    def ask(self, question, *arguments):
        if question == "open":
            self._name = arguments[0].name
        self._workers.asked.append((self._name, question, *arguments))
        reason = self._workers.failures.get((self._name, question, arguments[0]))
        if question == "limits":
            if not self._workers.limits:
                raise WorkerError("its process was killed")
            return self._workers.limits.pop(0)
        if reason is not None:
            raise WorkerError(reason)
        opened = {"open_seconds": 0.1, "note": None, "build_bytes": 100}
        warm = (
            {"first_pass_seconds": 0.1, "memory_bytes": 80 + 10 * arguments[0], "activation_bytes": None}
            if question == "warm_up"
            else None
        )
        return {"open": opened, "warm_up": warm, "turn": [0.1] * 3}[question]
