"""One page on which a person watches one photo pass through a CMT: a file of its own that loads nothing.

The Content-Security-Policy lets only the page's own script run, by its hash; without scripts the page is whole but
for the choice of a position. Every text from outside is escaped, and no path of this machine is in it.
"""

import base64
import hashlib
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from PIL import Image
from timm.data import resolve_model_data_config
from torch import nn

from cmtvision.artefact import Predictor
from cmtvision.data import ImageSource, Preprocess
from cmtvision.data.decode import open_image
from cmtvision.explain.ideas import words
from cmtvision.explain.ideas.content import Subject, page_content
from cmtvision.explain.ideas.pictures import thumbnail
from cmtvision.explain.ideas.trace import as_cmt, trace
from cmtvision.files import write_text
from cmtvision.models import CMT

PHOTO_SIDE = 400


def write_ideas(
    model: Predictor | nn.Module,
    image: ImageSource,
    out: str | Path,
    *,
    trained: bool,
    name: str = "",
    preprocess: Preprocess | None = None,
) -> Path:
    """Write the page of one photo's way through a CMT.

    Args:
        model: a predictor of a run, or a network.
        image: whatever ``cmtvision.data.open_image`` takes.
        out: the file to write; an existing one is replaced.
        trained: whether the weights were learned; the page says so and chooses its words by it.
        name: what the page calls the model, '' for its architecture.
        preprocess: of a network, how the image becomes its input; None for its own evaluation transform.

    Returns:
        The path of the page.

    Raises:
        ConfigError: a model that is no CMT.
        DataError: an image that cannot be read.
        CheckpointError: an export, which has no network in it, or a page that cannot be written.
    """
    classes: list[str] = []
    several, temperature = False, 1.0
    if isinstance(model, Predictor):
        artefact = model.artefact
        network = as_cmt(artefact.model, name or artefact.architecture)
        name = name or artefact.architecture
        classes, several, preprocess = artefact.classes, model.task == "multi-label", artefact.preprocess
        temperature = artefact.temperature
    else:
        architecture = str((getattr(model, "pretrained_cfg", None) or {}).get("architecture", type(model).__name__))
        network = as_cmt(model, name or architecture)
        name = name or architecture
    preprocess = preprocess or own_preprocess(network)
    pixels = preprocess.prepare(image)  # (H, W, C)
    found = trace(network, torch.from_numpy(preprocess.finish(pixels)))
    about = Subject(network, name, trained, classes, several, temperature)
    path = Path(out)
    write_text(path, _render({**page_content(about, found), **_photo(image, pixels)}))
    return path


def own_preprocess(network: CMT) -> Preprocess:
    """A network's own evaluation transform, at the size and channels that it was made for."""
    config = resolve_model_data_config(network)
    size = network.img_size
    return replace(Preprocess.from_timm({**config, "input_size": (network.in_chans, *size)}), size=size)


def _photo(image: ImageSource, pixels: npt.NDArray[np.uint8]) -> dict[str, Any]:
    """The photo as it is, and as the network gets it."""
    height, width, planes = pixels.shape
    seen = Image.fromarray(np.ascontiguousarray(pixels if planes == 3 else pixels[:, :, 0]))
    shown = {"seen": thumbnail(seen, PHOTO_SIDE), "seen_size": (width, height), "photo": None, "file": ""}
    if planes not in (1, 3):  # an array of many bands, of which the first is shown
        return shown
    original = open_image(image)
    file = Path(image).name if isinstance(image, str | Path) else ""
    return shown | {"photo": thumbnail(original, PHOTO_SIDE), "photo_size": original.size, "file": file}


def _render(content: dict[str, Any]) -> str:
    folder = resources.files("cmtvision.explain.ideas")
    template, style, script = (
        folder.joinpath(name).read_text(encoding="utf-8") for name in ("ideas.html.j2", "ideas.css", "ideas.js")
    )
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(percent=words.percent, number=words.number)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    html: str = environment.from_string(template).render(
        **content, style=Markup(style), script=Markup(script), script_hash=digest
    )
    return html
