import numpy as np
import pytest
from annotated_files import ROTATED, jpeg, yolo

from cmtvision.data import read_detection
from cmtvision.errors import DataError


def read(root, **options):
    return read_detection(root, val_fraction=0.0, **options)


def test_shares_become_pixels_and_numbers_their_names(tmp_path):
    root = yolo(tmp_path, {"a": "1 0.5 0.5 0.5 0.25\n0 0.25 0.25 0.1 0.1\n", "b": "", "c": None})
    (root / "classes.txt").write_text("cat\ndog\nbird\n")
    index = read(root)
    assert (index.format, index.classes) == ("yolo", ["cat", "dog", "bird"])
    np.testing.assert_allclose(index.train[0].boxes, [[15, 15, 45, 25], [12, 8, 18, 12]], rtol=1e-6)
    assert index.train[0].labels.tolist() == [1, 0]
    assert [len(sample.boxes) for sample in index.train] == [2, 0, 0]
    assert not index.has_masks
    assert index.train[0].outlines == ()
    assert any("1 of 3 classes have no training box: 'bird'" in note for note in index.notes)


def test_without_names_classes_are_numbers(tmp_path):
    assert read(yolo(tmp_path, {"a": "3 .5 .5 .5 .5"})).classes == ["0", "1", "2", "3"]


def test_outlines_are_read_and_their_box_is_the_smallest(tmp_path):
    sample = read(yolo(tmp_path, {"a": "0 .1 .25 .5 .25 .5 .75 .1 .75\n0 .5 .5 .2 .2\n"})).train[0]
    np.testing.assert_allclose(sample.boxes[0], [6, 10, 30, 30], rtol=1e-6)
    assert sample.masks()[0].sum() == sample.area[0] == 24 * 20
    assert sample.has_mask.tolist() == [True, False]


@pytest.mark.parametrize("names", ["[cat, dog]", "{0: cat, 1: dog}", "\n  0: cat\n  1: dog", "\n  - cat\n  - dog"])
@pytest.mark.parametrize("train", ["images/train", "../images/train", "./images/train", "[images/train]"])
def test_data_yaml_names_classes_and_folders(tmp_path, names, train):
    root = yolo(tmp_path, {"a": "1 .5 .5 .5 .5"})
    yolo(root, {"b": "0 .5 .5 .5 .5"}, part="val")
    (root / "data.yaml").write_text(f"path: ../datasets/mine\ntrain: {train}\nval: images/val\nnames: {names}\nnc: 2\n")
    for source in (root, root / "data.yaml"):
        index = read_detection(source)
        assert (index.classes, len(index.train), len(index.val)) == (["cat", "dog"], 1, 1)
        assert index.root == root.resolve()


def test_parts_first_and_lists_of_images_are_read(tmp_path):
    for part in ("train", "valid"):
        jpeg(tmp_path / "a" / part / "images" / "x.jpg", seed=len(part))
        (tmp_path / "a" / part / "labels").mkdir()
        (tmp_path / "a" / part / "labels" / "x.txt").write_text("0 .5 .5 .5 .5")
    index = read_detection(tmp_path / "a")
    assert [len(index.train), len(index.val), index.split_source] == [1, 1, "folders"]
    root = yolo(tmp_path / "b", {"a": "0 .5 .5 .5 .5", "b": "0 .5 .5 .5 .5"})
    (root / "train.txt").write_text("./images/train/a.jpg\nimages/train/a.jpg\n")
    (root / "data.yaml").write_text("train: train.txt\nnames: [cat]\n")
    index = read(root)
    assert [sample.path.name for sample in index.train] == ["a.jpg"]
    assert any("1 x an image listed twice" in note for note in index.notes)


def test_images_beside_their_labels_are_read(tmp_path):
    jpeg(tmp_path / "a.jpg")
    (tmp_path / "a.txt").write_text("0 .5 .5 .5 .5")
    assert read(tmp_path).train[0].boxes.tolist() == [[15, 10, 45, 30]]


