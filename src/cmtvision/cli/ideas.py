"""``cmtvision explain --ideas``: the page on which one photo passes through a CMT."""

from pathlib import Path
from typing import TYPE_CHECKING

from cmtvision.cli import output

if TYPE_CHECKING:
    from torch import nn

    from cmtvision.artefact import Predictor

DEFAULT_MODEL = "cmt_ti"
"""The paper's smallest network: its key grid is fine enough to point into, and random weights cost nothing."""
DEFAULT_OUT = Path("ideas.html")
_SEED = 0


def show_ideas(model: str | None, image: str | Path, out: Path | None, overwrite: bool, json: bool) -> None:
    """Write the page and say where it is.

    Args:
        model: a run folder, or a model's name, which is made with random weights, always the same; None for cmt_ti.
        image: the photo.
        out: the page; None for ideas.html.
        overwrite: whether it may replace a file.
        json: print the result as JSON.

    Raises:
        ConfigError: a model that is no CMT, or a page that is there already.
        CheckpointError: a folder that is no run.
        DataError: an image that cannot be read.
    """
    from cmtvision.cli.subject import is_run
    from cmtvision.data.decode import image_size
    from cmtvision.explain.ideas import write_ideas

    model, page = model or DEFAULT_MODEL, out or DEFAULT_OUT
    output.refuse_overwrite(page, overwrite)
    image_size(image)  # before the model is loaded: a wrong path is answered at once
    trained = is_run(model)
    subject: Predictor | nn.Module
    if trained:
        from cmtvision.artefact import load

        subject = load(model, device="cpu")
        name = f"{subject.card.architecture} of {Path(model).resolve().name}"
    else:
        subject, name = _random_network(model), model
    written = write_ideas(subject, image, page, trained=trained, name=name)
    if json:
        output.result_json({"page": str(written), "model": name, "trained": trained, "bytes": written.stat().st_size})
        return
    output.result(f"page: {written} ({written.stat().st_size / 1e6:.1f} MB); open it in a browser")
    if not trained:
        output.note(f"{name} has random weights here, and the page says so; give a run folder to watch a trained one")


def _random_network(name: str) -> "nn.Module":
    """A named CMT with random weights, the same at every call."""
    import torch

    from cmtvision.explain.ideas.trace import as_cmt
    from cmtvision.models import build_shapes_only, create_model

    as_cmt(build_shapes_only(name)[0], name)  # before values are drawn, which takes a large model long
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        network: nn.Module = create_model(name)
    return network
