"""A study kept by optuna: its storage, the next proposal, and the outcome of each trial."""

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal

from cmtvision.errors import CheckpointError, ConfigError
from cmtvision.recipe.space import Dimension

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial
    from optuna.trial import Trial as OpenTrial

Pruner = Literal["median", "hyperband", "none"]
State = Literal["complete", "pruned", "failed", "interrupted"]
_RANDOM_FIRST = 8  # trials at random before the sampler learns from them; two a dimension of the default space
_NEEDED_FOR_IMPORTANCE = 6
_INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Trial:
    """One training of a study.

    Attributes:
        number: its place in the study, and the name of its run folder.
        state: 'complete', 'pruned' (stopped early as hopeless), 'failed' or 'interrupted' (by a signal or a kill; its
            settings are tried again).
        score: held-out top-1 (or mAP) of its final network, 0 to 1; of its last epoch where pruned; None where failed.
        epochs, seconds: how long it trained.
        reason: why it failed.
        settings: its changes to the recipe.
    """

    number: int
    state: State
    score: float | None
    epochs: int
    seconds: float
    reason: str = ""
    settings: dict[str, Any] = field(default_factory=dict)


def open_study(storage: str, name: str, pruner: Pruner, resume: bool) -> "Study":
    """Begin a study in a storage, or open it again.

    Raises:
        ConfigError: optuna is not installed, no such storage, a study of that name in the way, or none to resume.
    """
    optuna = _optuna()
    from sqlalchemy.exc import SQLAlchemyError

    pruners = {
        "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1),
        "hyperband": optuna.pruners.HyperbandPruner,
        "none": optuna.pruners.NopPruner,
    }
    with quiet_optuna():
        try:
            if resume:
                return optuna.load_study(study_name=name, storage=storage, pruner=pruners[pruner]())
            return optuna.create_study(study_name=name, storage=storage, pruner=pruners[pruner](), direction="maximize")
        except optuna.exceptions.DuplicatedStudyError:
            raise ConfigError(f"--storage: it holds a study {name!r} already; choose another --out") from None
        except KeyError:
            raise ConfigError(
                f"--storage: it holds no study {name!r} to resume; give the storage it began with"
            ) from None
        except (SQLAlchemyError, ImportError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"--storage: cannot be opened ({reason}); expected sqlite:///FILE.db") from error


