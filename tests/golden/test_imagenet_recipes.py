"""The four ImageNet recipes against the published one, number by number.

The figures below are those of the authors' recipe for 8 GPUs, and what follows from them is worked out here by hand,
without timm's scheduler: epoch length, effective rate, the rate of every epoch, parameter groups, moving average.
"""

import math
import re
from importlib import resources
from typing import NamedTuple

import pytest
import timm
import torch
from timm.data.auto_augment import RandAugment
from torch import nn
from torchvision.transforms import InterpolationMode

from cmtvision.data import EpochSampler, Preprocess
from cmtvision.data.training.augment import mixer, train_transform
from cmtvision.engine.callbacks.ema import EmaCallback
from cmtvision.engine.optim import build_optimizer, build_scheduler, lr_curve, peak_lr, step_epoch
from cmtvision.models.analysis.count import count, total
from cmtvision.models.cmt.position import PositionBias
from cmtvision.recipe import load_recipe

IMAGENET = 1_281_167
PROCESSES = 8


class Published(NamedTuple):
    """A column of the published recipe; ``peak`` and ``steps`` follow from it, for one epoch and process."""

    batch: int
    lr: float  # for 512 photos
    peak: float
    weight_decay: float
    drop_path: float
    epochs: int
    warmup_lr: float
    min_lr: float
    ema: float | None
    steps: int
    side: int
    top1: float


PUBLISHED = {
    "cmt_ti": Published(256, 8e-4, 3.2e-3, 0.05, 0.1, 800, 1e-7, 1e-5, None, 625, 160, 79.1),
    "cmt_xs": Published(256, 7e-4, 2.8e-3, 0.04, 0.08, 400, 1e-6, 2e-5, 0.9998, 625, 192, 81.8),
    "cmt_s": Published(128, 5e-4, 1e-3, 0.05, 0.1, 300, 1e-7, 1e-5, 0.99996, 1251, 224, 83.5),
    "cmt_b": Published(64, 5e-4, 5e-4, 0.05, 0.25, 300, 1e-6, 2e-5, 0.99996, 2502, 256, 84.5),
}
BIAS_VALUES = {"cmt_ti": 75_000, "cmt_xs": 155_520, "cmt_s": 288_120, "cmt_b": 491_520}
WARMUP, COOLDOWN = 20, 10

every_size = pytest.mark.parametrize("name", PUBLISHED)


def recipe_of(name, *overrides):
    return load_recipe(f"imagenet_{name}", overrides)


def shapes_only(name):
    with torch.device("meta"):
        return timm.create_model(name)


def cosine(t, epochs, peak, warmup_lr, min_lr):
    """The rate meant for epoch t."""
    if t < WARMUP:
        return warmup_lr + t * (peak - warmup_lr) / WARMUP
    if t < epochs:
        return min_lr + (peak - min_lr) * (1 + math.cos(math.pi * t / epochs)) / 2
    return min_lr


@every_size
def test_the_plain_numbers(name):
    row = PUBLISHED[name]
    recipe = recipe_of(name)
    assert (recipe.model.name, recipe.seed) == (name, 3407)
    assert (recipe.train.batch_size, recipe.train.accumulate, recipe.train.sync_bn) == (row.batch, 1, False)
    assert (recipe.optim.name, recipe.optim.lr, recipe.optim.lr_base_batch) == ("adamw", row.lr, 512)
    assert (recipe.optim.weight_decay, recipe.optim.eps, recipe.optim.clip_grad_norm) == (row.weight_decay, 1e-8, None)
    assert (recipe.optim.layer_decay, recipe.optim.head_warmup_epochs, recipe.model.freeze) == (None, 0, "none")
    assert (recipe.model.drop_path_rate, recipe.model.drop_rate) == (row.drop_path, None)
    assert (recipe.model.attn_drop_rate, recipe.model.proj_drop_rate) == (0, 0)
    schedule = recipe.schedule
    assert (schedule.epochs, schedule.warmup_epochs, schedule.cooldown_epochs) == (row.epochs, WARMUP, COOLDOWN)
    assert (schedule.warmup_lr, schedule.min_lr, schedule.step) == (row.warmup_lr, row.min_lr, "epoch")
    assert (recipe.ema.enabled, recipe.ema.warmup) == (row.ema is not None, False)
    assert row.ema is None or recipe.ema.decay == row.ema
    assert (recipe.loss.name, recipe.distill.teacher, recipe.data.class_balance) == ("cross_entropy", None, "none")
    assert recipe.train.max_steps is None
    assert recipe.train.early_stop_patience is None


