"""Repeat the study of size micro on a GPU, the photos held on the card: more epochs and seeds, and size ti at 64 px.

    python benchmarks/gpu_study.py --work DIR --data DIR [--epochs 20] [--seeds 3] [--minutes 7.5]
    python benchmarks/gpu_study.py --work DIR --data DIR --steps 3         to see that it runs, on a CPU too; no record

Every rung of the ladder, the leave-one-outs and the peers of ``comparison_study.py micro``, then cmt_ti, deit_tiny,
pvt_v1_tiny and ceit_tiny at 64 px, all by the recipe ladder_64 with more epochs, in bfloat16 autocast. What the engine
does to a photo (four pixels of black around it, a random crop, a mirror image) is done to a batch of indices on the
card, with other random numbers; network, optimiser, learning rate, loss and moving average are the engine's own or are
computed as it does. The seeds of a network are trained side by side, a step of all of them captured as one CUDA graph.
A network that fails is a row with its reason. No new one is begun after --minutes; what is finished is kept in DIR, and
the next call goes on. Writes records/gpu-study.json.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from comparison_study import peers
from PIL import Image
from record import write_record
from torch import nn

from cmtvision.bench.opening import captured
from cmtvision.data import DatasetIndex, read_dataset
from cmtvision.engine.optim import build_optimizer, build_scheduler, peak_lr
from cmtvision.errors import one_line
from cmtvision.models import create_model
from cmtvision.models.registry import has_fixed_size
from cmtvision.recipe import Recipe, load_recipe
from cmtvision.study.ablation import ablation_entries
from cmtvision.study.seeds import Entry

SIDE, BORDER, EVAL_BATCH, WARM_UP = 64, 4, 500, 3
LARGER = ("cmt_ti", "deit_tiny_patch16_224", "pvt_v1_tiny", "ceit_tiny_patch16_224")
Photos = tuple[torch.Tensor, torch.Tensor]  # (N, 3, H, W) uint8 and (N,) classes, on the card


def main() -> None:
    begun = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="a folder with train/ and val/, photos of 64 px")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=7.5, help="from which on nothing more is begun")
    parser.add_argument("--steps", type=int, help="so many steps of each network and no record")
    parser.add_argument("--only", nargs="+", help="these networks")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and args.steps is None:
        print("no CUDA GPU here: add --steps 3 to see that it runs")
        return
    index = read_dataset(args.data)
    train, val = on_card(index.train, device), on_card(index.val, device)
    print(f"{len(train[1]):,} and {len(val[1]):,} photos on the card, {time.monotonic() - begun:.0f} s", flush=True)
    rows: dict[str, dict[str, Any]] = {}
    for entry in networks():
        name = entry.key
        if args.only and name not in args.only:
            continue
        files = {seed: args.work / f"{name}-{args.epochs}-{seed}.json" for seed in range(args.seeds)}
        done = [seed for seed, file in files.items() if file.is_file() and args.steps is None]
        rows[name] = {str(seed): json.loads(files[seed].read_text(encoding="utf-8")) for seed in done}
        missing = [seed for seed in files if seed not in done]
        if not missing or time.monotonic() - begun > 60 * args.minutes:
            continue
        recipe = load_recipe("ladder_64", [f"schedule.epochs={args.epochs}", f"seed={missing[0]}"])
        started = time.monotonic()
        try:
            models = [build(entry, len(index.classes), seed) for seed in missing]
            found = [{"correct": correct, "of": len(val[1])} for correct in fit(models, recipe, train, val, args.steps)]
        except Exception as error:  # whatever a capture does to a network, the others go on
            rows[name] |= {str(seed): {"failure": one_line(error)} for seed in missing}
        else:
            rows[name] |= {str(seed): row for seed, row in zip(missing, found, strict=True)}
            if args.steps is None:
                args.work.mkdir(parents=True, exist_ok=True)
                for seed in missing:
                    files[seed].write_text(json.dumps(rows[name][str(seed)]), encoding="utf-8")
        print(f"{name} {rows[name]} in {time.monotonic() - started:.1f} s", flush=True)
    if args.steps is None:
        record(args, index, rows)


def networks() -> Iterator[Entry]:
    """What is trained, each network once: the ladder's last rung is cmt_micro."""
    yield from ablation_entries("micro")
    yield from (Entry(name, name) for name in (*peers("micro")[1:], *LARGER))


