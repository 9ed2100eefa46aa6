"""The one thing that training writes and everything else opens: weights or an export, next to model.json."""

from cmtvision.artefact.card import Card
from cmtvision.artefact.files import Artefact, read_artefact, write_artefact, write_export_card
from cmtvision.artefact.prediction import Prediction
from cmtvision.artefact.predictor import Predictor, load

__all__ = [
    "Artefact",
    "Card",
    "Prediction",
    "Predictor",
    "load",
    "read_artefact",
    "write_artefact",
    "write_export_card",
]
