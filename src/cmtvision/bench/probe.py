"""Every model is tried in a process of its own first: what does not build, or dies, takes nothing with it."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import IO, Any

from cmtvision.bench.subjects import ImgSize, Subject

_COMMAND = (sys.executable, "-P", "-W", "ignore", "-m", "cmtvision.bench.probe_model")


@dataclass(frozen=True)
class Probed:
    """What became known of a model; None where it failed before.

    Attributes:
        input_size: (C, H, W) of one image, in pixels.
        parameters: learned values.
        macs: multiply-adds for one image (see ``cmtvision.models.count``).
        activations: output elements of the same operations.
        weight_bytes: parameters and buffers in float32.
        memory_bytes_batch_1: peak memory of building it and of a forward pass of one image.
        memory_bytes: the same, with a forward pass of the batch as well.
        failure: why it cannot be measured, in a line; None where it can.
    """

    input_size: tuple[int, int, int] | None = None
    parameters: int | None = None
    macs: int | None = None
    activations: int | None = None
    weight_bytes: int | None = None
    memory_bytes_batch_1: int | None = None
    memory_bytes: int | None = None
    failure: str | None = None


class Prober:
    """Tries models one after another; a context manager, at whose end no process is left.

    Args:
        batch: images in the second forward pass.
        device: 'cpu', 'cuda' or 'mps'.
        memory_limit: bytes that a model's weights may take; None for what is free.
        command: what starts the process.
    """

    def __init__(
        self, batch: int, device: str = "cpu", memory_limit: int | None = None, command: Sequence[str] = _COMMAND
    ) -> None:
        self._job = {"batch": batch, "device": device, "memory_limit": memory_limit}
        self._command = list(command)
        self._process: subprocess.Popen[str] | None = None
        self._words: IO[bytes] | None = None

    def __enter__(self) -> "Prober":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._kill()
        self._stop()

    def probe(self, subject: Subject, img_size: ImgSize = None) -> Probed:
        """Try one model; never raises for what the model does."""
        job = {
            **self._job,
            "name": subject.name,
            "architecture": subject.architecture,
            "run": str(subject.run) if subject.run else None,
            "img_size": img_size,
        }
        facts: dict[str, Any] = {}
        process = self._started()
        with suppress(BrokenPipeError):
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            for line in process.stdout:
                facts |= json.loads(line)
                if "end" in facts:
                    break
        code = facts.pop("end", None)
        if code is None:
            code = process.wait()
            facts.setdefault("failure", died(code, self._last_words()))
        elif code:
            facts.setdefault("failure", died(code, ""))
        if "input_size" in facts:
            facts["input_size"] = tuple(facts["input_size"])
        return replace(Probed(), **facts)

    def _started(self) -> "subprocess.Popen[str]":
        """The process; a new one where the last has ended."""
        if self._process is not None and forks(str(self._job["device"])) and self._process.poll() is None:
            return self._process
        self._stop()
        self._words = tempfile.TemporaryFile()  # noqa: SIM115  closed in _stop
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # so that it can be ended with its forks
        )
        return self._process

    def _last_words(self) -> str:
        if self._words is None:
            return ""
        self._words.seek(0)
        lines = self._words.read().decode(errors="replace").split("\n")
        return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")

    def _kill(self) -> None:
        """End the process and its forks, whatever they are at."""
        if self._process is not None and self._process.poll() is None:
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()

    def _stop(self) -> None:
        if self._process is not None:
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    with suppress(BrokenPipeError):
                        pipe.close()
            try:
                self._process.wait(timeout=5)  # it ends with its input
            except subprocess.TimeoutExpired:
                self._kill()
                self._process.wait()
        if self._words is not None:
            self._words.close()
        self._process = self._words = None


def forks(device: str) -> bool:
    """Whether one process tries all models, each in a fork; a fork of PyTorch is safe on Linux, without a GPU."""
    return sys.platform == "linux" and device == "cpu"


def died(code: int, words: str) -> str:
    """How a process ended, in words: its exit code or minus a signal, and the last line it said."""
    if code == -9:
        return "its process was killed, as happens where memory runs out"
    if code < 0:
        return f"its process was ended by signal {-code} ({signal.strsignal(-code)})"
    return f"its process ended with code {code}" + (f": {words}" if words else "")