@every_size
def test_dropout_in_front_of_the_classifier_is_the_models_own(name):
    assert shapes_only(name).drop_rate == (0.3 if name == "cmt_b" else 0.1)


@every_size
def test_an_epoch_is_what_repeated_augmentation_leaves_of_imagenet(name):
    recipe = recipe_of(name)
    assert recipe.data.repeated_aug == 3
    sampler = EpochSampler(IMAGENET, recipe.seed, num_replicas=PROCESSES, repeats=recipe.data.repeated_aug)
    assert len(sampler) == 160_128  # 1,281,167 // 256 * 256 // 8
    assert len(sampler) // recipe.train.batch_size == PUBLISHED[name].steps


@every_size
def test_the_rate_of_every_epoch(name):
    row, recipe = PUBLISHED[name], recipe_of(name)
    effective, bounds = row.batch * PROCESSES, (row.epochs, row.peak, row.warmup_lr, row.min_lr)
    assert peak_lr(recipe, effective) == pytest.approx(row.peak, rel=1e-12)
    epochs = range(row.epochs + COOLDOWN)
    wanted = [cosine(max(0, epoch - 1), *bounds) for epoch in epochs]
    assert lr_curve(recipe, effective, row.steps) == pytest.approx(wanted, rel=1e-9)
    assert wanted[0] == wanted[1] == row.warmup_lr < wanted[2]
    assert wanted[-9:] == [row.min_lr] * 9
    on_time = [cosine(epoch, *bounds) for epoch in epochs]
    assert lr_curve(recipe_of(name, "schedule.late=false"), effective, row.steps) == pytest.approx(on_time, rel=1e-9)


def test_the_rates_of_cmt_s_in_figures():
    rates = lr_curve(recipe_of("cmt_s"), 1024, 1251)
    figures = {0: 1e-7, 1: 1e-7, 2: 5.0095e-5, 11: 5.0005e-4, 20: 9.50005e-4, 21: 9.891831e-4, 76: 8.550179e-4,
               151: 5.05e-4, 226: 1.549821e-4, 300: 1.002714e-5, 301: 1e-5, 309: 1e-5}  # fmt: skip
    assert {epoch: rates[epoch] for epoch in figures} == pytest.approx(figures, rel=1e-6)
    assert len(rates) == 310


def test_training_itself_runs_at_those_rates():
    """The optimiser of a network with its two groups, stepped as the engine does it."""
    recipe = recipe_of("cmt_s")
    model = timm.create_model("cmt_nano")
    optimizer = build_optimizer(model, recipe, peak_lr(recipe, 1024), torch.device("cpu"))
    scheduler = build_scheduler(optimizer, recipe, 1251)
    for epoch in range(310):
        wanted = cosine(max(0, epoch - 1), 300, 1e-3, 1e-7, 1e-5)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([wanted] * 2, rel=1e-9), epoch
        scheduler.step_update((epoch + 1) * 1251)  # by the step nothing happens
        step_epoch(scheduler, recipe, epoch)


