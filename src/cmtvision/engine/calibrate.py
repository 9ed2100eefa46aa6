"""Calibrate a trained model on held-out photos: temperature, prediction sets, familiarity, kept in its card."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cmtvision.artefact.card import CARD_FILE, Card, model_folder, read_card
from cmtvision.artefact.features import FEATURES_FILE, write_features
from cmtvision.artefact.files import write_trust
from cmtvision.artefact.predictor import load_card
from cmtvision.artefact.run.data import read_as_the_run
from cmtvision.engine.distributed.processes import SINGLE, Processes
from cmtvision.engine.evaluation.evaluate import Evaluation, choose_samples, evaluate_samples
from cmtvision.engine.evaluation.recorder import Recorder
from cmtvision.errors import ConfigError, DataError
from cmtvision.recipe import DataSection
from cmtvision.trust.block import TrustBlock
from cmtvision.trust.fit import Bank, fit_bank, fit_block

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Calibrated:
    """A calibration that was written.

    Attributes:
        model: the folder.
        trust: what its card now says.
        evaluation: of the same photos.
        notes: what a person should know, a sentence each.
    """

    model: Path
    trust: TrustBlock
    evaluation: Evaluation
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """The figures, ready for JSON."""
        evaluation = self.evaluation
        return {
            "model": str(self.model),
            **self.trust.summary(),
            "top1": evaluation.top1,
            "assumes": self.trust.assumption(),
            "notes": [*self.trust.notes, *self.notes],
            "skipped": [{"path": str(item.path), "reason": item.reason} for item in evaluation.skipped],
        }


def calibrate(
    model: str | Path,
    data: str | Path,
    *,
    overwrite: bool = False,
    batch_size: int = 128,
    workers: int | None = None,
    device: str = "auto",
    threads: int | None = None,
    progress: Progress | None = None,
) -> Calibrated:
    """Calibrate a model and write it to its card; weights and files of a runtime are not touched.

    Args:
        model: a run folder, an artefact, an export or a bundle.
        data: a folder or table as for training. Of a run's own photos those that it held out are used, of other data
            the validation part, or all where there is none.
        overwrite: replace a calibration.
        batch_size: photos at a time.
        workers: loader processes; None chooses.
        device, threads: of the runtime, see ``cmtvision.load``.
        progress: called as progress(done, total).

    Raises:
        CheckpointError: the model cannot be opened or its card not written.
        ConfigError: it is calibrated already, or has several labels per image.
        DataError: the data cannot be used, or the model was trained on all of it.
    """
    folder = model_folder(model)
    found = read_card(folder)
    # a damaged block is what this command mends
    former, card = found.pop("trust", None), Card.from_dict(found, folder / CARD_FILE)
    if card.task == "multi-label":
        raise ConfigError(f"{folder}: a model with several labels per image; calibration is for one label per image")
    if former is not None and not overwrite:
        raise ConfigError(f"{folder}: is calibrated already; replace that with --overwrite")
    predictor = load_card(card, folder, device, threads)
    index = read_as_the_run(folder, data, card.data_fingerprint, classes=predictor.classes, multi_label=False)
    samples, split = choose_samples(index, "val")
    recorder = Recorder(predictor, len(samples))
    evaluation = evaluate_samples(
        predictor, samples, DataSection(workers=workers), batch_size, split, index.skipped, progress, recorder=recorder
    )
    assert isinstance(evaluation, Evaluation)
    chose = _chose_epoch(folder) and index.split_source == "run"
    trust, bank = fit_recorded(recorder, split, chose_epoch=chose, arithmetic=predictor.runtime.arithmetic)
    trust = write_bank(folder, trust, bank)
    write_trust(folder, card, trust)
    return Calibrated(folder, trust, evaluation, [*index.notes, *_notes(card, trust)])


def fit_recorded(
    recorder: Recorder, split: str, *, chose_epoch: bool, arithmetic: str, processes: Processes = SINGLE
) -> tuple[TrustBlock, Bank | None]:
    """A calibration on what an evaluation recorded; every process must call it.

    Raises:
        DataError: logits that are no numbers.
    """
    seen = recorder.gather(processes)
    try:
        trust = fit_block(seen.logits, seen.targets, split=split, chose_epoch=chose_epoch, arithmetic=arithmetic)
    except ValueError as error:
        raise DataError(f"calibration: {error}") from error
    return trust, None if seen.features is None else fit_bank(seen.features)


def write_bank(folder: Path, trust: TrustBlock, bank: Bank | None) -> TrustBlock:
    """Write the features beside the card, or remove those of an earlier calibration; the block that names them."""
    if bank is None:
        (folder / FEATURES_FILE).unlink(missing_ok=True)
        return trust
    return replace(trust, distance=write_features(folder, bank))


def _chose_epoch(folder: Path) -> bool:
    """Whether a run's held-out photos decided which epoch's weights were kept."""
    from cmtvision.artefact.run.names import RECIPE_FILE
    from cmtvision.recipe import load_recipe

    try:
        return load_recipe(folder / RECIPE_FILE).train.early_stop_patience is not None
    except (OSError, ConfigError):
        return False


def _notes(card: Card, trust: TrustBlock) -> list[str]:
    notes = []
    if card.export is not None:
        notes.append("an export gives no features: unfamiliar images are told by energy alone")
    elif trust.distance is None:
        notes.append("no feature distance (too few images, or a network that hides its features): energy alone is used")
    return notes
