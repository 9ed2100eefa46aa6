"""What is done with a model: training, evaluation and search, on pytorch-lightning."""

from cmtvision.engine.evaluation.evaluate import Evaluation, evaluate
from cmtvision.engine.evaluation.multilabel import MultiLabelEvaluation
from cmtvision.engine.fit import FitResult, TrainingDiverged, TrainingInterrupted, fit

__all__ = [
    "Evaluation",
    "FitResult",
    "MultiLabelEvaluation",
    "TrainingDiverged",
    "TrainingInterrupted",
    "evaluate",
    "fit",
]
