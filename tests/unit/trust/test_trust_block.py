"""The block of a card: whole after JSON, bounded, and refused in one line where it makes no sense."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from cmtvision.trust.answers import ABSTAIN, Ask, answers, assumptions, record
from cmtvision.trust.block import Distance, TrustBlock
from cmtvision.trust.fit import fit_block, num_to_fit
from cmtvision.trust.order import OrderStatistics


def block_of(count, classes, seed=0):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, classes, count)
    logits = rng.normal(size=(count, classes)).astype(np.float32)
    logits[np.arange(count), targets] += rng.uniform(0, 4, count)
    return fit_block(logits, targets), logits, targets


@pytest.fixture(scope="module")
def block():
    found = block_of(600, 4)[0]
    return replace(found, distance=Distance(OrderStatistics.of(np.arange(30)), 5, "0" * 64), notes=("so",))


@pytest.mark.parametrize(("count", "classes"), [(3, 2), (1, 1), (40, 1), (60, 1_000), (2_500, 2), (1, 5)])
def test_any_number_of_images_and_classes_gives_answers(count, classes):
    found, logits, _ = block_of(count, classes)
    again = TrustBlock.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False)))
    assert again == found
    for kind in ("lac", "raps"):
        inside = again.sets(logits, 0.9, kind)
        assert inside.any(axis=1).all()
        if again.too_few(0.9, kind):
            assert inside.all()
    assert len(json.dumps(found.to_dict())) < 200_000
    assert (again.probabilities(logits).argmax(axis=1) == logits.argmax(axis=1)).all()
    assert any("too few for a temperature" in note for note in found.notes) == (count < 20)


def test_it_survives_json_with_everything_in_it(block):
    assert TrustBlock.from_dict(json.loads(json.dumps(block.to_dict()))) == block
    assert block.without_distance().distance is None
    assert "values" not in json.dumps(block.summary())


def put(block, path, value):
    found = json.loads(json.dumps(block.to_dict()))
    *path, last = path
    place = found
    for key in path:
        place = place[key]
    place[last] = value
    return found


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("temperature",), math.nan, "got nan, expected a number from 0.01 to 1000"),
        (("temperature",), 0, "got 0, expected a number from 0.01"),
        (("temperature",), 1e-9, "from 0.01"),
        (("temperature",), 1e300, "to 1000"),
        (("temperature",), "1", "expected a number"),
        (("temperature",), True, "expected a number"),
        (("num_images",), 0, "whole number"),
        (("lac", "values"), [0.1] * 100_000, "at most 2000 numbers"),
        (("lac", "values"), [], "0 scores of 600 images"),
        (("lac", "values"), [0.5], "some are missing"),
        (("lac", "values"), "0.5", "a list of at most 2000 numbers"),
        (("raps", "values", 0), math.inf, "a list of at most 2000 numbers"),
        (("energy", "values", 0), 1e9, "no ascending numbers"),
        (("energy", "num_images"), 2.5, "whole number"),
        (("raps", "penalty"), math.nan, "expected a number"),
        (("raps", "k_reg"), 0, "at least 1"),
        (("raps",), None, "calibrate the model again"),
        (("loss",), [1], "two numbers"),
        (("ece",), [0.1, math.nan], "two numbers"),
        (("distance", "sha256"), "../x", "SHA-256"),
        (("distance",), 5, "calibrate the model again"),
        (("notes",), 5, "calibrate the model again"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(block, path, value, words):
    with pytest.raises(ValueError, match=words) as refused:
        TrustBlock.from_dict(put(block, path, value))
    assert str(refused.value).startswith("trust: ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("missing", ["temperature", "lac", "raps", "energy", "num_images"])
def test_a_block_with_a_hole_is_refused(block, missing):
    found = block.to_dict()
    del found[missing]
    with pytest.raises(ValueError, match=f"trust: '{missing}' is missing; calibrate the model again"):
        TrustBlock.from_dict(found)
    for other in (None, [], "trust"):
        with pytest.raises(ValueError, match="expected a block"):
            TrustBlock.from_dict(other)


def test_more_images_than_needed_are_drawn_and_memory_is_bounded():
    assert num_to_fit(2_000, 10) == 2_000
    assert num_to_fit(50_000, 1_000) == 10_000
    assert num_to_fit(50_000, 21_841) == 457
    assert num_to_fit(5, 10**9) == 1


def test_logits_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="no numbers"):
        fit_block(np.array([[1.0, np.nan]], np.float32), np.array([0]))
    with pytest.raises(ValueError, match="no images"):
        fit_block(np.zeros((0, 2), np.float32), np.zeros(0, int))


def test_abstaining_follows_its_rule(block):
    logits = np.array([[9.0, 0, 0, 0], [2.0, 1.9, 0, 0], [-20.0, -20, -20, -20]], np.float32)
    odds = block.probabilities(logits).max(axis=1).tolist()
    plain = answers(block, logits, odds)
    assert [(one.set, one.unsure) for one in plain] == [(None, None)] * 3
    sure, doubtful, strange = answers(block, logits, odds, Ask(0.9, "raps", ABSTAIN))
    assert (sure.unsure, sure.set[0]) == ("", 0)
    assert doubtful.unsure == "probability under 90%"
    assert strange.unsure.startswith("unfamiliar: no more than 5% of the held-out images")
    never = answers(block, logits, odds, Ask(abstain=0.0))
    assert [one.unsure == "" for one in never] == [True, True, False]
    near = answers(block, logits, odds, Ask(), distances=np.array([0.0, 10.0, 40.0]))
    assert [round(one.familiarity, 4) for one in near] == [1.0, round(21 / 31, 4), round(1 / 31, 4)]
    assert near[2].distance == 40.0


def test_what_is_assumed_is_said(block):
    sets, unsure = assumptions(block, Ask(0.95, "lac", 0.9))
    assert "at least 95% of images, not of each class; assuming that new images are like the 600 held-out" in sets
    assert "stranger by energy (no features here) than 95%" in unsure
    assert assumptions(block, Ask()) == []
    assert "also chose the epoch" in replace(block, chose_epoch=True).assumption()
    few = block_of(5, 3)[0]
    assert "every set is all classes" in assumptions(few, Ask(0.9))[0]
    assert record(few, Ask(0.9))["too_few"]
    assert record(block, Ask(abstain=0.5), by_distance=True)["familiarity_by"] == "distance"


@pytest.mark.parametrize("ask", [Ask(1.5), Ask(0.9, "aps"), Ask(abstain=math.nan), Ask(abstain=1.1)])
def test_senseless_wishes_are_refused(ask):
    with pytest.raises(ValueError, match="expected"):
        ask.check()
