"""The cheap part that training makes by itself."""

import shutil

import pytest
from data_files import folder_dataset

from cmtvision.data import read_dataset
from cmtvision.quality.quick import quick_lines


@pytest.fixture
def parts(tmp_path):
    folder_dataset(tmp_path / "train", {"cat": 12, "dog": 12})
    folder_dataset(tmp_path / "val", {"cat": 3, "dog": 3}, size=14)
    return tmp_path


def test_good_data_gives_no_line(parts):
    assert quick_lines(read_dataset(parts, verify=False)) == []


def test_a_file_in_both_parts_is_named(parts):
    shutil.copy(parts / "train" / "cat" / "005.png", parts / "val" / "cat" / "other name.png")
    lines = quick_lines(read_dataset(parts, verify=False))
    assert lines == [
        "leakage: 1 training image is also held out, as the same file (train/cat/005.png = val/cat/other name.png)"
    ]


def test_files_of_one_size_that_differ_in_the_middle_are_not_the_same(parts):
    first = bytearray((parts / "train" / "cat" / "005.png").read_bytes() + bytes(20_000))
    (parts / "train" / "cat" / "long.png").write_bytes(first)
    first[10_000] ^= 1
    (parts / "val" / "cat" / "long.png").write_bytes(first)
    assert quick_lines(read_dataset(parts, verify=False)) == []


def test_no_time_left_is_said(parts):
    assert "cmtvision check-data" in quick_lines(read_dataset(parts, verify=False), seconds=-1)[0]


def test_tiny_and_unbalanced_classes_are_said(tmp_path):
    folder_dataset(tmp_path, {"cat": 60, "dog": 6})
    lines = quick_lines(read_dataset(tmp_path, verify=False))
    assert lines[0] == "1 class with fewer than 10 training images: dog (3)"
    assert lines[1].startswith("imbalance: cat has ")
