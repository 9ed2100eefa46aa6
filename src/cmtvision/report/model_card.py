"""The model card: data, recipe, figures, cost, versions and limits of a model, for the page and for Hugging Face.

After Mitchell et al., Model Cards for Model Reporting, FAT* 2019. Only what is on record is said; what a person must
add (intended use, licence of the images) is named as missing.
"""

import html
import re
from pathlib import Path
from typing import Any, NamedTuple

from cmtvision.artefact import Predictor
from cmtvision.artefact.run.read import LabelScores, RunFolder, Scores
from cmtvision.data.listing.index import as_text
from cmtvision.errors import ConfigError
from cmtvision.models.analysis.count import count, total
from cmtvision.report.folder_facts import duration, last, parameters_of, section
from cmtvision.report.html import percent, shorten
from cmtvision.report.intervals import share_interval
from cmtvision.report.sections.calibration import Calibration
from cmtvision.report.sections.robustness import Robustness
from cmtvision.report.sections.slices import Slices
from cmtvision.report.statistics import class_rows

_MAX_CLASSES_NAMED = 50
_FEW_IMAGES = 30
_SPLITS = {"val": "held-out images", "test": "test images", "train": "training images", "all": "all images"}


class CardPart(NamedTuple):
    """A part of the card: its title, and facts as (name, value)."""

    title: str
    facts: list[tuple[str, str]]


class ModelCard(NamedTuple):
    """The card: its parts, and the limits, a sentence each."""

    parts: list[CardPart]
    limits: list[str]


def model_card(
    run: RunFolder,
    predictor: Predictor,
    scores: Scores | LabelScores | None,
    calibration: Calibration | None = None,
    slices: list[Slices] | None = None,
    robustness: Robustness | None = None,
) -> ModelCard:
    """The card of a run, with what is known of its figures."""
    parts = [
        CardPart("Model", _model(predictor)),
        CardPart("Data", _data(run, predictor)),
        CardPart("Recipe", _recipe(run)),
        CardPart("Figures", _figures(scores, calibration, robustness)),
        CardPart("Cost", _cost(run, predictor)),
        CardPart("Versions", _versions(run, predictor)),
    ]
    kept = [CardPart(part.title, [fact for fact in part.facts if fact[1]]) for part in parts]
    return ModelCard([part for part in kept if part.facts], _limits(run, scores, slices, robustness))


def _model(predictor: Predictor) -> list[tuple[str, str]]:
    card, parameters = predictor.card, parameters_of(predictor)
    height, width = card.preprocess.size
    facts = [
        ("Architecture", card.architecture),
        ("Task", "image classification" + (", several labels per image" if card.task == "multi-label" else "")),
        ("Input", f"{height} by {width} px, {card.preprocess.channels} channels"),
        ("Parameters", "" if parameters is None else f"{parameters / 1e6:.2f} million"),
        ("Work per image", _work(predictor)),
    ]
    if card.export is not None:
        facts.append(("Export", f"{card.export.runtime}, {card.export.precision}"))
    return facts


def _work(predictor: Predictor) -> str:
    """The multiply-adds of one image in words, '' where they cannot be counted."""
    if predictor.card.export is not None:
        return ""
    preprocess = predictor.preprocess
    try:
        rows = count(predictor.artefact.model, (preprocess.channels, *preprocess.size))
    except ConfigError:
        return ""
    return f"{total(rows).macs / 1e6:,.1f} million multiply-adds"


def _data(run: RunFolder, predictor: Predictor) -> list[tuple[str, str]]:
    facts, classes = run.facts, predictor.classes
    named = ", ".join(classes[:_MAX_CLASSES_NAMED])
    more = f" and {len(classes) - _MAX_CLASSES_NAMED:,} more" if len(classes) > _MAX_CLASSES_NAMED else ""
    counts = [(part, facts.get(f"num_{part}")) for part in ("train", "val", "test")]
    source = {
        "folders": "as the data says", "csv": "as the data says", "none": "nothing held out",
        "seeded": f"{percent(_share(facts.get('val_fraction')), 0)} of the images, by a hash of their names",
    }  # fmt: skip
    return [
        ("Name", Path(run.data).name or run.data),
        ("Images", ", ".join(f"{count:,} {part}" for part, count in counts if isinstance(count, int) and count)),
        ("Held out", source.get(str(facts.get("split_source")), "")),
        ("Classes", f"{len(classes):,}: {named}{more}"),
        ("Fingerprint", str(facts.get("data_fingerprint", ""))[:16]),
    ]


