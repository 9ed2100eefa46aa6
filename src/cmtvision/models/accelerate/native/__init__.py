"""Native loops for what a CMT does between its products on a CPU; PyTorch's own operations where there are none.

- inference.cpp, of a fused network: LayerNorm, and depthwise convolution with its border and GELU, float32.
- training.cpp: LayerNorm, and the inside of an IRFFN with its batch norms, forward and backward, float32 and bfloat16.
- attention.cpp: attention with few keys, forward for both, and backward.
- library.py: compiles it on first use with the machine's compiler, keeps it in the user's cache, and opens it.
- operations.py: the loops of inference as functions of tensors, and whether they can take one.
- differentiable.py: those of training.
"""
