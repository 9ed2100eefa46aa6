"""``cmtvision tune``: search for recipe settings that fit your images."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cmtvision.cli.arguments import DATA_HELP, LEAST_MINUTES, MOST_MINUTES, JsonOption, OpenRecipeOption

if TYPE_CHECKING:
    from cmtvision.study.optuna_study import Trial
    from cmtvision.study.tune import TuneResult

_SHOWN = 20
_IN_TIME = 12  # trainings that --minutes has room for


def tune(  # typer reads options from the signature
    data: Annotated[str, typer.Argument(metavar="DATA", help=DATA_HELP)],
    trials: Annotated[
        int | None, typer.Option("--trials", min=1, help="Trainings in all, resumed ones counted.")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", metavar="N", min=LEAST_MINUTES, max=MOST_MINUTES, help="Search for N minutes."),
    ] = None,
    recipe: OpenRecipeOption = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Fix one setting; may be repeated.")
    ] = None,
    space: Annotated[
        list[str] | None,
        typer.Option(
            "--space",
            metavar="A.B=VALUES",
            help="Search one setting: LOW..HIGH, log:LOW..HIGH, int:LOW..HIGH or A,B,C; may be repeated "
            "[optim.lr, optim.weight_decay, model.drop_path_rate, augment.mixup].",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the search [runs/DATA-MODEL-TIME].")] = None,
    storage: Annotated[
        str | None, typer.Option("--storage", metavar="URL", help="Database of the study [sqlite, study.db in --out].")
    ] = None,
    pruner: Annotated[
        Literal["median", "hyperband", "none"] | None,
        typer.Option("--pruner", help="How hopeless trials are stopped early [median; none with --minutes]."),
    ] = None,
    resume: Annotated[
        Literal["no", "yes", "auto"],
        typer.Option("--resume", metavar="[auto]", help="Resume the search in --out; auto: if there is one."),
    ] = "no",
    json: JsonOption = False,
) -> None:
    """Search for good settings: many trainings, compared on images held out of the training images."""
    from cmtvision.cli import output
    from cmtvision.cli.plan import base_recipe, default_out
    from cmtvision.cli.resuming import recipe_there
    from cmtvision.errors import ConfigError
    from cmtvision.recipe import load_recipe
    from cmtvision.recipe.space import check_space, default_space, parse_space

    going_on = _goes_on(resume, out, {"--recipe": recipe, "--set": settings, "--space": space, "--pruner": pruner})
    if going_on and out is not None:
        chosen, searched = load_recipe(out / "recipe.yaml"), []
        if resume == "auto":
            recipe_there(out, recipe, settings or [], chosen.train.max_minutes)
    else:
        if trials is None and minutes is None:
            raise ConfigError("say how many trainings, or how long, with --trials N or --minutes N")
        share = None if minutes is None else minutes / (trials or _IN_TIME)
        chosen = base_recipe(data, recipe, settings or [], share)
        searched = parse_space(space) if space else default_space(chosen)
        check_space(searched, chosen, settings or [])
    folder = out or default_out(data, chosen)
    output.note(f"out      {folder}{' (resumed)' if going_on else ''}")
    for dimension in searched:
        output.note(f"search   {dimension.text}")

    from cmtvision.study.tune import tune as search

    console = output.stderr_console()
    found = search(
        chosen,
        searched,
        data,
        folder,
        trials=trials,
        seconds=None if minutes is None else minutes * 60,
        storage=storage,
        # trainings that are fitted to a time have other epochs each, and the median of an epoch says nothing
        pruner=pruner or ("median" if minutes is None else "none"),
        resume=going_on,
        console=console if console.is_terminal else None,
        on_trial=lambda trial, done: output.note(f"{done}{f'/{trials}' if trials else ''}  {_in_words(trial)}"),
    )
    from cmtvision.report.tuning import write_tuning_plots

    plots = write_tuning_plots(found)
    if json:
        output.result_json(_as_json(found, plots))
        return
    _show(found)
    output.result(f"recipe: {found.out / 'best.yaml'}")
    output.result(f"all trials: {found.out / 'trials.csv'}, drawn in {plots[0]}")
    _say_next(found, data)


def _goes_on(resume: str, out: Path | None, given: dict[str, Any]) -> bool:
    """Whether there is a search to resume; refuses options that would change it."""
    from cmtvision.errors import ConfigError

    if resume == "no":
        return False
    if out is None:
        raise ConfigError("--resume: say which search with --out")
    there = (out / "recipe.yaml").is_file() and (out / "tune.json").is_file()
    if resume == "auto":
        return there
    changed = [name for name, value in given.items() if value]
    if changed:
        raise ConfigError(f"{', '.join(changed)}: a resumed search keeps what it began with; leave out")
    if not there:
        raise ConfigError(f"{out}: nothing to resume, no search in it; start without --resume")
    return True


def _in_words(trial: "Trial") -> str:
    settings = "  ".join(f"{key}={_short(value)}" for key, value in trial.settings.items())
    end = {"complete": "", "pruned": " (stopped early)"}.get(trial.state, f"failed: {trial.reason}")
    score = "" if trial.score is None else f"{trial.score:.2%}"
    return f"trial {trial.number}  {settings}  ->  {score}{end}"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _show(found: "TuneResult") -> None:
    from cmtvision.cli import output

    keys = list(found.best.settings)
    columns = ["trial", "state", found.measure.removeprefix("val_"), "epochs", "time", *keys]
    rows = [
        [
            str(trial.number),
            trial.state,
            "-" if trial.score is None else f"{trial.score:.2%}",
            str(trial.epochs),
            output.duration(trial.seconds),
            *(_short(trial.settings.get(key, "-")) for key in keys),
        ]
        for trial in found.trials[:_SHOWN]
    ]
    output.table(columns, rows, right=["trial", found.measure.removeprefix("val_"), "epochs", "time"])
    if len(found.trials) > _SHOWN:
        output.result(f"and {len(found.trials) - _SHOWN} more")
    for trial in found.trials:
        if trial.state == "failed":
            output.note(f"trial {trial.number} failed: {trial.reason}")
    if found.importances:
        shares = ", ".join(f"{key} {share:.0%}" for key, share in found.importances.items())
        output.result(f"what the scores depend on: {shares}")
    output.result(
        f"best: trial {found.best.number}, {found.best.score:.2%} of {found.num_selected_on:,} held-out photos; "
        "they chose it, so on new photos expect a little less"
    )


def _as_json(found: "TuneResult", plots: list[Path]) -> dict[str, Any]:
    return {
        "out": str(found.out),
        "measure": found.measure,
        "held_out_photos": found.num_selected_on,
        "best": vars(found.best),
        "trials": [vars(trial) for trial in found.trials],
        "importances": found.importances,
        "recipe": str(found.out / "best.yaml"),
        "plots": [str(path) for path in plots],
    }


def _say_next(found: "TuneResult", data: str) -> None:
    from shlex import quote

    from cmtvision.cli import output

    output.note(f"next: cmtvision train {quote(data)} --recipe {quote(str(found.out / 'best.yaml'))}")
