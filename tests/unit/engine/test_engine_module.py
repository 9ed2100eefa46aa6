"""Learning rates, weight decay groups, mixing and the moving average, against figures worked out by hand."""

import math

import pytest
import pytorch_lightning as pl
import timm
import torch
from engine_photos import TINY, write_photos

from cmtvision.engine import fit
from cmtvision.engine.batch_size import largest_batch
from cmtvision.engine.build import build_model
from cmtvision.engine.callbacks.ema import EmaCallback
from cmtvision.engine.classification import ClassifierObjective
from cmtvision.engine.module import TrainingModule
from cmtvision.recipe import EmaSection, load_recipe


def module(*overrides, steps=10, batch=64):
    recipe = load_recipe("demo", ["schedule.epochs=10", "schedule.warmup_epochs=2", *overrides])
    return TrainingModule(build_model(recipe, 4).model, recipe, ClassifierObjective(recipe, [8] * 4), steps, batch)


def test_the_rate_warms_up_linearly_and_falls_as_a_cosine_by_the_step():
    made = module("optim.lr=1e-3", "schedule.warmup_lr=1e-5", "schedule.min_lr=1e-6").configure_optimizers()
    optimizer, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
    rate = lambda: optimizer.param_groups[0]["lr"]  # noqa: E731
    assert rate() == pytest.approx(1e-5)
    scheduler.step_update(10)
    assert rate() == pytest.approx(1e-5 + (1e-3 - 1e-5) * 10 / 20)
    for step in (20, 55, 99):
        scheduler.step_update(step)
        assert rate() == pytest.approx(1e-6 + (1e-3 - 1e-6) * 0.5 * (1 + math.cos(math.pi * step / 100)))


def test_the_rate_scales_with_the_batch_only_where_the_recipe_says():
    assert module("optim.lr=1e-3", "optim.lr_base_batch=null", batch=64).peak_lr == 1e-3
    assert module("optim.lr=1e-3", "optim.lr_base_batch=512", batch=2048).peak_lr == pytest.approx(4e-3)


def test_biases_and_norms_are_not_decayed_and_bias_tables_are():
    built = module("optim.weight_decay=0.05")
    groups = built.configure_optimizers()["optimizer"].param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for name, parameter in built.model.named_parameters():
        assert decay[id(parameter)] == (0.05 if parameter.ndim > 1 else 0.0), name
    assert any(name.endswith("position_bias.table") for name, _ in built.model.named_parameters())


def test_the_average_is_what_timm_computes_and_moves_once_a_step():
    model = timm.create_model("cmt_nano", num_classes=2)
    callback = EmaCallback(model, EmaSection(decay=0.5, warmup=False))
    before = model.head.weight.detach().clone()
    holder = pl.LightningModule()
    holder.model = model
    with torch.no_grad():
        model.head.weight.add_(1.0)
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    for step in (1, 1, 2):
        trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed = step
        callback.on_train_batch_end(trainer, holder, None, None, 0)
    # step 1 copies (timm: no average yet), step 2 moves half of what is left, which is nothing
    assert torch.allclose(callback.network.head.weight, before + 1.0)
    with torch.no_grad():
        model.head.weight.add_(1.0)
    trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed = 3
    callback.on_train_batch_end(trainer, holder, None, None, 0)
    assert torch.allclose(callback.network.head.weight, before + 1.5)


def test_the_largest_batch_is_a_power_of_two_that_leaves_the_network_as_it_was():
    model = timm.create_model("cmt_nano", num_classes=2).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    size = largest_batch(model, (3, 32, 32), torch.device("cpu"), num_train=900)
    assert size == 64  # 900 photos: ten batches an epoch, rounded down to a power of two
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.slow
def test_smoothing_is_in_the_loss_with_and_without_mixing(tmp_path):
    photos = write_photos(tmp_path / "photos")
    plain = fit(load_recipe("demo", [*TINY, "augment.label_smoothing=0"]), photos, tmp_path / "plain")
    smooth = fit(load_recipe("demo", [*TINY, "augment.label_smoothing=0.3"]), photos, tmp_path / "smooth")
    assert smooth.metrics["train_loss"] != plain.metrics["train_loss"]
