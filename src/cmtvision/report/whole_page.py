"""The whole report of a run: the quick page, and all that the images themselves tell.

Whatever cannot be done is told in one line of the page, and the rest is done: images that are gone or cannot be read, a
class without images, a run without held-out images, a network that no map can be drawn of.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cmtvision.artefact import Predictor, load
from cmtvision.artefact.run.names import REPORT_FILE
from cmtvision.artefact.run.read import LabelScores, RunFolder, Scores, label_scores, read_run
from cmtvision.data import DatasetIndex
from cmtvision.engine import Evaluation, MultiLabelEvaluation
from cmtvision.engine.evaluation.evaluate import Split
from cmtvision.errors import ConfigError, DataError
from cmtvision.files import write_text
from cmtvision.report.answers import answers_of
from cmtvision.report.evaluated import Stage, evaluated, silent
from cmtvision.report.intervals import Interval, share_interval
from cmtvision.report.measures import MAX_MEASURED, measured_columns, read_table, table_columns
from cmtvision.report.model_card import model_card, readme
from cmtvision.report.page import Content, ImageFindings, page_html, size_of
from cmtvision.report.sections.calibration import calibration
from cmtvision.report.sections.matrix import MAX_TABLE
from cmtvision.report.sections.mistakes import examples, pair_pictures
from cmtvision.report.sections.robustness import NUM_IMAGES, Robustness, robustness
from cmtvision.report.sections.slices import Slices, slices_of
from cmtvision.report.statistics import confused_pairs

MAX_BYTES = 15_000_000
README_FILE = "README.md"


@dataclass(frozen=True)
class Options:
    """What a report is to hold.

    Attributes:
        split: which images.
        slices: a CSV with columns to slice by, see ``measures.table_columns``.
        corruptions: measure robustness too.
        num_images: on how many images, at most.
        batch_size: images at a time.
        workers: loader processes; None chooses.
    """

    split: Split = "val"
    slices: Path | None = None
    corruptions: bool = False
    num_images: int = NUM_IMAGES
    batch_size: int = 128
    workers: int | None = None


@dataclass(frozen=True)
class WholeReport:
    """What was written: the page, the README.md (None where one was there), and the figures for a machine."""

    page: Path
    readme: Path | None
    notes: list[str]
    figures: dict[str, Any]


def write_whole_report(
    run: str | Path,
    data: str | Path | None = None,
    options: Options | None = None,
    *,
    out: Path | None = None,
    readme_file: Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    stage: Stage = silent,
) -> WholeReport:
    """Write the whole report of a run, and its model card as README.md.

    Args:
        run: a run folder, or an export with the record of its run.
        data: its images; by default where they were in training. What a run's record names is never fetched.
        options: what the report is to hold.
        out: the page; by default RUN/report.html, which is replaced, as it always is made from the run.
        readme_file: the model card; by default RUN/README.md, which is left as it is where there is one.
        overwrite: replace that, too.
        device: 'auto', 'cpu', 'cuda' or 'mps'.
        stage: gives a progress callback for each long piece of work, by its name.

    Raises:
        CheckpointError: not a run folder, or a model that cannot be loaded, or a file that cannot be written.
        ConfigError: a file that is there already and was named.
        DataError: a damaged file in the run folder, or data that was named or a table that cannot be used.
    """
    options = options or Options()
    for file in (out, readme_file):
        if file is not None and file.exists() and not overwrite:
            raise ConfigError(f"{file}: already exists; choose another name, or use --overwrite")
    if options.slices is not None:
        read_table(options.slices)  # what is wrong with it is better said before the images are predicted
    content = read_run(run)
    predictor = load(content.folder, device)
    how = (options.split, options.batch_size, options.workers)
    evaluation, index, notes = evaluated(content, predictor, data, *how, stage)
    found = None
    if evaluation is not None and index is not None:
        rendered, found, notes = whole_page(content, predictor, evaluation, index, options, stage, notes)
    else:
        rendered = _rendered(content, predictor, None, notes)
    page = out or content.folder / REPORT_FILE
    write_text(page, rendered)
    card = readme_file or content.folder / README_FILE
    kept = readme_file is None and card.exists() and not overwrite
    if not kept:
        write_text(card, _readme(content, predictor, found))
    return WholeReport(page, None if kept else card, notes, figures_of(found, content))


def whole_page(
    run: RunFolder,
    predictor: Predictor,
    evaluation: Evaluation | MultiLabelEvaluation,
    index: DatasetIndex,
    options: Options,
    stage: Stage = silent,
    notes: Sequence[str] = (),
) -> tuple[str, ImageFindings, list[str]]:
    """The page of an evaluation, what was found, and the notes with those that were added.

    Raises:
        DataError: a table of ``options.slices`` that cannot be used, or a page larger than MAX_BYTES even with few
            pictures.
    """
    maker = _Maker(evaluation, index, predictor, options, stage, notes)
    for pictures in (12, 6, 3):
        found = maker.find(pictures)
        rendered = _rendered(run, predictor, found, maker.notes)
        if size_of(rendered) < MAX_BYTES:
            return rendered, found, maker.notes
    raise DataError(f"{run.folder}: its report would be larger than {MAX_BYTES // 1_000_000} MB")


class _Maker:
    """Finds out what the images tell; what does not depend on the number of pictures is found once."""

    def __init__(
        self,
        evaluation: Evaluation | MultiLabelEvaluation,
        index: DatasetIndex,
        predictor: Predictor,
        options: Options,
        stage: Stage,
        notes: Sequence[str],
    ) -> None:
        self.evaluation, self.predictor, self.notes = evaluation, predictor, list(notes)
        self.answers = answers_of(evaluation, index.relative)
        self.trained_on = evaluation.split in ("train", "all") and index.split_source == "run"
        self.slices = self._slices(options, stage)
        self.robustness: Robustness | None = None
        if options.corruptions:
            with stage("corrupting images") as progress:
                self.robustness = robustness(self.answers, predictor, options.num_images, progress)

    def find(self, pictures: int) -> ImageFindings:
        """What the images tell, with so many pictures in a row."""
        answers, evaluation = self.answers, self.evaluation
        scores = scores_of(evaluation)
        top1 = share_interval(int(answers.right.sum()), len(answers))
        shown = examples(answers, self.predictor, pictures)
        if not isinstance(evaluation, Evaluation):
            return ImageFindings(
                scores, top1, slices=self.slices, examples=shown, robustness=self.robustness, trained_on=self.trained_on
            )
        classes = evaluation.classes
        pairs = confused_pairs(classes, evaluation.counts, 6 if len(classes) <= MAX_TABLE else 10)
        return ImageFindings(
            scores,
            top1,
            share_interval(int(answers.in_five.sum()), len(answers)) if len(classes) > 5 else None,
            calibration(answers),
            self.slices,
            shown,
            pair_pictures(answers, pairs, min(pictures, 6)),
            self.robustness,
            self.trained_on,
        )

    def _slices(self, options: Options, stage: Stage) -> list[Slices]:
        answers = self.answers
        places = np.unique(np.linspace(0, len(answers) - 1, min(len(answers), MAX_MEASURED)).round().astype(int))
        if len(places) < len(answers):
            self.notes.append(f"Size and brightness were measured on {len(places):,} of {len(answers):,} images.")
        with stage("measuring images") as progress:
            columns = measured_columns([answers.paths[i] for i in places.tolist()], progress)
        found = slices_of(columns, answers.right[places])
        if options.slices is not None:
            table, notes = table_columns(options.slices, answers.names, answers.paths)
            self.notes += notes
            found += slices_of(table, answers.right)
        return found


def scores_of(evaluation: Evaluation | MultiLabelEvaluation) -> Scores | LabelScores:
    """An evaluation as a run folder would have it."""
    if isinstance(evaluation, MultiLabelEvaluation):
        return label_scores(evaluation.to_dict())
    return Scores(evaluation.classes, evaluation.counts, evaluation.top5_correct, evaluation.loss, evaluation.split)


def _rendered(run: RunFolder, predictor: Predictor, found: ImageFindings | None, notes: Sequence[str]) -> str:
    return page_html(Content(run, predictor, _card(run, predictor, found), found, notes=notes))


def _card(run: RunFolder, predictor: Predictor, found: ImageFindings | None) -> Any:
    if found is None:
        return model_card(run, predictor, run.scores)
    return model_card(run, predictor, found.scores, found.calibration, list(found.slices), found.robustness)


def _readme(run: RunFolder, predictor: Predictor, found: ImageFindings | None) -> str:
    scores = found.scores if found is not None else run.scores
    return readme(_card(run, predictor, found), run, predictor, scores)


def figures_of(found: ImageFindings | None, run: RunFolder) -> dict[str, Any]:
    """The figures of a page, ready for JSON; empty where the images were not looked at."""
    if found is None:
        return {}
    harm = found.robustness
    figures: dict[str, Any] = {
        "split": found.scores.split,
        "num_images": found.scores.num_images,
        "top1": _interval(found.top1),
        "top5": _interval(found.top5),
        "slices": [
            {"name": one.name, "note": one.note, "parts": [row._asdict() for row in one.rows]} for one in found.slices
        ],
    }
    if found.calibration is not None:
        figures["calibration"] = {"ece": found.calibration.error, "gap": _interval(found.calibration.gap)}
    if harm is not None and harm.mean is not None:
        figures["robustness"] = {
            "num_images": harm.num_images,
            "clean": harm.clean,
            "mean": _interval(harm.mean),
            "corruptions": {row.name: row.accuracy for row in harm.rows},
        }
    return figures


def _interval(one: Interval | None) -> dict[str, Any] | None:
    return None if one is None else one._asdict()
