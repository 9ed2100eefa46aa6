"""The recipe of a run without a written one: images and machine are inspected, and the rules choose the rest."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from cmtvision.artefact.card import Card
from cmtvision.artefact.predictor import pick_device
from cmtvision.artefact.runtimes.torch import set_threads
from cmtvision.data import DatasetIndex
from cmtvision.engine.build import portable
from cmtvision.engine.choosing.look import Speed, look
from cmtvision.engine.distributed.processes import SINGLE, Processes
from cmtvision.engine.lightning_settings import trainer_precision
from cmtvision.errors import ConfigError
from cmtvision.models import build_shapes_only
from cmtvision.models.weight_sources import fetch_weights
from cmtvision.recipe import ModelSection, Recipe, load_recipe
from cmtvision.recipe.choices import (
    COST,
    LONG_MINUTES,
    ROOM,
    SCRATCH,
    Choice,
    Seen,
    choose,
    epochs_in,
    longer_side,
    run_seconds,
)
from cmtvision.recipe.load import given_settings, load_asked, with_settings
from cmtvision.weights import from_official, is_official, read_state_dict
from cmtvision.weights.fetch import FetchError

NAME = "chosen"
"""Of a recipe that was chosen so."""
FITTED = frozenset(
    {
        "schedule.epochs", "schedule.warmup_epochs", "schedule.cooldown_epochs", "optim.head_warmup_epochs",
        "augment.mix_off_epoch", "schedule.step", "schedule.late",
    }
)  # fmt: skip
"""Settings of a written recipe that are fitted to a time limit, where they are not given."""
_BASE = "default"
_MOST_MEASURED = 4  # networks, before the choice stands
_SETUP_SECONDS = 2.0  # of the network, the loaders and the first step
_LANDMARKS = (("cmt_nano", 64), ("cmt_ti", 160), ("cmt_s", 224))
_LEAST_MINUTES = 0.1  # minutes of training that are left where a limit has no room for any


@dataclass(frozen=True)
class Chosen:
    """A recipe with the reasons for what is in it.

    Attributes:
        recipe: complete.
        choices: what was chosen, in an order fit to be read; empty where the recipe was written by somebody.
        seen: what was seen of photos and machine.
        seconds: that the command will take about, from its beginning to its end; 0 where that is not known.
        images_per_second: in training steps here, by measurement; 0 where they could not be measured.
    """

    recipe: Recipe
    choices: list[Choice] = field(default_factory=list)
    seen: Seen | None = None
    seconds: float = 0.0
    images_per_second: float = 0.0

    @property
    def is_long(self) -> bool:
        """Whether it takes so long that a person should know how to bound it."""
        return self.seconds > LONG_MINUTES * 60 and self.recipe.train.max_minutes is None

    def reason(self, key: str) -> str:
        """Why a setting was chosen, '' where it was not."""
        return next((choice.reason for choice in self.choices if choice.key == key), "")


def settle_recipe(
    name: str | Path | None,
    settings: Sequence[str],
    index: DatasetIndex,
    *,
    minutes: float | None = None,
    spent: float = 0.0,
    after: float = 0.0,
    processes: int = 1,
    joined: Processes = SINGLE,
) -> Chosen:
    """The recipe of a run on these photos: the named one, or one that is chosen by ``cmtvision.recipe.choices``.

    Args:
        name: a built-in recipe or a file; None to have everything chosen that ``settings`` leave open.
        settings: 'section.key=value', as for ``load_recipe``.
        index: the photos; they need not be verified.
        minutes: that the whole run may take, to which its epochs are fitted unless they are given; None for no limit.
        spent, after: seconds of them already used, and seconds to keep for the caller afterwards.
        processes: that will train together.
        joined: those that already run; a process by itself may be about to start the others, on this machine.

    Raises:
        ConfigError: no such recipe or settings, or, where it is not a written recipe's, a network that nobody knows.
        DataError: photos that cannot be read.
        CheckpointError: weights that cannot be read.
    """
    begun = time.perf_counter()
    given, settings = given_settings(name, settings), list(settings)
    if minutes is not None and "train.max_minutes" in given:
        raise ConfigError("--minutes and --set train.max_minutes: both given; keep one")
    if name is None:
        given, settings = _of_a_run(given, settings)
        minutes = minutes if minutes is not None else given.get("train.max_minutes")
    asked = portable(load_asked(name, settings))
    set_threads(asked.train.threads)
    device = torch.device(pick_device(asked.train.device))
    free = name is None and "train.precision" not in given
    launched = joined.world_size > 1
    # a launched process computes on its share of the cores; one that will launch others sees all of them
    parallel = processes if device.type != "cpu" or launched else 1
    here = joined.local_world_size if launched else processes
    speed = Speed(len(index.classes), device, asked.model, _in_bf16(asked, device), parallel)
    asks = name is None and "model.weights" not in given
    seen = look(index, speed, asked.data, processes=processes, here=here, compare_bf16=free, ask_for_weights=asks)

    def around() -> float:  # seconds beside training
        return spent + time.perf_counter() - begun + after + _SETUP_SECONDS

    def available() -> float | None:
        return None if minutes is None else max(_LEAST_MINUTES, minutes - around() / 60)

    if name is not None:
        size = _side(asked)
        try:
            rate = speed.measure(asked.model.name, size)
        except ConfigError:  # training has ways to make it fit, and its own words where it cannot
            rate = 0.0
        recipe = asked if minutes is None else _fitted(asked, given, minutes, available() or 0.0, seen, rate)
        return _chosen(recipe, [], seen, rate, around())
    if device.type != "cpu":  # where small networks do not use what there is, cost says little of speed
        for landmark in _LANDMARKS:
            speed.measure(*landmark)
    given, settings = _of_its_size(given, settings, speed)
    for _ in range(_MOST_MEASURED):
        choices = choose(seen, speed, available(), given)
        recipe = _recipe(choices, given, settings, minutes)
        network = (recipe.model.name, _side(recipe))
        fault = _fetched(recipe, given)
        if fault:
            seen = replace(seen, weights=(), no_weights=fault)
        elif network in speed.measured:
            break
        else:
            speed.measure(*network)
    return _chosen(recipe, choices, seen, speed(*network), around())


def _fetched(recipe: Recipe, given: Mapping[str, Any]) -> str:
    """Bring released weights that were chosen to the cache; why that failed, '' where it did not."""
    if "model.weights" in given or recipe.model.weights != "pretrained":
        return ""
    try:
        fetch_weights(recipe.model.name)
    except FetchError as error:
        return error.fault
    return ""


def _chosen(recipe: Recipe, choices: list[Choice], seen: Seen, rate: float, around: float) -> Chosen:
    train = recipe.train
    epochs: float = recipe.schedule.total_epochs
    if train.max_steps is not None and isinstance(train.batch_size, int):
        epochs = min(epochs, train.max_steps * train.batch_size * train.accumulate * seen.processes / seen.num_train)
    seconds = around + run_seconds(epochs, seen, rate, recipe.data.cache, train.eval_every) if rate else 0.0
    limit = train.max_minutes
    return Chosen(recipe, choices, seen, seconds if limit is None else min(seconds, limit * 60), rate)


def _fitted(
    recipe: Recipe, given: Mapping[str, Any], minutes: float, available: float, seen: Seen, rate: float
) -> Recipe:
    """A written recipe with as many epochs as fit into a time, and what is counted in epochs changed with them.

    Where a recipe sets the rate once an epoch it is set at every step: few epochs may be left.
    """
    changed: dict[str, Any] = {"train.max_minutes": minutes, "schedule.step": "step", "schedule.late": False}
    if "schedule.epochs" not in given and rate:
        epochs = math.ceil(epochs_in(available * 60, seen, rate, recipe.data.cache) * ROOM)
        epochs = max(epochs, int(given.get("schedule.warmup_epochs", 0)) + 1)
        schedule, share = recipe.schedule, epochs / recipe.schedule.epochs
        changed |= {
            "schedule.epochs": epochs,
            "schedule.warmup_epochs": round(schedule.warmup_epochs * share, 3),
            "schedule.cooldown_epochs": int(schedule.cooldown_epochs * share),
            "augment.mix_off_epoch": math.ceil(recipe.augment.mix_off_epoch * share),
            "optim.head_warmup_epochs": min(
                recipe.optim.head_warmup_epochs, int(recipe.optim.head_warmup_epochs * share)
            ),
        }
    kept = {key: value for key, value in changed.items() if key not in given}
    return with_settings(recipe, [f"{key}={json.dumps(value)}" for key, value in kept.items()])


def _recipe(
    choices: Sequence[Choice], given: Mapping[str, Any], settings: Sequence[str], minutes: float | None
) -> Recipe:
    chosen = [f"{choice.key}={json.dumps(choice.value)}" for choice in choices]
    chosen += [] if minutes is None else [f"train.max_minutes={minutes}"]
    reasons = [f"{one.key} {_shown(one.value)}: {one.reason}." for one in choices if one.reason]
    recipe = load_recipe(_BASE, [*chosen, *settings])
    described = "Chosen by looking at the photos and the machine.\n" + "\n".join(reasons) + "\n"
    own = {"name": NAME, "description": described}
    return recipe.model_copy(update={key: value for key, value in own.items() if key not in given})


def _of_a_run(given: dict[str, Any], settings: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Where weights of one's own are given: the network that they belong to, and its size, unless others are given."""
    source, name = given.get("model.weights"), given.get("model.name")
    if source is None or source == "pretrained":
        return given, settings
    folder = Path(source)
    if not folder.exists():
        read_state_dict(source)  # which says so
    more: dict[str, Any] = {}
    if folder.is_dir():
        card = Card.read(folder)
        if name in (None, card.architecture):
            fields = ModelSection.model_fields
            more = {"model.name": card.architecture, "model.img_size": list(card.preprocess.size)}
            more |= {f"model.{key}" if key in fields else f"model.options.{key}": value
                     for key, value in card.arguments.items()}  # fmt: skip
    elif name is None:
        found = _network_of(folder)
        more = {"model.name": found} if found else {}
    added = [f"{key}={json.dumps(value)}" for key, value in more.items() if key not in given]
    return given_settings(None, [*added, *settings]), [*added, *settings]


