"""The rules of ``train``: a sensible run for few photos and many, small and large, slow machines and fast."""

import json
import re
from dataclasses import replace
from itertools import product

import pytest

from cmtvision.recipe import load_recipe
from cmtvision.recipe.choices import BYTES_PER_GMAC, COST, KEPT, SCRATCH, TUNED, Seen, choose, epochs_in, run_seconds

USUAL = Seen(
    num_train=2700, num_val=340, rarest=200, commonest=320, side=300, detail=180, read_seconds=0.002,
    whole_seconds=0.003, readers=2, device="cpu", memory=8_000_000_000, device_memory=8_000_000_000,
    no_weights="no network",
)  # fmt: skip

HERE = ("cmt_ti", "cmt_xs", "cmt_s", "cmt_b")


def machine(nano_64=450.0):
    """A rate for every network, from that of cmt_nano at 64 px."""
    return lambda name, size: nano_64 * COST["cmt_nano"] * 64 * 64 / (COST[name] * size * size)


def chosen(seen=USUAL, minutes=None, nano_64=450.0, **given):
    """The recipe, and the reasons by key."""
    given = {key.replace("__", "."): value for key, value in given.items()}
    choices = choose(seen, machine(nano_64), minutes, given)
    assert not {choice.key for choice in choices} & given.keys()
    assert len({choice.key for choice in choices}) == len(choices)
    values = [f"{one.key}={json.dumps(one.value)}" for one in choices]
    settings = [f"{key}={json.dumps(value)}" for key, value in given.items()]
    return load_recipe("default", [*values, *settings]), {one.key: one.reason for one in choices}


def network(recipe):
    return recipe.model.name, recipe.model.img_size


