"""The turns that the duties of a run take, and when each is due."""

from types import SimpleNamespace

import pytest
from engine_photos import TINY, write_photos

from cmtvision.engine import TrainingDiverged, fit
from cmtvision.engine.callbacks import checkpoint as module
from cmtvision.engine.callbacks.checkpoint import Checkpoint
from cmtvision.engine.callbacks.ema import EmaCallback
from cmtvision.engine.callbacks.held_out import HeldOut
from cmtvision.engine.callbacks.record import Record
from cmtvision.engine.callbacks.watch import LossWatch
from cmtvision.recipe import load_recipe


def recipe(*overrides):
    return load_recipe("demo", [*TINY, "train.loggers=[]", *overrides])


@pytest.fixture
def turns(monkeypatch):
    """What was done, in order."""
    done = []

    def noted(place, name, word):
        original = getattr(place, name)

        def wrapped(*args):
            done.append(word)
            return original(*args)

        monkeypatch.setattr(place, name, wrapped)

    noted(EmaCallback, "on_train_batch_end", "average")
    noted(LossWatch, "look", "look")
    noted(Checkpoint, "save", "save")
    noted(HeldOut, "evaluate", "evaluate")
    noted(Record, "write", "record")
    return done


def test_an_epoch_is_looked_at_then_saved_then_evaluated_then_recorded(turns, tmp_path):
    fit(recipe("ema.enabled=true"), write_photos(tmp_path / "photos"), tmp_path / "run")
    steps = ["average", "look", "average", "look", "average", "average"]  # four batches, of which the first two are
    assert turns == 2 * [*steps, "look", "save", "evaluate", "record"]


def test_in_mid_epoch_a_step_is_averaged_and_looked_at_before_it_is_saved(turns, tmp_path):
    chosen = recipe("ema.enabled=true", "train.checkpoint_steps=3", "schedule.epochs=1", "schedule.warmup_epochs=0")
    fit(chosen, write_photos(tmp_path / "photos"), tmp_path / "run")
    steps = ["average", "look", "average", "look", "average", "look", "save", "average"]
    assert turns == [*steps, "look", "save", "evaluate", "record"]


@pytest.mark.parametrize("bad", [3, 6])
def test_nothing_is_saved_of_an_epoch_whose_last_losses_are_bad(turns, tmp_path, monkeypatch, bad):
    look = LossWatch.look
    monkeypatch.setattr(
        LossWatch, "look", lambda self: look(self) or ("it is bad" if turns.count("look") == bad else None)
    )
    kept = "nothing was saved yet" if bad == 3 else "the checkpoint of step 4 is kept"
    with pytest.raises(TrainingDiverged, match=rf"it is bad \(epoch {bad // 3}\); {kept}"):
        fit(recipe(), write_photos(tmp_path / "photos"), tmp_path / "run")
    assert turns.count("save") == turns.count("record") == bad // 3 - 1


def test_a_checkpoint_is_due_by_steps_or_minutes_and_never_twice_for_a_step(monkeypatch):
    now = 0.0
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now))
    plan = SimpleNamespace(recipe=recipe("train.checkpoint_steps=5", "train.checkpoint_minutes=2"))
    checkpoint = Checkpoint(plan)
    checkpoint.begin(10)
    assert [checkpoint.due(step) for step in (10, 14, 15, 16)] == [False, False, True, True]
    now = 121.0
    assert [checkpoint.due(step) for step in (10, 11)] == [False, True]
    never = Checkpoint(SimpleNamespace(recipe=recipe("train.checkpoint_minutes=null")))
    assert not never.due(1_000_000)
