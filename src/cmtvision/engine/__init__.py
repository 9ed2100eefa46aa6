"""What is done with a model: training, evaluation and search, on pytorch-lightning."""

from cmtvision.engine.calibrate import Calibrated, calibrate
from cmtvision.engine.evaluation.evaluate import Evaluation, evaluate
from cmtvision.engine.evaluation.multilabel import MultiLabelEvaluation
from cmtvision.engine.fit import FitResult, TrainingDiverged, TrainingInterrupted, fit

__all__ = [
    "Calibrated",
    "Evaluation",
    "FitResult",
    "MultiLabelEvaluation",
    "TrainingDiverged",
    "TrainingInterrupted",
    "calibrate",
    "evaluate",
    "fit",
]