@pytest.mark.slow
def test_every_choice_is_a_recipe_that_can_be_carried_out():
    everything = product((4, 40, 450, 20_000), (None, 0.2, 2.0, 5.0, 60.0), (2, 24, 300, 3000, 100_000, 2_000_000),
                         (8, 28, 64, 3000), ((), HERE))  # fmt: skip
    for nano_64, minutes, num_train, side, weights in everything:
        seen = replace(USUAL, num_train=num_train, num_val=num_train // 4, side=side, detail=side, weights=weights)
        recipe, _ = chosen(seen, minutes, nano_64)
        least = COST[recipe.model.name] * recipe.model.img_size**2 * 8 * BYTES_PER_GMAC
        assert least < seen.device_memory * KEPT or network(recipe) in (SCRATCH[0][:2], TUNED[0][:2])
        assert recipe.model.img_size >= 32
        assert 2 <= recipe.train.batch_size <= 128
        assert recipe.schedule.warmup_epochs < recipe.schedule.epochs
        assert recipe.train.eval_every <= recipe.schedule.epochs
        assert 0.9 <= recipe.ema.decay < 1
        rate = machine(nano_64)(*network(recipe))
        seconds = run_seconds(recipe.schedule.epochs / 1.25, seen, rate, recipe.data.cache, recipe.train.eval_every)
        least = run_seconds(1, seen, rate, recipe.data.cache)
        assert seconds < 1.2 * 60 * (minutes or 1e9) + least  # one epoch there must be, however long


def test_few_photos_get_a_small_network_and_small_batches():
    recipe, reasons = chosen(replace(USUAL, num_train=24, num_val=6, rarest=12, commonest=12))
    assert recipe.model.name == "cmt_nano"
    assert recipe.train.batch_size == 8
    assert "24 photos" in reasons["schedule.epochs"] + reasons["model.name"]


def test_photos_of_twenty_pixels_get_the_smallest_input_there_is():
    recipe, reasons = chosen(replace(USUAL, side=20, detail=20))
    assert recipe.model.img_size == 32
    assert "no larger than 20 px" in reasons["model.img_size"]


def test_a_blurred_photo_counts_by_its_detail():
    recipe, reasons = chosen(replace(USUAL, side=1000, detail=40), minutes=30.0)
    assert recipe.model.img_size <= 48
    assert "no detail beyond 40 px" in reasons["model.img_size"]


def test_more_time_or_a_faster_machine_buys_a_larger_network():
    places = {rung[:2]: place for place, rung in enumerate(SCRATCH)}
    by_time = [places[network(chosen(minutes=minutes)[0])] for minutes in (0.3, 2, 10, 60, 600)]
    assert by_time == sorted(by_time)
    assert by_time[0] < by_time[-1]
    by_speed = [places[network(chosen(minutes=5.0, nano_64=rate)[0])] for rate in (4, 40, 400, 4000, 40_000)]
    assert by_speed == sorted(by_speed)
    assert by_speed[0] < by_speed[-1]


def test_time_is_what_the_epochs_take():
    for minutes in (2.0, 5.0, 15.0):
        recipe, _ = chosen(minutes=minutes)
        name, size = network(recipe)
        seconds = run_seconds(
            recipe.schedule.epochs / 1.25, USUAL, machine()(name, size), True, recipe.train.eval_every
        )
        assert seconds == pytest.approx(60 * minutes, rel=0.1)
        assert epochs_in(60 * minutes, USUAL, machine()(name, size), True) <= recipe.schedule.epochs


def test_too_many_photos_for_a_short_run_say_that_it_is_long():
    seen = replace(USUAL, num_train=100_000, num_val=25_000)
    recipe, reasons = chosen(seen)
    seconds = run_seconds(recipe.schedule.epochs, seen, machine()(*network(recipe)), recipe.data.cache)
    assert seconds > 1000
    about = re.fullmatch(r"about (\d+) minutes here", reasons["schedule.epochs"])
    assert int(about[1]) == pytest.approx(seconds / 60, rel=0.2)
    bounded, _ = chosen(seen, minutes=5.0)
    assert network(bounded) == ("cmt_nano", 32)
    assert bounded.schedule.epochs < 12
    fast, _ = chosen(replace(seen, num_train=2_000_000, read_seconds=5e-4), nano_64=100_000)
    assert network(fast) != ("cmt_nano", 32)  # where an hour it will be, it is no hour for the smallest network
    _, reasons = chosen(replace(seen, num_train=24, num_val=6), minutes=600.0)
    assert "no more to teach" in reasons["schedule.epochs"]


def test_photos_of_forty_pixels_get_a_larger_network_where_there_is_time():
    seen = replace(USUAL, side=40, detail=40)
    assert network(chosen(seen, minutes=600.0)[0]) == ("cmt_ti", 48)


def test_strong_crops_are_taken_from_larger_photos():
    assert chosen()[0].data.shrink == 1.5
    assert chosen(augment__scale=(0.08, 1.0))[0].data.shrink == pytest.approx(1.5 * (0.35 / 0.08) ** 0.5, abs=0.01)


def test_a_batch_fits_into_memory():
    tight = replace(USUAL, num_train=100_000, device_memory=1_500_000_000)
    assert chosen(tight, model__name="cmt_nano", model__img_size=224)[0].train.batch_size == 8
    assert chosen(replace(tight, device_memory=200_000_000_000), model__name="cmt_s")[0].train.batch_size == 64
    by_memory = [network(chosen(replace(USUAL, device="cuda", num_train=100_000, device_memory=size), 600.0, 40_000)[0])
                 for size in (20_000_000, 400_000_000, 8_000_000_000, 80_000_000_000)]  # fmt: skip
    places = [[rung[:2] for rung in SCRATCH].index(one) for one in by_memory]
    assert places == sorted(places)
    assert len(set(places)) >= 3
    _, reasons = chosen(replace(USUAL, device_memory=400_000_000), 600.0)
    assert "GB for its activations" in reasons["model.name"]


def test_photos_that_do_not_fit_into_memory_are_not_kept():
    assert chosen()[0].data.cache
    assert not chosen(replace(USUAL, num_train=1_000_000))[0].data.cache
    assert not chosen(replace(USUAL, memory=10_000_000))[0].data.cache


def test_weights_come_first_where_there_are_some():
    recipe, reasons = chosen(replace(USUAL, weights=HERE, no_weights=""), minutes=10.0)
    assert recipe.model.weights == "pretrained"
    assert network(recipe) in {rung[:2] for rung in TUNED}
    assert recipe.optim.layer_decay is not None
    assert reasons["model.weights"]
    without, reasons = chosen(minutes=10.0)
    assert without.model.weights is None
    assert reasons["model.weights"] == "no network"


def test_weights_of_sharp_photos_are_not_for_icons():
    recipe, reasons = chosen(replace(USUAL, weights=HERE, no_weights="", side=28, detail=28))
    assert recipe.model.weights is None
    assert "28 px" in reasons["model.weights"]


def test_only_networks_whose_weights_are_there_are_fine_tuned():
    recipe, _ = chosen(replace(USUAL, weights=["cmt_s"], no_weights="no network"), minutes=1.0)
    assert network(recipe)[0] == "cmt_s"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"model__name": "cmt_s"}, ("cmt_s", None)),
        ({"model__img_size": 80}, (None, 80)),
        ({"model__name": "resnet18", "model__img_size": 128}, ("resnet18", 128)),
        ({"model__name": "cmt_nano", "model__weights": "runs/a", "model__img_size": 64}, ("cmt_nano", 64)),
    ],
)
@pytest.mark.parametrize("weights", [(), HERE])
def test_what_is_given_stays_and_the_rest_follows(given, wanted, weights):
    seen = replace(USUAL, weights=weights)
    choices = choose(
        seen, lambda name, size: 1e8 / size / size / (10 if name == "resnet18" else 1), 5.0,
        {key.replace("__", "."): value for key, value in given.items()},
    )  # fmt: skip
    values = {choice.key: choice.value for choice in choices} | {
        key.replace("__", "."): value for key, value in given.items()
    }
    for value, key in zip(wanted, ("model.name", "model.img_size"), strict=True):
        assert value is None or values[key] == value
    assert values["schedule.epochs"] >= 1
    if given.get("model__name") == "resnet18":
        assert values["model.weights"] is None  # nothing of it was released by us


