"""``cmtvision sample-data``: real images to start with, or scenes composed of them for detection and segmentation."""

from enum import StrEnum
from pathlib import Path
from shlex import quote
from typing import Annotated, Literal

import typer


class Task(StrEnum):
    """What the images are to be learned for."""

    CLASSIFICATION = "classification"
    DETECTION = "detection"
    SEGMENTATION = "segmentation"


def sample_data(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write the images to.")],
    task: Annotated[
        Task, typer.Option("--task", help="Class folders, or scenes with COCO boxes and masks, or with mask files.")
    ] = Task.CLASSIFICATION,
    full: Annotated[bool, typer.Option("--full", help="All 70,000 images instead of 10,000.")] = False,
    scenes: Annotated[
        int | None, typer.Option("--scenes", metavar="N", help="Number of scenes, for the other tasks: 1000.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", help="Seed of the scenes, for the other tasks: 0.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace sample data written before.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Write Fashion-MNIST, real product images of ten classes, as a folder of PNG files, or scenes of them."""
    if task is Task.CLASSIFICATION:
        _write_photos(directory, full, scenes, seed, overwrite, json)
    else:
        _write_scenes(directory, task, full, scenes, seed, overwrite, json)


def _write_photos(
    directory: Path, full: bool, scenes: int | None, seed: int | None, overwrite: bool, json: bool
) -> None:
    from cmtvision.cli import output
    from cmtvision.data import write_sample_data
    from cmtvision.errors import ConfigError

    if scenes is not None or seed is not None:
        name = "--scenes" if scenes is not None else "--seed"
        raise ConfigError(f"{name}: only scenes are composed by it; add --task detection or --task segmentation")
    with output.progress("writing photos") as progress:
        summary = write_sample_data(directory, full=full, overwrite=overwrite, progress=progress)
    if json:
        output.result_json(
            {
                "directory": str(summary.directory),
                "train": summary.num_train,
                "val": summary.num_val,
                "classes": list(summary.classes),
                "source": summary.source,
            }
        )
        return
    output.result(
        f"{summary.directory}: {summary.num_train:,} photos to train on, {summary.num_val:,} held out, "
        f"{len(summary.classes)} classes"
    )
    how = " --recipe fashion_mnist" if full else ""
    output.note(f"next: cmtvision train {quote(str(summary.directory))}{how}")


def _write_scenes(
    directory: Path, task: Task, full: bool, scenes: int | None, seed: int | None, overwrite: bool, json: bool
) -> None:
    from cmtvision.cli import output
    from cmtvision.data.scenes.write import NUM_SCENES, write_sample_scenes

    number = NUM_SCENES if scenes is None else scenes
    kind: Literal["detection", "segmentation"] = "detection" if task is Task.DETECTION else "segmentation"
    with output.progress("composing scenes") as progress:
        summary = write_sample_scenes(
            directory,
            kind,
            scenes=number,
            seed=seed or 0,
            full=full,
            overwrite=overwrite,
            progress=progress,
        )
    if json:
        output.result_json(
            {
                "directory": str(summary.directory),
                "task": summary.task,
                "train": summary.num_train,
                "val": summary.num_val,
                "objects": summary.num_objects,
                "classes": list(summary.classes),
                "source": summary.source,
            }
        )
        return
    output.result(
        f"{summary.directory}: {summary.num_train:,} scenes to train on, {summary.num_val:,} held out, "
        f"{summary.num_objects:,} objects, {len(summary.classes)} classes"
    )
    command = {"detection": "detect", "segmentation": "segment"}[kind]
    output.note(f"next: cmtvision {command} train {quote(str(summary.directory))}")
