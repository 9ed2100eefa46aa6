"""Native loops for what a fused CMT does between its products on a CPU; PyTorch's own operations where there are none.

- kernels.cpp: LayerNorm, depthwise convolution with its border and GELU, attention with few keys.
- library.py: compiles it on first use with the machine's compiler, keeps it in the user's cache, and opens it.
- operations.py: the same as functions of tensors, and whether they can take one.
"""
