"""What a run says of its data, found again by whoever holds the run or an export of it."""

import json

import pytest
from engine_photos import write_photos

from cmtvision.artefact.run_files import as_the_run_read, data_of, name_of, read_run_data
from cmtvision.data import read_dataset, write_split
from cmtvision.errors import DataError
from cmtvision.recipe import dump_recipe, load_recipe


@pytest.fixture
def run(tmp_path):
    data = write_photos(tmp_path / "photos", per_class=5)
    index = read_dataset(data, val_fraction=0.4, split_seed=3)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(dump_recipe(load_recipe("demo")))
    (folder / "run.json").write_text(json.dumps({"data": name_of(data), "split_source": index.split_source}))
    write_split(index, folder / "split.csv")
    return folder, data, index


def test_the_photos_that_a_run_held_out_are_found_again(run):
    folder, data, index = run
    assert data_of(folder) == str(data.resolve())
    found = read_run_data(folder)
    assert (found.train, found.val) == (index.train, index.val)
    (folder / "model.onnx").write_bytes(b"")
    assert read_run_data(folder / "model.onnx").val == index.val  # a file in it means its folder
    assert as_the_run_read(folder, data.parent) == {"image_column": None, "label_column": None}  # other data


def test_without_a_record_nothing_is_known(run, tmp_path):
    folder, data, _ = run
    assert data_of(tmp_path) is None
    assert read_run_data(tmp_path) is None
    assert as_the_run_read(tmp_path, data) == {}
    (folder / "run.json").write_text("{")
    assert data_of(folder) is None


def test_data_that_is_gone_is_named(run):
    folder, data, _ = run
    data.rename(data.with_name("moved"))
    with pytest.raises(DataError, match="photos"):
        read_run_data(folder)
