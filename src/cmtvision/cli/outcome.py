"""The summary of a finished training run: its accuracy with an interval, its main confusions, and useful next steps."""

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from cmtvision.cli import output
from cmtvision.cli.faults import printable
from cmtvision.cli.trust_lines import calibrated_line

if TYPE_CHECKING:
    from cmtvision.engine import FitResult
    from cmtvision.recipe import Recipe

_SHOWN = 10
_PAIRS = 2
_FEW_EPOCHS = 3  # below them a time limit has left nothing to judge by
_RISING = 0.005  # the share of the held-out images that the last third of a run must have won to be worth prolonging


def say_outcome(finished: "FitResult", recipe: "Recipe", data: str, page: Path, bare: bool) -> None:
    """The result of a run on stdout, and on stderr two suggested commands.

    Args:
        finished: the run.
        recipe: its recipe.
        data: as the command was given it.
        page: its report.
        bare: the command was given images, perhaps a time, and nothing else.
    """
    output.result(f"trained {recipe.model.name}: {_counted(finished.epochs)} in {output.duration(finished.seconds)}")
    for line in quality(finished.evaluation, recipe.train.early_stop_patience is not None):
        output.result(line)
    output.result(_calibration(finished))
    output.result(f"run folder: {finished.out}")
    output.result(f"report: {page}")
    for place, line in enumerate(next_commands(finished, recipe, data, bare)):
        output.note(f"{'or' if place else 'next'}, {line}")


def as_json(finished: "FitResult", recipe: "Recipe", page: Path) -> dict[str, Any]:
    """The same for a machine."""
    return {
        "out": str(finished.out),
        "model": recipe.model.name,
        "epochs": finished.epochs,
        "seconds": finished.seconds,
        "metrics": finished.metrics,
        "evaluation": finished.evaluation.to_dict() if finished.evaluation is not None else None,
        "skipped": [{"path": str(item.path), "reason": item.reason} for item in finished.skipped],
        "failures": finished.failures,
        "trust": None if finished.trust is None else finished.trust.summary(),
        "report": str(page),
    }


def _calibration(finished: "FitResult") -> str:
    """How its probabilities were calibrated, or why they were not."""
    if finished.trust is not None:
        return calibrated_line(finished.trust)
    if finished.evaluation is None:
        return "not calibrated: no images were held out; with others: cmtvision calibrate RUN DATA"
    if not hasattr(finished.evaluation, "top1_correct"):
        return "not calibrated: that is for one label per image"
    return "not calibrated: the network's logits are no numbers"


def quality(evaluation: Any, chosen_by: bool = False) -> list[str]:
    """The held-out figure with its interval, and the pairs of classes that are confused most.

    Args:
        evaluation: of the held-out images, None where there were none.
        chosen_by: whether they decided which epoch's weights are the run's.
    """
    if evaluation is None:
        return []
    said = f"held-out {evaluation.headline()}"
    if not hasattr(evaluation, "top1_correct"):  # several labels per image
        return [said]
    from cmtvision.report.intervals import wilson_interval
    from cmtvision.report.statistics import confused_pairs

    low, high = wilson_interval(evaluation.top1_correct, evaluation.num_images)
    caution = ", or a little less, since these chose the epoch" if chosen_by else ""
    lines = [said, f"on new photos like these: {low:.1%} to {high:.1%} (95%){caution}"]
    pairs = confused_pairs(evaluation.classes, evaluation.counts, _PAIRS)
    if pairs:
        shown = ", ".join(f"{one.true} for {one.predicted} ({one.photos} of {one.images})" for one in pairs)
        lines.append(printable(f"most often mistaken: {shown}"))
    return lines


def next_commands(finished: "FitResult", recipe: "Recipe", data: str, bare: bool) -> list[str]:
    """The two most useful next commands, each preceded by its purpose."""
    run, source = quote(str(finished.out)), quote(data)
    found = []
    limit = recipe.train.max_minutes
    cut_short = limit is not None and finished.epochs < min(_FEW_EPOCHS, recipe.schedule.epochs)
    if (cut_short or _was_rising(finished)) and recipe.train.max_steps is None:
        why = f"there was time for {_counted(finished.epochs)} only" if cut_short else "accuracy was still rising"
        same = "" if bare else f"--recipe {quote(str(finished.out / 'recipe.yaml'))} "
        longer = f"--minutes {2 * limit:g}" if limit else f"--epochs {2 * recipe.schedule.epochs}"
        found.append(f"since {why}: cmtvision train {source} {same}{longer}")
    if finished.num_test:
        count = f"{finished.num_test:,} photos"
        found.append(f"to measure it on the {count} set apart for test: cmtvision eval {run} {source} --split test")
    found.append(f"to classify a photo: cmtvision predict {run} PHOTO...")
    found.append(f"to use it without PyTorch, checked against this run: cmtvision export {run} --to onnx")
    return found[:2]


def _counted(epochs: int) -> str:
    return f"{epochs} epoch{'' if epochs == 1 else 's'}"


def _was_rising(finished: "FitResult") -> bool:
    """Whether held-out accuracy still rose in the last third of the run."""
    scores = [(row["epoch"], row["val_top1"]) for row in finished.rows if row["val_top1"] is not None]
    if len(scores) < 3:
        return False
    border = scores[-1][0] * 2 / 3
    before = [score for epoch, score in scores if epoch <= border]
    return bool(before) and scores[-1][1] > max(before) + _RISING


def report_left_out(finished: "FitResult") -> None:
    """Report on stderr the files that were not used."""
    skipped = finished.skipped
    if skipped:
        output.note(f"skipped {len(skipped)} file{'s' if len(skipped) > 1 else ''}:")
        for item in skipped[:_SHOWN]:
            output.note(f"  {item.path}: {item.reason}")
        if len(skipped) > _SHOWN:
            output.note(f"  and {len(skipped) - _SHOWN} more, all in {finished.out / 'skipped.csv'}")
    for path in finished.failures[:_SHOWN]:
        output.note(f"could no longer be read during training: {path}")
