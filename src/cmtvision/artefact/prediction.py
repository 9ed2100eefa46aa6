"""What a model says of an image."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Prediction:
    """What the model says of one image.

    Attributes:
        label: the most probable class.
        probability: its probability, 0 to 1: softmax (of a calibrated model with its temperature), or of a multi-label
            model the sigmoid.
        top: the most probable classes with their probabilities, best first.
        labels: the classes it decides for, most probable first: the one label, or of a multi-label model all of
            probability 0.5 and more, which may be none; none where it is unsure.
        set: the prediction set, most probable class first; None where none was asked for.
        unsure: why no class is named, '' where one is; None where the model was not asked to abstain.
        energy: of the logits, higher for less familiar images; None without a calibration, as the following.
        distance: to its neighbours among the held-out images, in features of unit length; None for an export.
        familiarity: the share of held-out images that are at least as strange, above 0 and up to 1.
    """

    label: str
    probability: float
    top: list[tuple[str, float]]
    labels: list[str]
    set: list[str] | None = None
    unsure: str | None = None
    energy: float | None = None
    distance: float | None = None
    familiarity: float | None = None
