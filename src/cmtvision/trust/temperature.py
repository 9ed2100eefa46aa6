"""Temperature scaling: one number T, by which all logits are divided, so that probabilities are as high as right.

    p = softmax(logits / T),   T = argmin sum_i -log p_i[y_i]   over held-out images

Guo, Pleiss, Sun and Weinberger, On Calibration of Modern Neural Networks, ICML 2017. Dividing by a positive number
never changes the order of the classes. It assumes that new images are like the held-out ones.

Where every held-out image is right (or every one with another answer is tied), the sum falls without end as T falls.
Then T is the one with which the mean probability of the named class is (n + 1) / (n + 2), Laplace's rule of succession
for n right of n.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from cmtvision.trust.probability import probabilities

LEAST_IMAGES = 20
"""Fewer say too little: T is then 1."""
LEAST, MOST = 0.05, 100.0
Logits = npt.NDArray[Any]


def mean_loss(logits: Logits, targets: npt.NDArray[np.int64], temperature: float = 1.0) -> float:
    """Mean cross-entropy in nats of logits (N, C) and class numbers (N,) at a temperature."""
    scaled = np.asarray(logits, np.float64) / temperature
    own = np.take_along_axis(scaled, targets[:, None], axis=1)[:, 0]
    highest = scaled.max(axis=1)
    scaled -= highest[:, None]
    np.exp(scaled, out=scaled)
    return float(np.mean(highest + np.log(scaled.sum(axis=1)) - own))


def fit_temperature(logits: Logits, targets: npt.NDArray[np.int64]) -> float:
    """The temperature of the least cross-entropy, between 0.05 and 100; 1 for fewer than LEAST_IMAGES images.

    Args:
        logits: (N, C), finite.
        targets: (N,) class numbers.
    """
    from scipy.optimize import brentq, minimize_scalar

    num_images, num_classes = len(logits), int(logits.shape[1])
    if num_images < LEAST_IMAGES or num_classes < 2:
        return 1.0
    bounds = (np.log(LEAST), np.log(MOST))
    own = np.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
    if bool((own >= logits.max(axis=1)).all()):
        wanted = (num_images + 1) / (num_images + 2)

        def excess(log_temperature: float) -> float:
            return float(probabilities(logits, float(np.exp(log_temperature))).max(axis=1).mean()) - wanted

        if excess(bounds[0]) <= 0:  # all but tied; or wholly, and then no temperature is better than another
            return LEAST if excess(bounds[0]) > excess(0.0) + 1e-9 else 1.0
        if excess(bounds[1]) >= 0:
            return MOST
        return float(np.exp(brentq(excess, *bounds, xtol=1e-6)))
    found = minimize_scalar(
        lambda log_temperature: mean_loss(logits, targets, float(np.exp(log_temperature))),
        bounds=bounds,
        method="bounded",
        options={"xatol": 1e-6},
    )
    temperature = float(np.exp(found.x))
    # where all logits of an image are equal, as of a network without training, no temperature is better than another
    return temperature if found.fun < mean_loss(logits, targets) - 1e-12 else 1.0