def test_more_looks_at_each_photo_get_stronger_changes():
    few, _ = chosen(schedule__epochs=5)
    many, reasons = chosen(schedule__epochs=200)
    assert (few.augment.mixup, few.augment.auto_augment, few.augment.random_erasing) == (0, None, 0)
    assert many.augment.mixup > 0
    assert many.augment.auto_augment.startswith("rand-m5")
    assert reasons["augment.mixup"] == "each photo is seen about 200 times"
    timed, reasons = chosen(schedule__epochs=100, minutes=10.0)
    assert timed.augment.mixup > 0  # given epochs are not more than fit


def test_several_labels_and_rare_classes_have_losses_of_their_own():
    several, _ = chosen(replace(USUAL, multi_label=True), data__multi_label=True)
    assert several.augment.label_smoothing == 0
    skewed, reasons = chosen(replace(USUAL, rarest=3, commonest=900))
    assert skewed.data.class_balance == "loss"
    assert "3 photos" in reasons["data.class_balance"]
    assert chosen()[0].data.class_balance == "none"


@pytest.mark.parametrize(
    ("given", "side"),
    [
        ({"augment__random_resized_crop": True}, 28),
        ({"augment__random_resized_crop": False}, 300),
        ({"augment__color_jitter": 0.4, "schedule__epochs": 100}, 300),
        ({"model__weights": "runs/a", "model__name": "cmt_ti", "model__freeze": "backbone"}, 300),
        ({"schedule__warmup_epochs": 500}, 300),
        ({"data__multi_label": True}, 300),
        ({"data__shrink": None}, 300),
    ],
)
def test_what_is_chosen_goes_together_with_what_is_given(given, side):
    seen = replace(USUAL, side=side, detail=side, multi_label="data__multi_label" in given)
    for minutes in (None, 1.0):
        recipe, _ = chosen(seen, minutes, **given)  # which refuses what contradicts itself
        assert recipe.data.cache == ("data__shrink" not in given)


def test_several_processes_share_an_epoch_and_memory():
    one, eight = USUAL, replace(USUAL, processes=8, copies=8, device="cuda")
    assert chosen(one)[0].data.cache
    recipe, reasons = chosen(replace(eight, memory=2_500_000_000))
    assert not recipe.data.cache
    assert recipe.train.batch_size * 8 * 8 <= USUAL.num_train
    assert f"batches of {recipe.train.batch_size * 8}" in reasons["optim.lr"]
    assert recipe.optim.lr >= chosen(one)[0].optim.lr
    many, _ = chosen(replace(eight, num_train=1_000_000))
    assert many.optim.lr == 2 * chosen(replace(one, num_train=1_000_000), model__name=many.model.name)[0].optim.lr


def test_the_same_photos_and_machine_give_the_same_choice():
    assert chosen(minutes=3.0)[0] == chosen(minutes=3.0)[0]