def only_study(storage: str) -> str | None:
    """The name of the study in a storage that has one; None where it has none, several, or cannot be opened."""
    from sqlalchemy.exc import SQLAlchemyError

    try:
        names = _optuna().get_all_study_names(storage)
    except (SQLAlchemyError, ImportError, ValueError):  # opening it says why
        return None
    return str(names[0]) if len(names) == 1 else None


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Silence optuna's log messages, and report a failing storage in one line.

    Raises:
        CheckpointError: the storage can no longer be written.
    """
    optuna = _optuna()
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    except optuna.exceptions.StorageInternalError as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise CheckpointError(f"the study cannot be written ({reason}); free some space, then resume") from error
    finally:
        optuna.logging.set_verbosity(level)


def propose(study: "Study", space: Sequence[Dimension], seed: int, folder: str) -> tuple["OpenTrial", list[str]]:
    """The next trial and its ``a.b=c`` settings.

    The sampler is seeded by the number of ended trials, so that a study that was killed and resumed makes the same
    proposals as an uninterrupted one.
    """
    optuna = _optuna()
    # hashed: NumPy's first draws from neighbouring seeds are alike
    key = sha256(f"{seed}:{len(over(study))}".encode()).digest()[:4]
    study.sampler = optuna.samplers.TPESampler(seed=int.from_bytes(key, "little"), n_startup_trials=_RANDOM_FIRST)
    trial = study.ask()
    trial.set_user_attr("folder", folder)
    return trial, [f"{dimension.key}={_suggest(trial, dimension)}" for dimension in space]


def close(
    study: "Study", trial: "OpenTrial", state: State, seconds: float, score: float | None = None, reason: str = ""
) -> None:
    """Record the outcome of a trial. An interrupted one is put back in the queue."""
    from optuna.trial import TrialState

    trial.set_user_attr("seconds", seconds)
    if reason:
        trial.set_user_attr("reason", reason)
    if state == "interrupted":
        _give_up(study, trial.number, trial.params)
    elif state == "complete":
        study.tell(trial, score)
    else:
        study.tell(trial, state=TrialState.PRUNED if state == "pruned" else TrialState.FAIL)


def reclaim(study: "Study", folders: set[str] | None) -> int:
    """Queue the trials that a killed process left running again; returns how many.

    Args:
        folders: those whose trials they may be; None for any.
    """
    from optuna.trial import TrialState

    left = [
        trial
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        if folders is None or trial.user_attrs.get("folder") in {None, *folders}
    ]
    for trial in left:
        _give_up(study, trial.number, trial.params)
    return len(left)


def over(study: "Study") -> list[Trial]:
    """Trials that have ended: complete, pruned or failed."""
    return [trial for trial in all_trials(study) if trial.state != "interrupted"]


def all_trials(study: "Study") -> list[Trial]:
    """Every trial but the running and the queued, in order."""
    from optuna.trial import TrialState

    ended = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    given_up = _interrupted(study)
    return [_trial(found, found.number in given_up) for found in study.get_trials(deepcopy=False, states=ended)]


def best_first(trials: Sequence[Trial]) -> list[Trial]:
    """Complete trials by score, then pruned ones, then failed ones."""
    order = ("complete", "pruned", "failed", "interrupted")
    return sorted(trials, key=lambda trial: (order.index(trial.state), -(trial.score or 0.0), trial.number))


def importances(study: "Study") -> dict[str, float]:
    """Share of each key in the variation of the scores (optuna's PED-ANOVA); empty if there are too few trials."""
    optuna = _optuna()
    if sum(trial.state == "complete" for trial in over(study)) < _NEEDED_FOR_IMPORTANCE:
        return {}
    try:
        found = optuna.importance.get_param_importances(study)
    except (ValueError, RuntimeError):  # scores all alike
        return {}
    return {key: float(share) for key, share in found.items()}


def _give_up(study: "Study", number: int, params: dict[str, Any]) -> None:
    from optuna.trial import TrialState

    # noted first: a kill between two of these lines must not make it a failure of its settings
    study.set_user_attr(_INTERRUPTED, [*_interrupted(study), number])
    study.enqueue_trial(params)
    study.tell(number, state=TrialState.FAIL)


def _interrupted(study: "Study") -> list[int]:
    return list(study.user_attrs.get(_INTERRUPTED, []))


def _suggest(trial: "OpenTrial", dimension: Dimension) -> str:
    if dimension.low is None or dimension.high is None:
        chosen: str = trial.suggest_categorical(dimension.key, dimension.choices)
        return chosen
    if dimension.integer:
        value: float = trial.suggest_int(dimension.key, int(dimension.low), int(dimension.high), log=dimension.log)
    else:
        value = trial.suggest_float(dimension.key, dimension.low, dimension.high, log=dimension.log)
    return dimension.json(value)


def _trial(frozen: "FrozenTrial", interrupted: bool) -> Trial:
    from optuna.trial import TrialState

    names: dict[Any, State] = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
    known = frozen.user_attrs
    state: State = "interrupted" if interrupted else names[frozen.state]
    scores = frozen.intermediate_values
    score = frozen.value if state == "complete" else scores[max(scores)] if state == "pruned" and scores else None
    settings = {key: json.loads(value) if isinstance(value, str) else value for key, value in frozen.params.items()}
    epochs = max(scores) + 1 if scores else 0
    return Trial(
        frozen.number, state, score, epochs, float(known.get("seconds", 0.0)), str(known.get("reason", "")), settings
    )


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise ConfigError("tune needs optuna: pip install 'cmtvision[tune]'") from None
    return optuna
