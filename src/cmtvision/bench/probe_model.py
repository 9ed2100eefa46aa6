"""The process in which a model is tried: ``python -m cmtvision.bench.probe_model``, started by ``bench.probe``.

It reads one job a line from standard input and answers in lines of JSON: first what the model costs on paper, then the
peak memory of forward passes at batch 1 and at the batch wanted, or the reason for a failure, then 'end'.

On Linux with a CPU every job runs in a fork of this process, which itself computes nothing: importing PyTorch once
takes seconds, a fork milliseconds. Elsewhere it ends behind the first job, and the next one gets a new process.

Peak memory is, on a GPU, what PyTorch's allocator held at most; on a CPU, how much the process grew at most above its
size before the model was built, when PyTorch was imported and its kernels had run once on something small.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

from cmtvision.bench.measure import forward_pass, ready
from cmtvision.bench.probe import forks
from cmtvision.bench.process_memory import die_first, peak_bytes, settle
from cmtvision.bench.subjects import Subject
from cmtvision.engine.batch_size import free_bytes
from cmtvision.errors import one_line
from cmtvision.models.count import count, total

_BYTES = 4  # of a float32


def main() -> None:
    """Answer jobs until there are none."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin:
        job = json.loads(line)
        if not forks(job["device"]):
            _answer(job, answers)
            _say(answers, {"end": 0})
            return
        child = os.fork()
        if child == 0:
            try:
                _answer(job, answers)
            finally:
                answers.flush()
                os._exit(0)
        _, status = os.waitpid(child, 0)
        _say(answers, {"end": os.waitstatus_to_exitcode(status)})


def _say(answers: IO[str], facts: dict[str, Any]) -> None:
    answers.write(json.dumps(facts) + "\n")
    answers.flush()


def _answer(job: dict[str, Any], answers: IO[str]) -> None:
    try:
        probe(job, lambda facts: _say(answers, facts))
    except Exception as error:  # whatever a model of anyone does, the others go on
        _say(answers, {"failure": one_line(error)})


def probe(job: dict[str, Any], say: Callable[[dict[str, Any]], None]) -> None:
    """Try one model.

    Args:
        job: name, architecture and run of a ``Subject``; img_size; batch; device; memory_limit in bytes or None.
        say: called with facts as they become known: input_size, parameters, macs, activations and weight_bytes; then
            memory_bytes_batch_1 and memory_bytes, or failure.
    """
    run = Path(job["run"]) if job["run"] else None
    subject, device = Subject(job["name"], job["architecture"], run), str(job["device"])
    img_size = tuple(job["img_size"]) if isinstance(job["img_size"], list) else job["img_size"]
    shapes, input_size = subject.shapes(img_size)
    whole = total(count(shapes, input_size))
    weight_bytes = _BYTES * (whole.parameters + sum(buffer.numel() for buffer in shapes.buffers()))
    say(
        {
            "input_size": list(input_size),
            "parameters": whole.parameters,
            "macs": whole.macs,
            "activations": whole.activations,
            "weight_bytes": weight_bytes,
        }
    )
    free = min(free_bytes(torch.device(device)), job["memory_limit"] or sys.maxsize)
    if weight_bytes > free:
        say({"failure": f"does not fit: weights of {_size(weight_bytes)}, {_size(free)} are free"})
        return
    die_first()
    level = settle(device)
    model = ready(subject.build(img_size), device)
    peaks = []
    for batch in (1, int(job["batch"])):
        forward_pass(model, input_size, batch, device)()
        peak = peak_bytes(device)
        peaks.append(None if peak is None or level is None else max(0, peak - level))
    say({"memory_bytes_batch_1": peaks[0], "memory_bytes": peaks[1]})


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"


if __name__ == "__main__":
    main()
