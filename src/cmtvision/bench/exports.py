"""Exports to time: each network in each runtime's file and precision, verified on real photos before it counts."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import cast

from PIL import Image

from cmtvision.artefact import Artefact, read_artefact
from cmtvision.bench.forms import EXPORTS, Form
from cmtvision.data import Preprocess
from cmtvision.data.idx import read_idx
from cmtvision.errors import one_line

NUM_IMAGES = 8  # to verify on: enough to see a wrong export, little beside the timing
Progress = Callable[[int, int], None]


def make_exports(
    forms: Sequence[Form], folder: Path, progress: Progress | None = None
) -> tuple[list[Form], dict[Form, str]]:
    """Export what forms need, into folders under ``folder``.

    Args:
        forms: from ``find_forms``.
        folder: where exports are written, and the photos that they are verified on.
        progress: called with (exports done, exports in all).

    Returns:
        The forms with their files, and those that cannot be exported with the reason.
    """
    from cmtvision.deploy.export import export
    from cmtvision.deploy.network import Precision, RuntimeName

    missing = [form for form in forms if form.runtime in EXPORTS and form.file is None]
    todo = list(dict.fromkeys(map(_key, missing)))
    made: dict[Form, Path | str] = {}
    photos: list[Path] = []
    for done, wanted in enumerate(todo, 1):
        try:
            photos = photos or some_photos(folder / "photos")
            out = folder / f"export-{done}"
            exported = export(
                artefact_of(wanted),
                cast(RuntimeName, wanted.runtime),
                out,
                img_size=wanted.img_size if wanted.target.subject and wanted.target.subject.run else None,
                precision=cast(Precision, wanted.precision),
                images=photos,
            )
            made[wanted] = Path(exported.folder)
        except Exception as error:  # whatever an exporter does to a network of anyone, the others go on
            made[wanted] = one_line(error)
        if progress is not None:
            progress(done, len(todo))
    filled, failures = [], {}
    for form in forms:
        outcome = made.get(_key(form)) if form in missing else None
        if isinstance(outcome, str):
            failures[form] = outcome
        filled.append(replace(form, file=outcome) if isinstance(outcome, Path) else form)
    return filled, failures


def _key(form: Form) -> Form:
    """The same file serves any number of threads."""
    return replace(form, threads=1, file=None)


def artefact_of(form: Form) -> Artefact:
    """What is exported: a run as it is; a name with random weights, classes '0', '1', ... and its own preprocess.

    Raises:
        CmtvisionError: a run that cannot be read, a size the network does not take.
    """
    import timm

    subject = form.target.subject
    assert subject is not None
    if subject.run is not None:
        return read_artefact(subject.run)
    model = form.target.build(form.img_size).eval()
    preprocess = Preprocess.from_timm(timm.data.resolve_model_data_config(model))
    size = form.img_size
    if size is not None:
        preprocess = replace(preprocess, size=(size, size) if isinstance(size, int) else size)
    return Artefact(
        model=model,
        architecture=subject.architecture,
        arguments={"img_size": list(preprocess.size)} if size is not None and hasattr(model, "set_input_size") else {},
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


def temporary_folder() -> "tempfile.TemporaryDirectory[str]":
    """Where exports stand while they are timed."""
    return tempfile.TemporaryDirectory(prefix="cmtvision-bench-")
