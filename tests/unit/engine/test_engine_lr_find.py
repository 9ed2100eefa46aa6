"""The learning-rate sweep: its arithmetic on curves made by hand, and one real sweep."""

import random

import numpy as np
import pytest
import torch
from engine_photos import TINY, write_photos

from cmtvision.engine.lr_find import find_lr, read_curve, smooth
from cmtvision.errors import ConfigError
from cmtvision.recipe import load_recipe


def test_smoothing_is_corrected_for_its_beginning():
    assert smooth([2.0] * 5) == pytest.approx([2.0] * 5)
    # by hand, b = 0.9: (0.9 * 0.1 * 1 + 0.1 * 3) / (1 - 0.81)
    assert smooth([1.0, 3.0]) == pytest.approx([1.0, 0.39 / 0.19])


def test_a_made_curve_is_read_where_it_falls_and_where_it_ends():
    lrs = np.geomspace(1e-6, 1, 61).tolist()  # ten steps a decade
    # flat at 2, a smooth fall centred at 1e-3, lowest at 1e-1, then up
    values = [
        2 - 1 / (1 + np.exp(-4 * (np.log10(lr) + 3))) + (5 * (np.log10(lr) + 1) if lr > 0.1001 else 0) for lr in lrs
    ]
    steepest, minimum = read_curve(lrs, values)
    assert steepest == pytest.approx(1e-3)
    assert minimum == pytest.approx(1e-1)


def test_a_curve_that_never_falls_suggests_nothing():
    lrs = np.geomspace(1e-6, 1, 50).tolist()
    assert read_curve(lrs, [2.0 - 1e-4 * step for step in range(50)])[0] is None
    assert read_curve(lrs, [2.0 + 0.1 * step for step in range(50)])[0] is None


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos") / "shapes", per_class=16)


@pytest.mark.slow
def test_a_sweep_is_repeatable_and_leaves_every_random_state_alone(photos):
    recipe = load_recipe("demo", [*TINY, "model.drop_path_rate=0.1", "augment.mixup=0.2", "optim.layer_decay=0.8"])
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    threads = torch.get_num_threads()
    first = find_lr(recipe, photos, steps=40)
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert torch.get_num_threads() == threads
    assert first.losses == find_lr(recipe, photos, steps=40).losses
    assert first.suggestion is not None
    assert first.suggestion <= first.minimum * 0.1
    assert first.lrs == pytest.approx(np.geomspace(1e-6, 1, 40)[: len(first.lrs)].tolist())


@pytest.mark.slow
def test_batch_and_accumulation_decide_what_to_write_into_the_recipe(photos):
    more = ["train.accumulate=2", "optim.lr_base_batch=64", "model.freeze=backbone", "optim.lr=1e-2"]
    curve = find_lr(load_recipe("demo", [*TINY, *more]), photos, steps=20)
    assert curve.effective_batch == 16
    assert curve.setting(0.001) == pytest.approx(0.004)
    assert curve.recipe_lr == pytest.approx(1e-2 * 16 / 64)


@pytest.mark.slow
def test_a_sweep_ends_where_the_loss_explodes(photos):
    recipe = load_recipe("demo", [*TINY, "optim.clip_grad_norm=null"])
    curve = find_lr(recipe, photos, start=1e-5, end=1e4, steps=60)
    assert curve.diverged
    assert len(curve.losses) < 60


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"start": 1.0, "end": 0.1}, "the smaller first"), ({"start": 0.0}, "above 0"), ({"steps": 5}, "20 at least")],
)
def test_ranges_that_are_none_are_refused(arguments, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        find_lr(load_recipe("demo"), tmp_path, **arguments)
