"""PyTorch's own format, model.pt2: a graph of torch.export, or a package of native code compiled by AOTInductor.

The arithmetic inside uses the requested precision; input and logits are float32. Any PyTorch that reads the format can
open a graph; native code runs only on the kind of machine that compiled it.
"""

import warnings
from pathlib import Path

import torch
from torch import nn

from cmtvision.errors import ConfigError, ExportError, first_line

PT2_FILE = "model.pt2"


def write_torch(network: nn.Module, example: torch.Tensor, folder: Path, compiled: bool = False) -> list[str]:
    """Write model.pt2 into a folder.

    Args:
        network: what to trace, in eval mode.
        example: an input of the right shape, with a batch of 2.
        folder: where to.
        compiled: native code for this machine's CPU; takes a minute or more.

    Returns:
        The names of the files.

    Raises:
        ConfigError: compiling was asked for, and there is no C++ compiler.
        ExportError: the network cannot be traced or compiled.
    """
    if compiled:
        require_compiler()
    path = folder / PT2_FILE
    with warnings.catch_warnings():
        # the tracer and the compiler warn about their own insides, which no caller can change
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=UserWarning, module=r"(torch|copyreg)(\..*)?$")
        try:
            with torch.no_grad():
                program = torch.export.export(
                    network, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)
                )
        except Exception as error:  # whatever a network leads the tracer to
            raise ExportError(f"torch: the network cannot be traced: {first_line(error)}") from error
        _check_shape(program)
        if not compiled:
            _strip(program)
            torch.export.save(program, str(path))
            return [PT2_FILE]
        try:
            torch._inductor.aoti_compile_and_package(program, package_path=str(path))
        except OSError:
            raise
        except Exception as error:
            raise ExportError(f"torch: the network cannot be compiled: {first_line(error)}") from error
    return [PT2_FILE]


def require_compiler() -> None:
    """Raises ConfigError where no C++ compiler is installed."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise ConfigError(
            "a compiled export needs a C++ compiler: install g++ (`apt install g++`), or name one in CXX"
        ) from None


def _check_shape(program: torch.export.ExportedProgram) -> None:
    """Raises ExportError where tracing froze the batch."""
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.name in program.graph_signature.user_inputs and not isinstance(value.shape[0], torch.SymInt):
            raise ExportError(f"torch: the batch of {node.name!r} is frozen at {value.shape[0]}")


def _strip(program: torch.export.ExportedProgram) -> None:
    """Drop the source locations of operations, which contain file paths of this machine."""
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
