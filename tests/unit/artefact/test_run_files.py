"""What a run says of its data, found again by whoever holds the run or an export of it, wherever the data is now."""

import csv
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from annotated_files import box, coco, jpeg
from engine_photos import write_photos
from PIL import Image

from cmtvision.artefact.run.data import (
    data_of,
    limits_of,
    name_of,
    read_annotated_as_the_run,
    read_as_the_run,
    read_run_data,
)
from cmtvision.artefact.run.write import check_free, is_unbegun, write_beginning
from cmtvision.data import MAX_BYTES, MAX_PIXELS, read_dataset, write_split
from cmtvision.errors import ConfigError, DataError
from cmtvision.recipe import dump_recipe, load_recipe


def write_run(folder, data, *overrides, **options):
    """What training leaves beside the model."""
    index = read_dataset(data, **options)
    folder.mkdir()
    (folder / "recipe.yaml").write_text(dump_recipe(load_recipe("demo", overrides)))
    facts = {"data": name_of(data), "split_source": index.split_source, "data_fingerprint": index.fingerprint}
    (folder / "run.json").write_text(json.dumps(facts))
    write_split(index, folder / "split.csv")
    return index


@pytest.fixture
def run(tmp_path):
    data = write_photos(tmp_path / "photos", per_class=5)
    folder = tmp_path / "run"
    return folder, data, write_run(folder, data, val_fraction=0.4, split_seed=3)


def without_sizes(folder):
    """split.csv as versions before sizes wrote it."""
    rows = list(csv.reader((folder / "split.csv").read_text().splitlines()))
    (folder / "split.csv").write_text("".join(f"{','.join(row[:3])}\n" for row in rows))


def files(samples):
    """Photos by class folder and file, whatever stands in front."""
    return sorted("/".join(sample.path.parts[-2:]) for sample in samples)