def _of_its_size(given: dict[str, Any], settings: list[str], speed: Speed) -> tuple[dict[str, Any], list[str]]:
    """A network that is made for one size keeps it, and so does one that cannot take small photos."""
    name = given.get("model.name")
    asked_for = given.get("model.img_size", "")
    if asked_for is None:  # null: its own, or where the network is free nothing at all
        settings = [one for one in settings if one.partition("=")[0].strip() != "model.img_size"]
        given = {key: value for key, value in given.items() if key != "model.img_size"}
    if name is None or name in COST or asked_for:
        return given, settings
    model, (_, height, width) = build_shapes_only(name, None, 2)
    if asked_for is not None and not model.pretrained_cfg.get("fixed_input_size"):
        try:
            speed(name, SCRATCH[0].size)
            return given, settings
        except ConfigError:
            pass
    return {**given, "model.img_size": (height, width)}, [*settings, f"model.img_size=[{height}, {width}]"]


def _network_of(file: Path) -> str:
    """The network of ours whose parameters a file of weights holds, but for the classifier; '' for none."""
    state = read_state_dict(file)
    if is_official(state):
        state = from_official(state)
    for name in COST:
        model, _ = build_shapes_only(name, None, 2)
        own = {key: value.shape for key, value in model.named_parameters() if not key.startswith("head")}
        if all(key in state and state[key].shape == shape for key, shape in own.items() if "bias_table" not in key):
            return name
    return ""


def _side(recipe: Recipe) -> int:
    return longer_side(recipe.model.img_size or build_shapes_only(recipe.model.name, None, 2)[1][1:])


def _in_bf16(recipe: Recipe, device: torch.device) -> bool:
    return trainer_precision(recipe, device) == "bf16-mixed"


def _shown(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
