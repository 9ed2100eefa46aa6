import json
import pickle

import numpy as np
import pytest
from annotated_files import ROTATED, box, coco, jpeg
from pycocotools.coco import COCO

from cmtvision.data import read_detection, read_segmentation
from cmtvision.errors import DataError

SQUARE = [[10, 10, 30, 10, 30, 30, 10, 30]]


def read(root, **options):
    return read_detection(root, val_fraction=0.0, **options)


def test_boxes_classes_and_masks_are_as_annotated(tmp_path):
    root = coco(
        tmp_path,
        [
            box(bbox=(5, 5.5, 20, 10), area=111),
            box(category=7, bbox=(10, 10, 20, 20), segmentation=SQUARE),
            box(image=2, category=7, bbox=(0, 0, 3, 2), segmentation={"size": [40, 60], "counts": [0, 2, 38, 2, 2358]}),
        ],
    )
    index = read(root)
    assert (index.format, index.classes, index.split_source, index.has_masks) == ("coco", ["cat", "dog"], "none", True)
    first, second = index.train
    assert first.size == (40, 60)
    np.testing.assert_array_equal(first.boxes, np.array([[5, 5.5, 25, 15.5], [10, 10, 30, 30]], dtype=np.float32))
    assert (first.labels.tolist(), first.crowd.tolist(), first.area.tolist()) == ([0, 1], [False, False], [111, 400])
    assert first.has_mask.tolist() == [False, True]
    masks = first.masks()
    assert masks.shape == (2, 40, 60)
    assert (masks[0].sum(), masks[1].sum(), masks[1, 10:30, 10:30].all()) == (0, 400, True)
    assert second.masks()[0].sum() == second.area[0] == 4
    assert index.relative(first.path) == "train/train1.jpg"
    assert index.class_counts() == {"cat": (1, 0), "dog": (2, 0)}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
def test_masks_are_those_of_pycocotools(tmp_path):
    root = coco(
        tmp_path, [box(id=1, bbox=(0, 0, 60, 40), segmentation=[[3, 3, 50, 9, 40, 35, 8, 30]], iscrowd=0, area=1)]
    )
    ours = read(root).train[0].masks()[0]
    api = COCO(root / "annotations" / "instances_train.json")
    theirs = api.annToMask(api.anns[1]).astype(bool)
    assert (ours & theirs).sum() / (ours | theirs).sum() > 0.95  # theirs takes in the rim


@pytest.mark.parametrize("part_folder", ["train", "train2017", "images/train2017", "images"])
def test_the_usual_folders_are_found(tmp_path, part_folder):
    images = [{"id": 1, "file_name": "a.jpg", "width": 60, "height": 40}]
    jpeg(tmp_path / part_folder / "a.jpg")
    coco(tmp_path, [box()], images, part="train2017")
    assert [sample.path.name for sample in read(tmp_path).train] == ["a.jpg"]


def test_a_file_alone_and_folders_of_exports_are_read(tmp_path):
    root = coco(tmp_path / "a", [box()])
    alone = read(root / "annotations" / "instances_train.json")
    assert len(alone.train) == 2
    for part in ("train", "valid"):
        coco(tmp_path / "c", [box()], part=part)
        exported = tmp_path / "b" / part / "_annotations.coco.json"
        exported.parent.mkdir(parents=True)
        (tmp_path / "c" / "annotations" / f"instances_{part}.json").rename(exported)
        for file in (tmp_path / "c" / part).iterdir():
            file.rename(exported.parent / file.name)
    index = read(tmp_path / "b")
    assert (len(index.train), len(index.val), index.split_source) == (2, 2, "folders")


def test_parts_are_matched_by_the_names_of_classes(tmp_path):
    coco(tmp_path, [box(category=7)])
    renumbered = [{"id": 3, "name": "dog"}, {"id": 4, "name": "cat"}]
    coco(tmp_path, [box(category=3)], part="val", categories=renumbered)
    index = read(tmp_path)
    assert index.classes == ["cat", "dog"]
    assert index.val[0].labels.tolist() == index.train[0].labels.tolist() == [1]


