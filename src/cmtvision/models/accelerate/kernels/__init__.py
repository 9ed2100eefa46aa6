"""Triton kernels for the most expensive parts of CMT on a GPU: chains of small, memory-bound operations.

- depthwise.py: DWConv3x3 (+ identity) (-> GELU) (-> affine of a BatchNorm in evaluation) in one pass over a map.
- attention.py: attention of many queries to few keys with a learned bias, and its gradients, including the bias's.
- switch.py: ``use_kernels("auto" | "on" | "off")`` and the environment variable CMTVISION_KERNELS.
- choice.py: what "auto" does: each shape is timed once on its GPU, and the faster of kernel and plain path stays.
- paths.py: what the networks call. It returns None if the plain path, which is also the oracle, must be used.

The kernels take no part in TorchScript, tracing, export, or anything on a CPU. torch.compile sees them as operators
(``cmtvision::...``) where they are "on"; under "auto" it is left to fuse the plain path itself.
"""

from cmtvision.models.accelerate.kernels.choice import Choice, choices, forget_choices
from cmtvision.models.accelerate.kernels.paths import attention_by_kernel, depthwise_by_kernel
from cmtvision.models.accelerate.kernels.switch import could_run_on, kernels_mode, use_kernels

__all__ = [
    "Choice",
    "attention_by_kernel",
    "choices",
    "could_run_on",
    "depthwise_by_kernel",
    "forget_choices",
    "kernels_mode",
    "use_kernels",
]
