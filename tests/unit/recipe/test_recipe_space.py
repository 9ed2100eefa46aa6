"""The search space: what its texts mean, and that a mistake is answered before anything is trained."""

import json
import random

import pytest

from cmtvision.errors import ConfigError
from cmtvision.recipe import load_recipe
from cmtvision.recipe.space import check_space, default_space, parse_space


def test_ranges_and_lists_are_read_as_written():
    lr, mixup, epochs, batch, names, betas = parse_space(
        [
            "optim.lr=log:1e-4..1e-2", "augment.mixup=0..0.4", "schedule.epochs=int:5..20",
            "train.batch_size=int:log:8..64",
            "model.name=cmt_nano,cmt_ti", "optim.betas=[0.9, 0.95],[0.9, 0.99]",
        ]
    )  # fmt: skip
    assert (lr.low, lr.high, lr.log, lr.integer) == (1e-4, 1e-2, True, False)
    assert (mixup.low, mixup.high, mixup.log) == (0, 0.4, False)
    assert (epochs.low, epochs.high, epochs.integer, epochs.log) == (5, 20, True, False)
    assert (batch.integer, batch.log) == (True, True)
    assert [json.loads(text) for text in names.choices] == ["cmt_nano", "cmt_ti"]
    assert [json.loads(text) for text in betas.choices] == [[0.9, 0.95], [0.9, 0.99]]


def test_a_whole_number_stays_one_in_the_recipe():
    (dimension,) = parse_space(["schedule.epochs=int:5..20"])
    drawn = {dimension.draw(random.Random(seed)) for seed in range(50)}
    assert all(5 <= json.loads(text) <= 20 and isinstance(json.loads(text), int) for text in drawn)
    assert len(drawn) > 5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optim.lr", "expected KEY="),
        ("optim.lr=1e-2..1e-4", "smaller number first"),
        ("optim.lr=log:0..1", "begins above 0"),
        ("optim.lr=a..b", "is not a number"),
        ("optim.lr=1..inf", "finite"),
        ("schedule.epochs=int:1.5..4", "whole numbers at both ends"),
        ("model.name=cmt_nano", "two values at least"),
        ("model.name=cmt_ti,cmt_ti", "all different"),
        ("model.name=[a,b", "not valid YAML"),
    ],
)
def test_texts_that_mean_nothing_are_refused(text, words):
    with pytest.raises(ConfigError, match=words) as refused:
        parse_space([text])
    assert "\n" not in str(refused.value)


def test_a_key_given_twice_is_refused():
    with pytest.raises(ConfigError, match="given twice"):
        parse_space(["optim.lr=1..2", "optim.lr=2..3"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optim.lrr=1e-4..1e-2", "did you mean 'optim.lr'"),
        ("optim=1e-4..1e-2", "is a section"),
        ("model.drop_path_rate=0..1.5", "less than 1"),
        ("optim.weight_decay=-1..1", "greater than or equal to 0"),
        ("schedule.epochs=30..60", "write int:LOW..HIGH"),
        ("train.precision=fp32,fp8", "got 'fp8'"),
        ("data.val_fraction=0.1..0.3", "same in every trial"),
    ],
)
def test_a_key_must_take_all_its_values(text, words):
    with pytest.raises(ConfigError, match=words) as refused:
        check_space(parse_space([text]), load_recipe("demo"))
    assert str(refused.value).startswith("--space")
    assert "\n" not in str(refused.value)


def test_a_key_that_is_fixed_too_is_refused():
    with pytest.raises(ConfigError, match="both given"):
        check_space(parse_space(["optim.lr=1e-4..1e-2"]), load_recipe("demo", ["optim.lr=1e-3"]), ["optim.lr=1e-3"])


def test_keys_that_fit_only_together_are_judged_together():
    epochs = "schedule.epochs=int:2..6"
    with pytest.raises(ConfigError, match=r"no combination fits.*warmup_epochs: got 20"):
        check_space(parse_space([epochs]), load_recipe("imagenet_cmt_s"))
    check_space(parse_space([epochs, "schedule.warmup_epochs=0.1,20"]), load_recipe("imagenet_cmt_s"))


@pytest.mark.parametrize("recipe", ["demo", "default"])
def test_the_default_space_fits_and_holds_the_recipes_own_rate(recipe):
    chosen = load_recipe(recipe)
    space = default_space(chosen)
    check_space(space, chosen)
    keys = {dimension.key: dimension for dimension in space}
    assert set(keys) == {"optim.lr", "optim.weight_decay", "model.drop_path_rate", "augment.mixup"}
    assert keys["optim.lr"].low < chosen.optim.lr < keys["optim.lr"].high
    assert keys["optim.lr"].log
