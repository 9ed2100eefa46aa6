"""Where an export is written: nothing of somebody else's is ever deleted, and what fails leaves what was there."""

import json
import shutil
from pathlib import Path

import pytest

from cmtvision.artefact.card import CARD_FILE, Card, ExportBlock
from cmtvision.artefact.run.exports import bundle_sources
from cmtvision.artefact.run.names import RECIPE_FILE, RUN_FILE, SPLIT_FILE
from cmtvision.data import Preprocess
from cmtvision.deploy.bundling.bundle import PACKAGE, README_FILE, REQUIREMENTS_FILE, SCRIPT_FILE
from cmtvision.deploy.new_folder import copy_run_files, new_folder, refuse_existing
from cmtvision.errors import CheckpointError, ConfigError

SIZE = (32, 32)


@pytest.fixture
def out(tmp_path):
    """All that an export may hold, a quantised one of a run included."""
    folder = tmp_path / "out"
    folder.mkdir()
    block = ExportBlock("onnx", "model.onnx", {"model.onnx": "", "model.onnx.data": ""}, "fp32", SIZE)
    preprocess = Preprocess(SIZE, 1.0, "bicubic", (0.5,) * 3, (0.5,) * 3)
    card = Card("cmt_nano", {}, ["a", "b"], preprocess, export=block)
    (folder / CARD_FILE).write_text(json.dumps(card.to_dict()))
    for name in ("model.onnx", "model.onnx.data", "quantization.json", RECIPE_FILE, RUN_FILE, SPLIT_FILE):
        (folder / name).write_text("ours")
    return folder


def write(out):
    with new_folder(out, overwrite=True) as folder:
        (folder / "new.txt").write_text("new")


def test_an_export_is_replaced(out):
    write(out)
    assert [file.name for file in out.iterdir()] == ["new.txt"]
    assert list(out.parent.iterdir()) == [out]


def test_a_bundle_that_ran_is_replaced(out):
    sources = [f"{PACKAGE}/{one}" for one in bundle_sources()]
    sources.append(f"{PACKAGE}/__pycache__/decode.pyc")
    for name in (SCRIPT_FILE, REQUIREMENTS_FILE, README_FILE, "__pycache__/predict.pyc", *sources):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("ours")
    write(out)
    assert [file.name for file in out.iterdir()] == ["new.txt"]


@pytest.mark.parametrize(
    "name", ["other-run/precious.txt", "notes.md", README_FILE, "run.json/mine.txt", "__pycache__/a"]
)
def test_a_folder_with_anything_else_in_it_is_refused(out, name):
    (out / RUN_FILE).unlink()
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    (out / name).write_text("precious")
    first = name.partition("/")[0]
    with pytest.raises(ConfigError, match=f"besides an export it holds {first}; move that away"):
        write(out)
    assert (out / name).read_text() == "precious"
    assert (out / "model.onnx").read_text() == "ours"


@pytest.mark.parametrize("name", [f"{PACKAGE}/mine.py", "data/photo.png", f"{PACKAGE}/__pycache__/mine.txt"])
def test_a_bundle_with_anything_else_in_it_is_refused(out, name):
    (out / PACKAGE).mkdir()
    for one in (SCRIPT_FILE, README_FILE, name):
        (out / one).parent.mkdir(exist_ok=True)
        (out / one).write_text("precious")
    with pytest.raises(ConfigError, match="besides an export it holds"):
        refuse_existing(out, overwrite=True)


def test_a_link_to_a_folder_stays_one(out, tmp_path):
    link = tmp_path / "latest"
    link.symlink_to(out)
    write(link)
    assert link.is_symlink()
    assert [file.name for file in out.iterdir()] == ["new.txt"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["latest", "out"]


def test_what_was_there_comes_back_when_the_new_one_cannot_be_put_there(out, monkeypatch):
    rename = Path.rename
    names = []

    def second_fails(self, target):
        names.append(self)
        if len(names) == 2:
            raise PermissionError(13, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", second_fails)
    with pytest.raises(CheckpointError, match="out: cannot be written: Permission denied"):
        write(out)
    assert (out / "model.onnx").read_text() == "ours"
    assert list(out.parent.iterdir()) == [out]


def test_an_old_one_that_cannot_be_deleted_is_no_failure(out, monkeypatch):
    def refuses(path, ignore_errors=False):
        if not ignore_errors:
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(shutil, "rmtree", refuses)
    write(out)
    assert (out / "new.txt").read_text() == "new"


def test_run_files_are_copied_as_far_as_there_are_any(tmp_path):
    for name in ("run", "copy"):
        (tmp_path / name).mkdir()
    (tmp_path / "run" / RUN_FILE).write_text("{}")
    (tmp_path / "run" / "model.safetensors").write_text("")
    copy_run_files(None, tmp_path / "copy")
    assert not any((tmp_path / "copy").iterdir())
    copy_run_files(tmp_path / "run", tmp_path / "copy")
    assert [file.name for file in (tmp_path / "copy").iterdir()] == [RUN_FILE]
