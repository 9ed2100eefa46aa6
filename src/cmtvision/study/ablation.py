"""The effect of each idea of CMT: the ladder from DeiT to CMT, and CMT without one idea at a time, under one recipe.

The ladder adds ideas at equal cost (within 10% in GMACs from rung to rung). The leave-one-outs remove one from the
finished CMT and leave everything else unchanged, so their cost may differ: without the reduction of keys twice as much
at sizes ti and s. The table shows by how much.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from cmtvision.engine.build import shapes_of
from cmtvision.errors import CheckpointError, ConfigError
from cmtvision.files import write_text
from cmtvision.models.analysis.count import count, total
from cmtvision.models.ladder import SIZES, ladder
from cmtvision.recipe import Recipe
from cmtvision.study.intervals import Interval, mean_interval, paired_difference
from cmtvision.study.seeds import Entry, EntryResult, OnRun, read_study, run_recipe, train_all

RECORD_FILE = "ablation.json"
PARTS = ("ladder", "leave-one-out")

LEAVE_ONE_OUT: dict[str, dict[str, Any]] = {
    "no_lpu": {"lpu": False},
    "no_bias": {"rel_pos": "none"},
    "no_kv_reduction": {"kv_strides": (1, 1, 1, 1)},
    "no_irffn_shortcut": {"ffn": "no_shortcut"},
    "ln_for_bn": {"norm": "layer"},
}
"""Options of the CMT constructor, one for each idea that is taken out."""


def ablation_entries(size: str, parts: Sequence[str] = PARTS) -> list[Entry]:
    """The networks of an ablation of cmt_<size>: the ladder's rungs, then CMT without one idea each.

    Raises:
        ConfigError: a size that has no ladder.
    """
    if size not in SIZES:
        raise ConfigError(f"size {size!r}: expected {', '.join(SIZES)}")
    rungs = [Entry(name, name) for name in ladder(size)]
    top = rungs[-1].model
    without = [Entry(f"{SIZES[size].cmt}_{key}", top, options) for key, options in LEAVE_ONE_OUT.items()]
    listed = rungs if "ladder" in parts else rungs[-1:]
    return [*listed, *without] if "leave-one-out" in parts else listed


def ablate(
    size: str,
    data: str | Path,
    recipe: Recipe,
    seeds: Sequence[int],
    out: Path,
    *,
    parts: Sequence[str] = PARTS,
    console: Console | None = None,
    on_run: OnRun | None = None,
    again: str = "",
    facts: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train the networks of an ablation and compare them; writes ablation.json into ``out``.

    Args:
        size: 'nano', 'micro', 'ti' or 's'.
        data, recipe, seeds, out, console, on_run, again: see ``train_all``.
        parts: 'ladder', 'leave-one-out' or both. Other parts in an earlier record in ``out`` are kept.
        facts: further entries of the record (command, hardware, versions).

    Returns:
        The record: one row per network, with accuracy over seeds, its interval, and the paired difference to its
        reference, the rung below or the complete CMT.

    Raises:
        ConfigError, DataError, CheckpointError, TrainingInterrupted: as ``train_all``.
    """
    parts, seeds = _with_earlier(out, size, parts, seeds)
    entries = ablation_entries(size, parts)
    results = train_all(entries, data, recipe, seeds, out, console=console, on_run=on_run, again=again)
    study = read_study(out)
    record = {
        **(facts or {}),
        "size": size,
        "seeds": list(seeds),
        "recipe": recipe.name,
        "epochs": recipe.schedule.epochs,
        **study,
        "rows": _rows(results, len(ladder(size)) if "ladder" in parts else 1, recipe, len(study["classes"])),
    }
    write_text(out / RECORD_FILE, json.dumps(record, indent=1) + "\n")
    return record


def _with_earlier(
    out: Path, size: str, parts: Sequence[str], seeds: Sequence[int]
) -> tuple[tuple[str, ...], Sequence[int]]:
    """Parts and seeds, with those of the record in the folder, so that resuming a study never shrinks it."""
    file = out / RECORD_FILE
    if not file.is_file():
        return tuple(parts), seeds
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
        earlier, count, of = {row["part"] for row in before["rows"]}, before["seeds"], before["size"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: cannot be read; delete it, the trainings are kept") from error
    if of != size:
        raise ConfigError(f"{out}: the ablation there is of size {of}; choose another --out for size {size}")
    if len(before["rows"]) == len(ablation_entries(size, ["leave-one-out"])):
        earlier.discard("ladder")  # the one rung that leave-one-outs are compared with
    return tuple(part for part in PARTS if part in parts or part in earlier), max(seeds, count, key=len)


def _rows(results: Sequence[EntryResult], num_rungs: int, recipe: Recipe, num_classes: int) -> list[dict[str, Any]]:
    """Rows of the record; each rung is compared with the one below it, each leave-one-out with the whole CMT."""
    rows = []
    whole = results[num_rungs - 1]
    for place, result in enumerate(results):
        on_ladder = place < num_rungs
        reference = whole if not on_ladder else results[place - 1] if place else None
        rows.append(
            {
                "key": result.entry.key,
                "part": "ladder" if on_ladder else "leave-one-out",
                "model": result.entry.model,
                "options": result.entry.options,
                **_cost(result.entry, recipe, num_classes),
                **_accuracy(result),
                "compared_with": reference.entry.key if reference else None,
                "difference": _difference(result, reference) if reference else None,
            }
        )
    return rows


def _accuracy(result: EntryResult) -> dict[str, Any]:
    """A row's accuracy: counts by seed, mean and interval, or the reason why there is none."""
    found = mean_interval([run.top1 for run in result.runs]) if result.runs else None
    return {
        "correct": {str(run.seed): run.correct for run in result.runs},
        "num_images": result.runs[0].num_images if result.runs else None,
        "top1": _plain(found),
        "train_seconds": [run.seconds for run in result.runs],
        "failure": result.failure,
    }


def _difference(result: EntryResult, reference: EntryResult) -> dict[str, Any] | None:
    mine, theirs = ({run.seed: run.top1 for run in side.runs} for side in (result, reference))
    return _plain(paired_difference(mine, theirs))


def _plain(found: Interval | None) -> dict[str, Any] | None:
    return None if found is None else {"mean": found.mean, "low": found.low, "high": found.high}


def _cost(entry: Entry, recipe: Recipe, num_classes: int) -> dict[str, Any]:
    """What the trained network costs: with the recipe's options and as many classes as the images have."""
    section = run_recipe(recipe, entry, recipe.seed).model
    network, input_size = shapes_of(section, num_classes)
    whole = total(count(network, input_size))
    return {"input_size": list(input_size), "parameters": whole.parameters, "gmacs": whole.macs / 1e9}
