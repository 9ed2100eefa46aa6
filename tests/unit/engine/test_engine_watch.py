"""Losses that are no number, or grow without end, are found, and the batch that did it is named."""

import math

import pytest
import torch

from cmtvision.engine.callbacks.watch import LossWatch


def watch(factor=4.0):
    return LossWatch(factor, lambda index: f"photo-{index}.png")


def feed(watcher, losses, norm=1.0, first_step=0):
    for step, loss in enumerate(losses, start=first_step):
        watcher.add(step, torch.tensor(loss), torch.tensor(norm), torch.tensor([10 * step, 10 * step + 1]))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_first_bad_batch_is_named_not_the_last(bad):
    watcher = watch()
    feed(watcher, [1.0, 2.0, bad, 1.0])
    assert watcher.look() == "the loss is no longer a number at step 2, on the batch of photo-20.png, photo-21.png"


def test_a_bad_gradient_is_found_behind_a_good_loss():
    watcher = watch()
    feed(watcher, [1.0], norm=math.nan)
    assert "gradient is no longer a number" in watcher.look()


def test_good_losses_are_counted_and_nothing_is_said():
    watcher = watch()
    feed(watcher, [1.0, 2.0, 6.0])
    assert watcher.look() is None
    assert watcher.mean() == 3.0
    watcher.begin_epoch()
    assert math.isnan(watcher.mean())


def test_a_loss_that_grows_beyond_its_beginning_diverges_and_a_small_one_may_wander():
    watcher = watch()
    feed(watcher, [1.0] * 50 + [0.1] * 100)
    assert watcher.look() is None
    feed(watcher, [0.9] * 50, first_step=150)  # nine times its lowest, and still better than at first
    assert watcher.look() is None
    feed(watcher, [5.0] * 50, first_step=200)
    assert "the loss grows" in watcher.look()
    calm = watch(None)
    feed(calm, [1.0] * 50 + [50.0] * 100)
    assert calm.look() is None


def test_a_resumed_watch_goes_on_exactly():
    whole, first = watch(), watch()
    losses = [0.1 * i + 0.037 for i in range(60)]
    feed(whole, losses)
    feed(first, losses[:33])
    for one in (whole, first):
        one.look()
    second = watch()
    second.load_state_dict(first.state_dict(), torch.device("cpu"))
    feed(second, losses[33:], first_step=33)
    second.look()
    assert second.mean() == whole.mean()
    assert second.state_dict() == whole.state_dict()
