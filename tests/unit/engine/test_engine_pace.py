"""A schedule meets its time limit whatever the machine does on the way; minutes pass on a clock of our own."""

from itertools import pairwise

import pytest
from engine_photos import TINY, write_photos

from cmtvision.engine import fit
from cmtvision.engine import pace as module
from cmtvision.engine.module import TrainingModule
from cmtvision.engine.pace import Pace
from cmtvision.recipe import load_recipe


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self):
        self.now = 1000.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def run(clock, pace, seconds_of, evaluation=0.0, every=1, final=True, start=0):
    """Train to the end; ``seconds_of`` a step by the time since the beginning. Steps taken, and the learning places."""
    begun, step, places = clock.now, start, []
    pace.begin(start)
    while not pace.done and step < start + pace.total:
        clock.now += seconds_of(clock.now - begun)
        step += 1
        pace.advance(step)
        pace.fit()
        places.append(pace.position)
        end = step % pace.steps_per_epoch == 0
        if (end and (step // pace.steps_per_epoch) % every == 0) or pace.done:
            looked = clock.now
            clock.now += evaluation
            pace.evaluated(looked)
    clock.now += evaluation if final else 0.0
    return step, places


@pytest.mark.parametrize(
    "speed",
    [
        lambda _: 0.1,
        lambda _: 0.9,
        lambda now: 0.1 if now < 100 else 0.4,  # another program begins
        lambda now: 0.4 if now < 100 else 0.1,  # and one ends
        lambda now: 0.1 + 0.3 * (int(now) % 10 < 2),  # photos that come in bursts
    ],
)
@pytest.mark.parametrize(("evaluation", "every"), [(0.0, 1), (4.0, 1), (4.0, 5)])
def test_the_end_of_schedule_and_time_meet(clock, speed, evaluation, every):
    begun = clock.now
    pace = Pace(100_000, 100, 300.0, evaluations=(0.3, every), spent=20.0, after=10.0)
    _, places = run(clock, pace, speed, evaluation, every)
    assert clock.now - begun + 20.0 + 10.0 == pytest.approx(300.0, rel=0.07)
    assert places[-1] == pytest.approx(pace.total, rel=0.03)  # the learning rate has come down to its end
    assert all(before < after for before, after in pairwise(places))


def test_a_schedule_that_fits_is_left_as_it_is(clock):
    pace = Pace(1000, 100, 300.0)
    steps, places = run(clock, pace, lambda _: 0.1)
    assert steps == 1000
    assert places == [float(step) for step in range(1, 1001)]
    unlimited = Pace(1000, 100)
    assert run(clock, unlimited, lambda _: 50.0)[1] == places
    assert not Pace(10, 5, None).done


def test_less_than_an_epoch_and_hardly_any_time_still_end(clock):
    pace = Pace(50_000, 50_000, 60.0, evaluations=(0.25, 1))
    begun = clock.now
    steps, _ = run(clock, pace, lambda _: 0.5, evaluation=0.0)
    assert 20 < steps < 125
    assert clock.now - begun <= 61
    late = Pace(1000, 100, 10.0, spent=30.0)
    assert late.done  # nothing is left: the caller stops at its first look


def test_a_resumed_run_has_what_is_left_of_its_time(clock):
    pace = Pace(100_000, 100, 300.0)
    pace.begin(0)
    for step in range(1, 501):
        clock.now += 0.2
        pace.advance(step)
        pace.fit()
    saved = pace.state_dict()
    clock.now += 5000.0  # the machine was off
    again = Pace(100_000, 100, 300.0, spent=15.0)
    again.load_state_dict(saved)
    assert again.spent == pytest.approx(115.0)
    begun = clock.now
    _, places = run(clock, again, lambda _: 0.2, start=500)
    assert clock.now - begun == pytest.approx(185.0, rel=0.03)
    assert places[0] > saved["position"]
    assert places[-1] == pytest.approx(100_000, rel=0.01)


def test_no_more_steps_than_the_recipe_allows_make_no_haste(clock):
    pace = Pace(1000, 100, 60.0, most=200)
    pace.begin(0)
    for step in range(1, 101):
        clock.now += 0.2  # 300 steps fit
        pace.advance(step)
        pace.fit()
    assert pace.stride == 1.0


@pytest.mark.parametrize("by", ["step", "epoch"])
def test_rates_heads_and_mixing_follow_a_schedule_that_runs_ahead_within_an_epoch(tmp_path, monkeypatch, by):
    monkeypatch.setattr(Pace, "fit", lambda self: setattr(self, "stride", 4.0))
    recipe = load_recipe("demo", [
        *TINY, "train.device=cpu", "train.max_minutes=60", f"schedule.step={by}", "train.loggers=[]",
        "optim.head_warmup_epochs=2", "augment.mixup=0.2", "augment.mix_off_epoch=3", "schedule.epochs=8",
    ])  # fmt: skip
    seen = []

    training_step = TrainingModule.training_step

    def noted(self, batch, batch_idx):
        learns = next(self.model.parameters()).requires_grad
        seen.append((self.current_epoch, self.pace.epoch, self.optimizers().param_groups[-1]["lr"], learns))
        return training_step(self, batch, batch_idx)

    monkeypatch.setattr(TrainingModule, "training_step", noted)
    fit(recipe, write_photos(tmp_path / "photos"), tmp_path / "run")
    assert max(epoch for epoch, *_ in seen) <= 2  # of eight
    assert [learns for _, _, _, learns in seen] == [scheduled >= 2 for _, scheduled, _, _ in seen]
    rates = {scheduled: rate for _, scheduled, rate, _ in seen}
    assert len(set(rates.values())) == len(rates)
    assert rates[max(rates)] < 0.3 * max(rates.values())


def test_photos_that_were_added_change_steps_not_epochs():
    pace = Pace(1000, 100)
    pace.begin(0)
    pace.advance(300)
    more = Pace(2000, 200)
    more.load_state_dict(pace.state_dict())
    more.begin(300)
    assert more.epoch == 3
    assert more.epochs_left == 7


def test_a_run_of_an_earlier_version_stands_where_its_steps_say():
    pace = Pace(1000, 100)
    pace.begin(250)
    assert (pace.position, pace.epoch, pace.steps_in_all) == (250.0, 2, 1000)
