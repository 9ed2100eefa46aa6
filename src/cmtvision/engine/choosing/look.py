"""Looking at photos and machine before anything is chosen: a sample of the photos, a second of real training steps.

What is found goes to the rules (recipe/choices.py) as ``Seen`` and ``Speed``; see engine/choosing/choose.py.
"""

import math
import random
import time
from collections import Counter
from collections.abc import Sequence
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from cmtvision.data import DatasetIndex, Sample, open_image
from cmtvision.data.decode import MAX_BYTES, MAX_PIXELS, image_size
from cmtvision.data.photos import StoredPhoto
from cmtvision.engine.batch_size import free_bytes
from cmtvision.engine.build import structure_of
from cmtvision.engine.loaders import forks, num_workers
from cmtvision.errors import ConfigError, DataError, first_line
from cmtvision.machine import cpu_flags, memory, onednn_lacks_bf16
from cmtvision.models import create_model
from cmtvision.models.accelerate import accelerate
from cmtvision.models.weight_sources import released_weights
from cmtvision.recipe import DataSection, ModelSection
from cmtvision.recipe.choices import BYTES_PER_GMAC, COST, DETAIL_FOR_WEIGHTS, KEPT, TUNED, Seen

_PHOTOS = 48  # of the sample, or as many as _PHOTO_SECONDS allow
_FEWEST_PHOTOS = 5
_WHOLE_PHOTOS = 3
_PHOTO_SECONDS = 1.5
_SIDES = (32, 48, 64, 96, 128, 160, 192, 224)
_LARGEST = 256  # pixels of the shorter side that detail is looked for in
_LOST = 0.01  # of a photo's variance: what may be lost where its detail is kept
_LIGHT_BATCH, _HEAVY_BATCH = 32, 4  # photos in a measured step, of networks below so many GMACs or on a GPU, and others
_LIGHT_GMACS = 0.3
_WARM = 2  # steps that are not timed: they reserve memory and choose kernels
_STEPS, _STEP_SECONDS = 3, 0.6  # timed at least
_BF16_PAYS = 1.15


def look(
    index: DatasetIndex,
    speed: "Speed",
    data: DataSection,
    *,
    processes: int,
    here: int,
    compare_bf16: bool,
    ask_for_weights: bool,
) -> Seen:
    """What the rules need to know of the photos and of this machine.

    Args:
        index: the photos, not necessarily verified.
        speed: of this machine.
        data: the recipe's section, for limits and workers.
        processes: that will train together.
        here: of them on this machine.
        compare_bf16: find out whether bfloat16 is faster here; what ``speed`` measures from then on is the faster one.
        ask_for_weights: look for released weights, in the cache and on the network.

    Raises:
        DataError: none of the photos in the sample can be read.
    """
    side, detail, read_seconds = look_at_photos(index.train, data.max_pixels, data.max_bytes)
    counts = Counter(label for sample in index.train for label in (sample.labels or (sample.label,)) if label >= 0)
    names = list(dict.fromkeys(rung.name for rung in TUNED))
    asks = ask_for_weights and detail >= DETAIL_FOR_WEIGHTS  # no server is asked needlessly
    weights, reason = released_weights(names) if asks else ([], "")
    workers = num_workers(data, here)
    return Seen(
        num_train=len(index.train),
        num_val=len(index.val),
        rarest=min(counts.values(), default=0),
        commonest=max(counts.values(), default=0),
        side=side,
        detail=detail,
        read_seconds=read_seconds,
        whole_seconds=reading_seconds(index.val or index.train, data),
        readers=here * max(1, workers),
        device=speed.device.type,
        memory=memory()[1],
        device_memory=free_bytes(speed.device),
        weights=weights,
        no_weights=reason,
        multi_label=index.multi_label,
        bf16=compare_bf16 and speed.prefer_bf16(),
        processes=processes,
        copies=here * (1 if forks() else max(1, workers)),
    )


def look_at_photos(
    samples: list[Sample], max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES
) -> tuple[int, int, float]:
    """The median of the shorter sides and of the detail of photos, in pixels, and the seconds that reading one takes.

    A photo's detail is the shorter side to which it can be shrunk and enlarged again with hardly a loss: a blurred
    photo of 1,000 px may have as little as a sharp one of 100 px.

    Raises:
        DataError: no photo of the sample can be read.
    """
    few = random.Random(0).sample(range(len(samples)), min(_PHOTOS, len(samples)))
    if any(getattr(getattr(samples[place].path, "store", None), "sequential", False) for place in few[:1]):
        few = list(range(min(_PHOTOS, len(samples))))  # as they come: elsewhere each would open another shard
    sides, details, seconds, fault = [], [], [], ""
    begun = time.perf_counter()
    for place in few:
        path, before = samples[place].path, time.perf_counter()
        try:
            # what is stored elsewhere is read once
            source = path.read(max_bytes) if isinstance(path, StoredPhoto) else path
            size = min(image_size(source, max_bytes, str(path), max_pixels))
            picture = open_image(source, max_pixels, max_bytes, str(path), short_side=_LARGEST)
        except DataError as error:
            fault = fault or str(error)
            continue
        seconds.append(time.perf_counter() - before)
        sides.append(size)
        details.append(_detail(picture, size))
        if len(sides) >= _FEWEST_PHOTOS and time.perf_counter() - begun > _PHOTO_SECONDS:
            break
    if not sides:
        raise DataError(f"none of {len(few)} photos could be read, {fault}")
    return round(median(sides)), round(median(details)), median(seconds)


