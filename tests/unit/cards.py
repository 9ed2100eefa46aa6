"""A card of an export, for tests that only look at it."""

import json

from cmtvision.artefact.card import Card, ExportBlock
from cmtvision.data import Preprocess


def write_export_card(folder, side=48, **arguments):
    """An export's card in a folder, and an empty file of it: enough to find it."""
    block = ExportBlock("onnx", "model.onnx", {"model.onnx": ""}, "int8", (side, side))
    preprocess = Preprocess((side, side), 1.0, "bicubic", (0.5,) * 3, (0.5,) * 3)
    card = Card("cmt_nano", arguments, ["a", "b"], preprocess, export=block).to_dict()
    folder.mkdir(exist_ok=True)
    (folder / "model.json").write_text(json.dumps(card))
    (folder / "model.onnx").touch()
    return card
