import pytest
from annotated_files import ROTATED, jpeg, voc

from cmtvision.data import read_detection
from cmtvision.errors import DataError

OBJECTS = {"a": [("dog", (1, 1, 20, 10))], "b": [("cat", (11, 6, 30, 25)), ("dog", (5, 5, 9, 9))], "c": []}


def test_boxes_count_from_one_and_include_both_ends(tmp_path):
    index = read_detection(voc(tmp_path, OBJECTS), val_fraction=0.0)
    assert (index.format, index.classes, len(index.train)) == ("voc", ["cat", "dog"], 3)
    assert index.train[0].boxes.tolist() == [[0, 0, 20, 10]]
    assert index.train[1].boxes.tolist() == [[10, 5, 30, 25], [4, 4, 9, 9]]
    assert index.train[0].area.tolist() == [200]


def test_the_image_sets_decide_the_parts(tmp_path):
    sets = {"train": ["a", "a"], "val": ["b"], "trainval": ["a", "b"], "test": ["c"], "dog_train": ["a 1"]}
    index = read_detection(voc(tmp_path, OBJECTS | {"a": [("cat", (1, 1, 9, 9)), ("dog", (2, 2, 9, 9))]}, sets))
    parts = [[sample.path.stem for sample in part] for part in (index.train, index.val, index.test)]
    assert parts == [["a"], ["b"], ["c"]]
    assert index.split_source == "folders"
    assert any("1 x an image listed twice" in note for note in index.notes)
    (tmp_path / "ImageSets" / "Main" / "val.txt").write_text("a  1\n")
    with pytest.raises(DataError, match="a is in the training and in the validation part"):
        read_detection(tmp_path)
    (tmp_path / "ImageSets" / "Main" / "val.txt").write_text("../a\n")
    with pytest.raises(DataError, match="expected the name of an image"):
        read_detection(tmp_path)


@pytest.mark.parametrize(
    ("sets", "train", "val"),
    [
        ({"trainval": "abc", "val": "b"}, "ac", "b"),
        ({"trainval": "abc", "train": "ac"}, "ac", "b"),
        ({"trainval": "ab", "test": "c"}, "ab", ""),
        ({"trainval": "abc", "train": "a", "val": "b"}, "a", "b"),
        ({"train": ["a.jpg", "c.jpeg 1"], "val": ["b.PNG"]}, "ac", "b"),
    ],
)
def test_trainval_stands_for_the_list_that_is_not_there(tmp_path, sets, train, val):
    index = read_detection(voc(tmp_path, {name: [("cat", (1, 1, 9, 9))] for name in "abc"}, sets), val_fraction=0.0)
    assert ["".join(one.path.stem for one in part) for part in (index.train, index.val)] == [train, val]
    assert len(index.samples) + len(index.skipped) == 3


def test_a_part_without_an_image_to_train_on_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"trainval\.txt: names no image to train on"):
        read_detection(voc(tmp_path, OBJECTS, {"trainval": "a", "val": "a"}))


def test_images_without_annotations_and_those_in_no_list_are_named(tmp_path):
    root = voc(tmp_path, OBJECTS)
    jpeg(root / "JPEGImages" / "d.jpg", seed=9)
    assert [(item.path.name, item.reason) for item in read_detection(root).skipped] == [
        ("d.jpg", "no annotation file in Annotations/")
    ]
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "ImageSets" / "Main" / "train.txt").write_text("a\nb\n")
    assert [(item.path.name, item.reason) for item in read_detection(root).skipped] == [
        ("c.jpg", "in none of the lists in ImageSets/Main"),
        ("d.jpg", "no annotation file in Annotations/"),
    ]


def test_what_is_missing_or_of_another_size_is_skipped(tmp_path):
    root = voc(tmp_path, OBJECTS | {"d": [("cat", (1, 1, 5, 5))]}, {"train": ["a", "b", "c", "d", "e"]})
    (root / "JPEGImages" / "d.jpg").unlink()
    jpeg(root / "JPEGImages" / "c.jpg", 10, 10)
    index = read_detection(root, val_fraction=0.0)
    assert {item.path.name: item.reason for item in index.skipped} == {
        "d.jpg": "no such file",
        "e.xml": "no such annotation file",
        "c.jpg": "its annotation is of an image of 60 x 40 pixels, the file has 10 x 10",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation>", "not XML"),
        ("", "not XML"),
        ("<xml/>", "its first element is 'xml'"),
        ("<annotation><object><name>a</name></object></annotation>", "object 0: expected a name and a bndbox"),
        (
            "<annotation><object><name>a</name><bndbox><xmin>x</xmin><ymin>1</ymin><xmax>2</xmax><ymax>3</ymax></bndbox>"
            "</object></annotation>",
            "object 0 xmin: 'x' is not a number",
        ),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', "a.xml: a document type declaration"),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>', "a document type declaration"),
    ],
)
def test_xml_that_is_no_annotation_is_refused(tmp_path, text, message):
    root = voc(tmp_path, OBJECTS)
    (root / "Annotations" / "a.xml").write_text(text)
    with pytest.raises(DataError, match=message):
        read_detection(root)


def test_boxes_that_cannot_be_are_left_out(tmp_path):
    boxes = [("cat", (1, 1, 9, 9)), ("cat", (1, 1, 9, 9)), ("cat", ("nan", 1, 9, 9)), ("cat", (9, 1, 5, 9))]
    index = read_detection(voc(tmp_path, {"a": boxes}), val_fraction=0.0)
    assert index.train[0].boxes.tolist() == [[0, 0, 9, 9]]
    assert len(index.notes) == 3


def test_a_rotated_image_is_turned_where_its_size_is_the_stored_one(tmp_path):
    root = voc(tmp_path, {"a": [("cat", (3, 4, 12, 7))]})
    jpeg(root / "JPEGImages" / "a.jpg", 40, 60, orientation=ROTATED)
    sample = read_detection(root, val_fraction=0.0).train[0]
    assert sample.size == (60, 40)
    assert sample.boxes.tolist() == [[33, 2, 37, 12]]


def test_no_box_at_all_is_refused(tmp_path):
    with pytest.raises(DataError, match="no box in any of its 1 images"):
        read_detection(voc(tmp_path, {"a": []}))
