"""Images opened ahead of their turn: in order, a bounded number of them, and none that was not asked for."""

import threading
import time

import pytest

from cmtvision.data import Preprocess
from cmtvision.data.ahead import ahead
from cmtvision.errors import DataError

SMALL = Preprocess((8, 8), 1.0, "bicubic", (0.5,) * 3, (0.5,) * 3)
LARGE = Preprocess((2000, 2000), 1.0, "bicubic", (0.5,) * 3, (0.5,) * 3)  # five of them fill the room


def test_the_order_is_that_of_the_items_whatever_takes_longer():
    def slow_for_even(number):
        time.sleep(0.01 * (number % 2 == 0))
        return number

    for items in (list(range(20)), iter(range(20))):
        assert list(ahead(slow_for_even, items, SMALL, 4)) == list(range(20))
    assert list(ahead(slow_for_even, [], SMALL, 4)) == []


def test_what_goes_wrong_is_raised_when_it_is_its_turn_and_the_others_go_on():
    def fails(number):
        if number == 2:
            raise DataError("the third")
        return number

    found = ahead(fails, [0, 1, 2, 3], SMALL, 4)
    assert [next(found), next(found)] == [0, 1]
    with pytest.raises(DataError, match="the third"):
        next(found)
    assert next(found) == 3


def test_a_list_is_begun_at_once_and_only_as_far_as_there_is_room():
    begun = []
    found = ahead(lambda number: begun.append(number) or number, list(range(50)), LARGE, 2)
    for _ in range(200):
        if len(begun) == 5:
            break
        time.sleep(0.01)
    time.sleep(0.05)
    assert sorted(begun) == [0, 1, 2, 3, 4]
    assert next(found) == 0
    assert list(found) == list(range(1, 50))


def test_an_iterator_is_asked_for_a_batch_and_no_more():
    asked = []

    def items():
        for number in range(6):
            asked.append(number)
            yield number

    found = ahead(lambda number: number, items(), SMALL, 2)
    assert asked == []
    assert next(found) == 0
    assert asked == [0, 1]
    assert next(found) == 1
    assert asked == [0, 1]  # who answers now may be the one who gives the next
    assert next(found) == 2
    assert asked == [0, 1, 2, 3]


def test_work_that_nobody_waits_for_is_left_undone():
    done = []
    going, go_on = threading.Event(), threading.Event()

    def work(number):
        going.set()
        go_on.wait(10)
        done.append(number)

    found = ahead(work, list(range(1000)), SMALL, 2)
    assert going.wait(10)
    del found
    go_on.set()
    time.sleep(0.2)
    assert len(done) < 100
