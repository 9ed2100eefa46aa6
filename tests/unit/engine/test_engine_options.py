"""Options of a recipe that act in training: each is seen at work, where a run without it shows nothing of the kind."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from engine_photos import TINY, write_photos

import cmtvision
from cmtvision.engine import FitResult, fit
from cmtvision.engine.module import TrainingModule
from cmtvision.recipe import load_recipe
from cmtvision.weights import read_state_dict


@dataclass
class Watched:
    """What a short run did: 30 photos, of which 6 are discs, in three batches of 8.

    Attributes:
        module: with network, loss and recipe; ``optimizer`` is its own.
        before, after: its weights at the beginning, and those that the run saved.
        sizes, layouts: of the images of each step; whether they lay channels last in memory.
        photos: how often each photo was in a batch, by index.
        rates, losses: of each step.
        kinds: number types that the classifier gave.
        passes: of the first block, in training.
    """

    module: Any = None
    optimizer: Any = None
    result: FitResult | None = None
    before: dict[str, torch.Tensor] = field(default_factory=dict)
    after: dict[str, torch.Tensor] = field(default_factory=dict)
    sizes: list[torch.Size] = field(default_factory=list)
    layouts: list[bool] = field(default_factory=list)
    photos: Counter[int] = field(default_factory=Counter)
    rates: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    kinds: set[torch.dtype] = field(default_factory=set)
    passes: int = 0

    def begin(self, module):
        """Look on from here; ``module`` is about to train."""
        self.module, self.optimizer = module, module.trainer.optimizers[0]
        self.before = {name: value.clone() for name, value in module.model.state_dict().items()}
        module.model.stem.register_forward_pre_hook(self._on_images)
        module.model.stages[0].blocks[0].register_forward_pre_hook(self._on_block)
        module.model.head.register_forward_hook(self._on_logits)

    def step(self, batch, loss):
        """One batch."""
        self.photos.update(batch[2].tolist())
        self.rates.append(self.optimizer.param_groups[-1]["lr"])
        self.losses.append(float(loss.detach()))

    def _on_images(self, stem, inputs):
        if stem.training:
            self.sizes.append(inputs[0].shape)
            self.layouts.append(inputs[0].is_contiguous(memory_format=torch.channels_last))

    def _on_block(self, block, _inputs):
        self.passes += block.training

    def _on_logits(self, head, _inputs, logits):
        if head.training:
            self.kinds.add(logits.dtype)

    def moved(self, name):
        """Whether training changed a tensor."""
        return not torch.equal(self.before[name], self.after[name])


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = write_photos(tmp_path_factory.mktemp("photos") / "shapes")
    held_out = {sample.path for sample in cmtvision.data.read_dataset(folder, val_fraction=0.25, split_seed=243).val}
    for photo in [one for one in sorted((folder / "disc").iterdir()) if one not in held_out][:6]:
        photo.unlink()
    return folder


def watch(photos, out, *overrides):
    watched, begin, step = Watched(), TrainingModule.on_train_start, TrainingModule.training_step

    def begun(self):
        watched.begin(self)
        begin(self)

    def stepped(self, batch, batch_idx):
        loss = step(self, batch, batch_idx)
        watched.step(batch, loss)
        return loss

    short = ("schedule.epochs=1", "schedule.warmup_epochs=0", "ema.enabled=false", "train.loggers=[]")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingModule, "on_train_start", begun)
        patch.setattr(TrainingModule, "training_step", stepped)
        watched.result = fit(load_recipe("demo", [*TINY, *short, *overrides]), photos, out)
    watched.after = read_state_dict(out / "model.safetensors")
    return watched


@pytest.fixture(scope="module")
def plain(photos, tmp_path_factory):
    return watch(photos, tmp_path_factory.mktemp("plain") / "run")


GRAY = ("preprocess.mean=null", "preprocess.std=null")
STEM, HEAD = "stem.conv1.weight", "head.weight"
OPTIONS = {
    "train.precision=bf16": lambda run: run.kinds == {torch.bfloat16},
    "train.accumulate=2": lambda run: run.result.metrics["step"] == 2 and 0.9 < run.result.metrics["train_loss"] < 1.4,
    "model.grad_checkpointing=true": lambda run: run.passes == 2 * len(run.losses),
    "train.channels_last=false": lambda run: not any(run.layouts),
    "ema.enabled=true": lambda run: run.result.metrics["ema_distance"] > 0,
    "train.batch_size=auto": lambda run: len(run.losses) == 15,  # ten batches at least: of two, then
    "schedule.step=epoch": lambda run: len(set(run.rates)) == 1,
    "model.rel_pos=block": lambda run: "stages.0.blocks.0.lmhsa.position_bias.table" in run.after,
    "model.in_chans=1": lambda run: run.sizes[0][1] == run.after[STEM].shape[1] == 1,
    "model.img_size=48": lambda run: run.sizes[0][2:] == (48, 48) == cmtvision.load(run.result.out).preprocess.size,
    "train.max_steps=2": lambda run: run.result.metrics["step"] == len(run.losses) == 2,
    "optim.name=sgd": lambda run: isinstance(run.optimizer, torch.optim.SGD),
    "data.class_balance=loss": lambda run: run.module.objective.loss.weights.argmax() == 1,  # discs are rare
    "data.class_balance=sampling": lambda run: max(run.photos.values()) > 1,
    "data.repeated_aug=3": lambda run: len(run.photos) < 12,
    "loss.name=bce": lambda run: run.losses[0] < 0.9,  # near ln 2, not ln 3
    "optim.layer_decay=0.8": lambda run: len({group["lr_scale"] for group in run.optimizer.param_groups}) > 4,
    "optim.head_warmup_epochs=1": lambda run: run.moved(HEAD) and not run.moved(STEM),
    "model.freeze=backbone": lambda run: run.moved(HEAD) and not run.moved(STEM),
}


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_is_seen_at_work(photos, plain, tmp_path, option):
    more = GRAY if option.startswith("model.in_chans") else ()
    run = watch(photos, tmp_path / "run", *more, option)
    assert run.result.evaluation.num_images == 12
    assert OPTIONS[option](run)
    assert not seen(OPTIONS[option], plain)


def seen(check, run):
    try:
        return check(run)
    except (KeyError, AttributeError, TypeError):  # what the option brings is not there
        return False


@pytest.mark.slow
@pytest.mark.parametrize(("on_resume", "anew"), [("restore", False), ("restart", True)])
def test_a_resumed_average_goes_on_or_begins_anew(photos, tmp_path, monkeypatch, on_resume, anew):
    from cmtvision.engine.callbacks.ema import EmaCallback

    out, settings = tmp_path / "run", [*TINY, "train.loggers=[]", "ema.enabled=true", f"ema.on_resume={on_resume}"]
    fit(load_recipe("demo", [*settings, "schedule.epochs=1"]), photos, out)
    distances, begin = [], EmaCallback.on_train_start

    def begun(self, trainer, module):
        begin(self, trainer, module)
        distances.append(self.distance(module.model))

    monkeypatch.setattr(EmaCallback, "on_train_start", begun)
    fit(load_recipe("demo", [*settings, "schedule.epochs=2"]), photos, out, resume=True)
    assert (distances[0] == 0) is anew
