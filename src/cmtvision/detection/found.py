"""What a detector finds in the images of a loader."""

from collections.abc import Iterable
from typing import Any

import torch

from cmtvision.artefact.dense import find
from cmtvision.artefact.detections import Detections, merged
from cmtvision.engine.distributed.processes import SINGLE, Processes
from cmtvision.engine.evaluation.outputs import eval_mode
from cmtvision.models.detectors import Detector


def found_in(
    detector: Detector, loader: Iterable[Any], device: torch.device, processes: Processes = SINGLE
) -> dict[int, Detections]:
    """What a detector finds in the images of a loader, by their places; every process must call it, all get the same.

    Each image is looked at alone, so that nothing depends on which others are beside it.
    """
    own: dict[int, Detections] = {}
    with eval_mode(detector):
        for batch in loader:
            for image, target, place in batch:
                own[int(place)] = find(detector, image.to(device), target["scale"], target["original_size"])
    return merged(processes.gather(own))