def _recipe(run: RunFolder) -> list[tuple[str, str]]:
    model, optim, train = section(run, "model"), section(run, "optim"), section(run, "train")
    augment = section(run, "augment")
    used = [key for key in ("auto_augment", "mixup", "cutmix", "random_erasing", "label_smoothing") if augment.get(key)]
    text = {
        "Name": run.recipe.get("name"),
        "Starts from": model.get("weights") or ("random weights" if model else None),
        "Epochs": section(run, "schedule").get("epochs"),
        "Batch size": train.get("batch_size"),
        "Optimiser": f"{optim['name']}, learning rate {optim.get('lr')}" if optim.get("name") else None,
        "Augmentation": ", ".join(f"{key} {augment[key]}" for key in used) or None,
        "Teacher": section(run, "distill").get("teacher"),
    }
    return [(name, str(value)) for name, value in text.items() if value is not None]


def _figures(
    scores: Scores | LabelScores | None, calibration: Calibration | None, robustness: Robustness | None
) -> list[tuple[str, str]]:
    facts: list[tuple[str, str]] = []
    if isinstance(scores, LabelScores):
        facts += [
            ("Measured on", f"{scores.num_images:,} {_SPLITS.get(scores.split, 'images')}"),
            ("Mean average precision", percent(scores.mean_average_precision, 2)),
            ("F1 at probability 50%", percent(scores.micro_f1, 2)),
        ]
    elif scores is not None and scores.num_images:
        top1 = share_interval(scores.top1_correct, scores.num_images)
        facts += [
            ("Measured on", f"{scores.num_images:,} {_SPLITS.get(scores.split, 'images')}"),
            ("Top-1 accuracy", f"{percent(top1.value, 2)} (95% interval {percent(top1.low)} to {percent(top1.high)})"),
        ]
        if scores.top5_correct is not None and len(scores.classes) > 5:
            facts.append(("Top-5 accuracy", percent(scores.top5_correct / scores.num_images, 2)))
    if calibration is not None:
        facts.append(("Expected calibration error", percent(calibration.error, 2)))
    if robustness is not None and robustness.mean is not None:
        facts.append(("On corrupted images", f"{percent(robustness.mean.value)} (clean {percent(robustness.clean)})"))
    return facts


def _cost(run: RunFolder, predictor: Predictor) -> list[tuple[str, str]]:
    rate, processes = last(run, "images_per_second"), run.facts.get("processes")
    memory = last(run, "gpu_memory_gb")
    epochs = predictor.card.provenance.get("epochs") or len(run.metrics)
    return [
        ("Training", f"{duration(run)}, {epochs} epochs" if run.metrics else ""),
        ("Speed", f"{rate:,.0f} images/s" if rate else ""),
        ("Processes", str(processes or "")),
        ("GPU memory", f"{memory:.1f} GB" if memory else ""),
    ]


def _versions(run: RunFolder, predictor: Predictor) -> list[tuple[str, str]]:
    known = {**run.facts, **predictor.card.provenance}
    names = ("cmtvision", "torch", "timm", "python", "created")
    return [(name, str(known[name])) for name in names if known.get(name)]