def new_photo(file, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (20, 20), dtype=np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


def test_the_limits_of_a_run_are_those_of_its_recipe(tmp_path):
    data = write_photos(tmp_path / "photos", per_class=5)
    write_run(tmp_path / "run", data, "data.max_pixels=400000000", "data.max_bytes=5000")
    assert limits_of(tmp_path / "run") == (400_000_000, 5_000)
    assert limits_of(tmp_path) == (MAX_PIXELS, MAX_BYTES)
    with pytest.raises(ConfigError, match=r"data\.max_pixels"):  # a recipe cannot do without a limit
        load_recipe("demo", ["data.max_pixels=3000000000"])


def test_annotated_images_are_read_with_the_limits_of_the_run(tmp_path):
    write_run(tmp_path / "run", write_photos(tmp_path / "photos", per_class=5), "data.max_pixels=5000")
    images = [{"id": number, "file_name": f"{number}.jpg", "height": 40 * number, "width": 60} for number in (1, 9)]
    for one in images:
        jpeg(tmp_path / "data" / "train" / one["file_name"], one["height"], one["width"])
    data = coco(tmp_path / "data", [box(1), box(9)], images)
    card = SimpleNamespace(task="detection", classes=["cat", "dog"], data_fingerprint="")
    index = read_annotated_as_the_run(tmp_path / "run", data, card)
    assert [one.path.name for one in index.train] == ["1.jpg"]
    assert [one.path.name for one in index.skipped] == ["9.jpg"]


def test_the_photos_that_a_run_held_out_are_found_again(run):
    folder, data, index = run
    assert data_of(folder) == str(data.resolve())
    found = read_run_data(folder)
    assert (found.train, found.val) == (index.train, index.val)
    (folder / "model.onnx").write_bytes(b"")
    assert read_run_data(folder / "model.onnx").val == index.val  # a file in it means its folder


@pytest.mark.parametrize("sizes", [True, False])
@pytest.mark.parametrize(
    "how", ["moved", "copied", "colon", "hf:photos", "linked", "csv", "csv below", "below", "photo by photo"]
)
def test_a_run_knows_its_own_photos_wherever_they_are(run, tmp_path, monkeypatch, how, sizes):
    folder, data, index = run
    if not sizes:
        without_sizes(folder)
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "elsewhere" / "other"
    other.parent.mkdir()
    given = other
    if how == "moved":
        data.rename(other)
    elif how == "copied":
        shutil.copytree(data, other)
    elif how == "colon":
        given = "photos:2024"
        data.rename(tmp_path / given)
    elif how == "hf:photos":
        given = str(data.rename(tmp_path / "hf+photos:x"))
    elif how == "linked":
        other.symlink_to(data)
    elif how in ("csv", "csv below"):
        given = (data.parent if how == "csv" else data) / "list.csv"
        photos = sorted(data.glob("*/*.png"))
        rows = [f"{photo.relative_to(given.parent)},{photo.parent.name}\n" for photo in photos]
        given.write_text("path,label\n" + "".join(rows))
    elif how == "below":  # all that there is, as the training part of something larger
        data.rename(tmp_path / "train")
        given = tmp_path / "parent"
        given.mkdir()
        (tmp_path / "train").rename(given / "train")
    else:
        for photo in data.glob("*/*.png"):
            (other / photo.parent.name).mkdir(parents=True, exist_ok=True)
            (other / photo.parent.name / photo.name).symlink_to(photo)
    found = read_as_the_run(folder, given)
    assert files(found.val) == files(index.val)
    assert files(found.train) == files(index.train)
    assert found.split_source == "run"


@pytest.mark.parametrize("sizes", [True, False])
def test_photos_added_and_removed_change_nothing_for_the_others(run, tmp_path, sizes):
    folder, data, index = run
    if not sizes:
        without_sizes(folder)
    other = shutil.copytree(data, tmp_path / "other")
    gone = other / index.relative(index.val[0].path)
    gone.unlink()
    (other / index.relative(index.train[0].path)).unlink()
    new_photo(other / "disc" / "new.png")
    found = read_as_the_run(folder, other)
    assert files(found.val) == files(index.val[1:])
    assert files(found.train) == files(index.train[1:])
    assert [item.path.name for item in found.skipped] == ["new.png"]
    assert f"1 of the {len(index.val)} photos that the run held out are not in this data" in found.notes
    assert any("by their names alone" in note for note in found.notes) is not sizes


def test_photos_of_one_size_are_told_by_their_contents(run, tmp_path):
    """Uncompressed photos all have the same bytes, whatever is on them."""
    folder, data, _ = run
    sets = {}
    for number, name in enumerate(("mine", "other")):
        for photo in sorted(data.glob("*/*.png")):
            bmp = (tmp_path / name / photo.parent.name / photo.name).with_suffix(".bmp")
            bmp.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.asarray(Image.open(photo).convert("RGB"))
            Image.fromarray(255 - pixels if number else pixels).save(bmp)
        sets[name] = read_dataset(tmp_path / name, val_fraction=0.25)
    assert sets["mine"].fingerprint == sets["other"].fingerprint  # it knows names and sizes
    write_split(sets["mine"], folder / "split.csv")
    shutil.copytree(tmp_path / "mine", tmp_path / "copy")
    assert read_as_the_run(folder, tmp_path / "copy").split_source == "run"
    found = read_as_the_run(folder, tmp_path / "other")
    assert (found.split_source, len(found.train)) == ("none", len(sets["other"].samples))
    assert any("taken for other data" in note for note in found.notes)


@pytest.mark.parametrize("data", ["http://127.0.0.1:9/{0..3}.tar", "hf:some/secret", "torchvision:CIFAR10", "s3://x/y"])
def test_what_a_foreign_run_names_is_not_fetched(run, data):
    """The tests' network is closed: asking for any of these would be another error."""
    folder = run[0]
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(facts | {"data": data}))
    with pytest.raises(DataError, match=r"fetched only when you give it yourself"):
        read_run_data(folder)


def test_renamed_photos_are_told_by_their_contents(run, tmp_path):
    folder, data, index = run
    other = shutil.copytree(data, tmp_path / "other")
    for photo in list(other.glob("*/*.png")):
        photo.rename(photo.with_name(f"IMG_{photo.name}"))
    found = read_as_the_run(folder, other)
    assert found.split_source == "run"
    assert [name.replace("IMG_", "") for name in files(found.val)] == files(index.val)