@pytest.mark.parametrize("layout", ["flat", "images", "images/train", "train/images", "train"])
@pytest.mark.parametrize("above", ["pics", "images", "images/my"])
def test_labels_beside_images_are_found_in_any_folder(tmp_path, layout, above):
    """A folder called images above the data says nothing about where its labels are."""
    root = tmp_path / above / "data"
    folder = root if layout == "flat" else root / layout
    jpeg(folder / "a.jpg")
    (folder / "a.txt").write_text("0 .5 .5 .5 .5")
    (folder / "gone.txt").write_text("0 .5 .5 .5 .5")
    index = read(root)
    assert index.train[0].boxes.tolist() == [[15, 10, 45, 30]]
    assert [item.path.name for item in index.skipped] == ["gone.txt"]


def test_parts_of_images_beside_their_labels_are_kept(tmp_path):
    for part in ("train", "valid"):
        jpeg(tmp_path / part / "a.jpg", seed=len(part))
        (tmp_path / part / "a.txt").write_text("0 .5 .5 .5 .5")
    index = read_detection(tmp_path)
    assert [len(index.train), len(index.val), index.split_source] == [1, 1, "folders"]


def test_the_folder_of_images_itself_may_be_given(tmp_path):
    jpeg(tmp_path / "images" / "a.jpg")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("0 .5 .5 .5 .5")
    assert read(tmp_path / "images").train[0].boxes.tolist() == [[15, 10, 45, 30]]


def test_keypoints_are_no_outline(tmp_path):
    root = yolo(tmp_path, {"a": "0 .5 .5 .5 .5 .4 .4 2 .6 .6 0\n0 .5 .5 .2 .2 nan nan 0 .5 .5 2\n"})
    (root / "data.yaml").write_text("train: images/train\nnames: [person]\nkpt_shape: [2, 3]\n")
    index = read(root)
    np.testing.assert_allclose(index.train[0].boxes, [[15, 10, 45, 30], [24, 16, 36, 24]], rtol=1e-6)
    assert not index.has_masks
    assert index.notes == ["keypoints (kpt_shape) are left out; boxes alone are read"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "train: images/train\nval: images/val\n",
            "val is 'images/val', which is not in .* training images are held out",
        ),
        ("train: images/train\nvalid: ../valid/images\n", "valid is '../valid/images', which is not in"),
        (
            "train: [images/train, images/more]\n",
            r"train is 'images/more', which is not in .*; put it there, or take it",
        ),
        ("path: /content/drive\ntrain: images/train\nval: images/val\n", "val is 'images/val'"),
    ],
)
def test_images_that_data_yaml_names_must_be_there(tmp_path, text, message):
    root = yolo(tmp_path, {"a": "0 .5 .5 .5 .5"})
    (root / "data.yaml").write_text(f"{text}names: [cat]\n")
    with pytest.raises(DataError, match=message):
        read_detection(root)


@pytest.mark.parametrize("path", ["", "path: ../datasets/coco\n", "path: /content/x  # of another machine\n"])
@pytest.mark.parametrize("test", ["../test/images", "test-dev2017.txt", "[../test/images]"])
def test_a_test_part_that_was_not_downloaded_is_noted(tmp_path, path, test):
    root = yolo(tmp_path, {"a": "0 .5 .5 .5 .5"})
    yolo(root, {"b": "0 .5 .5 .5 .5"}, part="val")
    (root / "data.yaml").write_text(f"{path}train: ../images/train\nval: ../images/val\ntest: {test}\nnames: [cat]\n")
    index = read_detection(root)
    assert [len(index.train), len(index.val), len(index.test)] == [1, 1, 0]
    assert len(index.notes) == 1
    assert "the test images that" in index.notes[0]


