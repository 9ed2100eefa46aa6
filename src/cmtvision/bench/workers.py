"""Processes that are asked: one for each target, of which one computes while all others sleep.

Why processes, and why whole turns. PyTorch's OpenMP threads spin for some 5 ms of processor time after a pass, ONNX
Runtime's for some 20 ms, OpenVINO's hardly at all (measured on two cores). Three runtimes in one process that took
turns pass by pass each took about twice as long as in turns of a second. So a turn lasts many passes, the first of
which is not counted, and begins after a pause in which the last one's threads fall asleep. That would do in one
process; processes of their own also keep apart what is global: the number of threads, the compiler's settings, the
allocator, the peak of memory, and a crash.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from multiprocessing.connection import Connection, Listener
from threading import Thread
from types import TracebackType
from typing import Any

_COMMAND = (sys.executable, "-P", "-W", "ignore", "-m", "cmtvision.bench.worker_process")
KEY = "CMTVISION_SPEED_KEY"
"""The variable that carries the key of the connection to the processes."""
PAUSE = 0.05  # seconds until another's threads sleep
CALL_PATIENCE = 60.0  # seconds until a started process calls, with its imports behind it
PATIENCE = 900.0  # seconds for one answer; compiling a large network takes minutes
Call = tuple[Connection, int]  # and the number of the process


class WorkerError(Exception):
    """What was asked failed, or the process died; the reason in one line."""


class Worker:
    """A process that answers questions; of several, the one that is asked is the one that computes."""

    def __init__(self, workers: "Workers", connection: Connection, pid: int, process: "subprocess.Popen[str]") -> None:
        self._workers, self._connection, self.pid, self.process = workers, connection, pid, process
        self.ended = False

    def ask(self, question: str, *arguments: Any) -> Any:
        """The answer of a method of ``worker_process.Answers``.

        Raises:
            WorkerError: it raised, died, or did not answer in time.
        """
        try:
            self._connection.send((question, arguments))
            if not self._connection.poll(PATIENCE):
                self.close()
                raise WorkerError(f"no answer within {PATIENCE:.0f} s")
            kind, answer = self._connection.recv()
        except (EOFError, OSError) as error:
            raise WorkerError(self._workers.how_it_ended(self)) from error
        if kind == "failure":
            raise WorkerError(str(answer))
        return answer

    def close(self) -> None:
        """End the process, whatever it is at."""
        self._connection.close()
        if not self.ended:  # else the number may be another process's by now
            with suppress(OSError):
                os.kill(self.pid, signal.SIGTERM)


class Workers:
    """Starts workers; a context manager, at whose end no process is left.

    Args:
        device: 'cpu', 'cuda' or 'mps'.
        command: what starts a process, to which an address and the device are added.
    """

    def __init__(self, device: str = "cpu", command: Sequence[str] = _COMMAND) -> None:
        self._device, self._command = device, list(command)
        self._workers: list[Worker] = []
        self._first: subprocess.Popen[str] | None = None
        self._processes: list[subprocess.Popen[str]] = []
        self._awaited: Future[Call] | None = None
        self._key = secrets.token_bytes(32)

    def __enter__(self) -> "Workers":
        self._words = tempfile.TemporaryFile()
        self._listener = Listener(authkey=self._key)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.close()
        for process in self._processes:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()
            try:
                process.wait(timeout=5)  # it ends with its input
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._listener.close()
        self._words.close()

    def start(self) -> Worker:
        """A new worker.

        Raises:
            WorkerError: the process does not start.
        """
        process = self._process()
        assert process.stdin is not None
        try:
            process.stdin.write("start\n")
            process.stdin.flush()
            worker = Worker(self, *self._call(process), process)
        except (OSError, EOFError) as error:
            raise WorkerError(self._why_silent(process)) from error
        self._workers.append(worker)
        return worker

    def dismiss(self, worker: Worker) -> None:
        """End a worker."""
        self._workers.remove(worker)
        worker.close()

    def how_it_ended(self, worker: Worker) -> str:
        """Why a worker is gone, in a line."""
        process, worker.ended = worker.process, True
        if worker.pid == process.pid:
            return died(process.wait(), self._said())
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(f"wait {worker.pid}\n")
            process.stdin.flush()
            return died(int(json.loads(process.stdout.readline())), self._said())
        except (OSError, ValueError):  # the first process is gone too
            return died(process.wait(), self._said())

    def _call(self, process: "subprocess.Popen[str]") -> Call:
        """The connection that a started process opens, and its number.

        Raises:
            WorkerError: the process ended, or did not call in time. OSError, EOFError: the connection broke.
        """
        if self._awaited is None or self._awaited.done():  # else nobody called the last time, and its thread waits
            self._awaited = Future()
            Thread(target=_answer_call, args=(self._listener, self._awaited), daemon=True).start()
        ends = time.monotonic() + CALL_PATIENCE
        while not wait([self._awaited], timeout=0.1).done:
            if process.poll() is not None or time.monotonic() > ends:
                raise WorkerError(self._why_silent(process))
        awaited, self._awaited = self._awaited, None
        return awaited.result()

    def _why_silent(self, process: "subprocess.Popen[str]") -> str:
        """Why a started process did not call; it will not call later."""
        try:
            return died(process.wait(timeout=1), self._said())
        except subprocess.TimeoutExpired:  # a fork of it ended, or it hangs
            if not forks(self._device):
                process.kill()
            return f"its process did not call within {CALL_PATIENCE:.0f} s, or ended before it did"

    def _process(self) -> "subprocess.Popen[str]":
        """The process that forks; without forks a new one."""
        if self._first is not None and forks(self._device) and self._first.poll() is None:
            return self._first
        process = subprocess.Popen(
            [*self._command, str(self._listener.address), self._device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            text=True,
            encoding="utf-8",
            env={**os.environ, KEY: self._key.hex()},
        )
        self._processes.append(process)
        assert process.stdout is not None
        if process.stdout.readline().strip() != "ready":
            raise WorkerError(died(process.wait(), self._said()))
        self._first = process
        return process

    def _said(self) -> str:
        """The last line that a process said before it died."""
        self._words.seek(0)
        lines = self._words.read().decode(errors="replace").split("\n")
        self._words.seek(0, os.SEEK_END)
        return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")


def _answer_call(listener: Listener, awaited: "Future[Call]") -> None:
    """Wait for a call, in a thread of its own: a listener has no timeout."""
    try:
        connection = listener.accept()
        awaited.set_result((connection, int(connection.recv())))
    except Exception as error:  # whoever awaits it gets it
        awaited.set_exception(error)


def forks(device: str) -> bool:
    """Whether workers are forks of one process; a fork of PyTorch is safe on Linux, without a GPU."""
    return sys.platform == "linux" and device == "cpu"


def died(code: int, words: str) -> str:
    """How a process ended, in words: its exit code or minus a signal, and the last line it said."""
    if code == -9:
        return "its process was killed, as happens where memory runs out"
    if code < 0:
        return f"its process was ended by signal {-code} ({signal.strsignal(-code)})"
    return f"its process ended with code {code}" + (f": {words}" if words else "")
