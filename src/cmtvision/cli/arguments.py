"""Arguments and options that several commands share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import typer

DATA_HELP = (
    "Folder of class folders; CSV or Parquet table; folder or URL of WebDataset shards; torchvision:NAME; hf:NAME."
)

RecipeOption: TypeAlias = Annotated[
    str | None, typer.Option("--recipe", metavar="NAME|FILE", help="A built-in recipe or a YAML file [default].")
]
OpenRecipeOption: TypeAlias = Annotated[
    str | None,
    typer.Option("--recipe", metavar="NAME|FILE", help="A built-in recipe or a YAML file [chosen for your images]."),
]
SettingsOption: TypeAlias = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change one setting; may be repeated.")
]
ThreadsOption: TypeAlias = Annotated[
    int | None, typer.Option("--threads", min=1, help="Threads of the runtime; default: the physical cores.")
]
StreamsOption: TypeAlias = Annotated[
    int | None, typer.Option("--streams", min=1, help="Parts of a batch computed at a time, in OpenVINO.")
]
RunFolderOption: TypeAlias = Annotated[Path | None, typer.Option("--out", help="Run folder [runs/DATA-MODEL-TIME].")]
EpochsOption: TypeAlias = Annotated[
    int | None, typer.Option("--epochs", min=1, help="Short for --set schedule.epochs=N.")
]
TrainDeviceOption: TypeAlias = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or mps.")]
SeedOption: TypeAlias = Annotated[int | None, typer.Option("--seed", min=0, help="Seed of everything random.")]
TrainDevicesOption: TypeAlias = Annotated[
    int | None, typer.Option("--devices", min=1, help="Processes on this machine, one for each GPU [1].")
]
ResumeOption: TypeAlias = Annotated[
    Literal["no", "yes", "auto"],
    typer.Option("--resume", metavar="[auto]", help="Resume the run in --out; auto: if there is one."),
]
ChangedDataOption: TypeAlias = Annotated[
    bool, typer.Option("--accept-changed-data", help="Resume although images were added or removed.")
]
OverwriteRunOption: TypeAlias = Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")]
JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
LEAST_MINUTES, MOST_MINUTES = 0.1, 525_600  # a year


def check_free(folder: Path, overwrite: bool) -> None:
    """Refuse to write a record into a folder that holds something; --overwrite replaces only what the command writes.

    Raises:
        ConfigError: a file, or a folder that is not empty.
    """
    from cmtvision.errors import ConfigError

    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise ConfigError(f"{folder}: is not empty; choose another --out, or use --overwrite")


def options_end(words: Sequence[str]) -> int:
    """Where the options of a command line end: at ``--``, after which a file name may look like an option."""
    return words.index("--") if "--" in words else len(words)


def spelled_out(words: Sequence[str]) -> list[str]:
    """A command line in which ``--resume``, which may stand alone or before 'auto', always has its value.

    typer's options have a value or none, and no way to say "perhaps".
    """
    end = options_end(words)
    out: list[str] = []
    for place, word in enumerate(words[:end]):
        following = words[place + 1] if place + 1 < end else ""
        out.append("--resume=yes" if word == "--resume" and following not in ("auto", "yes", "no") else word)
    return [*out, *words[end:]]
