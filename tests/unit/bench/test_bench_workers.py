"""Processes that are asked: they answer, die or never call, and none is left."""

import os
import signal
import sys

import pytest

from cmtvision.bench import workers
from cmtvision.bench.target import find_targets
from cmtvision.bench.workers import WorkerError, Workers


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks and signals")
def test_a_process_that_dies_is_reported_and_none_is_left():
    with Workers() as started:
        first, second = started.start(), started.start()
        (target,) = find_targets(["cmt_nano"])
        second.ask("open", target, (3, 32, 32))
        with pytest.raises(WorkerError, match="no_such_question"):
            second.ask("no_such_question")
        os.kill(first.pid, signal.SIGKILL)
        with pytest.raises(WorkerError, match="killed, as happens where memory runs out"):
            first.ask("turn", 1, 0.0, 1)
        assert second.ask("warm_up", 1)["first_pass_seconds"] > 0  # others go on
        pid = second.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_process_that_does_not_start_says_its_last_words():
    code = "import sys; print('no torch here', file=sys.stderr); sys.exit(3)"
    with (
        Workers(command=[sys.executable, "-c", code]) as started,
        pytest.raises(WorkerError, match="code 3: no torch here"),
    ):
        started.start()


@pytest.mark.timeout(60)
def test_a_process_that_dies_before_it_calls_is_not_awaited():
    code = "import sys; print('ready', flush=True); sys.stdin.readline(); sys.exit('gone')"
    with Workers(command=[sys.executable, "-c", code]) as started:
        for _ in range(2):  # what waited for the first one's call is no trap for the second
            with pytest.raises(WorkerError, match="code 1: gone"):
                started.start()


@pytest.mark.timeout(60)
def test_a_process_that_never_calls_is_given_up(monkeypatch):
    monkeypatch.setattr(workers, "CALL_PATIENCE", 0.2)
    code = "import sys; print('ready', flush=True); sys.stdin.read()"
    with (
        Workers(command=[sys.executable, "-c", code]) as started,
        pytest.raises(WorkerError, match="did not call within"),
    ):
        started.start()