def test_without_a_validation_part_some_images_are_held_out_by_seed(tmp_path):
    images = [{"id": n, "file_name": f"{n}.jpg", "width": 60, "height": 40} for n in range(10)]
    for entry in images:
        jpeg(tmp_path / "train" / entry["file_name"], seed=entry["id"])
    coco(tmp_path, [box(image=n, category=1 + 6 * (n % 2)) for n in range(10)], images)
    index = read_detection(tmp_path, val_fraction=0.3)
    again = read_detection(tmp_path, val_fraction=0.3)
    other = read_detection(tmp_path, val_fraction=0.3, split_seed=1)
    names = [[sample.path.name for sample in one.val] for one in (index, again, other)]
    assert index.split_source == "seeded"
    assert len(index.train) + len(index.val) == 10
    assert index.fingerprint == again.fingerprint
    assert names[0] == names[1] != names[2]
    assert all(train and val for train, val in index.class_counts().values())


def test_the_fingerprint_changes_with_any_annotation(tmp_path):
    changes = [box(), box(bbox=(5, 5, 20, 11)), box(category=7), box(iscrowd=1), box(segmentation=SQUARE)]
    found = [read_detection(coco(tmp_path, [one, box(image=2)]), val_fraction=0).fingerprint for one in changes]
    assert len(set(found)) == len(found)


def test_boxes_outside_and_without_area_are_left_out_and_named(tmp_path):
    root = coco(
        tmp_path,
        [
            box(bbox=(-10, -5, 30, 20)), box(bbox=(70, 5, 5, 5)), box(bbox=(5, 5, 0, 9)), box(bbox=(5, 5, -3, 9)),
            box(bbox=(1e9, 5, 1e9, 5)),
            box(bbox=(5, float("nan"), 3, 9)), box(bbox=(5, 5, float("inf"), 9)), box(bbox=(5, 5, 10**400, 9)),
            box(image=2, bbox=(30.2, 10, 30, 30.5), area=1e300),
        ],
    )  # fmt: skip
    index = read(root)
    assert index.train[0].boxes.tolist() == [[0, 0, 20, 15]]
    np.testing.assert_allclose(index.train[1].boxes, [[30.2, 10, 60, 40]], rtol=1e-6)
    said = "; ".join(index.notes)
    assert "3 x a box left out: a coordinate that is not a finite number" in said
    assert "2 x a box left out: of no area" in said
    assert "2 x a box left out: outside the image" in said
    assert index.train[1].area.tolist() == pytest.approx([29.8 * 30])
    assert "1 x a box that reached out of the image, cut at its edge" in said  # by more than a rounding
    assert "instances_train.json annotation 1" in said


def test_an_image_without_boxes_stays_and_crowds_are_marked(tmp_path):
    index = read(coco(tmp_path, [box(), box(bbox=(0, 0, 60, 40), iscrowd=1)]))
    assert [len(sample.boxes) for sample in index.train] == [2, 0]
    assert index.train[1].masks().shape == (0, 40, 60)
    assert index.train[0].crowd.tolist() == [False, True]
    assert any("1 of 2 training images have no box" in note for note in index.notes)
    assert any("1 boxes are groups" in note for note in index.notes)
    with pytest.raises(DataError, match="no box to learn from in 2 training images"):
        read(coco(tmp_path, [box(iscrowd=1)]))


@pytest.mark.parametrize(
    ("outline", "reason"),
    [
        ([[1, 1, 9, 9]], "a polygon left out: fewer than three points"),
        ([[1, 1, 9, 9, 5]], "a polygon left out: not pairs"),
        ([[1, 1, 9, float("nan"), 5, 5]], "a polygon left out: not pairs of finite numbers"),
        ([[1, 1, 9, 10**400, 5, 5]], "a polygon left out: not pairs of finite numbers"),
        ([[1, 1, 9, True, "5", 5]], "a polygon left out: not pairs of finite numbers"),
        ([[1, [1], 9, 9, 5, 5]], "a polygon left out: not pairs of finite numbers"),
        ([5, 5, 5, 5, 5, 5], "a polygon left out: not pairs of finite numbers"),
        ({"size": [60, 40], "counts": [2400]}, "of size '[60, 40]', not its image's"),
        ({"size": [40, 60], "counts": [2399]}, "do not fill 60 x 40"),
        ({"size": [40, 60], "counts": "no runs"}, "an outline left out"),
        ({"size": [40, 60], "counts": {}}, "neither numbers nor text"),
        ([[1.0] * 200_002], "more than 100,000 points"),
    ],
)
def test_a_box_stays_where_its_outline_is_unusable(tmp_path, outline, reason):
    index = read(coco(tmp_path, [box(segmentation=outline), box(image=2, segmentation=SQUARE)]))
    assert index.train[0].boxes.tolist() == [[5, 5, 25, 15]]
    assert index.train[0].has_mask.tolist() == [False]
    assert any(reason in note for note in index.notes)


