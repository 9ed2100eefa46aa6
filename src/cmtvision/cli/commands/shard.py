"""``cmtvision shard``: images as WebDataset shards, for disks and object stores that dislike a million small files."""

import re
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from cmtvision.errors import ConfigError

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def shard(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Images: whatever cmtvision train takes.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write the shards to.")],
    shard_size: Annotated[str, typer.Option("--shard-size", metavar="SIZE", help="Size of a shard.")] = "256MB",
    short_side: Annotated[
        int | None,
        typer.Option("--short-side", min=1, metavar="PIXELS", help="Shrink larger images to this [as they are]."),
    ] = None,
    val_fraction: Annotated[
        float | None,
        typer.Option(
            "--val-fraction", metavar="SHARE", help="Hold out a share of each class as val/ [as the data is]."
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the order, and of what is held out.")] = 0,
    multi_label: Annotated[bool, typer.Option("--multi-label", help="An image may have several classes.")] = False,
    image_column: Annotated[str | None, typer.Option("--image-column", metavar="NAME", help="Of a table.")] = None,
    label_column: Annotated[str | None, typer.Option("--label-column", metavar="NAME", help="Of a table.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace shards written before.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Write images as tar shards (WebDataset) with an index; damaged images are named and left out."""
    size = _bytes(shard_size)
    from cmtvision.cli import output
    from cmtvision.data import read_dataset, write_shards

    with output.progress("verifying photos") as progress:
        index = read_dataset(
            data,
            val_fraction=val_fraction or 0.0,
            split_seed=seed,
            multi_label=multi_label,
            image_column=image_column,
            label_column=label_column,
            progress=progress,
        )
    if val_fraction is not None and index.split_source not in ("seeded", "none"):
        raise ConfigError(f"--val-fraction: {data} has a validation part already; leave the option out")
    with output.progress("writing photos") as progress:
        written = write_shards(
            index, out, shard_bytes=size, seed=seed, overwrite=overwrite, short_side=short_side, progress=progress
        )
    for item in index.skipped:
        output.note(f"skipped {item.path}: {item.reason}")
    if json:
        output.result_json(
            {
                "directory": str(written.directory),
                "shards": written.num_shards,
                "train": written.num_train,
                "val": written.num_val,
                "test": written.num_test,
                "bytes": written.num_bytes,
                "classes": list(written.classes),
                "skipped": [{"path": str(item.path), "reason": item.reason} for item in index.skipped],
            }
        )
        return
    held_out = f", {written.num_val:,} held out" if written.num_val else ""
    held_out += f", {written.num_test:,} for test" if written.num_test else ""
    output.result(
        f"{out}: {written.num_train:,} photos{' to train on' if held_out else ''}{held_out}, "
        f"{len(written.classes)} classes, {written.num_shards} shard{'s' if written.num_shards > 1 else ''}, "
        f"{written.num_bytes / 1e6:,.1f} MB"
    )
    output.note(f"next: cmtvision train {quote(str(out))}")


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in _UNITS or float(match[1]) * _UNITS[match[2]] < 1:
        raise ConfigError(f"--shard-size: got {text!r}, expected a size like 256MB or 1GB")
    return int(float(match[1]) * _UNITS[match[2]])
