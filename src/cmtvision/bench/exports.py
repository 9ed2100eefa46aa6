"""Exports to time: each network in each runtime's file and precision, verified on real photos before it counts."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import cast

from PIL import Image

from cmtvision.artefact import Artefact, read_artefact
from cmtvision.bench.runtimes import EXPORTS
from cmtvision.bench.target import ImgSize, Target
from cmtvision.data import Preprocess
from cmtvision.data.idx import read_idx
from cmtvision.errors import one_line
from cmtvision.models.user_models import expand

NUM_IMAGES = 8  # to verify on: enough to see a wrong export, little beside the timing
Progress = Callable[[int, int], None]


def make_exports(
    targets: Sequence[Target], folder: Path, progress: Progress | None = None
) -> tuple[list[Target], dict[Target, str]]:
    """Export what targets need, into folders under ``folder``.

    Args:
        targets: from ``in_runtimes``.
        folder: where exports are written, and the photos that they are verified on.
        progress: called with (exports done, exports in all).

    Returns:
        The targets with their files, and those that cannot be exported with the reason.
    """
    from cmtvision.deploy.exporting.export import export
    from cmtvision.deploy.exporting.network import Precision, RuntimeName

    missing = [target for target in targets if target.runtime in EXPORTS and target.file is None]
    todo = list(dict.fromkeys(map(_key, missing)))
    made: dict[Target, Path | str] = {}
    photos: list[Path] = []
    for done, wanted in enumerate(todo, 1):
        try:
            photos = photos or some_photos(folder / "photos")
            out = folder / f"export-{done}"
            exported = export(
                artefact_of(wanted),
                cast(RuntimeName, wanted.runtime),
                out,
                img_size=_size(wanted),
                precision=cast(Precision, wanted.precision),
                images=photos,
            )
            made[wanted] = Path(exported.folder)
        except Exception as error:  # whatever an exporter does to a network of anyone, the others go on
            made[wanted] = one_line(error)
        if progress is not None:
            progress(done, len(todo))
    filled, failures = [], {}
    for target in targets:
        outcome = made.get(_key(target)) if target in missing else None
        if isinstance(outcome, str):
            failures[target] = outcome
        filled.append(replace(target, file=outcome) if isinstance(outcome, Path) else target)
    return filled, failures


def _size(target: Target) -> ImgSize:
    """Of an export: as given, of a detector or segmenter the usual one, else the run's own."""
    if target.card is None or target.img_size is not None:
        return target.img_size if target.folder else None
    return target.card.usual_size if target.is_dense else None


def _key(target: Target) -> Target:
    """The same file serves any number of threads."""
    return replace(target, threads=1, file=None)


def artefact_of(target: Target) -> Artefact:
    """What is exported: a run as it is; a name with random weights, classes '0', '1', ... and its own preprocess.

    Raises:
        CmtvisionError: a run that cannot be read, a size the network does not take.
    """
    import timm

    if target.folder is not None:
        return read_artefact(target.folder)
    model = target.build().eval()
    preprocess = Preprocess.from_timm(timm.data.resolve_model_data_config(model))
    size = target.img_size
    if size is not None:
        preprocess = replace(preprocess, size=(size, size) if isinstance(size, int) else size)
    own = expand(target.architecture)
    sized = {"img_size": list(preprocess.size)} if size is not None and hasattr(model, "set_input_size") else {}
    return Artefact(
        model=model,
        architecture=target.architecture if own is None else own.base,
        arguments={**({} if own is None else own.options), **sized},
        classes=[str(number) for number in range(cast(int, model.num_classes))],
        preprocess=preprocess,
    )


def some_photos(folder: Path) -> list[Path]:
    """A few of the bundled photos as files."""
    bundled = resources.files("cmtvision.data") / "fashion_mnist" / "t10k-images-idx3-ubyte.gz"
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, pixels in enumerate(read_idx(bundled, (10_000, 28, 28))[:NUM_IMAGES]):
        files.append(folder / f"{number}.png")
        Image.fromarray(pixels).save(files[-1])
    return files
