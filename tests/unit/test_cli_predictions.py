"""How `cmtvision predict` shows what a model says, with one label and with several labels an image."""

import csv
import io
import json

import pytest

from cmtvision.cli.predictions import BadImageError, CsvRows, JsonDocument, Outcome, TextRows, View

ONE = Outcome("a.png", [("cat", 0.4), ("dog", 0.35)], [("cat", 0.4)])
TWO = Outcome("b.png", [("cat", 0.9), ("dog", 0.6)], [("cat", 0.9), ("dog", 0.6)])
MORE = Outcome("c.png", [("cat", 0.9)], [("cat", 0.9), ("dog", 0.6)])  # --top 1, and yet it decides for two
SOME = Outcome("d.png", [("cat", 0.9), ("dog", 0.1)], [("cat", 0.9)])
NONE = Outcome("e.png", [("cat", 0.2), ("dog", 0.1)], [])


def shown(view: View, capsys: pytest.CaptureFixture[str], *outcomes: Outcome | BadImageError) -> str:
    for outcome in outcomes:
        view.add(outcome)
    view.close()
    return capsys.readouterr().out


def test_text_of_one_label_names_the_most_probable(capsys):
    assert shown(TextRows(), capsys, ONE, BadImageError("x.png", "no")) == "a.png: cat 40.0%, dog 35.0%\n"


def test_text_of_several_labels_says_what_is_decided(capsys):
    assert shown(TextRows(several=True), capsys, TWO, MORE, SOME, NONE).splitlines() == [
        "b.png: cat 90.0%, dog 60.0%",
        "c.png: cat 90.0%, dog 60.0%",
        "d.png: cat 90.0%; below 50%: dog 10.0%",
        "e.png: none; below 50%: cat 20.0%, dog 10.0%",
    ]


def test_csv_has_a_column_of_labels_only_where_there_may_be_several(capsys):
    text = shown(CsvRows(1), capsys, Outcome("a.png", ONE.top[:1], ONE.labels))
    assert text == "image,label,probability\na.png,cat,0.400000\n"
    rows = list(csv.DictReader(io.StringIO(shown(CsvRows(2, several=True), capsys, TWO, MORE, NONE))))
    assert [row["labels"] for row in rows] == ["cat|dog", "cat|dog", ""]
    assert [row["label_2"] for row in rows] == ["dog", "", "dog"]


def test_json_lists_the_labels(capsys):
    found = json.loads(shown(JsonDocument(), capsys, ONE, BadImageError("x.png", "no"), NONE))
    assert [row["labels"] for row in found["predictions"]] == [["cat"], []]
    assert found["predictions"][1]["label"] == "cat"
    assert found["failed"] == [{"image": "x.png", "error": "no"}]