def reading_seconds(samples: Sequence[Sample], data: DataSection) -> float:
    """Seconds to read and decode one of these photos whole, the median of a few; 0 where none can be read."""
    seconds = []
    for sample in samples[:: max(1, len(samples) // _WHOLE_PHOTOS)][:_WHOLE_PHOTOS]:
        begun = time.perf_counter()
        try:
            open_image(sample.path, data.max_pixels, data.max_bytes)
        except DataError:
            continue
        seconds.append(time.perf_counter() - begun)
    return median(seconds) if seconds else 0.0


def _detail(picture: Image.Image, side: int) -> int:
    gray = picture.convert("L")
    values = np.asarray(gray, dtype=np.float32)
    for small in _SIDES:
        if small >= min(gray.size):
            break
        scale = small / min(gray.size)
        shrunk = gray.resize((round(gray.width * scale), round(gray.height * scale)), Image.Resampling.BICUBIC)
        again = np.asarray(shrunk.resize(gray.size, Image.Resampling.BICUBIC), dtype=np.float32)
        if ((values - again) ** 2).mean() <= _LOST * max(1.0, float(values.var())):
            return small
    return side


class Speed:
    """Photos per second in training steps of a network at a size, on this machine.

    Called for one that was not measured, it estimates from the nearest one that was, by multiply-adds; of a network
    whose cost is unknown it measures. ``measured`` holds what was.

    Args:
        num_classes: width of the classifier.
        device: where the run will train.
        model: the recipe's section, for channels and options; its name and size do not matter.
        bf16: under bfloat16 autocast.
        processes: that will train together, each as fast as this one.
    """

    def __init__(
        self, num_classes: int, device: torch.device, model: ModelSection, bf16: bool, processes: int = 1
    ) -> None:
        self.num_classes, self.device, self.model, self.bf16 = num_classes, device, model, bf16
        self.processes = processes
        self.measured: dict[tuple[str, int], float] = {}

    def __call__(self, name: str, size: int) -> float:
        """See ``cmtvision.recipe.choices.Rate``."""
        if (name, size) in self.measured:
            return self.measured[name, size]
        known = {key: rate for key, rate in self.measured.items() if key[0] in COST}
        if name not in COST or not known:
            return self.measure(name, size)
        cost = COST[name] * size * size
        near = min(known, key=lambda key: abs(math.log(COST[key[0]] * key[1] ** 2 / cost)))
        return known[near] * COST[near[0]] * near[1] ** 2 / cost

    def measure(self, name: str, size: int) -> float:
        """Train a network of random weights on noise for a moment; what memory has no room for is estimated.

        Raises:
            ConfigError: no such network, or one that cannot take photos of that size.
        """
        photos = self._photos(name, size)
        if photos < 1 and self.measured:
            return self(name, size)
        self.measured[name, size] = rate = self._rate(name, size, max(1, photos), self.bf16)
        return rate

    def prefer_bf16(self) -> bool:
        """Compare bfloat16 with float32 where the processor can compute in it; from here on the faster one counts."""
        if self.device.type != "cpu" or not {"avx512_bf16", "amx_bf16"} & cpu_flags() or onednn_lacks_bf16():
            return False
        rates = [self._rate("cmt_nano", 64, _LIGHT_BATCH, bf16) for bf16 in (False, True)]
        self.bf16 = rates[1] > _BF16_PAYS * rates[0]
        self.measured["cmt_nano", 64] = rates[self.bf16]
        return self.bf16

    def _photos(self, name: str, size: int) -> int:
        """Photos of a measured step; 0 where memory has no room for one."""
        gmacs = COST.get(name, 1.0) * size * size
        photos = _LIGHT_BATCH if self.device.type == "cuda" or gmacs < _LIGHT_GMACS else _HEAVY_BATCH
        if name not in COST or self.model.grad_checkpointing:
            return photos
        return min(photos, int(KEPT * free_bytes(self.device) / (gmacs * BYTES_PER_GMAC)))

    def _rate(self, name: str, size: int, photos: int, bf16: bool) -> float:
        """Photos per second of all processes; with fewer at a time where memory has no room for these."""
        try:
            return self.processes * self._steps(name, size, photos, bf16)
        except torch.OutOfMemoryError as error:
            if photos == 1:
                raise ConfigError(f"{name}: not even one photo of {size} px fits into the memory there is") from error
        finally:
            if self.device.type in ("cuda", "mps"):  # whoever trains next wants it
                getattr(torch, self.device.type).empty_cache()
        return self._rate(name, size, photos // 2, bf16)

    def _steps(self, name: str, size: int, photos: int, bf16: bool) -> float:
        """Photos per second of forward, backward and AdamW in this process."""
        device, section = self.device, self.model
        structure = structure_of(section.model_copy(update={"name": name}), size)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            model = accelerate(create_model(name, num_classes=self.num_classes, **structure))
            images = torch.rand(photos, section.in_chans, size, size)
        if section.grad_checkpointing:
            model.set_grad_checkpointing()
        model.to(device, memory_format=torch.channels_last).train()
        images = images.to(device, memory_format=torch.channels_last)
        labels = torch.zeros(photos, dtype=torch.long, device=device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=device.type in ("cpu", "cuda"))

        def step() -> None:
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
                loss = F.cross_entropy(model(images).float(), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if device.type in ("cuda", "mps"):
                getattr(torch, device.type).synchronize()

        try:
            for _ in range(_WARM):
                step()
            times: list[float] = []
            while len(times) < _STEPS or sum(times) < _STEP_SECONDS:
                begun = time.perf_counter()
                step()
                times.append(time.perf_counter() - begun)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, AssertionError, ValueError, TypeError) as error:
            raise ConfigError(f"{name} cannot train on photos of {size} px: {first_line(error)}") from error
        # the fastest: what else the machine does for a moment is not its speed
        return photos / min(times)
