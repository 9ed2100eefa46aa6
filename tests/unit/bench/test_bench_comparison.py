"""What a comparison found: order, accuracy, fronts, plain data."""

import itertools
import json
from dataclasses import replace

import torch

from cmtvision.bench.comparison import Accuracy, Row, chosen_kind, in_order, pareto_front, row_record, with_fronts


def accuracy(percent, kind="published", source="a paper"):
    return Accuracy(kind, percent, source)


def row(name, macs, latency=1.0, **facts):
    return Row(name, name, macs=macs, latency=(latency,), batch_seconds=(2 * latency,), **facts)


def test_the_front_is_what_no_other_point_beats():
    torch.manual_seed(3)
    for drawn in torch.randint(0, 6, (40, 9, 2)).tolist():
        points = [tuple(point) for point in drawn]
        beaten = {
            i for i, j in itertools.permutations(range(len(points)), 2)
            if points[j][0] <= points[i][0] and points[j][1] >= points[i][1] and points[j] != points[i]
        }  # fmt: skip
        assert set(pareto_front(points)) == set(range(len(points))) - beaten
    assert pareto_front([]) == []


def test_rows_stand_by_multiply_adds_then_name_and_failed_ones_last():
    rows = [row("d", 7), row("z", 1, failure="no"), row("b", 7), row("c", 2), Row("a", "a", failure="no")]
    assert [one.model for one in in_order(rows)] == ["c", "b", "d", "a", "z"]


def test_fronts_leave_out_what_failed_and_what_has_no_accuracy():
    rows = [
        row("cheap", 1, 5.0, published=accuracy(70)),
        row("unknown", 0, 0.1),
        row("failed", 0, 0.1, published=accuracy(99), failure="no"),
        row("beaten", 2, 6.0, published=accuracy(69)),
        row("fast", 3, 1.0, published=accuracy(72)),
    ]
    assert [one.front for one in with_fronts(rows)] == [("gmacs",), (), (), (), ("gmacs", "latency")]


def test_accuracies_of_different_photos_are_never_set_against_each_other():
    both = row("a", 1, published=accuracy(70), trained=accuracy(60, "trained"))
    assert chosen_kind([row("b", 1, published=accuracy(70))]) == "published"
    assert chosen_kind([both, row("b", 1, published=accuracy(70))]) == "trained"
    own = [row(name, 1, own=accuracy(60, "run", source)) for name, source in (("a", "x"), ("b", "x"), ("c", "y"))]
    assert chosen_kind(own[:2]) == "run"
    assert chosen_kind(own) is None
    assert chosen_kind([row("a", 1, failure="no", published=accuracy(70))]) is None


def test_a_record_is_plain_json_with_the_figures_people_read():
    one = row("a", 2_000_000_000, 0.5, activations=3_000_000, published=accuracy(70))
    record = json.loads(json.dumps(row_record(replace(one, latency=(0.5, 0.1, 0.2)), batch=8)))
    assert record["gmacs"] == 2.0
    assert record["activations_m"] == 3.0
    assert record["latency_seconds"] == {"median": 0.2, "min": 0.1, "max": 0.5}
    assert record["images_per_second"]["median"] == 8.0
    assert record["published"]["source"] == "a paper"


def test_the_systems_of_the_paper_have_a_front_of_their_own_beside_others():
    def row(model, macs, percent, of_paper):
        return Row(
            model,
            model,
            macs=macs,
            latency=(macs / 10,),
            published=Accuracy("published", percent, "s"),
            of_paper=of_paper,
        )

    rows = [row("cheap", 1, 80.0, False), row("cmt", 2, 79.0, True), row("deit", 3, 78.0, True)]
    found = with_fronts(rows)
    assert [one.front for one in found] == [("gmacs", "latency"), (), ()]
    assert [one.paper_front for one in found] == [(), ("gmacs", "latency"), ()]
    assert [one.paper_front for one in with_fronts(rows[1:])] == [(), ()]  # there it is the front itself
