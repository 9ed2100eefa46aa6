"""Speed, and never an equation: modules of a network swapped for faster ones with the same parameters.

Training calls ``accelerate(model)``; ``fusing`` makes a network for inference. The networks of models/cmt depend on
neither.
"""

from cmtvision.models.accelerate.swap import accelerate

__all__ = ["accelerate"]
