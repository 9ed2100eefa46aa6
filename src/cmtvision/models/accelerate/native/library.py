"""The compiled loops: built on first use, kept in the user's cache folder, opened once a process.

A file in the cache is named by everything that its content depends on (sources, compiler, flags, the processor's
instructions), so that another machine with the same home folder builds its own. Where there is no compiler, where it
fails, or where nothing can be kept, ``library`` gives None, and only the log says why. A failure is kept, too, so that
it is not repeated, unless the next attempt may succeed. ``CMTVISION_NATIVE=off`` does without.

Another user's file is code of theirs: the folder and the file must be ours, and writable by nobody else.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from cmtvision.machine import instruction_sets
from cmtvision.user_folders import only_ours, user_cache_folder

VARIABLE = "CMTVISION_NATIVE"
COMPILERS = ("g++", "c++")
# sums in any order, but NaN stays NaN: whoever trains must hear of it
FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffast-math", "-fno-finite-math-only", "-fopenmp", "-fPIC")
_BUILT = "kernels.so"
_SECONDS = 60  # that a compiler may take
_TOO_LONG = f"took more than {_SECONDS} s"
# signs of a failure that the next attempt need not have
_TRANSIENT = (
    "signal terminated program", "No space left on device", "annot allocate memory", "Disk quota exceeded",
    "annot create temporary file", _TOO_LONG,
)  # fmt: skip
_ENVIRONMENT = {**os.environ, "LC_ALL": "C"}  # whose messages are looked at
_HERE = Path(__file__).parent
_HEADER, *_SOURCES = (_HERE / name for name in ("vectors.h", "inference.cpp", "training.cpp", "attention.cpp"))
_log = logging.getLogger(__name__)

_pointer, _count, _is_bf16 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
SIGNATURES = {
    "cmt_layer_norm": (_is_bf16, _pointer, _pointer, _count, _count, ctypes.c_float),
    "cmt_depthwise": (_is_bf16, _pointer, _pointer, *(_count,) * 4, *(_pointer,) * 3, ctypes.c_int),
    "cmt_reduce": (_is_bf16, _pointer, _pointer, *(_count,) * 5, _pointer, _pointer),
    "cmt_attention": (_is_bf16, *(_pointer,) * 6, *(_count,) * 6, ctypes.c_float),
    "cmt_attention_backward": (_is_bf16, *(_pointer,) * 11, *(_count,) * 6, ctypes.c_float),
    "cmt_gelu_moments": (_is_bf16, _pointer, _count, _count, _pointer, _pointer),
    "cmt_irffn_forward": (_is_bf16, *(_pointer,) * 3, *(_count,) * 4, *(_pointer,) * 5),
    "cmt_irffn_backward_to_d": (_is_bf16, *(_pointer,) * 4, *(_count,) * 4, *(_pointer,) * 3),
    "cmt_irffn_backward_to_e": (_is_bf16, *(_pointer,) * 3, *(_count,) * 4, *(_pointer,) * 3),
    "cmt_norm_forward": (_is_bf16, _pointer, _pointer, _count, _count, ctypes.c_float, *(_pointer,) * 4),
    "cmt_norm_backward": (_is_bf16, *(_pointer,) * 3, _count, _count, *(_pointer,) * 5),
    "cmt_narrowest": (),
}


def library() -> ctypes.CDLL | None:
    """The loops, built if need be; None where there are none.

    They use OpenMP's functions of the library that PyTorch has loaded, and so its number of threads.
    """
    return _opened()[0]


def loops() -> ctypes.CDLL:
    """The loops, for whoever has seen that they are there."""
    opened = library()
    assert opened is not None, "whoever calls has asked for library()"
    return opened


def missing() -> str:
    """Why there are none, in words; '' where there are."""
    return _opened()[1]


@cache
def _opened() -> tuple[ctypes.CDLL | None, str]:
    if os.environ.get(VARIABLE, "on").lower() in ("off", "0", "no"):
        return None, f"{VARIABLE} is off"
    try:
        opened = ctypes.CDLL(str(_built()))
        for name, arguments in SIGNATURES.items():
            function = getattr(opened, name)
            function.argtypes, function.restype = arguments, ctypes.c_int
    except (_NotBuiltError, OSError, AttributeError, subprocess.SubprocessError) as error:
        _log.info("no native loops: %s", error)
        return None, str(error)
    return opened, ""


class _NotBuiltError(Exception):
    """Nothing to open, and why."""


def _built() -> Path:
    """The file to open, compiled now if it is not there yet.

    Raises:
        _NotBuiltError: no compiler, or one that fails.
        OSError: nothing can be kept.
    """
    compiler = next((found for name in COMPILERS if (found := shutil.which(name)) is not None), None)
    if compiler is None:
        raise _NotBuiltError(f"no compiler ({', '.join(COMPILERS)})")
    folder = _own_folder()
    texts = [path.read_text("utf-8") for path in (_HEADER, *_SOURCES)]
    facts = [*texts, compiler, _version(compiler), *FLAGS, platform.machine(), *instruction_sets()]
    name = hashlib.sha256("\0".join(facts).encode()).hexdigest()[:32]
    built, failed = folder / f"{name}.so", folder / f"{name}.failed"
    if not (built.exists() and only_ours(built)):
        if failed.exists():
            raise _NotBuiltError(f"{compiler} failed before, see {failed}; delete that file to try again")
        with tempfile.TemporaryDirectory(dir=folder) as place:
            error = _compile(compiler, Path(place))
            if error is not None:
                if any(sign in error for sign in _TRANSIENT):
                    raise _NotBuiltError(error)
                failed.write_text(error, "utf-8")
                raise _NotBuiltError(f"{error.splitlines()[0]}; see {failed}")
            (Path(place) / _BUILT).chmod(0o700)  # a linker leaves it to the umask who may write to it
            os.replace(Path(place) / _BUILT, built)  # noqa: PTH105  # whole, whoever else compiles now
    _check_own(built)
    return built


def _compile(compiler: str, folder: Path) -> str | None:
    """Compile into a folder, files side by side. Returns what went wrong, None for nothing."""
    compiled = [str(folder / f"{source.stem}.o") for source in _SOURCES]
    # linked without -fopenmp: another OpenMP library beside PyTorch's would have threads of its own; and without
    # -ffast-math: some compilers then link code that changes the arithmetic of the whole process
    steps = [[compiler, *FLAGS, "-c", str(source), "-o", to] for source, to in zip(_SOURCES, compiled, strict=True)]
    with ThreadPoolExecutor(len(steps)) as pool:
        errors = list(pool.map(_run, steps))
    error = next(filter(None, errors), None)
    return error or _run([compiler, "-shared", *compiled, "-o", str(folder / _BUILT)])


def _run(command: list[str]) -> str | None:
    """Run the compiler. Returns what went wrong, None for nothing."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False,
            start_new_session=True,  # a Ctrl-C is this process's, not the compiler's
            env=_ENVIRONMENT,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"{command[0]} {_TOO_LONG}"
    return f"{command[0]} failed ({done.returncode}): {done.stderr.strip()[:2000]}" if done.returncode else None


def _version(compiler: str) -> str:
    done = subprocess.run(
        [compiler, "--version"], capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False,
        env=_ENVIRONMENT,
    )  # fmt: skip
    return done.stdout


def _own_folder() -> Path:
    """The folder of compiled files. Raises OSError where it cannot be made, or others may write to it."""
    folder = user_cache_folder() / "cmtvision" / "native"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_own(folder)
    return folder


def _check_own(path: Path) -> None:
    if not only_ours(path):
        raise PermissionError(f"{path}: belongs to, or may be written by, somebody else")
