"""Rules by which ``cmtvision train`` chooses what the user has not set: from observations to settings, with reasons.

Nothing is measured here and nothing is read: ``Seen`` holds what was measured about images and machine
(engine/choosing/look.py does that), ``choose`` goes through the rules in the order in which they depend on each other,
and every ``Choice`` is a setting of the recipe with the reason for it. A setting that was given is never overridden,
and later ones are chosen to fit it. The numbers were found by trials on three sets of images
(docs/choices.md).

Sizes are short sides in pixels, rates are images per second, in steps of training on this machine.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from typing import Any, NamedTuple

Rate = Callable[[str, int], float]
"""Photos per second that a network trains at a size, here: measured, or estimated from one that was measured."""


class Choice(NamedTuple):
    """One setting ('section.key'), its value and why."""

    key: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Seen:
    """What was measured before anything is chosen.

    Attributes:
        num_train, num_val: images.
        rarest, commonest: training images of the class with the fewest, and with the most.
        side: half of the images are no larger than this.
        detail: half of the images lose almost nothing when they are shrunk to this.
        read_seconds: to read and decode one image for training, shrunk as it is read.
        whole_seconds: the same of a held-out one, which is decoded whole.
        readers: processes that read images at a time.
        device: 'cpu', 'cuda' or 'mps'.
        memory: bytes that are free on this machine.
        device_memory: bytes that are free on the network's device; the same on a CPU.
        weights: networks whose released weights are in the cache or can be fetched.
        no_weights: why there are none, '' if there are or nobody looked.
        multi_label: an image may have several classes.
        bf16: networks train faster in bfloat16 here, by measurement.
        processes: that train together, each on its own batches.
        copies: of the images kept in memory: one in each process, or in each of its workers where they share nothing.
    """

    num_train: int
    num_val: int
    rarest: int
    commonest: int
    side: int
    detail: int
    read_seconds: float
    whole_seconds: float
    readers: int
    device: str
    memory: int
    device_memory: int
    weights: Collection[str] = ()
    no_weights: str = ""
    multi_label: bool = False
    bf16: bool = False
    processes: int = 1
    copies: int = 1


class Rung(NamedTuple):
    """A network at a size, and what it needs to outperform the rung below."""

    name: str
    size: int
    photos: int
    """Training photos: a large network memorises a small set."""
    epochs: int
    """How often it sees each photo."""


SCRATCH = (
    Rung("cmt_nano", 32, 0, 0),
    Rung("cmt_nano", 48, 0, 12),
    Rung("cmt_nano", 64, 0, 20),
    Rung("cmt_nano", 96, 500, 60),
    Rung("cmt_ti", 32, 1_000, 100),
    Rung("cmt_ti", 48, 1_000, 90),
    Rung("cmt_ti", 64, 1_000, 80),
    Rung("cmt_ti", 96, 1_000, 80),
    Rung("cmt_ti", 128, 2_000, 80),
    Rung("cmt_ti", 160, 2_000, 100),
    Rung("cmt_xs", 192, 20_000, 100),
    Rung("cmt_s", 224, 50_000, 100),
)
"""From random weights, each better than the ones before where there is enough of everything; of small photos only
those count whose size shows more of them."""
TUNED = (
    Rung("cmt_ti", 96, 0, 2),
    Rung("cmt_ti", 128, 0, 4),
    Rung("cmt_ti", 160, 0, 8),
    Rung("cmt_xs", 192, 500, 12),
    Rung("cmt_s", 224, 1_000, 12),
    Rung("cmt_b", 256, 5_000, 15),
)
"""From released weights, in the same order."""
COST = {"cmt_nano": 5.6e-6, "cmt_ti": 2.5e-5, "cmt_xs": 4.2e-5, "cmt_s": 8.0e-5, "cmt_b": 1.42e-4}
"""GMACs for each pixel of the input, about."""
AIM_MINUTES = 10
"""How long a run should take that nobody has bounded, where the photos are not too many for it."""
DETAIL_FOR_WEIGHTS = 48
"""Pixels of detail that photos must have; the weights have learned from sharp photos of 160 px and more."""
ROOM = 1.25
"""Epochs that are planned for each that fits into a time limit; the schedule is fitted to the limit as it goes."""
LONG_MINUTES = 60
"""What takes longer is said, with the way to bound it."""
BYTES_PER_GMAC = 160_000_000
"""Of activations that the backward pass needs, for each photo, about."""
EVALUATION_RATE = 2.5
"""Times as many photos a second as in training, about."""
KEPT = 0.4
"""Share of the free memory that photos may take, and that a batch may."""
_LEAST_EPOCHS, _MOST_EPOCHS = 12, 300
_TUNED_EPOCHS = (5, 60)
_BATCH = 64
_RATES = {"cmt_nano": 2e-3, "cmt_ti": 1e-3, "cmt_xs": 8e-4, "cmt_s": 6e-4, "cmt_b": 5e-4}
_OTHER_RATE, _TUNED_RATE = 7e-4, 5e-4
"""At batches of 64; with others by the square root. At 1.5e-3 and batches of 32 cmt_ti did not learn at all."""
_WARMUP = 0.06  # of the epochs
_RANDAUGMENT = "rand-m5-mstd0.5-inc1"
_FOR_RANDAUGMENT, _FOR_ERASING, _FOR_MIXUP = 20, 60, 100  # times that each image is seen
_LEAST_SHARE = 0.35  # of the image's area, that a random crop shows at least
_ICON = 40  # pixels, up to which a crop leaves too little
_SHRINK = 1.5  # times the size of the input: what a random crop of a third of the area needs
_PATIENCE = 2.0  # times as long as the smallest network takes, where there are too many images for AIM_MINUTES
_LEAST_BATCH = 8
_MOST_RATES = 2.0  # times the rate at batches of 64, for however large ones; nothing beyond was tried
_EVALUATION_SHARE = 0.1  # of the time, at most


def choose(seen: Seen, rate: Rate, minutes: float | None, given: Mapping[str, Any]) -> list[Choice]:
    """The settings of a run, each with its reason, in reading order.

    Args:
        seen: what was measured.
        rate: see ``Rate``; asked for few networks and sizes, since each may be measured.
        minutes: available for training: the given limit less the time spent around it; None for no limit.
        given: settings that were given, by 'section.key'; none of them is chosen.
    """
    rules = _Rules(seen, rate, minutes, given)
    return [choice for choice in rules.all() if choice.key not in given]


def run_seconds(epochs: float, seen: Seen, rate: float, cached: bool, every: int = 1) -> float:
    """Seconds that a run takes: reading images, computing steps, evaluating held-out images.

    Args:
        epochs: of training.
        seen: images and machine.
        rate: images per second in steps of training.
        cached: images are read once and kept; else in every epoch.
        every: epochs between two evaluations.
    """
    read, whole = seen.read_seconds / seen.readers, seen.whole_seconds / seen.readers
    evaluations = ceil(epochs / every)
    # verified, trained on; evaluated, and again at the end
    reading = (seen.num_train + seen.num_val) * read + seen.num_train * read + 2 * seen.num_val * whole
    if not cached:
        reading += max(0.0, epochs - 1) * seen.num_train * read + max(0, evaluations - 1) * seen.num_val * whole
    return reading + epochs * seen.num_train / rate + (evaluations + 1) * seen.num_val / (rate * EVALUATION_RATE)


def epochs_in(seconds: float, seen: Seen, rate: float, cached: bool) -> float:
    """Epochs that fit into a time, evaluations taking a tenth of it at most; see ``run_seconds``."""
    none = run_seconds(0, seen, rate, cached)
    one = run_seconds(1000, seen, rate, cached, every=1000) - none
    return max(0.0, (seconds - none) * (1 - _EVALUATION_SHARE) / (one / 1000))


def longer_side(size: int | Sequence[int]) -> int:
    """The longer side of an image size given as a side or (height, width), in pixels."""
    return size if isinstance(size, int) else max(size)


class _Rules:
    """The rules, one method each; a rule may use what the ones before it chose."""

    def __init__(self, seen: Seen, rate: Rate, minutes: float | None, given: Mapping[str, Any]) -> None:
        self.seen, self.rate, self.minutes, self.given = seen, rate, minutes, given
        self.now: dict[str, Any] = dict(given)
        self.aim = minutes or self._aim()

    def all(self) -> Iterator[Choice]:
        for rule in (self.start, self.length, self.steps, self.changes, self.loss, self.reading):
            for choice in rule():
                self.now.setdefault(choice.key, choice.value)
                yield choice

    # which network, at what size, from which weights

    def start(self) -> Iterator[Choice]:
        """The network, the size of its input and the weights that it starts from."""
        tuned, why = self._tunes()
        released = tuned and self.given.get("model.weights", "pretrained") == "pretrained"
        rungs = self._rungs(TUNED if released else SCRATCH)
        yield Choice("model.weights", "pretrained" if tuned else None, why)
        rung, why = self._highest(rungs, released)
        yield Choice("model.name", rung.name, why)
        limited = not released and rung.size == self._size_limit()
        yield Choice("model.img_size", rung.size, self._about_size() if limited else why)
        if not tuned:
            yield Choice("model.drop_path_rate", 0.0 if rung.name in ("cmt_nano", "cmt_ti") else 0.1, "")
            yield Choice("preprocess.crop_pct", 1.0, "the whole of the shorter side is shown")

    def _tunes(self) -> tuple[bool, str]:
        """Whether the run starts from weights, and why."""
        if "model.weights" in self.given:
            return self.given["model.weights"] is not None, ""
        name = self.given.get("model.name")
        if self.seen.detail < DETAIL_FOR_WEIGHTS:
            least = f"the released weights learned from sharper photos than these, with {self.seen.detail} px of detail"
            return False, least
        if name is not None and name not in COST:
            return False, f"those of {name} are taken only by --weights pretrained"
        if name is not None and name not in self.seen.weights:
            return False, self.seen.no_weights or f"no weights of {name} were released"
        if not self.seen.weights:
            return False, self.seen.no_weights
        return True, "what was learned from ImageNet's photos helps on others"

    def _rungs(self, table: Sequence[Rung]) -> list[Rung]:
        """Those that may be chosen: for a given network or size all that differ, of ours those with weights."""
        name, size = self.given.get("model.name"), self.given.get("model.img_size")
        side = longer_side(size) if size else None
        if table is TUNED and name is None and "model.weights" not in self.given:
            table = [rung for rung in table if rung.name in self.seen.weights]
        rungs: dict[tuple[str, int], Rung] = {}
        for rung in table:
            one = rung._replace(name=name or rung.name, size=side or rung.size, photos=0 if name else rung.photos)
            least = rungs.setdefault(one[:2], one)  # what stays the same is as good where less is needed
            rungs[one[:2]] = one._replace(photos=min(one.photos, least.photos), epochs=min(one.epochs, least.epochs))
        return sorted(rungs.values(), key=lambda rung: rung.size) if name else list(rungs.values())

    def _highest(self, rungs: list[Rung], released: bool) -> tuple[Rung, str]:
        """The last rung that images, time and memory allow, and what prevents the next one."""
        free = "model.img_size" not in self.given and not released
        found, why = rungs[0], ""
        for rung in rungs:
            if free and not found.size <= rung.size <= self._size_limit():
                continue  # more than the images show, or less than what there is already
            if rung.photos > self.seen.num_train:
                why = why or f"{self.seen.num_train:,} photos are few for a larger network"
                continue
            epochs, need = self._epochs_in(self.aim, rung), _LEAST_BATCH * _activations(rung.name, rung.size)
            if need > KEPT * self.seen.device_memory:
                why = f"{rung.name} at {rung.size} px needs about {need / 1e9:.1f} GB for its activations"
                break
            if rung.epochs > epochs:
                limit = "the time" if self.minutes else "a reasonable time"
                why = f"{rung.name} at {rung.size} px would {_times(epochs)} in {limit}"
                break
            found, why = rung, ""
        return found, why or "the largest that is of use here"

    def _aim(self) -> float:
        """Minutes for a run without a time limit: more if so many images are given that everything takes longer."""
        least = Rung(self.given.get("model.name") or SCRATCH[0].name, SCRATCH[0].size, 0, 0)
        seconds = run_seconds(_LEAST_EPOCHS, self.seen, self._rate_of(least), self._keeps(least.size), _LEAST_EPOCHS)
        return max(AIM_MINUTES, _PATIENCE * seconds / 60) if seconds > AIM_MINUTES * 60 else AIM_MINUTES

    def _size_limit(self) -> int:
        """The smallest of our sizes that shows all the detail there is."""
        sizes = sorted({rung.size for rung in SCRATCH})
        wanted = min(self.seen.side, self.seen.detail)
        return next((size for size in sizes if size >= wanted), sizes[-1])

    def _about_size(self) -> str:
        if self.seen.detail < self.seen.side:
            return f"half of the photos show no detail beyond {self.seen.detail} px"
        return f"half of the photos are no larger than {self.seen.side} px"

    def _epochs_in(self, minutes: float, rung: Rung) -> float:
        """Epochs that fit into a time, besides reading the images and evaluating."""
        return epochs_in(minutes * 60, self.seen, self._rate_of(rung), self._keeps(rung.size))

    def _rate_of(self, rung: Rung) -> float:
        return self.rate(rung.name, longer_side(self.given.get("model.img_size") or rung.size))

    # how long, in what steps

    def length(self) -> Iterator[Choice]:
        """Epochs, and how many steps make one."""
        name, size = self.now["model.name"], self._side()
        fitting = self._epochs_in(self.aim, Rung(name, size, 0, 0))
        least, most = _TUNED_EPOCHS if self.now["model.weights"] else (_LEAST_EPOCHS, _MOST_EPOCHS)
        if self.minutes is not None:
            least, most, fitting = 1, 2 * most, ceil(fitting * ROOM)
        epochs = round(min(most, max(least, fitting)))
        if epochs == most:
            why = f"{self.seen.num_train:,} photos have no more to teach"
        elif self.minutes is not None:
            fit = f"{fitting / ROOM:.0f} fit" if fitting > ROOM else "not even one fits"
            why = f"{fit} into the time at the measured speed; the schedule is fitted to end with it"
        elif epochs == least:
            why = f"fewer would not be enough for {self.seen.num_train:,} photos"
        else:
            why = f"about {self.aim:.0f} minutes here"
        yield Choice("schedule.epochs", max(epochs, self._least_epochs()), why)
        yield Choice("schedule.warmup_epochs", round(_WARMUP * float(self.now["schedule.epochs"]), 2), "")

    def _least_epochs(self) -> int:
        """The fewest epochs that leave some after a given warm-up."""
        return int(self.given.get("schedule.warmup_epochs", 0)) + 1

    def steps(self) -> Iterator[Choice]:
        """The batch, the learning rate that suits it, and the average of the weights."""
        name = self.now["model.name"]
        batch = _BATCH if self.seen.device == "cpu" else 2 * _BATCH
        activations = _activations(name, self._side())
        together = self.seen.processes * self.now.get("train.accumulate", 1)
        few, memory = self.seen.num_train // (8 * together), KEPT * self.seen.device_memory
        while batch > _LEAST_BATCH and (batch > few or batch * activations > memory):
            batch //= 2  # eight steps an epoch of few images, and what memory allows
        if name not in COST and self.seen.device == "cuda":
            yield Choice("train.batch_size", "auto", "what fits into its memory is found out at the start")
        else:
            yield Choice("train.batch_size", batch, "")
        batch = self.now["train.batch_size"]
        size = (batch if isinstance(batch, int) else _BATCH) * together
        lr = _TUNED_RATE if self.now["model.weights"] else _RATES.get(name, _OTHER_RATE)
        lr *= min(_MOST_RATES, sqrt(size / _BATCH))
        yield Choice("optim.lr", float(f"{lr:.2g}"), f"suits AdamW, {name} and batches of {size}")
        yield Choice("optim.lr_base_batch", None, "")
        yield Choice("optim.clip_grad_norm", 1.0, "")
        if self.now["model.weights"] and self.now.get("model.freeze") != "backbone":
            yield Choice("optim.layer_decay", 0.8, "lower layers have less to learn")
        yield Choice("schedule.warmup_lr", 1e-5, "")
        yield Choice("schedule.min_lr", 1e-5, "")
        steps = self.now["schedule.epochs"] * max(1, self.seen.num_train // size)
        decay = min(0.9998, max(0.9, 1 - 10 / max(1, steps)))
        yield Choice("ema.decay", float(f"{decay:.4g}"), "the weights of the last tenth of the steps, averaged")
        yield Choice("ema.warmup", True, "")
        if self.seen.bf16:
            yield Choice("train.precision", "bf16", "faster here, by measurement")

    # what is done to images and labels

    def changes(self) -> Iterator[Choice]:
        """Random changes: the more often an image is seen, the stronger."""
        planned_more = self.minutes is not None and "schedule.epochs" not in self.given
        times = round(self.now["schedule.epochs"] / (ROOM if planned_more else 1))
        why = f"each photo is seen about {times} time{'' if times == 1 else 's'}"
        icons = min(self.seen.side, self.seen.detail) <= _ICON
        if self.given.get("augment.crop_padding"):
            yield Choice("augment.random_resized_crop", False, "crop_padding was given")
        elif icons:
            yield Choice("augment.random_resized_crop", False, f"in {self.seen.side} px the whole object is wanted")
        if self.now.get("augment.random_resized_crop", True):
            yield Choice("augment.scale", (_LEAST_SHARE, 1.0), "crops of a third of the photo at least")
        else:
            yield Choice("augment.crop_padding", max(1, self._side() // 16), "shifted by a little instead")
        jitter = self.now.get("augment.color_jitter")  # timm's rule: it would do nothing beside RandAugment
        yield Choice("augment.auto_augment", _RANDAUGMENT if times >= _FOR_RANDAUGMENT and not jitter else None, why)
        yield Choice("augment.random_erasing", 0.1 if times >= _FOR_ERASING else 0.0, why)
        yield Choice("augment.mixup", 0.2 if times >= _FOR_MIXUP else 0.0, why)
        yield Choice("augment.cutmix", 0.0, "it pays only where photos are seen still more often")

    def loss(self) -> Iterator[Choice]:
        """The loss, and whether rare classes get a higher weight."""
        if self.seen.multi_label:
            yield Choice("augment.label_smoothing", 0.0, "")
            return
        yield Choice("augment.label_smoothing", 0.1, "")
        if self.seen.rarest * 20 < self.seen.commonest:
            why = f"the rarest class has {self.seen.rarest:,} photos, the commonest {self.seen.commonest:,}"
            yield Choice("data.class_balance", "loss", why)

    def reading(self) -> Iterator[Choice]:
        """How images are read and kept."""
        if self._keeps(self._side()):
            yield Choice("data.cache", True, "all photos fit into memory")
        if self.now.get("augment.random_resized_crop", True):
            yield Choice("data.shrink", self._shrink(), "crops need no more pixels")
        epochs = self.now["schedule.epochs"]
        share = self.seen.num_val / max(1, self.seen.num_train) / EVALUATION_RATE
        every = min(epochs, max(1, ceil(share / _EVALUATION_SHARE), ceil(epochs / 50)))
        yield Choice("train.eval_every", every, "")

    def _side(self) -> int:
        return longer_side(self.now["model.img_size"])

    def _shrink(self) -> float:
        """The multiple of the input size at which the smallest random crop is hardly enlarged."""
        least = float(self.now.get("augment.scale", (_LEAST_SHARE, 1.0))[0])
        return round(_SHRINK * sqrt(max(1.0, _LEAST_SHARE / least)), 2)

    def _keeps(self, size: int) -> bool:
        """Whether all images are kept: as given, or where memory has room for them at a size of the input."""
        if "data.cache" in self.given:
            return bool(self.given["data.cache"])
        shrink = self.given.get("data.shrink", self._shrink())
        if shrink is None and self.now.get("augment.random_resized_crop", True):
            return False  # whole images, of whatever size
        side = ceil(size * (shrink or 1.0))
        # images may be twice as long as wide, and the held-out ones are kept at the size of the input
        need = self.seen.num_train * side * side * 2 * 3 + self.seen.num_val * size * size * 3
        return need * self.seen.copies < KEPT * self.seen.memory


def _times(epochs: float) -> str:
    if epochs < 0.95:
        return "not see each photo even once"
    return f"see each photo {f'{epochs:.0f} times' if epochs >= 1.5 else 'once'}"


def _activations(name: str, size: int) -> float:
    """Bytes for one image, 0 for a network whose cost is unknown."""
    return COST.get(name, 0.0) * size * size * BYTES_PER_GMAC