def _limits(
    run: RunFolder,
    scores: Scores | LabelScores | None,
    slices: list[Slices] | None,
    robustness: Robustness | None,
) -> list[str]:
    found = ["It knows its classes and nothing else: an image of anything else gets one of them as well."]
    if scores is None:
        return [*found, "Nothing was held out, so how well it does on new images is not known."]
    if scores.split not in ("val", "test"):
        found.append("Its figures are over images that it may have been trained on.")
    found.append("Intervals say what the number of images allows to say; they hold for images of the same kind only.")
    if section(run, "train").get("early_stop_patience") is not None and scores.split == "val":
        found.append("The held-out images chose the epoch, so accuracy on new ones is probably a little lower.")
    if isinstance(scores, Scores):
        rows = class_rows(scores.classes, scores.confusion)
        few = sum(row.images < _FEW_IMAGES for row in rows)
        if few:
            found.append(f"{few:,} of {len(rows):,} classes were measured on fewer than {_FEW_IMAGES} images each.")
        worst = [row for row in rows if row.recall is not None][:3]
        said = ", ".join(f"{shorten(row.name, 60)} ({percent(row.recall, 0)})" for row in worst)
        if said and len(rows) > 1:
            found.append(f"It finds these classes least often: {said}.")
    for one in slices or []:
        worse = [row for row in one.rows if "worse" in row.remark]
        if worse:
            said = ", ".join(f"{row.name} ({percent(row.share, 0)})" for row in worse)
            found.append(f"It does worse where {one.name.lower()} is {said}.")
    if robustness is not None and robustness.rows:
        hardest = min(robustness.rows, key=lambda row: row.mean)
        found.append(f"Of the corruptions, {hardest.name.lower()} costs it most: {percent(hardest.mean, 0)} right.")
    else:
        found.append("How it does on noisy, blurred or otherwise corrupted images was not measured.")
    return found


def readme(card: ModelCard, run: RunFolder, predictor: Predictor, scores: Scores | LabelScores | None) -> str:
    """The card as README.md for Hugging Face: YAML front matter, which its ModelCard reads, and Markdown."""
    name = f"{predictor.card.architecture} on {Path(run.data).name or 'own images'}"
    lines = [f"---\n{_front_matter(run, predictor, scores, name)}\n---", f"# {_plain(name)}"]
    for part in card.parts:
        facts = "\n".join(f"- **{fact}:** {_plain(shorten(value, 2000))}" for fact, value in part.facts)
        lines.append(f"## {part.title}\n\n{facts}")
    lines.append("## Limits\n\n" + "\n".join(f"- {_plain(line)}" for line in card.limits))
    lines.append("## Use\n\n```python\nimport cmtvision\n\nmodel = cmtvision.load(\"path/to/this/folder\")\n"
                 "print(model.predict([\"photo.jpg\"])[0])\n```")  # fmt: skip
    lines.append("## To be added by a person\n\nIntended use and users; where the images come from and their licence; "
                 "the licence of this model.")  # fmt: skip
    return "\n\n".join(lines) + "\n"


def _front_matter(run: RunFolder, predictor: Predictor, scores: Scores | LabelScores | None, name: str) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    data = as_text(Path(run.data).name or "own images")
    several = isinstance(scores, LabelScores)
    figures: dict[str, tuple[str, float]] = {}
    if isinstance(scores, LabelScores):
        figures["mean_average_precision"] = ("mAP", scores.mean_average_precision)
    elif scores is not None and scores.num_images:
        figures["accuracy"] = ("Top-1 accuracy", scores.top1_correct / scores.num_images)
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=re.sub(r"[^\w.-]+", "-", data, flags=re.ASCII).strip("-") or "images",
            dataset_name=data,
            dataset_split=scores.split if scores is not None else None,
            metric_type=kind,
            metric_name=title,
            metric_value=round(value, 6),
        )
        for kind, (title, value) in figures.items()
    ]
    kept: dict[str, Any] = {"model_name": as_text(name), "eval_results": results} if results else {}
    tags = ["cmt", "image-classification", predictor.card.architecture, *(["multi-label"] if several else [])]
    card = ModelCardData(
        library_name="cmtvision",
        pipeline_tag="image-classification",
        tags=tags,
        metrics=list(figures) or None,
        **kept,
    )
    return str(card.to_yaml())


def _plain(text: str) -> str:
    """A text that Markdown and HTML leave as it is, in one line."""
    line = html.escape(" ".join(as_text(text).split()), quote=False)
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", line)


def _share(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None