@every_size
def test_what_is_decayed_is_every_matrix_and_the_bias_tables_and_nothing_else(name):
    recipe, model = recipe_of(name), shapes_only(name)
    optimizer = build_optimizer(model, recipe, 1e-3, torch.device("meta"))
    assert type(optimizer) is torch.optim.AdamW
    assert (optimizer.defaults["betas"], optimizer.defaults["eps"]) == ((0.9, 0.999), 1e-8)
    name_of = {parameter: key for key, parameter in model.named_parameters()}
    decayed = {name_of[p] for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    spared = {name_of[p] for g in optimizer.param_groups if not g["weight_decay"] for p in g["params"]}
    matrices = {f"{key}.weight" for key, part in model.named_modules() if isinstance(part, nn.Conv2d | nn.Linear)}
    tables = {f"{key}.table" for key, part in model.named_modules() if isinstance(part, PositionBias)}
    assert tables == {f"stages.{i}.position_bias.table" for i in range(4)}
    assert decayed == matrices | tables
    assert spared == set(name_of.values()) - decayed
    assert all(key.endswith(".bias") or "norm" in key for key in spared)
    assert {g["weight_decay"] for g in optimizer.param_groups} == {PUBLISHED[name].weight_decay, 0.0}
    assert sum(p.numel() for p, key in name_of.items() if key in tables) == BIAS_VALUES[name]


@every_size
def test_the_changes_to_photos(name):
    side = PUBLISHED[name].side
    preprocess = Preprocess.from_timm(timm.data.resolve_model_data_config(shapes_only(name)))
    transform = train_transform(preprocess, recipe_of(name).augment)
    (crop,) = transform._random_crop.transforms
    assert (crop.size, crop.scale) == ((side, side), (0.08, 1.0))
    assert crop.ratio == pytest.approx((3 / 4, 4 / 3))
    assert crop.interpolation == InterpolationMode.BICUBIC
    assert transform.augment.hflip == 0.5
    assert transform.augment.vflip == 0
    (randaugment,) = transform._pixel_changes.transforms  # and so no colour jitter
    assert isinstance(randaugment, RandAugment)
    assert randaugment.num_layers == 2
    assert randaugment.choice_weights is None
    assert [op.name for op in randaugment.ops] == [
        "AutoContrast", "Equalize", "Invert", "Rotate", "PosterizeIncreasing", "SolarizeIncreasing", "SolarizeAdd",
        "ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing", "ShearX", "ShearY",
        "TranslateXRel", "TranslateYRel",
    ]  # fmt: skip
    assert {(op.prob, op.magnitude, op.magnitude_std) for op in randaugment.ops} == {(0.5, 9, 0.5)}
    erase = transform._erase
    assert (erase.probability, erase.mode, erase.min_count, erase.max_count) == (0.25, "pixel", 1, 1)
    assert (preprocess.mean, preprocess.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@every_size
def test_the_mixing_of_photos(name):
    augment = recipe_of(name).augment
    mix = mixer(augment, 1000)
    assert (mix.mixup_alpha, mix.cutmix_alpha, mix.mix_prob, mix.switch_prob) == (0.8, 1.0, 1.0, 0.5)
    assert (mix.mode, mix.label_smoothing, mix.num_classes, mix.cutmix_minmax) == ("batch", 0.1, 1000, None)
    assert augment.mix_off_epoch == 0


@every_size
def test_photos_to_be_classified_are_resized_and_cropped_as_published(name):
    side, recipe = PUBLISHED[name].side, recipe_of(name)
    preprocess = Preprocess.from_timm(timm.data.resolve_model_data_config(shapes_only(name)))
    assert preprocess.size == (side, side)
    assert preprocess.interpolation == recipe.preprocess.interpolation == "bicubic"
    assert preprocess.crop_pct == recipe.preprocess.crop_pct
    short = int(256 / 224 * side)
    assert preprocess.resized(600, 500) == (int(short * 600 / 500), short)
    assert (preprocess.mean, preprocess.std) == (recipe.preprocess.mean, recipe.preprocess.std)


@pytest.mark.parametrize(("name", "decay"), [(name, row.ema) for name, row in PUBLISHED.items() if row.ema])
def test_the_average_moves_by_the_same_factor_at_every_step(name, decay):
    recipe = recipe_of(name)
    average = EmaCallback(timm.create_model("cmt_nano"), recipe.ema).ema
    assert [average.get_decay(step) for step in (2, 1000, 300_000)] == [decay] * 3
    assert recipe.ema.on_resume == "restore"


@every_size
def test_the_header_states_command_cost_and_accuracy(name):
    folder = resources.files("cmtvision.recipe") / "builtin"
    text = (folder / f"imagenet_{name}.yaml").read_text(encoding="utf-8")
    assert f"#   cmtvision train imagenet --recipe imagenet_{name} --devices 8\n" in text
    row = PUBLISHED[name]
    epochs = row.epochs + COOLDOWN
    gmacs = total(count(shapes_only(name), (3, row.side, row.side))).macs / 1e9
    flops = 2 * 3 * gmacs * 1e9 * 1_281_024 * epochs
    said = re.search(r"Cost: ([\d.e]+) FLOPs = 2 x 3 x ([\d.]+) GMACs x 1,281,024 photos x (\d+) epochs", text)
    assert float(said[1]) == pytest.approx(flops, rel=0.02)
    assert (float(said[2]), int(said[3])) == (pytest.approx(gmacs, rel=1e-3), epochs)
    assert f"Accuracy to expect: {row.top1}% top-1" in text
    assert f"{row.top1}%" in recipe_of(name).description
