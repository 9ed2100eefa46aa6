"""The checks and files of a run folder before training starts."""

import csv
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cmtvision.artefact.features import FEATURES_FILE
from cmtvision.artefact.files import CARD_FILE, MODEL_FILE, versions
from cmtvision.artefact.run.data import name_of
from cmtvision.artefact.run.exports import clear_exports
from cmtvision.artefact.run.names import (
    EVALUATION_FILE,
    LAST_CHECKPOINT,
    LOCK_FILE,
    METRICS_FILE,
    PREVIOUS_CHECKPOINT,
    RECIPE_FILE,
    REPORT_FILE,
    RUN_FILE,
    SKIPPED_FILE,
    SPLIT_FILE,
    TENSORBOARD_FOLDER,
    WRITING_CHECKPOINT,
    has_checkpoint,
)
from cmtvision.data import DatasetIndex, write_split
from cmtvision.data.listing.split_file import keep_split
from cmtvision.errors import CheckpointError, ConfigError, DataError
from cmtvision.files import write_text
from cmtvision.recipe import Recipe, dump_recipe


def check_free(out: Path, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that a new run would overwrite, or that holds nothing to resume.

    Raises:
        ConfigError: with the way out.
    """
    if resume:
        if not has_checkpoint(out):
            raise ConfigError(f"{out}: nothing to resume, no {LAST_CHECKPOINT} in it; start without --resume")
        return
    if out.exists() and (not out.is_dir() or _holds_something(out)) and not overwrite:
        hint = "resume it with --resume, " if has_checkpoint(out) else ""
        raise ConfigError(f"{out}: is not empty; {hint}choose another --out or give --overwrite")


def _holds_something(out: Path) -> bool:
    """Whether there is more in a folder than a kill in the first instant of a run leaves."""
    return any(entry.name != LOCK_FILE and not entry.name.startswith(f".{RUN_FILE}.") for entry in out.iterdir())


def is_unbegun(out: Path) -> bool:
    """Whether a run in this folder was killed before its first checkpoint, so that nothing is lost by starting anew."""
    model = any((out / name).exists() for name in (MODEL_FILE, CARD_FILE))
    return (out / RUN_FILE).is_file() and not has_checkpoint(out) and not model


def check_same_run(out: Path, index: DatasetIndex, world_size: int, accept_changed: bool) -> DatasetIndex:
    """Compare photos and processes with those that a run to resume began with.

    Returns:
        The photos in the parts that the run began with, whatever rule or seed would choose today. New ones, where they
        are accepted, are where the index has them; one that was trained on never becomes held out.

    Raises:
        ConfigError: another number of processes, which would be another effective batch and another order.
        DataError: photos or their parts changed, and that was not accepted; or the classes did, which never can be.
        CheckpointError: the run's own record cannot be read.
    """
    try:
        before = json.loads((out / RUN_FILE).read_text(encoding="utf-8"))
        fingerprint, classes, count = before["data_fingerprint"], before["classes"], before["num_train"]
        kept, moved = keep_split(index, out / SPLIT_FILE)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{out / RUN_FILE}: cannot be read; start anew without --resume") from error
    except DataError as error:
        raise CheckpointError(f"{error}; or start anew without --resume") from error
    began = int(before.get("processes", 1))
    if began != world_size:
        raise ConfigError(
            f"{out}: began with {began} processes, now there are {world_size}; resume with --devices {began}"
        )
    if fingerprint != index.fingerprint and classes != index.classes:
        raise DataError(
            f"{index.root}: the classes changed since this run began ({len(classes)} then, {len(index.classes)} now); "
            f"start anew in another --out, with --weights {out} to keep what was learned"
        )
    advice = "with --accept-changed-data, or start anew in another --out"
    if fingerprint != index.fingerprint and not accept_changed:
        raise DataError(
            f"{index.root}: the photos changed since this run began ({count:,} to train on then, "
            f"{len(index.train):,} now); go on with the new ones {advice}"
        )
    if moved and not accept_changed:
        raise DataError(
            f"{index.root}: {len(moved):,} photos are in another part than when this run began ({moved[0]}, ...); "
            f"put them back, or go on (what was trained on stays so) {advice}"
        )
    if not kept.train:
        raise DataError(f"{index.root}: no photos to train on are left; start anew in another --out")
    return kept


def write_beginning(out: Path, recipe: Recipe, data: str | Path, index: DatasetIndex, world_size: int = 1) -> None:
    """Write what is known before the first step; clear what is stale.

    run.json is the first file, so that whatever a kill leaves is known as the beginning of a run (``is_unbegun``).
    """
    stale = (MODEL_FILE, CARD_FILE, FEATURES_FILE, METRICS_FILE, EVALUATION_FILE, REPORT_FILE)
    for name in (*stale, *map(str, (LAST_CHECKPOINT, PREVIOUS_CHECKPOINT, WRITING_CHECKPOINT))):
        (out / name).unlink(missing_ok=True)
    clear_exports(out)
    for events in (out / TENSORBOARD_FOLDER).glob("events.out.tfevents.*"):
        events.unlink()
    write_data_record(out, recipe, data, index, world_size)
    write_text(out / RECIPE_FILE, dump_recipe(recipe))


def write_moved_data(out: Path, data: str | Path, index: DatasetIndex) -> None:
    """Note in run.json where the same photos are now; whoever holds the run looks for them there."""
    facts = json.loads((out / RUN_FILE).read_text(encoding="utf-8"))
    if facts.get("data") != name_of(data):
        facts |= {"data": name_of(data), "root": str(index.root)}
        write_text(out / RUN_FILE, json.dumps(facts, indent=2) + "\n")


def write_data_record(out: Path, recipe: Recipe, data: str | Path, index: DatasetIndex, world_size: int = 1) -> None:
    """Write which photos the run is about: run.json, split.csv, skipped.csv."""
    facts = {
        "data": name_of(data),
        "root": str(index.root),
        "data_fingerprint": index.fingerprint,
        "split_source": index.split_source,
        "val_fraction": recipe.data.val_fraction,
        "split_seed": recipe.data.split_seed,
        "classes": index.classes,
        "num_train": len(index.train),
        "num_val": len(index.val),
        "num_test": len(index.test),
        "processes": world_size,
        **versions(),
    }
    write_text(out / RUN_FILE, json.dumps(facts, indent=2) + "\n")
    write_split(index, out / SPLIT_FILE)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "reason"])
    writer.writerows([str(item.path), item.reason] for item in index.skipped)
    write_text(out / SKIPPED_FILE, text.getvalue())


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Keep a second run, search or study out of a folder; the system frees the lock however this process ends.

    A folder that is made for the lock alone is gone afterwards, as is the lock.

    Raises:
        ConfigError: another process is at work there.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no such lock
        yield
        return
    missing = [folder for folder in (out, *out.parents) if not folder.exists()]
    out.mkdir(parents=True, exist_ok=True)
    path = out / LOCK_FILE
    try:
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # whoever was at work may have ended, and taken the file away, since it was opened
                alone = path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())
            except BlockingIOError:
                alone = False
            except OSError:  # a network folder that knows no locks
                alone = True
            if not alone:
                raise ConfigError(f"{out}: another process is at work in it; wait, or choose another --out")
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
    finally:
        for folder in missing:
            with suppress(OSError):  # something is in it now
                folder.rmdir()
