"""Integrated gradients: what each pixel adds to a logit, on the way from a baseline (Sundararajan et al., ICML 2017).

    IG_i = (x_i - b_i) * integral over t from 0 to 1 of  d logit / d x_i  at  b + t (x - b)
    sum_i IG_i = logit(x) - logit(b)          completeness: all of the difference is handed out, to the last bit

The integral is a Gauss-Legendre sum, which is exact for polynomials of degree 2 n - 1 in n steps; its error is measured
by completeness, and told.

Shapes: B batch, C channels, H W image in pixels.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from cmtvision.errors import ConfigError
from cmtvision.explain.stage_maps import Classes, chosen, evaluating, with_gradient

COMPLETE = 0.01
"""Completeness error from which on more steps are worth their time."""
MAX_STEPS = 256


@dataclass(frozen=True)
class IntegratedGradients:
    """What was found.

    Attributes:
        attributions: (B, C, H, W), in units of the logit; negative values speak against the class.
        difference: (B,) logit of the image minus logit of the baseline, which is what is handed out.
        error: (B,) completeness error |sum - difference| / |difference|.
        steps: points on the way from the baseline.
    """

    attributions: torch.Tensor
    difference: torch.Tensor
    error: torch.Tensor
    steps: int


def integrated_gradients(
    network: nn.Module,
    images: torch.Tensor,
    classes: Classes = None,
    baseline: torch.Tensor | None = None,
    steps: int = 64,
    batch_size: int = 32,
) -> IntegratedGradients:
    """Integrated gradients of each image's class.

    Args:
        network: any classifier.
        images: (B, C, H, W), as the network takes them.
        classes: (B,) indices, one for all, or None for the predicted ones.
        baseline: (C, H, W) or (B, C, H, W), where the way begins; None for zeros, which is the mean colour of the
            training images where they are normalised.
        steps: points on the way.
        batch_size: points computed at a time.

    Raises:
        ConfigError: no such class, or fewer than one step.
    """
    if steps < 1:
        raise ConfigError(f"steps {steps}: expected at least 1")
    images = with_gradient(network, images).detach()
    start = torch.zeros_like(images) if baseline is None else baseline.to(images).expand_as(images)
    with evaluating(network):
        with torch.no_grad():
            logits = network(images)
            indices = chosen(logits, classes)
            ends = logits.gather(1, indices[:, None])[:, 0]  # (B,)
            difference = ends - network(start).gather(1, indices[:, None])[:, 0]
        one_by_one = [
            _mean_gradient(network, image, begin, int(index), steps, batch_size)
            for image, begin, index in zip(images, start, indices, strict=True)
        ]
    attributions = (images - start) * torch.stack(one_by_one) if one_by_one else images
    error = (attributions.flatten(1).sum(1) - difference).abs() / difference.abs().clamp_min(1e-12)
    return IntegratedGradients(attributions, difference, error, steps)


def complete_gradients(
    network: nn.Module, images: torch.Tensor, classes: Classes = None, baseline: torch.Tensor | None = None
) -> IntegratedGradients:
    """Integrated gradients in 64 steps, and in twice as many until each image is complete to 1%, or in 256."""
    steps = 64
    while True:
        found = integrated_gradients(network, images, classes, baseline, steps)
        if bool((found.error <= COMPLETE).all()) or steps >= MAX_STEPS:
            return found
        steps *= 2


def _mean_gradient(
    network: nn.Module, image: torch.Tensor, start: torch.Tensor, index: int, steps: int, batch_size: int
) -> torch.Tensor:
    """The gradient (C, H, W) averaged over the way from start to image."""
    places, weights = np.polynomial.legendre.leggauss(steps)  # on -1 .. 1
    along = torch.from_numpy((places + 1) / 2).to(image)
    share = torch.from_numpy(weights / 2).to(image)
    total = torch.zeros_like(image)
    for t, weight in zip(along.split(batch_size), share.split(batch_size), strict=True):
        points = (start + t[:, None, None, None] * (image - start)).requires_grad_()  # (steps, C, H, W)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(network(points)[:, index].sum(), points)
        total += (weight[:, None, None, None] * gradient).sum(0)
    return total
