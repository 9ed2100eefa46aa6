"""The run folder: which files it holds, and what is written and checked before training starts.

recipe.yaml (resolved), run.json, split.csv, skipped.csv; then checkpoints/last.ckpt (to resume), metrics.csv and
TensorBoard events; at the end model.safetensors, model.json and evaluation.json.
"""

import csv
import io
import json
from pathlib import Path

from cmtvision.artefact.files import CARD_FILE, MODEL_FILE, versions, write_text
from cmtvision.data import DatasetIndex, write_split
from cmtvision.errors import CheckpointError, ConfigError, DataError
from cmtvision.recipe import Recipe, dump_recipe

RECIPE_FILE = "recipe.yaml"
RUN_FILE = "run.json"
SPLIT_FILE = "split.csv"
SKIPPED_FILE = "skipped.csv"
METRICS_FILE = "metrics.csv"
EVALUATION_FILE = "evaluation.json"
REPORT_FILE = "report.html"
TENSORBOARD_FOLDER = "tensorboard"
LAST_CHECKPOINT = Path("checkpoints") / "last.ckpt"


def check_free(out: Path, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that a new run would overwrite, or that holds nothing to resume.

    Raises:
        ConfigError: with the way out.
    """
    if resume:
        if not (out / LAST_CHECKPOINT).is_file():
            raise ConfigError(f"{out}: nothing to resume, no {LAST_CHECKPOINT} in it; start without --resume")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not overwrite:
        hint = "resume it with --resume, " if (out / LAST_CHECKPOINT).is_file() else ""
        raise ConfigError(f"{out}: is not empty; {hint}choose another --out or give --overwrite")


def check_same_data(out: Path, index: DatasetIndex) -> None:
    """Compare the photos with those that a run to resume began with.

    Raises:
        DataError: they changed.
        CheckpointError: the run's own record cannot be read.
    """
    try:
        before = json.loads((out / RUN_FILE).read_text(encoding="utf-8"))["data_fingerprint"]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{out / RUN_FILE}: cannot be read; start anew without --resume") from error
    if before != index.fingerprint:
        raise DataError(f"{index.root}: the photos changed since this run began; start anew in another --out")


def write_beginning(out: Path, recipe: Recipe, data: str | Path, index: DatasetIndex) -> None:
    """Write what is known before the first step: recipe.yaml, run.json, split.csv, skipped.csv; clear what is stale."""
    for name in (MODEL_FILE, CARD_FILE, METRICS_FILE, EVALUATION_FILE, str(LAST_CHECKPOINT), REPORT_FILE):
        (out / name).unlink(missing_ok=True)
    for events in (out / TENSORBOARD_FOLDER).glob("events.out.tfevents.*"):
        events.unlink()
    write_text(out / RECIPE_FILE, dump_recipe(recipe))
    facts = {
        "data": str(Path(data).resolve()),
        "root": str(index.root),
        "data_fingerprint": index.fingerprint,
        "split_source": index.split_source,
        "classes": index.classes,
        "num_train": len(index.train),
        "num_val": len(index.val),
        **versions(),
    }
    write_text(out / RUN_FILE, json.dumps(facts, indent=2) + "\n")
    write_split(index, out / SPLIT_FILE)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "reason"])
    writer.writerows([str(item.path), item.reason] for item in index.skipped)
    write_text(out / SKIPPED_FILE, text.getvalue())