def test_boxes_that_cannot_be_are_left_out_and_named(tmp_path):
    text = "0 .5 .5 .5 .5\n0 .5 .5 .5 .5\n0 nan .5 .5 .5\n0 1.5 .5 .2 .2\n0 .5 .5 0 .2\n0 .9 .5 .4 .2\n0 .1 .1 .2 inf\n"
    index = read(yolo(tmp_path, {"a": text}))
    np.testing.assert_allclose(index.train[0].boxes, [[15, 10, 45, 30], [42, 16, 60, 24]], rtol=1e-6)
    said = "; ".join(index.notes)
    for reason in ("1 x a box listed twice", "cut at its edge"):
        assert reason in said
    for reason in (
        "2 x {}: a coordinate that is not a finite number",
        "1 x {}: outside the image",
        "1 x {}: of no area",
    ):
        assert reason.format("a box left out") in said
    assert "a.txt line 2" in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 .5 .5 .5", "line 1: 4 fields, expected class x y width height"),
        ("0 .5 .5 .5 .5\ncat .5 .5 .5 .5", "line 2: 'cat' is not a number"),
        ("-1 .5 .5 .5 .5", "line 1: class '-1', expected a whole number from 0"),
        ("0.5 .5 .5 .5 .5", "class '0.5', expected a whole number"),
        ("2 .5 .5 .5 .5", r"line 1: class 2 is outside the 2 named classes \(0 to 1\)"),
        ("0", "line 1: 1 fields"),
        ("0 .5 x .5 .5", "'x' is not a number"),
    ],
)
def test_a_line_that_is_no_object_is_refused(tmp_path, text, message):
    root = yolo(tmp_path, {"a": text})
    (root / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(DataError, match=message):
        read(root)


def test_an_outline_needs_three_points(tmp_path):
    """Two points look like a box, and are one; a single one is neither."""
    index = read(yolo(tmp_path, {"a": "0 .1 .1 .9 .9 .5 .5\n0 .5 .5 .5 .5\n0 .1 .1\n"}))
    assert index.train[0].has_mask.tolist() == [True, False]
    assert any("1 x an outline left out: fewer than three points" in note for note in index.notes)


def test_labels_without_an_image_are_skipped(tmp_path):
    root = yolo(tmp_path, {"a": "0 .5 .5 .5 .5"})
    (root / "labels" / "train" / "gone.txt").write_text("0 .5 .5 .5 .5")
    assert [(item.path.name, item.reason) for item in read(root).skipped] == [("gone.txt", "no image of this name")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "not YAML"),
        ("- a", "expected names, train and val"),
        ("names: [a, a]\ntrain: images/train", "a class name is there twice"),
        ("names: 5\ntrain: images/train", "names is 5, expected a list"),
        ("train: nowhere\nnames: [a]", "no folder of images beside it .* it names 'train: nowhere"),
        ("train: /etc\nnames: [a]", "no folder of images beside it"),
        ("train: 5\nnames: [a]", "train is 5, expected a folder"),
        ("train: images/train\nval: images/train\nnames: [a]", "named for train and for val"),
        ("train: !!python/object/apply:os.getcwd []", "not YAML"),
    ],
)
def test_a_data_yaml_that_cannot_be_is_refused(tmp_path, text, message):
    root = yolo(tmp_path, {"a": "0 .5 .5 .5 .5"})
    (root / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=message):
        read(root)


def test_lists_of_full_paths_may_be_read_by_any_name_of_their_folder(tmp_path, monkeypatch):
    root = yolo(tmp_path / "data", {"a": "0 .5 .5 .5 .5"})
    (root / "train.txt").write_text(f"{root}/images/train/a.jpg\n")
    (root / "data.yaml").write_text("train: train.txt\nnames: [cat]\n")
    (tmp_path / "link").symlink_to(root)
    monkeypatch.chdir(tmp_path)
    for source in (root, "data", "link", tmp_path / "link", "data/data.yaml"):
        index = read(source)
        assert index.relative(index.train[0].path) == "images/train/a.jpg"
        assert len(index.train[0].boxes) == 1
    monkeypatch.chdir(root)
    assert len(read(".").train[0].boxes) == 1


def test_lists_may_not_lead_out_of_the_folder(tmp_path):
    root = yolo(tmp_path / "data", {"a": "0 .5 .5 .5 .5"})
    (root / "train.txt").write_text("../../secret.jpg\n")
    (root / "data.yaml").write_text("train: train.txt\nnames: [cat]\n")
    with pytest.raises(DataError, match="leads out of"):
        read(root)


def test_boxes_of_a_rotated_image_are_of_the_upright_one(tmp_path):
    root = yolo(tmp_path, {"a": "0 .5 .5 .5 .25"})
    jpeg(root / "images" / "train" / "a.jpg", 40, 60, orientation=ROTATED)
    sample = read(root).train[0]
    assert sample.size == (60, 40)
    np.testing.assert_allclose(sample.boxes, [[10, 22.5, 30, 37.5]], rtol=1e-6)
