"""What is done with a model: training, evaluation and search, on pytorch-lightning."""

from cmtvision.engine.evaluate import Evaluation, evaluate
from cmtvision.engine.fit import FitResult, TrainingDiverged, TrainingInterrupted, fit
from cmtvision.engine.multilabel import MultiLabelEvaluation

__all__ = [
    "Evaluation",
    "FitResult",
    "MultiLabelEvaluation",
    "TrainingDiverged",
    "TrainingInterrupted",
    "evaluate",
    "fit",
]
