import hashlib
import io
import json
import re

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as pycoco
from test_data_sample import tree

from cmtvision.data import read_detection, read_segmentation, write_sample_scenes
from cmtvision.data.sample import CLASSES, photos_in_parts
from cmtvision.data.scenes import write
from cmtvision.data.scenes.draws import Draws
from cmtvision.data.scenes.png import png_bytes
from cmtvision.errors import DataError

SCENES = 30


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    return {task: write_sample_scenes(folder / task, task, scenes=SCENES) for task in ("detection", "segmentation")}


def test_detection_scenes_are_a_coco_data_set(written):
    summary = written["detection"]
    index = read_detection(summary.directory)
    assert (index.format, index.split_source, index.classes) == ("coco", "folders", list(CLASSES))
    assert (len(index.train), len(index.val), index.skipped, index.notes) == (24, 6, [], [])
    assert summary.num_objects == sum(len(sample.boxes) for sample in index.samples)
    assert index.has_masks
    assert "Zalando" in (summary.directory / "FASHION-MNIST-LICENSE.txt").read_text()


def test_boxes_and_masks_show_what_can_be_seen_of_each_object(written):
    for sample in read_detection(written["detection"].directory).samples:
        masks = sample.masks()
        assert masks.sum(axis=0).max() <= 1  # what lies on an object hides it
        assert masks.sum(axis=(1, 2)).tolist() == sample.area.tolist()
        assert sample.area.min() >= 24
        for mask, (x0, y0, x1, y1) in zip(masks, sample.boxes.astype(int), strict=True):
            rows, columns = np.nonzero(mask)
            assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (x0, y0, x1, y1)


def test_pycocotools_reads_the_same_masks(written):
    content = json.loads((written["detection"].directory / "annotations" / "instances_val.json").read_text())
    for annotation in content["annotations"]:
        assert pycoco.area(annotation["segmentation"]) == annotation["area"]
        assert pycoco.toBbox(annotation["segmentation"]).tolist() == annotation["bbox"]


def test_segmentation_scenes_are_the_same_with_masks(written):
    index = read_segmentation(written["segmentation"].directory)
    assert (index.format, index.classes) == ("masks", ["background", *CLASSES])
    assert (len(index.train), len(index.val), index.void) == (24, 6, 255)
    boxed = read_detection(written["detection"].directory)
    for one, other in zip(index.train, boxed.train, strict=True):
        assert one.path.read_bytes() == other.path.read_bytes()
        numbers = np.zeros(other.size, dtype=np.int32)
        for mask, label in zip(other.masks(), other.labels, strict=True):
            numbers[mask] = label + 1
        np.testing.assert_array_equal(one.mask.read(), numbers)
    mask = Image.open(index.train[0].mask.path)
    assert mask.mode == "P"
    assert len(set(zip(*[iter(mask.getpalette()[:33])] * 3, strict=True))) == 11  # a colour for each


