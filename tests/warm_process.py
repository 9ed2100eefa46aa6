"""A process that has the packages in memory and runs each command in a fork of itself.

Importing torch and timm takes seconds of CPU, and the tests run some two hundred commands. A fork is a process of its
own, with its own folder, environment, standard streams, limits and exit code; what it does not repeat is the import.
Tests of starting up, and those that set variables which libraries read when they are imported, start Python anew.
"""

import atexit
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

_PRELOADED = (
    "torch", "timm", "pytorch_lightning", "torchmetrics", "torch.utils.tensorboard", "torch._functorch.aot_autograd",
    "onnx", "onnxscript", "matplotlib.backends.backend_svg", "cmtvision.models", "cmtvision.engine", "cmtvision.deploy",
    "cmtvision.report",
)  # fmt: skip


class WarmProcess:
    """Asks one server, started with the first command."""

    def __init__(self):
        self._server = None

    def run(self, words, cwd, stdin, file_limit, timeout):
        """Run ``cmtvision words``; the finished process, as ``subprocess.run`` gives it."""
        if self._server is None or self._server.poll() is not None:
            self._server = subprocess.Popen(
                [sys.executable, "-W", "ignore", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            atexit.register(self.close)
        with tempfile.TemporaryDirectory(prefix="cmtvision-cli-") as folder:
            files = {name: str(Path(folder) / name) for name in ("stdin", "stdout", "stderr")}
            Path(files["stdin"]).write_bytes(stdin)
            job = {"words": words, "cwd": str(cwd), "limit": file_limit, "timeout": timeout, "env": dict(os.environ)}
            self._server.stdin.write(json.dumps({**job, **files}) + "\n")
            self._server.stdin.flush()
            code = json.loads(self._server.stdout.readline())
            if code is None:
                raise subprocess.TimeoutExpired(words, timeout)
            out, err = (Path(files[name]).read_bytes() for name in ("stdout", "stderr"))
        return subprocess.CompletedProcess(words, code, out, err)

    def close(self):
        """End the server, which ends with its input."""
        if self._server is not None:
            self._server.stdin.close()
            self._server.wait()
            self._server.stdout.close()
            self._server = None


def serve():
    """Read a job a line, answer each with its exit code, None where it took too long."""
    from importlib import import_module

    import cmtvision  # noqa: F401

    for name in _PRELOADED:
        with suppress(ImportError):  # an extra that is not here is a command's business
            import_module(name)
    _plan_once()
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            os._exit(_command(job))
        answers.write(json.dumps(_wait(child, job["timeout"])) + "\n")
        answers.flush()


def _plan_once():
    """What the first plan of a process takes a second for: PyTorch learns the shapes that operations give."""
    from cmtvision.engine.memory import saved_bytes
    from cmtvision.models import build_shapes_only

    model, input_size = build_shapes_only("cmt_nano")
    saved_bytes(model.train(), input_size)


def _wait(child, timeout):
    def too_long(*_):
        raise TimeoutError

    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(timeout)
    try:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except TimeoutError:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return None
    finally:
        signal.alarm(0)


def _command(job):
    """In the fork: become what a shell would have started."""
    os.setsid()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["env"])
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        os.dup2(os.open(job[name], flags), number)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, mode) for n, mode in enumerate(("r", "w", "w")))
    if job["limit"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["limit"], job["limit"]))
    sys.argv = ["cmtvision", *job["words"]]
    from cmtvision.cli import main

    try:
        code = main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    serve()