def on_card(samples: Any, device: torch.device) -> Photos:
    with ThreadPoolExecutor() as pool:
        pixels = np.stack(list(pool.map(pixels_of, samples)))
    assert pixels.shape[1:] == (SIDE, SIDE, 3), pixels.shape
    labels = torch.tensor([sample.label for sample in samples])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().to(device), labels.to(device)


def pixels_of(sample: Any) -> np.ndarray:
    """A photo (H, W, 3) uint8."""
    return np.asarray(Image.open(str(sample.path)).convert("RGB"))


def build(entry: Entry, num_classes: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    sized = {"img_size": SIDE} if has_fixed_size(entry.model) else {}
    model: nn.Module = create_model(entry.model, num_classes=num_classes, **sized, **entry.options)
    return model.to(memory_format=torch.channels_last).train()


class Learner:
    """One network in training: what a step of its own reads and changes."""

    def __init__(self, model: nn.Module, recipe: Recipe, device: torch.device) -> None:
        self.model = model.to(device)
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = build_optimizer(model, recipe, peak_lr(recipe, recipe.train.batch_size), device)
        self.average = timm.utils.ModelEmaV3(model, decay=recipe.ema.decay, use_warmup=recipe.ema.warmup)
        self.chosen = torch.zeros(recipe.train.batch_size, dtype=torch.int64, device=device)  # the photos of a step
        self.stream = torch.cuda.Stream() if device.type == "cuda" else None

    def averaged(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """What is averaged, and the averages."""
        both = (self.model.state_dict().values(), self.average.module.state_dict().values())
        values, averages = ([value for value in one if value.is_floating_point()] for one in both)
        return values, averages

    def changed(self) -> list[torch.Tensor]:
        """All that a step changes."""
        states = self.optimizer.state.values()
        state = [value for one in states for value in one.values() if isinstance(value, torch.Tensor)]
        return [*self.model.parameters(), *self.model.buffers(), *self.averaged()[1], *state]


def fit(models: list[nn.Module], recipe: Recipe, train: Photos, val: Photos, most: int | None) -> list[int]:
    """Train networks side by side by a recipe; gives the photos of val that each moving average recognises."""
    device, batch = train[1].device, recipe.train.batch_size
    steps_per_epoch = len(train[1]) // batch
    learners = [Learner(model, recipe, device) for model in models]
    clock = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=peak_lr(recipe, batch))  # its rate is that of the step
    scheduler = build_scheduler(clock, recipe, steps_per_epoch)
    rate, weight = torch.zeros((), device=device), torch.zeros((), device=device)  # read by a captured step
    for learner in learners:
        for group in learner.optimizer.param_groups:
            group["lr"], group["capturable"] = rate, device.type == "cuda"
    step = run = side_by_side([(learner.stream, step_of(learner, recipe, train, weight)) for learner in learners])
    done, total = 0, recipe.schedule.total_epochs * steps_per_epoch if most is None else most
    orders = [torch.Generator(device).manual_seed(recipe.seed + number) for number in range(len(learners))]
    while done < total:
        permuted = [torch.randperm(len(train[1]), generator=order, device=device) for order in orders]
        for start in range(0, min(steps_per_epoch, total - done) * batch, batch):
            for learner, photos in zip(learners, permuted, strict=True):
                learner.chosen.copy_(photos[start : start + batch])
            if done == WARM_UP and device.type == "cuda":
                run = capture(learners, step)
            rate.fill_(clock.param_groups[0]["lr"])
            weight.fill_(1 - learners[0].average.get_decay(done + 1))
            run()
            done += 1
            scheduler.step_update(done)
    return [recognised(learner.average.module.eval(), recipe, val) for learner in learners]


def step_of(learner: Learner, recipe: Recipe, train: Photos, weight: torch.Tensor) -> Callable[[], None]:
    """A step of one network, from the photos chosen to its moving average, as work for the card alone."""
    mean_std = constants(recipe, weight.device)

    def step() -> None:
        images, labels = augmented(train[0][learner.chosen]), train[1][learner.chosen]
        learner.optimizer.zero_grad(set_to_none=False)
        with torch.autocast(images.device.type, torch.bfloat16, cache_enabled=False):
            logits = learner.model(normalised(images, mean_std))
        F.cross_entropy(logits.float(), labels, label_smoothing=recipe.augment.label_smoothing).backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters, recipe.optim.clip_grad_norm or float("inf"))
        learner.optimizer.step()
        with torch.no_grad():
            values, averages = learner.averaged()
            further = torch._foreach_sub(values, averages)
            torch._foreach_mul_(further, weight)
            torch._foreach_add_(averages, further)

    return step


