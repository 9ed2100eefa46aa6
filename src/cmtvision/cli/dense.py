"""What ``detect`` and ``segment`` have in common: train, from a folder of annotated images to a run folder."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from cmtvision.cli import launch, output
from cmtvision.cli.faults import printable

if TYPE_CHECKING:
    from PIL import Image

    from cmtvision.engine.task import Task
    from cmtvision.recipe import Recipe

Draw = Callable[[str, Callable[[], "Image.Image"]], Path | None]
Resume = Literal["no", "yes", "auto"]
DETECTION_DATA = "Folder in COCO, YOLO or Pascal VOC format, or a COCO .json."
SEGMENTATION_DATA = "Folder of images and masks, or in COCO or Pascal VOC format."


def train(
    context: typer.Context,
    task: "Task",
    default_recipe: str,
    data: str,
    shorthands: Mapping[str, Any],
    *,
    recipe: str | None,
    settings: list[str] | None,
    out: Path | None,
    devices: int | None,
    resume: Resume,
    accept_changed_data: bool,
    overwrite: bool,
    json: bool,
) -> None:
    """Train a detector or a segmenter and say what came of it.

    Args:
        context: of the command, whose ``obj`` is the command line.
        task: what is learned.
        default_recipe: name of the recipe that is taken where none is given.
        data: the images.
        shorthands: settings that have options of their own, None where they were not given.
        recipe, settings, out, devices, resume, accept_changed_data, overwrite, json: options of ``train``.
    """
    from cmtvision.cli.plan import default_out, merged_overrides, recipe_to_resume
    from cmtvision.cli.resuming import recipe_there
    from cmtvision.recipe import load_recipe

    began = time.perf_counter()
    known: Recipe | None = None  # the recipe of a run that is resumed
    if resume == "yes":
        known = recipe_to_resume(out, recipe, settings or [], shorthands, overwrite)
    else:
        recipe = recipe or default_recipe
        settings = merged_overrides(recipe, settings or [], shorthands)
        known = recipe_there(out, recipe, settings, None) if resume == "auto" else None
    settled = known or load_recipe(recipe, settings or [])
    going_on = resume == "yes" or (resume == "auto" and out is not None and any(out.glob("checkpoints/*.ckpt")))
    folder = out or default_out(data, settled)
    count = devices or 1
    if launch.is_first() and not launch.plan_was_said():
        for line in _plan(settled, data, folder, going_on, max(count, launch.num_processes())):
            output.note(printable(line))
    if count > 1 and not launch.is_launched():
        spent = time.perf_counter() - began
        raise typer.Exit(launch.launch_run(count, settled, context.obj, folder, spent, new=known is None))
    from cmtvision.engine import fit

    finished = fit(
        settled,
        data,
        folder,
        resume={"no": False, "yes": True}.get(resume, "auto"),
        overwrite=overwrite,
        accept_changed_data=accept_changed_data,
        console=output.stderr_console(),
        task=task,
    )
    if not launch.is_first():
        return
    from cmtvision.cli.outcome import report_left_out
    from cmtvision.report.dense_page import write_dense_report

    page = write_dense_report(folder)
    report_left_out(finished)
    command = task.command.removesuffix(" train")
    if json:
        evaluation = None if finished.evaluation is None else finished.evaluation.to_dict()
        output.result_json(
            {
                "out": str(finished.out),
                "model": settled.model.name,
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
    output.result(f"trained {settled.model.name}: {finished.epochs} epochs in {output.duration(finished.seconds)}")
    if finished.evaluation is not None:
        output.result(f"held-out {finished.evaluation.headline()}")
    output.result(f"run folder: {finished.out}")
    output.result(f"report: {page}")
    output.note(f"next, to see what it finds: {command} predict {finished.out} IMAGE... --out drawn")


def _plan(recipe: "Recipe", data: str, out: Path, resumed: bool, processes: int) -> list[str]:
    schedule, batch = recipe.schedule, recipe.train.batch_size
    at_once = f"{batch} images at a time" + ("" if processes == 1 else f" in each of {processes} processes")
    weights = recipe.model.weights or "random weights"
    return [
        f"data     {data}",
        f"model    {recipe.model.name}, its backbone from {weights}",
        f"recipe   {recipe.name}: {schedule.total_epochs} epochs, {at_once}, seed {recipe.seed}",
        f"out      {out}{' (resumed)' if resumed else ''}",
    ]


def each_picture(words: Sequence[str], faults: list[str]) -> Iterator[tuple[str, "Image.Image"]]:
    """Every image that is named, opened; bad ones are named on stderr, and added to ``faults``.

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
            picture = open_image(source.content)
        except DataError as error:
            if len(words) == 1 and words[0] == source.name:
                raise
            faults.append(source.name)
            say(str(error))
            continue
        yield source.name, picture


@contextmanager
def drawn_into(folder: Path | None, overwrite: bool) -> Iterator[Draw]:
    """A function that writes a drawn image into a folder and gives its path; None where there is no folder.

    Raises:
        ConfigError: a file that is there already.
        CheckpointError: one that cannot be written.
    """
    from cmtvision.files import atomic_write

    taken: set[str] = set()

    def draw(name: str, picture: Callable[[], "Image.Image"]) -> Path | None:
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

    yield draw
