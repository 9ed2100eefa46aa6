"""Native loops for what a CMT does between its products on a CPU; PyTorch's own operations where there are none.

- inference.cpp, of a fused network: LayerNorm, depthwise convolution with its border and GELU, attention with few keys.
- training.cpp: LayerNorm, and the inside of an IRFFN with its batch norms, forward and backward, float32 and bfloat16.
- library.py: compiles it on first use with the machine's compiler, keeps it in the user's cache, and opens it.
- operations.py: the loops of inference as functions of tensors, and whether they can take one.
- differentiable.py: those of training.
"""
