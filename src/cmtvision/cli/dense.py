"""What ``detect`` and ``segment`` have in common: train, eval and predict, for images with annotations."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeAlias, cast

import typer

from cmtvision.cli import launch, output
from cmtvision.cli.arguments import (
    LEAST_MINUTES,
    MOST_MINUTES,
    ChangedDataOption,
    EpochsOption,
    JsonOption,
    OverwriteRunOption,
    ResumeOption,
    RunFolderOption,
    SeedOption,
    SettingsOption,
    TrainDeviceOption,
    TrainDevicesOption,
)
from cmtvision.cli.faults import USAGE, printable

if TYPE_CHECKING:
    from PIL import Image

    from cmtvision.artefact.run.data import Limits
    from cmtvision.engine.dense.task import DenseEvaluation, DenseTask
    from cmtvision.recipe import Recipe

Write = Callable[[str, Callable[[], "Image.Image"]], Path | None]
_SHOWN = 10

RunArgument: TypeAlias = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of a trained model.")]
ImagesArgument: TypeAlias = Annotated[
    list[str], typer.Argument(metavar="IMAGE...", help="Files, folders, patterns; - for standard input.")
]
SplitOption: TypeAlias = Annotated[
    Literal["val", "train", "test", "all"], typer.Option("--split", help="Which images.")
]
DeviceOption: TypeAlias = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")]
DevicesOption: TypeAlias = Annotated[
    int, typer.Option("--devices", min=1, help="Processes on this machine, one for each GPU.")
]
WorkersOption: TypeAlias = Annotated[
    int | None, typer.Option("--workers", min=0, help="Processes that read images; default: chosen.")
]
WindowOption: TypeAlias = Annotated[
    int | None, typer.Option("--window", metavar="N", min=32, help="Look at windows of N pixels, for large images.")
]
DrawnOption: TypeAlias = Annotated[
    Path | None, typer.Option("--out", metavar="FOLDER", help="Draw each image into it.")
]
DrawOverOption: TypeAlias = Annotated[bool, typer.Option("--overwrite", help="Replace images that are there.")]
MasksOption: TypeAlias = Annotated[
    Path | None,
    typer.Option("--masks", metavar="FOLDER", help="Write the class numbers of each image into it, as PNG."),
]
MaxPixelsOption: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--max-pixels",
        metavar="N",
        min=1,
        max=2_000_000_000,
        help="Refuse larger images [as the run's data.max_pixels].",
    ),
]


class Words(NamedTuple):
    """What differs between the two in words: the recipe, what is trained, an example of it, and its data."""

    recipe: str
    noun: str
    example: str
    data: str


def train_command(words: Words, task: "Callable[[], DenseTask]") -> Callable[..., None]:
    """The command that trains; ``task`` imports what it needs when it is called."""

    def train(  # typer reads options from the signature
        context: typer.Context,
        data: Annotated[str, typer.Argument(metavar="DATA", help=words.data)],
        model: Annotated[
            str | None, typer.Option("--model", help=f"{words.example}, ... or any timm backbone with a kind.")
        ] = None,
        weights: Annotated[
            str | None,
            typer.Option("--weights", metavar="FILE|pretrained", help="Of a classifier, or of a run of its own kind."),
        ] = None,
        recipe: Annotated[
            str | None,
            typer.Option("--recipe", metavar="NAME|FILE", help=f"A built-in recipe or a YAML file [{words.recipe}]."),
        ] = None,
        settings: SettingsOption = None,
        out: RunFolderOption = None,
        minutes: Annotated[
            float | None,
            typer.Option("--minutes", metavar="N", min=LEAST_MINUTES, max=MOST_MINUTES, help="Train for N minutes."),
        ] = None,
        epochs: EpochsOption = None,
        batch_size: Annotated[int | None, typer.Option("--batch-size", min=1, help="Images at a time.")] = None,
        device: TrainDeviceOption = None,
        seed: SeedOption = None,
        devices: TrainDevicesOption = None,
        resume: ResumeOption = "no",
        accept_changed_data: ChangedDataOption = False,
        overwrite: OverwriteRunOption = False,
        json: JsonOption = False,
    ) -> None:
        from cmtvision.cli.plan import STOPPED_PLANNING, default_out, merged_overrides, recipe_to_resume
        from cmtvision.cli.resuming import recipe_there
        from cmtvision.recipe import load_recipe

        began = context.meta.get(output.BEGAN, time.perf_counter()) - launch.seconds_before()
        shorthands: dict[str, Any] = {
            "model.name": model,
            "model.weights": weights,
            "schedule.epochs": epochs,
            "train.batch_size": batch_size,
            "train.device": device,
            "train.max_minutes": minutes,
            "seed": seed,
        }
        known: Recipe | None = None  # the recipe of a run that is resumed
        index: Any = None
        if resume == "yes":
            known = recipe_to_resume(out, recipe, settings or [], shorthands, overwrite)
        else:
            settings = merged_overrides(recipe or words.recipe, settings or [], shorthands)
            known = recipe_there(out, recipe, settings, None, words.recipe) if resume == "auto" else None
        settled = known or load_recipe(recipe or words.recipe, settings or [])
        task().check(settled)  # before the plan is printed
        if known is None and recipe is None:
            try:
                settled, index = _sized(task(), settled, data, words.recipe, settings or [])
            except KeyboardInterrupt:
                raise KeyboardInterrupt(STOPPED_PLANNING) from None
        resumed = resume == "yes" or (resume == "auto" and out is not None and any(out.glob("checkpoints/*.ckpt")))
        folder = out or default_out(data, settled)
        count = devices or 1
        if launch.is_first() and not launch.plan_was_said():
            for line in _plan(settled, data, folder, resumed, max(count, launch.num_processes())):
                output.note(printable(line))
        if count > 1 and not launch.is_launched():
            spent = time.perf_counter() - began
            raise typer.Exit(launch.launch_run(count, settled, context.obj, folder, spent, new=known is None))
        _train(
            task(),
            settled,
            data,
            folder,
            json,
            resume={"no": False, "yes": True}.get(resume, "auto"),
            overwrite=overwrite,
            accept_changed_data=accept_changed_data,
            spent=time.perf_counter() - began,
            index=index,
        )

    train.__doc__ = f"Train a {words.noun} on your images; writes a run folder with model, curves and report."
    return train


def _sized(task: "DenseTask", recipe: "Recipe", data: str, name: str, settings: list[str]) -> "tuple[Recipe, Any]":
    """A recipe that nobody named, for the size of the images, and these; what the user has set stays."""
    from json import dumps

    from cmtvision.engine.dense.choose import settings_for
    from cmtvision.recipe import load_recipe

    index = task.read(recipe, data)
    given = {setting.partition("=")[0].strip() for setting in settings}
    chosen = {key: value for key, value in settings_for(index, recipe).items() if key not in given}
    if "model.options" in given:  # all of them at once
        chosen = {key: value for key, value in chosen.items() if not key.startswith("model.options.")}
    if given & {"scene.size", "scene.short_sides"}:  # who sets the one knows of the others
        chosen = {key: value for key, value in chosen.items() if not key.startswith("scene.")}
    return load_recipe(name, [*(f"{key}={dumps(value)}" for key, value in chosen.items()), *settings]), index


def _train(task: "DenseTask", recipe: "Recipe", data: str, folder: Path, json: bool, **how: Any) -> None:
    """Train, and say what came of it."""
    from cmtvision.cli.outcome import report_left_out
    from cmtvision.engine import fit

    finished = fit(recipe, data, folder, console=output.stderr_console(), task=task, **how)
    if not launch.is_first():
        return
    from cmtvision.report.dense_page import write_dense_report

    command = task.command.removesuffix(" train")
    try:
        page = write_dense_report(folder, measured=cast("DenseEvaluation | None", finished.evaluation))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"stopped by Ctrl-C while the report was written; the model is in {folder}, write the report with: "
            f"cmtvision report {quote(str(folder))}"
        ) from None
    report_left_out(finished)
    if json:
        evaluation = None if finished.evaluation is None else finished.evaluation.to_dict()
        output.result_json(
            {
                "out": str(finished.out),
                "model": recipe.model.name,
                "epochs": finished.epochs,
                "seconds": finished.seconds,
                "metrics": finished.metrics,
                "evaluation": evaluation,
                "skipped": [{"path": str(item.path), "reason": item.reason} for item in finished.skipped],
                "failures": finished.failures,
                "report": str(page),
            }
        )
        return
    output.result(f"trained {recipe.model.name}: {finished.epochs} epochs in {output.duration(finished.seconds)}")
    if finished.evaluation is not None:
        output.result(f"held-out {finished.evaluation.headline()}")
    output.result(f"run folder: {finished.out}")
    output.result(f"report: {page}")
    output.note(f"next, to see what it finds: {command} predict {quote(str(finished.out))} IMAGE... --out drawn")


def evaluate(
    context: typer.Context,
    task: "Callable[[], DenseTask]",
    run: Path,
    data: str,
    device: str,
    devices: int,
    json: bool,
    **how: Any,
) -> None:
    """Measure a trained model and say how good it is, class by class.

    Args:
        context: of the command, whose ``obj`` is the command line.
        task: imports the model's task.
        run, data, device, devices, json: options of the command.
        how: further arguments of ``DenseTask.evaluate``.
    """
    if devices > 1 and not launch.is_launched():
        code = launch.launch(devices, device, launch.without_options(context.obj, ["--devices"]))
        if code:
            raise typer.Exit(code)
        return
    with output.progress("evaluating") if launch.is_first() else nullcontext() as progress:
        found = task().evaluate(run, data, device=device, progress=progress, **how)
    if not launch.is_first():
        return
    for item in found.skipped[:_SHOWN]:
        output.note(printable(f"skipped {item.path}: {item.reason}"))
    if len(found.skipped) > _SHOWN:
        output.note(f"and {len(found.skipped) - _SHOWN:,} more; --json lists all")
    for line in found.notes:
        output.note(printable(line))
    if json:
        output.result_json({"run": str(run), "data": data, **found.to_dict()})
        return
    output.result(f"images: {found.num_images:,} ({found.split})")
    output.result(found.headline())
    rows = [
        [printable(name), "-" if value is None else f"{value:.1%}"]
        for name, value in zip(found.classes, found.by_class(), strict=True)
    ]
    output.result("")
    output.table(["class", found.score], rows, right=[found.score])


Answer = tuple[str, dict[str, Any], Mapping[str, Callable[[], "Image.Image"]]]


def predict(
    run: Path,
    images: Sequence[str],
    answer: "Callable[[Image.Image], Answer]",
    folders: dict[str, Path | None],
    max_pixels: int | None,
    overwrite: bool,
    json: bool,
) -> None:
    """Look at every image and say, print or draw what is found.

    Args:
        run: the model's.
        images: as the user names them.
        answer: of an opened image what a person reads, what JSON has of it, and what makes the images to write.
        folders: where those are written, by the names that answers and JSON have for them; None for nowhere.
        max_pixels, overwrite, json: options of the command.
    """
    from cmtvision.artefact.run.data import limits_of

    limits = limits_of(run)
    limits = limits if max_pixels is None else limits._replace(max_pixels=max_pixels)
    rows: list[dict[str, Any]] = []
    faults: list[str] = []
    writers = {kind: written_into(folder, overwrite) for kind, folder in folders.items()}
    for name, picture in each_picture(images, faults, limits):
        said, facts, made = answer(picture)
        files = {kind: write(name, made[kind]) for kind, write in writers.items()}
        if json:
            written = {kind: str(file) for kind, file in files.items() if file is not None}
            rows.append({"image": name, **facts, **written})
            continue
        output.result(printable(f"{name}: {said}"))
    if json:
        output.result_json({"predictions": rows, "failed": faults})
    if faults:
        raise typer.Exit(USAGE)


def _plan(recipe: "Recipe", data: str, out: Path, resumed: bool, processes: int) -> list[str]:
    from cmtvision.engine.dense.build import scene_of

    schedule, batch = recipe.schedule, recipe.train.batch_size
    at_once = f"{batch} images at a time" + ("" if processes == 1 else f" in each of {processes} processes")
    weights = recipe.model.weights or "random weights"
    scene = scene_of(recipe)
    height, width = scene.size
    sides = f"{height} x {width}" if not scene.short_sides else f"{scene.short_sides[0]} to {scene.short_sides[-1]}"
    return [
        f"data     {data}",
        f"model    {recipe.model.name}, its backbone from {weights}",
        f"recipe   {recipe.name}: {schedule.total_epochs} epochs of {sides} px, {at_once}, seed {recipe.seed}",
        f"out      {out}{' (resumed)' if resumed else ''}",
    ]


def each_picture(words: Sequence[str], faults: list[str], limits: "Limits") -> Iterator[tuple[str, "Image.Image"]]:
    """Every image that is named, opened; bad ones are named on stderr, and added to ``faults``.

    Args:
        words: what the user names.
        faults: grows by the names of bad ones.
        limits: of an image.

    Raises:
        DataError: the only image that was named is bad.
    """
    from cmtvision.cli.faults import say
    from cmtvision.cli.sources import find_images
    from cmtvision.data import open_image
    from cmtvision.errors import DataError

    for source in find_images(words):
        try:
            if isinstance(source.content, DataError):
                raise source.content
            picture = open_image(source.content, *limits)
        except DataError as fault:
            error = DataError(str(fault).replace("data.max_pixels", "--max-pixels"))
            if len(words) == 1 and words[0] == source.name:
                raise error from None
            faults.append(source.name)
            say(str(error))
            continue
        yield source.name, picture


def written_into(folder: Path | None, overwrite: bool) -> Write:
    """A function that writes an image into a folder and gives its path; None where there is no folder.

    Raises:
        ConfigError: a file that is there already, or one in the place of the folder.
        CheckpointError: one that cannot be written.
    """
    from cmtvision.errors import ConfigError
    from cmtvision.files import atomic_write

    if folder is not None and folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is a file; name a folder to write into")
    taken: set[str] = set()

    def write(name: str, picture: Callable[[], "Image.Image"]) -> Path | None:
        if folder is None:
            return None
        stem = Path(name).stem or "image"
        file = f"{stem}.png"
        number = 1
        while file in taken:  # two images of one name, from two folders
            number += 1
            file = f"{stem}-{number}.png"
        taken.add(file)
        output.refuse_overwrite(folder / file, overwrite)
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(folder / file, lambda partial: picture().save(partial, "PNG"))
        return folder / file

    return write
