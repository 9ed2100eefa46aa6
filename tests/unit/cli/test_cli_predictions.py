"""How `cmtvision predict` shows what a model says, with one label and with several labels an image."""

import csv
import io
import json
import os
import sys
from pathlib import Path

import pytest
import timm
from data_files import photo
from PIL import Image

from cmtvision.artefact import Artefact, write_artefact
from cmtvision.cli import main
from cmtvision.cli.plan_lines import sparkline
from cmtvision.cli.predictions import BadImageError, CsvRows, JsonDocument, Outcome, TextRows, View
from cmtvision.cli.sources import find_images
from cmtvision.data import Preprocess

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


@pytest.fixture(scope="module")
def accented(tmp_path_factory):
    """A model whose classes, and photos whose names, are not all ASCII, nor all UTF-8."""
    root = tmp_path_factory.mktemp("accented")
    model = timm.create_model("cmt_nano", num_classes=2).eval()
    contract = Preprocess((32, 32), 1.0, "bicubic", (0.5,) * 3, (0.25,) * 3)
    write_artefact(root / "model", Artefact("cmt_nano", {}, ["café", "\U0001f431"], contract, model=model))
    (root / "photos").mkdir()
    for name in ("größe.png".encode(), b"bad\xff.png"):
        photo().save(root / "photos" / os.fsdecode(name))
    (root / "photos" / os.fsdecode(b"no\xfe.png")).write_text("x")
    return root


@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "latin-1"])
@pytest.mark.parametrize("how", [[], ["--csv"], ["--json"]])
def test_no_name_is_too_odd_for_the_terminal(encoding, how, accented, monkeypatch):
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding=encoding) for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    code = main(["predict", str(accented / "model"), str(accented / "photos"), *how])
    shown, said = (streams[name].buffer.getvalue().decode(encoding) for name in ("stdout", "stderr"))
    assert code == 2
    assert "no\\udcfe.png: not an image" in said
    if how == ["--json"]:
        found = json.loads(shown)
        names = [os.fsencode(Path(row["image"]).name) for row in found["predictions"]]
        assert sorted(names) == [b"bad\xff.png", "größe.png".encode()]
        assert {row["label"] for row in found["predictions"]} <= {"café", "\U0001f431"}
        assert len(found["failed"]) == 1
    else:
        assert "bad\\udcff.png" in shown
        assert ("größe.png" in shown) == (encoding != "ascii")


def test_a_curve_is_drawn_with_what_the_terminal_has(monkeypatch):
    assert sparkline([0, 1, 2, 4]) == "▁▃▅█"
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert sparkline([0, 1, 2, 4]) == "_-=#"


def test_an_empty_word_is_no_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (only,) = find_images([""])
    assert "empty word" in str(only.content)


def test_names_cannot_move_the_cursor(capsys):
    TextRows().add(Outcome("\x1b[2Ja\nb.png", [("\x1b]0;x\x07bag", 1.0)], []))
    assert capsys.readouterr().out == "\\x1b[2Ja\\x0ab.png: \\x1b]0;x\\x07bag 100.0%\n"
