"""The one thing that training writes and everything else opens: model.safetensors beside model.json."""

from cmtvision.artefact.files import Artefact, read_artefact, write_artefact
from cmtvision.artefact.predictor import Prediction, Predictor, load

__all__ = ["Artefact", "Prediction", "Predictor", "load", "read_artefact", "write_artefact"]
