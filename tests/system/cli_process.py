"""Runs the command as a user does: a process of its own."""

import os
import re
import subprocess
import sys
from functools import cache

ERROR = "error: "


def command_line(*words):
    return [sys.executable, "-m", "cmtvision", *map(str, words)]


@cache
def _warm_process():
    from warm_process import WarmProcess  # of this folder's parent, which a test that runs as a script does not see

    return WarmProcess()


def run_cli(*words, cwd, stdin=None, file_limit=None, env=None, timeout=400, fresh=False):
    """Run ``cmtvision words`` in a folder; ``stdin`` is bytes, ``file_limit`` the largest file it may write.

    ``fresh`` starts Python anew, as variables in ``env`` do; else the process is a fork that has its imports behind it.
    """
    if not fresh and not env:
        done = _warm_process().run(list(map(str, words)), cwd, stdin or b"", file_limit, timeout)
        done.stdout, done.stderr = done.stdout.decode(), done.stderr.decode()
        return done

    def limit():
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))

    done = subprocess.run(
        command_line(*words),
        cwd=cwd,
        input=stdin if stdin is not None else b"",
        capture_output=True,
        preexec_fn=limit if file_limit is not None else None,
        env={**os.environ, **(env or {})},
        timeout=timeout,
        check=False,
    )
    done.stdout, done.stderr = done.stdout.decode(), done.stderr.decode()
    return done


def assert_one_error(done, *patterns):
    """Exit code 2, nothing on stdout, no traceback, exactly one error line, and in it every pattern."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith(ERROR)]
    assert len(errors) == 1, done.stderr
    assert done.stderr.splitlines()[-1] == errors[0], done.stderr
    for pattern in patterns:
        assert re.search(pattern, errors[0]), f"{pattern!r} is not in {errors[0]!r}"
