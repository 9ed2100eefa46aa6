"""The process of one target: ``python -m cmtvision.bench.worker_process ADDRESS``, started by ``bench.workers``.

It reads standard input. For each 'start' it forks (where that is safe; see ``bench.workers.forks``), and the fork
calls the parent at ADDRESS, gets its job and answers questions until the connection closes; between questions it sleeps
in a read. The first process computes nothing itself: it imports PyTorch once and says how its forks ended.
"""

import json
import os
import signal
import sys
import time
from contextlib import suppress
from multiprocessing.connection import Client, Connection
from typing import Any

import torch

from cmtvision.artefact.runtimes.onnx import import_onnxruntime
from cmtvision.artefact.runtimes.openvino import import_openvino
from cmtvision.bench.limits import measure_limits
from cmtvision.bench.opening import Opened, Pass, open_target
from cmtvision.bench.process_memory import die_first, peak_bytes, restart_peak, settle
from cmtvision.bench.products import Step
from cmtvision.bench.target import Target
from cmtvision.bench.timing import timed_passes
from cmtvision.bench.workers import KEY, forks
from cmtvision.errors import one_line

_WARM_UP = 2  # passes; the first one compiles, packs weights and fetches memory


def main() -> None:
    """Start a process for each 'start' that is read; without forks serve once and end. 'wait PID' says how it ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    address, device = sys.argv[1:3]
    answers.write("ready\n")
    answers.flush()
    for line in sys.stdin:
        word, _, pid = line.strip().partition(" ")
        if word == "wait":
            answers.write(json.dumps(os.waitstatus_to_exitcode(os.waitpid(int(pid), 0)[1])) + "\n")
            answers.flush()
        elif not forks(device):
            serve(address, device)
            return
        elif os.fork() == 0:
            code = 1
            try:
                serve(address, device)
                code = 0
            finally:
                os._exit(code)
    with suppress(ChildProcessError):
        while True:
            os.wait()  # the forks end with their connections


def serve(address: str, device: str) -> None:
    """Call the parent, and answer it until it hangs up."""
    with Client(address, authkey=bytes.fromhex(os.environ[KEY])) as parent:
        parent.send(os.getpid())
        die_first()
        answer_all(parent, device)


def answer_all(parent: Connection, device: str) -> None:
    """Answer questions: (name of a method of ``Answers``, arguments); a failure is answered too."""
    answers = Answers(device)
    while True:
        try:
            name, arguments = parent.recv()
        except EOFError:
            return
        try:
            parent.send(("answer", getattr(answers, name)(*arguments)))
        except Exception as error:  # whatever a network of anyone does, the others go on
            parent.send(("failure", one_line(error)))


class Answers:
    """What a process can be asked."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._opened: Opened | None = None
        self._passes: dict[int, Pass] = {}
        self._level: int | None = None
        self._limits: dict[str, Step] = {}

    def limits(self, threads: int, *arguments: Any) -> dict[str, float]:
        """One round of the machine's limits; arguments: kinds, seconds, sizes, only (see ``measure_limits``)."""
        torch.set_num_threads(threads)
        kinds, seconds, sizes, only = arguments
        return measure_limits(kinds, self._device, seconds, sizes, only, self._limits)

    def open(self, target: Target, input_size: tuple[int, int, int]) -> dict[str, Any]:
        """Open a target: seconds that it took, a note or None, peak bytes above the size before."""
        torch.set_num_threads(target.threads)
        _import_runtime(target.runtime)
        self._level = settle(self._device)
        begun = time.perf_counter()
        self._opened, note = open_target(target, self._device, input_size)
        seconds = time.perf_counter() - begun
        return {"open_seconds": seconds, "note": note, "build_bytes": _above(peak_bytes(self._device), self._level)}

    def warm_up(self, batch: int) -> dict[str, Any]:
        """Run a batch size for the first time: seconds of the first pass, bytes of memory.

        memory_bytes is the peak above the size before the network was built, when PyTorch and the runtime were in
        memory; activation_bytes that above the size just before the first pass of this batch.
        """
        assert self._opened is not None
        forward = self._opened(batch)
        before = restart_peak(self._device)
        begun = time.perf_counter()
        times = []
        for _ in range(_WARM_UP):
            forward()
            peak = peak_bytes(self._device)  # waits for a GPU
            times.append(time.perf_counter() - begun)
        self._passes[batch] = forward
        return {
            "first_pass_seconds": times[0],
            "memory_bytes": _above(peak, self._level),
            "activation_bytes": _above(peak, before),
        }

    def turn(self, batch: int, seconds: float, at_least: int) -> list[float]:
        """Seconds of single passes of a batch size, one after another."""
        return timed_passes(self._passes[batch], self._device, seconds, at_least)


def _above(peak: int | None, level: int | None) -> int | None:
    return None if peak is None or level is None else max(0, peak - level)


def _import_runtime(runtime: str) -> None:
    """What a runtime's libraries take is not the network's memory."""
    if runtime == "onnx":
        import_onnxruntime()
    elif runtime == "openvino":
        import_openvino()  # without its telemetry


if __name__ == "__main__":
    main()
