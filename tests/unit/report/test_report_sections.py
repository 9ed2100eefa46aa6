"""The sections of a report, from arrays."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cmtvision.artefact.confusion import Confusion
from cmtvision.errors import DataError
from cmtvision.report.answers import Answers
from cmtvision.report.maps import overlay
from cmtvision.report.measures import measured_columns, table_columns
from cmtvision.report.sections.calibration import calibration
from cmtvision.report.sections.matrix import matrix, similar_order
from cmtvision.report.sections.mistakes import pair_pictures
from cmtvision.report.sections.slices import Column, slices_of
from cmtvision.report.statistics import ConfusedPair


def answers(probability, right, margin=None, true=None, said=None):
    count = len(probability)
    true = true or ["a"] * count
    said = said or [own if good else "b" for own, good in zip(true, right, strict=True)]
    sure = np.asarray(probability, float)
    paths = [Path(f"{i}.png") for i in range(count)]
    flags = np.asarray(right, bool)
    return Answers(
        paths, [str(path) for path in paths], true, said, flags, sure, np.where(flags, sure, 1 - sure),
        sure if margin is None else np.asarray(margin, float), flags, False,
    )  # fmt: skip


def test_a_model_that_overstates_is_called_too_sure():
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.5, 1, 2000)
    found = calibration(answers(sure, rng.random(2000) < sure - 0.2))
    assert found.verdict.startswith("Too sure of itself")
    assert found.gap.low > 0.15
    assert found.error == pytest.approx(0.2, abs=0.03)
    assert sum(one.images for one in found.bins) == 2000
    fair = calibration(answers(sure, rng.random(2000) < sure))
    assert fair.verdict.startswith("On average neither")
    assert calibration(answers([1.0 + 1e-7], [True])).error == pytest.approx(0, abs=1e-6)  # float32's rounding


def test_slices_name_the_part_that_is_worse_and_those_with_few_images():
    light = np.linspace(0, 100, 400)
    right = np.where(light < 25, np.arange(400) % 2 == 0, True)
    kind = ["phone"] * 380 + ["scanner"] * 10 + [None] * 10
    found = {one.name: one for one in slices_of([Column("light", light.tolist(), "%"), Column("kind", kind)], right)}
    quarters = found["light"].rows
    assert [row.images for row in quarters] == [100] * 4
    assert [row.remark for row in quarters] == ["worse than the rest", *["better than the rest"] * 3]
    assert quarters[0].share == 0.5
    assert quarters[0].low < 0.5 < quarters[0].high
    assert [(row.name, row.images) for row in found["kind"].rows] == [("phone", 380), ("scanner", 10)]
    assert "few images" in found["kind"].rows[1].remark
    assert found["kind"].note == "10 of the images have no value."


def test_slices_of_equal_few_many_and_missing_values():
    right = np.ones(40, bool)
    columns = [
        Column("same", ["x"] * 40),
        Column("years", [str(2000 + i % 3) for i in range(40)]),
        Column("names", [f"n{i}" for i in range(40)]),
        Column("none", [None] * 40),
        Column("skewed", [0.0] * 30 + [float(i) for i in range(10)]),
    ]
    same, years, names, none, skewed = slices_of(columns, right)
    assert (same.rows, same.note) == ([], "the same for all images (x).")
    assert [row.name for row in years.rows] == ["2000", "2001", "2002"]
    assert (len(names.rows), names.rows[-1].name, names.rows[-1].images) == (13, "28 other values", 28)
    assert none.note == "no image has a value."
    assert sum(row.images for row in skewed.rows) == 40


def test_images_are_measured_and_a_table_is_joined_by_any_spelling_of_a_path(tmp_path):
    paths = [tmp_path / "photos/a.png", tmp_path / "photos/b.png", tmp_path / "photos/gone.png"]
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (60, 30), "white").save(paths[0])
    Image.new("L", (20, 20), 51).save(paths[1])
    side, ratio, brightness = measured_columns(paths)
    assert side.values == [30, 20, None]
    assert ratio.values == [2, 1, None]
    assert brightness.values == [100, 20, None]
    table = tmp_path / "table.csv"
    table.write_text(f"path,camera,lens\nphotos/a.png,x,1\n{paths[1]},y,\n")
    (camera, lens), notes = table_columns(table, ["a.png", "b.png", "gone.png"], paths)
    assert (camera.values, lens.values) == (["x", "y", None], ["1", None, None])
    assert notes == ["1 of the images have no row in table.csv."]
    for content, said in (("name,x\n1,2\n", "a column path"), ("path,x\nno.png,2\n", "names none of the images")):
        table.write_text(content)
        with pytest.raises(DataError, match=said):
            table_columns(table, ["a.png"], paths[:1])
    with pytest.raises(DataError, match="cannot be read"):
        table_columns(tmp_path / "missing.csv", ["a.png"], paths[:1])


def confusion_of_groups(groups: int, size: int) -> Confusion:
    """Classes numbered so that those of a group lie far apart; each is taken for the others of its group at times."""
    count = groups * size
    counts = np.zeros((count, count), int)
    for one in range(count):
        for other in range(one % groups, count, groups):
            counts[one, other] = 40 if one == other else 5
    return Confusion.from_json(counts.tolist(), count)


def test_confused_classes_become_neighbours_and_groups():
    confusion = confusion_of_groups(10, 4)
    order, members = similar_order(confusion)
    assert sorted(order.tolist()) == list(range(40))
    in_order = (order % 10).reshape(10, 4)
    assert (in_order == in_order[:, :1]).all()
    assert all(len(set(members[group::10])) == 1 for group in range(10))
    found = matrix([f"c{i}" for i in range(40)], confusion)
    assert found.within == 1.0
    assert [group.mistakes for group in found.groups] == [60] * 10
    assert found.groups[0].images == 4 * 55
    assert len(found.table.names) == 4
    assert found.side == 40
    assert found.picture.startswith("data:image/png;base64,")


def test_a_matrix_of_one_class_and_of_no_mistakes():
    one = matrix(["only"], Confusion.from_json([[3]], 1))
    assert one.table.rows == [("only", [(3, 1.0)])]
    right = matrix([f"c{i}" for i in range(50)], Confusion.from_json(np.eye(50, dtype=int).tolist(), 50))
    assert (right.table, right.groups, right.within) == (None, (), 0.0)


def test_pictures_of_a_pair_are_its_surest_mistakes():
    said = ["b", "b", "a", "b", "c"]
    found = answers([0.6, 0.9, 0.8, 0.7, 0.99], [False, False, True, False, False], said=said)
    (pair,) = pair_pictures(found, [ConfusedPair("a", "b", 3, 5)], 2)
    assert [str(card.answer.path) for card in pair.cards] == ["1.png", "3.png"]


def test_a_map_is_brightest_where_the_model_looked():
    heat = np.zeros((4, 4), np.float32)
    heat[0, 0] = 7
    drawn = np.asarray(overlay(np.full((32, 32, 1), 128, np.uint8), heat)).astype(int).sum(axis=2)
    assert drawn[:20, :20].mean() > 1.3 * drawn[-40:, -40:].mean()
    flat = overlay(np.full((32, 48, 3), 128, np.uint8), np.full((1, 1), np.nan, np.float32))
    assert flat.size == (104, 69)
