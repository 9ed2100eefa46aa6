import shutil

import pytest
from annotated_files import box, coco, jpeg

from cmtvision.data import read_detection
from cmtvision.data.annotations.splits import (
    as_in,
    images_of,
    take_annotated_split,
)
from cmtvision.data.listing.split_file import keep_split, write_split
from cmtvision.quality.quick import quick_lines


def names(samples):
    return [sample.path.name for sample in samples]


@pytest.fixture
def root(tmp_path):
    images = [{"id": n, "file_name": f"{n}.jpg", "width": 60, "height": 40} for n in range(12)]
    for entry in images:
        jpeg(tmp_path / "data" / "train" / entry["file_name"], seed=entry["id"])
    objects = [box(image=n, category=1 + 6 * (n % 2), bbox=(n, n, 9, 9)) for n in range(11)]  # the last has none
    return coco(tmp_path / "data", objects, images)


def test_a_run_keeps_its_split_whatever_the_seed_and_the_place(root, tmp_path):
    index = read_detection(root, val_fraction=0.3)
    write_split(images_of(index), tmp_path / "split.csv")
    shutil.copytree(root, tmp_path / "moved" / "data")
    other = read_detection(tmp_path / "moved" / "data", val_fraction=0.3, split_seed=5)
    assert names(other.val) != names(index.val)
    taken = take_annotated_split(other, tmp_path / "split.csv")
    assert (names(taken.train), names(taken.val), taken.split_source) == (names(index.train), names(index.val), "run")
    assert taken.val[0].boxes.tolist() == index.val[0].boxes.tolist()
    images, moved = keep_split(images_of(other), tmp_path / "split.csv")
    kept = as_in(other, images)
    assert (names(kept.val), moved) == (names(index.val), [])


def test_an_image_added_later_is_not_counted(root, tmp_path):
    index = read_detection(root, val_fraction=0.3)
    write_split(images_of(index), tmp_path / "split.csv")
    images = [{"id": n, "file_name": f"{n}.jpg", "width": 60, "height": 40} for n in range(13)]
    jpeg(root / "train" / "12.jpg", seed=99)
    taken = take_annotated_split(
        read_detection(coco(root, [box(image=n) for n in range(13)], images)), tmp_path / "split.csv"
    )
    assert names(taken.val) == names(index.val)
    assert [item.path.name for item in taken.skipped] == ["12.jpg"]


def test_annotated_images_are_checked_like_others(root):
    images = images_of(read_detection(root, val_fraction=0.3))
    assert images.multi_label
    assert {image.labels for image in images.samples} == {(0,), (1,), ()}
    shutil.copy(images.train[0].path, images.val[0].path)
    assert any("leakage: 1 training image is also held out" in line for line in quick_lines(images))
