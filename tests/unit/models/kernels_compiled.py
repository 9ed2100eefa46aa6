"""Every Triton kernel compiled down to a GPU's machine code, which needs no GPU; test_kernels.py runs it."""

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from cmtvision.models.accelerate.kernels import attention, depthwise

MAPS = ("x", "y", "dy", "dz", "q", "k", "v", "o", "do", "dq")
CONSTANTS = {"HAS_BIAS": True, "IDENTITY": True, "GELU": True, "AFFINE": True, "TRANSPOSED": False, "TF32": False,
             "BLOCK_M": 64, "BLOCK_D": 64}  # fmt: skip
TARGETS = (("bf16", 80), ("fp32", 90))


def compile_all() -> None:
    """Print how many were compiled."""
    kernels = [
        getattr(module, name)
        for module in (attention, depthwise)
        for name in ("_forward_kernel", "_backward_kernel", "_bias_kernel")
        if hasattr(module, name)
    ]
    compiled = [compile_one(kernel, *target) for kernel in kernels for target in TARGETS]
    print(sum(b"ELF" in binary[:8] for binary in compiled), "kernels")


def compile_one(tuned: Any, map_type: str, architecture: int) -> bytes:
    """The machine code of a kernel's first configuration."""
    kernel, config = tuned.fn, tuned.configs[0]
    constants = CONSTANTS | config.kwargs
    types = {name: argument_type(name, map_type) for name in kernel.arg_names}
    types |= dict.fromkeys((name for name in kernel.arg_names if name in constants), "constexpr")
    values = {(i,): constants[name] for i, name in enumerate(kernel.arg_names) if name in constants}
    source = ASTSource(kernel, types, values, {})
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    return bytes(triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options).asm["cubin"])


def argument_type(name: str, map_type: str) -> str:
    if name.endswith("_ptr"):
        return f"*{map_type if name.removesuffix('_ptr') in MAPS else 'fp32'}"
    return "fp32" if name == "scale" else "i32"