def test_files_that_are_missing_damaged_or_of_another_size_are_skipped(tmp_path):
    images = [{"id": n, "file_name": f"{n}.jpg", "width": 60, "height": 40} for n in range(4)]
    jpeg(tmp_path / "train" / "0.jpg")
    (tmp_path / "train" / "1.jpg").write_bytes(b"no image")
    jpeg(tmp_path / "train" / "2.jpg", 30, 30)
    index = read(coco(tmp_path, [box(image=n) for n in range(4)], images))
    assert [sample.path.name for sample in index.train] == ["0.jpg"]
    reasons = {item.path.name: item.reason for item in index.skipped}
    assert "not an image" in reasons["1.jpg"]
    assert reasons["2.jpg"] == "its annotation is of an image of 60 x 40 pixels, the file has 30 x 30"
    assert reasons["3.jpg"] == "no such file"
    unverified = read(tmp_path, verify=False)
    assert [sample.path.name for sample in unverified.train] == ["0.jpg"]  # a header is read all the same
    with pytest.raises(DataError, match=r"no usable image; .*more pixels than the limit"):
        read(tmp_path, max_pixels=100)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": [box(category=99)]}, "annotation 0: category '99' is not among its categories"),
        ({"annotations": [box(image=9)]}, "annotation 0: image '9' is not among its images"),
        ({"annotations": [box(bbox=[1, 2])]}, r"bbox is '\[1, 2\]', expected \[x, y, width, height\]"),
        ({"annotations": ["box"]}, "annotation 0: expected an object"),
        ({"annotations": None}, "no list of annotations"),
        ({"images": 5}, "not COCO"),
        ({"images": [{"id": 1}]}, "image 0: expected an object with id and file_name"),
        ({"images": [{"id": 1, "file_name": "../secret.jpg"}]}, "leads out of"),
        ({"images": [{"id": 1, "file_name": "/etc/passwd"}]}, "leads out of"),
        ({"images": [{"id": 1, "file_name": "..\\secret.jpg"}]}, "leads out of"),
        ({"images": [{"id": 1, "file_name": "a\0.jpg"}]}, "the name of an image is"),
        ({"images": [{"id": 1, "file_name": "a" * 5_000}]}, r"the name of an image is 'a{60}\.\.\.'"),
        ({"images": [{"id": 1, "file_name": "a" * 500}]}, "no usable image|no such file"),
        (
            {"images": [{"id": 1, "file_name": "a.jpg"}, {"id": 1, "file_name": "b.jpg"}]},
            "id '1' is that of train/a",
        ),
        ({"images": [{"id": 1, "file_name": "a.jpg", "width": -5, "height": 3}]}, "expected pixels"),
        ({"categories": []}, "no categories"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "category 1: id '1' is there twice"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}, "category 1: 'a' is there twice"),
        ({"categories": [{"id": [1], "name": "a"}]}, "id is '\\[1\\]', expected a whole number"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused_in_one_line(tmp_path, change, message):
    root = coco(tmp_path, [box()])
    file = root / "annotations" / "instances_train.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(DataError, match=message) as error:
        read(root)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{", "not JSON"), (b"\xff\xfe", "not JSON"), (b"[" * 100_000, "nested too deep|not JSON"), (b"[]", "not COCO"),
     (b"1" * 5_000, "not JSON")],
)  # fmt: skip
def test_what_is_no_json_is_refused(tmp_path, content, message):
    root = coco(tmp_path, [box()])
    (root / "annotations" / "instances_train.json").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(root)


def test_a_huge_file_is_not_read(tmp_path):
    with pytest.raises(DataError, match="more than 100 bytes"):
        read(coco(tmp_path, [box()]), max_json_bytes=100)


def test_without_a_stated_size_boxes_are_read_and_outlines_refused(tmp_path):
    images = [{"id": 1, "file_name": "a.jpg"}]
    jpeg(tmp_path / "train" / "a.jpg")
    assert read(coco(tmp_path, [box()], images)).train[0].boxes.tolist() == [[5, 5, 25, 15]]
    with pytest.raises(DataError, match=r"needs width and height of its image, which train/a\.jpg has not"):
        read(coco(tmp_path, [box(segmentation=SQUARE)], images))


def test_an_index_travels_to_other_processes(tmp_path):
    index = read(coco(tmp_path, [box(segmentation=SQUARE)]))
    again = pickle.loads(pickle.dumps(index))
    np.testing.assert_array_equal(again.train[0].masks(), index.train[0].masks())
    assert (again.classes, again.fingerprint) == (index.classes, index.fingerprint)


def test_boxes_and_images_listed_twice_count_once(tmp_path):
    images = [{"id": n, "file_name": "a.jpg", "width": 60, "height": 40} for n in (1, 2)]
    jpeg(tmp_path / "train" / "a.jpg")
    root = coco(tmp_path, [box(id=5), box(id=5), box(image=2, id=5), box(image=2, bbox=(1, 1, 2, 2))], images)
    index = read(root)
    assert [sample.boxes.tolist() for sample in index.train] == [[[5, 5, 25, 15], [1, 1, 3, 3]]]
    assert any("1 x an image listed twice" in note for note in index.notes)
    assert any("2 x a box listed twice" in note for note in index.notes)


def test_an_image_in_two_parts_is_refused(tmp_path):
    images = [{"id": 1, "file_name": "a.jpg", "width": 60, "height": 40}]
    jpeg(tmp_path / "images" / "a.jpg")
    coco(tmp_path, [box()], images)
    coco(tmp_path, [box()], images, part="val")
    with pytest.raises(DataError, match=r"images/a.jpg is in train and in val"):
        read(tmp_path)


def test_classes_of_a_model_are_kept_and_others_refused(tmp_path):
    root = coco(tmp_path, [box(category=7)])
    assert read(root, classes=["bird", "dog"]).train[0].labels.tolist() == [1]
    with pytest.raises(DataError, match=r"class 'dog' is not one of the model's 1 classes \(cat\)"):
        read(root, classes=["cat"])


def test_exif_rotation_boxes_are_upright_unless_the_size_says_stored(tmp_path):
    images = [
        {"id": 1, "file_name": "upright.jpg", "width": 40, "height": 60},
        {"id": 2, "file_name": "stored.jpg", "width": 60, "height": 40},
    ]
    for entry in images:
        jpeg(tmp_path / "train" / entry["file_name"], 40, 60, orientation=ROTATED)
    stored = [[2, 3, 12, 3, 12, 7, 2, 7]]
    index = read(coco(tmp_path, [box(1, bbox=(5, 6, 10, 20)), box(2, bbox=(2, 3, 10, 4), segmentation=stored)], images))
    by_name = {sample.path.stem: sample for sample in index.train}
    assert all(sample.size == (60, 40) for sample in index.train)
    assert by_name["upright"].boxes.tolist() == [[5, 6, 15, 26]]
    assert by_name["stored"].boxes.tolist() == [[33, 2, 37, 12]]  # 40 - 7, 2, 40 - 3, 12
    mask = by_name["stored"].masks()[0]
    assert (mask.shape, mask.sum(), mask[2:12, 33:37].all()) == ((60, 40), 40, True)
    assert any("1 images are rotated by EXIF" in note for note in index.notes)


def test_too_many_boxes_and_masks_too_large_are_refused(tmp_path, monkeypatch):
    root = coco(tmp_path, [box(segmentation=SQUARE), *(box(2, bbox=(n, 1, 2, 2)) for n in range(5))])
    monkeypatch.setattr("cmtvision.data.annotations.build.MAX_BOXES", 4)
    assert read(root).skipped_counts == {"5 boxes, more than the limit of 4": 1}
    monkeypatch.setattr("cmtvision.data.annotations.samples.MAX_MASK_BYTES", 2_399)
    with pytest.raises(DataError, match="1 masks of 60 x 40 pixels need more than"):
        read(root).train[0].masks()


@pytest.mark.parametrize("make", [lambda root: None, lambda root: jpeg(root / "cat" / "a.jpg")])
def test_a_folder_of_another_kind_is_told_what_was_expected(tmp_path, make):
    make(tmp_path)
    with pytest.raises(DataError, match=r"no annotated images recognised; expected COCO .* YOLO .* Pascal VOC"):
        read_detection(tmp_path)
    with pytest.raises(DataError, match=r"no annotated images recognised; expected images with masks"):
        read_segmentation(tmp_path)
    with pytest.raises(DataError, match="no such folder or file"):
        read_detection(tmp_path / "nowhere")


def test_semantic_masks_are_drawn_from_outlines_the_small_on_the_large(tmp_path):
    small = [[12, 12, 20, 12, 20, 20, 12, 20]]
    root = coco(
        tmp_path,
        [box(category=7, bbox=(12, 12, 8, 8), segmentation=small), box(bbox=(10, 10, 20, 20), segmentation=SQUARE)],
    )
    index = read_segmentation(root, val_fraction=0.0)
    assert (index.classes, index.void) == (["background", "cat", "dog"], 255)
    mask = index.train[0].mask.read()
    assert np.bincount(mask.reshape(-1)).tolist() == [2400 - 400, 400 - 64, 64]
    assert [sample.labels for sample in index.train] == [(0, 1, 2), (0,)]
    with pytest.raises(DataError, match="background"):
        read_segmentation(root, void=0)
    with pytest.raises(DataError, match="void: got 2, which is class 'dog'"):
        read_segmentation(root, void=2)
    many = [{"id": number, "name": str(number)} for number in range(300)]  # as LVIS has them: 255 is a class
    coco(tmp_path, [box(category=254, segmentation=SQUARE)], categories=many)
    index = read_segmentation(tmp_path, val_fraction=0.0)
    assert (index.void, index.train[0].labels) == (65_535, (0, 255))


def test_masks_are_not_drawn_from_boxes(tmp_path):
    root = coco(tmp_path, [box(), box(image=2, segmentation=[[1, 1, 9, 9]])])
    for options in ({}, {"classes": ["background", "cat", "dog"]}):
        with pytest.raises(DataError, match=r"have boxes but no outlines .*; cmtvision detect train learns from boxes"):
            read_segmentation(root, val_fraction=0.0, **options)


def test_the_box_of_an_object_without_an_outline_belongs_to_no_class(tmp_path):
    """It would else teach that the object is background; a smaller object in the box is known all the same."""
    inner = [[12, 12, 16, 12, 16, 16, 12, 16]]
    objects = [
        box(bbox=(10, 10, 20, 20)),
        box(category=7, bbox=(12, 12, 4, 4), segmentation=inner),
        box(image=2, bbox=(0, 0, 9, 9)),
    ]
    index = read_segmentation(coco(tmp_path, objects), val_fraction=0.0)
    mask = index.train[0].mask.read()
    assert {value: int((mask == value).sum()) for value in (0, 2, 255)} == {0: 2000, 2: 16, 255: 384}
    assert [sample.labels for sample in index.train] == [(0, 2), (0,)]
    assert "1 of 3 classes have no training pixel: 'cat'" in index.notes
    assert "2 of 3 objects have no outline; the pixels in their boxes belong to no class" in index.notes
    assert any("2 of 3 training objects have no outline; a Mask R-CNN leaves" in note for note in read(tmp_path).notes)


def test_objects_of_a_category_called_background_are_class_0(tmp_path):
    categories = [{"id": 0, "name": "Background"}, {"id": 1, "name": "cat"}]
    hole = [[12, 12, 20, 12, 20, 20, 12, 20]]
    objects = [box(segmentation=SQUARE, bbox=(10, 10, 20, 20)), box(category=0, segmentation=hole, bbox=(12, 12, 8, 8))]
    root = coco(tmp_path, objects, categories=categories)
    index = read_segmentation(root, val_fraction=0.0)
    assert index.classes == ["background", "cat"]
    assert np.bincount(index.train[0].mask.read().reshape(-1)).tolist() == [2400 - 400 + 64, 400 - 64]
    again = read_segmentation(root, val_fraction=0.0, classes=index.classes)
    assert (again.fingerprint, again.classes) == (index.fingerprint, index.classes)
    coco(tmp_path, objects[1:], categories=categories[:1])
    with pytest.raises(DataError, match="'background' is its only category"):
        read_segmentation(root)
