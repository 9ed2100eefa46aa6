"""What is done with a model: training and evaluation, on pytorch-lightning."""

from cmtvision.engine.evaluate import Evaluation, evaluate
from cmtvision.engine.fit import FitResult, TrainingInterrupted, fit

__all__ = ["Evaluation", "FitResult", "TrainingInterrupted", "evaluate", "fit"]
