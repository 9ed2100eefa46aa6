"""Speed, and never an equation: modules of a network swapped for faster ones with the same parameters.

Training and the runtimes on a GPU call ``accelerate(model)``; the networks of models/cmt do not depend on it.
"""

from cmtvision.models.accelerate.swap import accelerate

__all__ = ["accelerate"]