def test_one_photo_in_two_data_sets_makes_them_not_one(run, tmp_path):
    folder, data, index = run
    other = shutil.copytree(data, tmp_path / "other")
    for number, photo in enumerate(sorted(other.glob("*/*.png"))):
        photo.unlink()
        new_photo(photo.with_name(f"new{number}.png"))
    shutil.copy(index.train[0].path, other / "disc" / "copy.png")
    assert read_as_the_run(folder, other).split_source == "none"


def test_a_part_of_the_data_is_known_too(tmp_path):
    data = tmp_path / "data"
    write_photos(data / "train", per_class=6)
    write_photos(data / "val", per_class=2, seed=1)
    index = write_run(tmp_path / "run", data)
    assert read_as_the_run(tmp_path / "run", data).val == index.val
    trained = read_as_the_run(tmp_path / "run", data / "train")
    assert (files(trained.train), trained.val, trained.split_source) == (files(index.train), [], "run")
    held_out = read_as_the_run(tmp_path / "run", data / "val")
    assert (files(held_out.val), held_out.train) == (files(index.val), [])


def test_the_whole_of_which_a_part_was_trained_on_keeps_the_rest_held_out(tmp_path):
    data = tmp_path / "data"
    write_photos(data / "train", per_class=6)
    write_photos(data / "val", per_class=2, seed=1)
    index = write_run(tmp_path / "run", data / "train", val_fraction=0.34)
    found = read_as_the_run(tmp_path / "run", data)
    assert files(found.train) == files(index.train)
    assert len(found.val) == 6 + len(index.val)


def test_a_photo_that_was_trained_on_is_never_held_out_by_moving_it(run, tmp_path):
    folder, data, index = run
    trained = next(one.path for one in index.train if one.path.parent.name == "disc")
    trained.rename(data / "stripes" / trained.name.replace(".", "-moved."))  # renamed too: nobody can know it
    again = read_as_the_run(folder, data)
    assert len(again.val) == len(index.val)
    other = tmp_path / "arranged"
    for part, samples in (("val", index.train[:9:2]), ("train", [*index.train[1:9:2], *index.val])):
        for one in samples:
            if one.path.exists():
                (other / part / one.path.parent.name).mkdir(parents=True, exist_ok=True)
                shutil.copy(one.path, other / part / one.path.parent.name)
    found = read_as_the_run(folder, other)
    assert set(files(found.val)) == set(files(index.val)) - set(files(again.skipped))
    assert any("of this data are among those that the run trained on; not counted" in note for note in found.notes)


def test_a_photo_moved_to_another_class_is_still_the_one_that_was_trained_on(run):
    folder, data, index = run
    for name in ("cross", "disc"):
        for photo in (data / name).iterdir():
            photo.rename(photo.with_name(f"{name}-{photo.name}"))
    shutil.rmtree(folder)
    index = write_run(folder, data, val_fraction=0.4)
    moved = next(one.path for one in index.train if one.path.parent.name == "disc")
    moved.rename(data / "cross" / moved.name)
    found = read_as_the_run(folder, data)
    assert f"cross/{moved.name}" in files(found.train)


def test_other_data_with_the_same_names_is_evaluated_whole(run, tmp_path):
    folder, _, index = run
    foreign = write_photos(tmp_path / "foreign", per_class=5, seed=9)
    found = read_as_the_run(folder, foreign)
    assert (len(found.samples), found.split_source) == (15, "none")
    (note,) = found.notes
    assert "the name of one of the run's, but other content: taken for other data" in note
    without_sizes(folder)  # where sizes are not known it may be the run's own
    found = read_as_the_run(folder, foreign)
    assert files(found.val) == files(index.val)
    assert any("by their names alone" in note for note in found.notes)
    plain = tmp_path / "plain"
    for photo in foreign.glob("*/*.png"):
        (plain / photo.parent.name).mkdir(parents=True, exist_ok=True)
        photo.rename(plain / photo.parent.name / f"x{photo.name}")
    assert read_as_the_run(folder, plain).notes == []


