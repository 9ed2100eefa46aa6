"""The files of a run folder.

recipe.yaml (resolved), run.json, split.csv and skipped.csv are there before the first step; then checkpoints/ to resume
from, metrics.csv and TensorBoard's events; at the end model.safetensors, model.json, familiarity.safetensors (features
of held-out images), evaluation.json and report.html.
"""

from pathlib import Path

RECIPE_FILE = "recipe.yaml"
RUN_FILE = "run.json"
SPLIT_FILE = "split.csv"
SKIPPED_FILE = "skipped.csv"
METRICS_FILE = "metrics.csv"
EVALUATION_FILE = "evaluation.json"
REPORT_FILE = "report.html"
TENSORBOARD_FOLDER = "tensorboard"
EXPORTS_FOLDER = "exports"
LOCK_FILE = ".lock"
CHECKPOINTS = Path("checkpoints")
LAST_CHECKPOINT = CHECKPOINTS / "last.ckpt"
PREVIOUS_CHECKPOINT = CHECKPOINTS / "previous.ckpt"
WRITING_CHECKPOINT = CHECKPOINTS / ".writing.ckpt"


def has_checkpoint(out: Path) -> bool:
    """Whether a run left something to resume from, whole or not."""
    return (out / LAST_CHECKPOINT).is_file() or (out / PREVIOUS_CHECKPOINT).is_file()