def side_by_side(steps: list[tuple[torch.cuda.Stream | None, Callable[[], None]]]) -> Callable[[], None]:
    """The steps of several networks as one: each on a stream of its own, since one small network leaves a card idle."""

    def step() -> None:
        for stream, one in steps:
            if stream is None:
                one()
                continue
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                one()
        for stream, _ in steps:
            if stream is not None:
                torch.cuda.current_stream().wait_stream(stream)

    return step


def capture(learners: list[Learner], step: Callable[[], None]) -> Callable[[], None]:
    """The step as a CUDA graph; capturing it runs it a few times, so what it changes is put back."""
    before = [value.detach().clone() for learner in learners for value in learner.changed()]
    graph = captured(step)
    with torch.no_grad():
        for value, former in zip((v for learner in learners for v in learner.changed()), before, strict=True):
            value.copy_(former)
    return graph


def augmented(pixels: torch.Tensor) -> torch.Tensor:
    """Each photo (N, 3, H, W) with a black border, cropped at random, and every second one mirrored."""
    count, side, device = len(pixels), pixels.shape[-1], pixels.device
    padded = F.pad(pixels, (BORDER,) * 4)
    along = torch.arange(side, device=device)
    starts = torch.randint(0, 2 * BORDER + 1, (2, count, 1), device=device)
    rows, columns = starts[0] + along, starts[1] + along
    mirrored = torch.rand(count, 1, device=device) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    photo = torch.arange(count, device=device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[photo, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def constants(recipe: Recipe, device: torch.device) -> torch.Tensor:
    """Mean and standard deviation of each channel, (2, 1, 3, 1, 1), on the card before anything is captured."""
    both = [recipe.preprocess.mean, recipe.preprocess.std]
    return torch.tensor(both, dtype=torch.float32, device=device).view(2, 1, 3, 1, 1)


def normalised(pixels: torch.Tensor, mean_std: torch.Tensor) -> torch.Tensor:
    return ((pixels.float() / 255 - mean_std[0]) / mean_std[1]).contiguous(memory_format=torch.channels_last)


def recognised(model: nn.Module, recipe: Recipe, val: Photos) -> int:
    right, mean_std = 0, constants(recipe, val[1].device)
    with torch.inference_mode():
        for pixels, labels in zip(val[0].split(EVAL_BATCH), val[1].split(EVAL_BATCH), strict=True):
            right += int((model(normalised(pixels, mean_std)).argmax(1) == labels).sum())
    return right


def record(args: argparse.Namespace, index: DatasetIndex, rows: dict[str, dict[str, Any]]) -> None:
    write_record(
        "gpu-study",
        f"python benchmarks/gpu_study.py --work DIR --data DIR --epochs {args.epochs} --seeds {args.seeds}",
        {
            "data": {"fingerprint": index.fingerprint, "train": len(index.train), "val": len(index.val)},
            "recipe": "ladder_64",
            "epochs": args.epochs,
            "precision": "bfloat16 autocast",
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()
