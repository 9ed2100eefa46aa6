"""What a finished run proposes: the two commands that help most, in the order in which they do."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from cmtvision.cli.outcome import next_commands, quality
from cmtvision.recipe import load_recipe

RISING = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
LEVEL = (0.2, 0.5, 0.7, 0.7, 0.7, 0.7)


def proposed(scores, *settings, num_test=0, bare=True, out="runs/mine"):
    rows = [{"epoch": epoch, "val_top1": score} for epoch, score in enumerate(scores)]
    finished = SimpleNamespace(rows=rows, epochs=len(rows), num_test=num_test, out=Path(out))
    return next_commands(finished, load_recipe("demo", ["train.max_minutes=null", *settings]), "my photos", bare)


def test_a_run_that_was_still_rising_is_prolonged():
    first, second = proposed(RISING, "schedule.epochs=6")
    assert first == "since accuracy was still rising: cmtvision train 'my photos' --epochs 12"
    assert second.endswith("cmtvision predict runs/mine PHOTO...")
    assert proposed(RISING, "train.max_minutes=5")[0].endswith("cmtvision train 'my photos' --minutes 10")
    assert "--recipe runs/mine/recipe.yaml --epochs" in proposed(RISING, bare=False)[0]


@pytest.mark.parametrize("settings", [(), ("train.max_minutes=5",)])
def test_one_that_has_learned_what_it_can_is_used(settings):
    first, second = proposed(LEVEL, *settings)
    assert "cmtvision predict runs/mine PHOTO..." in first
    assert "cmtvision export runs/mine --to onnx" in second
    assert proposed(LEVEL, *settings, num_test=7)[0].endswith("cmtvision eval runs/mine 'my photos' --split test")


def test_a_time_that_was_too_short_is_said():
    first = proposed(RISING[:1], "train.max_minutes=0.25")[0]
    assert first == "since there was time for 1 epoch only: cmtvision train 'my photos' --minutes 0.5"
    assert "only" not in proposed(RISING[:1])[0]
    assert "only" not in proposed(RISING[:2], "train.max_minutes=5", "schedule.epochs=2", "schedule.warmup_epochs=0")[0]


def test_steps_that_were_counted_are_not_prolonged():
    assert "since" not in proposed(RISING, "train.max_steps=6")[0]


def test_without_held_out_photos_nothing_is_said_of_quality():
    assert quality(None) == []