def test_scenes_differ_in_number_scale_ground_and_overlap(written):
    samples = read_detection(written["detection"].directory).samples
    assert {len(sample.boxes) for sample in samples} >= {2, 3, 4}
    areas = np.concatenate([sample.area for sample in samples])
    assert areas.max() > 8 * areas.min()
    assert len(set(np.concatenate([sample.labels for sample in samples]))) == len(CLASSES)
    boxes = [sample.boxes for sample in samples]
    touching = sum(
        bool((np.minimum(a[2:], b[2:]) > np.maximum(a[:2], b[:2])).all())
        for found in boxes
        for a in found
        for b in found
    ) - sum(map(len, boxes))
    assert touching > len(samples) / 2
    corners = {tuple(np.asarray(Image.open(sample.path).convert("RGB"))[2, 2] // 16) for sample in samples}
    assert len(corners) > len(samples) / 3


def test_no_photo_is_used_in_both_parts(tmp_path, monkeypatch):
    used = {"train": set(), "val": set()}
    (photos, _), places = photos_in_parts()[0]["val"]
    held_out = {photos[place].tobytes() for place in places}
    plain = write.cut_out

    def recorded(photo, *rest):
        used["val" if photo.tobytes() in held_out else "train"].add(photo.tobytes())
        return plain(photo, *rest)

    monkeypatch.setattr(write, "cut_out", recorded)
    order = []
    write_sample_scenes(tmp_path / "a", "detection", scenes=20, progress=lambda done, _: order.append(done))
    assert order == [20]
    index = read_detection(tmp_path / "a")
    objects = {part: sum(len(sample.boxes) for sample in getattr(index, part)) for part in used}
    assert all(len(used[part]) >= objects[part] for part in used)  # each photo at most once, in its own part
    assert len(used["val"]) < len(used["train"])


def test_the_same_seed_gives_the_same_bytes_and_they_are_the_known_ones(written, tmp_path):
    """Records name a seed, not a folder: other bytes would be another data set."""
    again = write_sample_scenes(tmp_path / "again", "detection", scenes=SCENES)
    assert tree(again.directory) == tree(written["detection"].directory)
    other = write_sample_scenes(tmp_path / "other", "detection", scenes=5, seed=1)
    first = (other.directory / "train" / "000000.png").read_bytes()
    assert first != (again.directory / "train" / "000000.png").read_bytes()
    digest = hashlib.sha256()
    for name, content in sorted(tree(written["detection"].directory).items()):
        digest.update(str(name).encode() + content)
    assert digest.hexdigest()[:16] == "5b5b38f4dccaf99d"


def test_more_scenes_begin_with_the_same_ones(written, tmp_path):
    more = write_sample_scenes(tmp_path / "more", "segmentation", scenes=SCENES + 10)
    for name in ("images/000003.png", "masks/000003.png"):
        ours = (more.directory / "train" / name).read_bytes()
        assert ours == (written["segmentation"].directory / "train" / name).read_bytes()


def test_png_files_are_plain_and_read_back_exactly():
    pixels = Draws(0).array(0, 255, 40, 700, 3).astype(np.uint8)  # more than one stored block
    data = png_bytes(pixels)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), pixels)
    assert len(data) < pixels.size + 40 + 200


def test_draws_are_the_known_ones():
    draws = Draws(7, "train", 3)
    assert [draws.between(0, 99) for _ in range(6)] == [82, 45, 79, 31, 37, 70]
    assert sorted(draws.order(50).tolist()) == list(range(50))
    values = draws.array(-2, 2, 1000)
    assert (values.min(), values.max(), len(np.unique(values))) == (-2, 2, 5)


def test_only_what_was_written_here_is_overwritten(tmp_path):
    folder = write_sample_scenes(tmp_path / "a", "segmentation", scenes=5).directory
    with pytest.raises(DataError, match="not empty"):
        write_sample_scenes(folder, "segmentation", scenes=5)
    write_sample_scenes(folder, "detection", scenes=6, overwrite=True)
    assert not (folder / "classes.txt").exists()
    assert len(read_detection(folder).samples) == 6
    mine = folder / "train" / "000099.png"
    Image.new("RGB", (128, 128)).save(mine)
    for task in ("detection", "segmentation"):
        with pytest.raises(DataError, match=r"not all in it was written by cmtvision \(it holds train/000099.png\)"):
            write_sample_scenes(folder, task, scenes=5, overwrite=True)
    mine.unlink()
    (folder / "annotations" / "instances_train.json").write_text("{}")
    with pytest.raises(DataError, match=re.escape("it holds annotations/instances_train.json")):
        write_sample_scenes(folder, "detection", scenes=5, overwrite=True)


def test_a_failure_leaves_nothing_behind(tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_sample_scenes(tmp_path / "a", "detection", scenes=5, progress=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [({"scenes": 4}, "scenes: got 4"), ({"size": 20}, "size: got 20"), ({"task": "pose"}, "task: got 'pose'")],
)
def test_numbers_out_of_range_are_refused(tmp_path, options, message):
    with pytest.raises(DataError, match=message):
        write_sample_scenes(tmp_path / "a", **{"task": "detection", **options})


def test_scenes_may_have_another_size(tmp_path):
    folder = write_sample_scenes(tmp_path / "a", "detection", scenes=5, size=96).directory
    assert {sample.size for sample in read_detection(folder).samples} == {(96, 96)}
