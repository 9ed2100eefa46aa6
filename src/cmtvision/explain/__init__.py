"""What a network looked at, and how an image passes through CMT.

Each method is a function of a network and images that gives arrays; ``explain_image`` is what the command does: it
opens a model, asks one method, and draws.

A module and its function share a name here (``grad_cam``, ``position_bias``), so all are imported at once: a module
imported later would take its function's place.
"""

from cmtvision.explain.attention import Attention, attention_maps
from cmtvision.explain.faithfulness import Faithfulness, faithfulness
from cmtvision.explain.grad_cam import grad_cam, hires_cam
from cmtvision.explain.image import Explanation, explain_image
from cmtvision.explain.integrated_gradients import IntegratedGradients, integrated_gradients
from cmtvision.explain.kernels import LocalPerception, local_perception
from cmtvision.explain.methods import METHODS
from cmtvision.explain.position_bias import BiasMaps, position_bias
from cmtvision.explain.receptive_field import ReceptiveField, receptive_field
from cmtvision.explain.rollout import attention_rollout

__all__ = [
    "METHODS",
    "Attention",
    "BiasMaps",
    "Explanation",
    "Faithfulness",
    "IntegratedGradients",
    "LocalPerception",
    "ReceptiveField",
    "attention_maps",
    "attention_rollout",
    "explain_image",
    "faithfulness",
    "grad_cam",
    "hires_cam",
    "integrated_gradients",
    "local_perception",
    "position_bias",
    "receptive_field",
]