def test_photos_among_those_of_other_data_are_not_counted(run, tmp_path):
    folder, _, index = run
    mixed = tmp_path / "mixed"
    for one in index.train:
        (mixed / one.path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(one.path, mixed / one.path.parent.name)
    for name in ("cross", "disc", "stripes"):
        for number in range(30):
            new_photo(mixed / name / f"new{number}.png", number)
    found = read_as_the_run(folder, mixed)
    assert files(found.train) == files(index.train)
    assert len(found.val) == 90
    assert any("90 photos that the run does not know are held out here" in note for note in found.notes)


def test_without_its_split_a_model_still_knows_the_data_that_it_was_trained_on(run, tmp_path):
    _, data, index = run
    bare = tmp_path / "bare"
    bare.mkdir()
    assert read_as_the_run(bare, data).split_source == "none"
    found = read_as_the_run(bare, data, index.fingerprint)
    assert (len(found.train), found.val, found.split_source) == (15, [], "run")
    assert "not on record" in found.notes[0]


def test_names_of_any_kind_survive_in_the_split(tmp_path):
    data = write_photos(tmp_path / "photos", per_class=4)
    for number, name in enumerate((" led by a space.png", "a,comma.png", 'a"quote.png', "two\nlines.png")):
        (data / "disc" / f"{number:02}.png").rename(data / "disc" / name)
    index = write_run(tmp_path / "run", data, val_fraction=0.5)
    found = read_as_the_run(tmp_path / "run", data)
    assert (found.train, found.val, found.notes) == (index.train, index.val, [])


def test_columns_are_those_of_the_runs_own_kind_of_data(tmp_path):
    data = write_photos(tmp_path / "photos", per_class=4)
    rows = [f"{photo.relative_to(tmp_path)},{photo.parent.name}\n" for photo in sorted(data.glob("*/*.png"))]
    (tmp_path / "list.csv").write_text("shot,what\n" + "".join(rows))
    columns = {"image_column": "shot", "label_column": "what"}
    settings = [f"data.{key}={value}" for key, value in columns.items()]
    index = write_run(tmp_path / "run", tmp_path / "list.csv", *settings, val_fraction=0.5, **columns)
    assert read_run_data(tmp_path / "run").val == index.val
    assert files(read_as_the_run(tmp_path / "run", data).val) == files(index.val)


def test_without_a_record_nothing_is_known(run, tmp_path):
    folder, data, _ = run
    assert data_of(tmp_path) is None
    assert read_run_data(tmp_path) is None
    assert read_as_the_run(tmp_path, data).split_source == "none"
    (folder / "run.json").write_text("{")
    assert data_of(folder) is None
    (folder / "split.csv").write_text("nothing\n1\n")
    with pytest.raises(DataError, match=r"split\.csv: cannot be read as a run's split"):
        read_as_the_run(folder, data)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_what_a_kill_leaves_before_the_first_step_is_begun_anew(tmp_path, monkeypatch, number):
    index, out, seen = read_dataset(write_photos(tmp_path / "photos", per_class=2)), tmp_path / "run", []

    def replace(source, target, original=os.replace):
        seen.append(target)
        if len(seen) == number:
            Path(target).with_name(f".{Path(target).name}.left").write_bytes(b"ha")  # a kill tidies nothing away
            raise Killed
        original(source, target)

    monkeypatch.setattr("cmtvision.files.os.replace", replace)
    with pytest.raises(Killed):
        write_beginning(out, load_recipe("demo"), str(index.root), index)
    monkeypatch.undo()
    assert any(out.iterdir())
    check_free(out, False, is_unbegun(out))
    (out / "diary.txt").write_text("mine")
    if number == 1:  # nothing in it says that a run began here
        with pytest.raises(ConfigError, match="is not empty"):
            check_free(out, False, is_unbegun(out))


def test_data_that_is_gone_is_named(run):
    folder, data, _ = run
    data.rename(data.with_name("moved"))
    with pytest.raises(DataError, match="photos"):
        read_run_data(folder)
