import numpy as np
import pytest
import torch
from data_files import photo
from PIL import Image
from timm.data.transforms_factory import transforms_imagenet_eval
from torchvision import tv_tensors

from cmtvision.data import DetectionSample, Preprocess, SegmentationSample
from cmtvision.data.annotations.mask_files import MaskFile
from cmtvision.data.annotations.outlines import Outline, encode_counts, mask_box
from cmtvision.data.training.dense_augment import DenseAugment, DenseTransform
from cmtvision.data.training.dense_dataset import (
    DetectionDataset,
    SegmentationDataset,
    collate_detection,
    collate_segmentation,
    collate_whole,
)
from cmtvision.data.whole_image import WholeImage, original_boxes
from cmtvision.errors import ConfigError, DataError

RGB = Preprocess((32, 32), 1.0, "bicubic", (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
GRAY = Preprocess((32, 32), 1.0, "bicubic", (0.5,), (0.2,), channels=1)
PLAIN = Preprocess((32, 32), 1.0, "bicubic", (0.0,) * 3, (1.0,) * 3)
BOXES = [(8, 6, 30, 24), (40, 10, 52, 38), (20, 26, 36, 36)]
SIZE = (40, 60)


def rectangles(shape=SIZE):
    """A picture in which each object is a rectangle of one pure colour on black, and the objects' masks."""
    pixels, masks = np.zeros((*shape, 3), dtype=np.uint8), np.zeros((3, *shape), dtype=bool)
    for number, (x0, y0, x1, y1) in enumerate(BOXES):
        masks[number, y0:y1, x0:x1] = True
        pixels[y0:y1, x0:x1, number] = 255
    return pixels, masks


@pytest.fixture
def sample(tmp_path):
    pixels, masks = rectangles()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    outlines = tuple(Outline(*SIZE, counts=encode_counts(mask)) for mask in masks)
    return DetectionSample(
        tmp_path / "a.png", SIZE, np.array(BOXES, dtype=np.float32), np.array([2, 0, 1]),
        np.array([False, True, False]), masks.sum(axis=(1, 2)).astype(np.float32), outlines,
    )  # fmt: skip


@pytest.fixture
def labelled(tmp_path):
    pixels, masks = rectangles()
    Image.fromarray(pixels).save(tmp_path / "b.png")
    numbers = np.select(list(masks), [1, 2, 3], 0).astype(np.uint8)
    Image.fromarray(numbers).save(tmp_path / "mask.png")
    return SegmentationSample(tmp_path / "b.png", SIZE, MaskFile(tmp_path / "mask.png"), 255, (0, 1, 2, 3))


SETTINGS = {
    "jitter": DenseAugment((48, 44), photometric=0.0),
    "small": DenseAugment((48, 44), scale=(0.2, 0.4), photometric=0.0),
    "large": DenseAugment((24, 30), scale=(1.5, 3.0), photometric=0.0),
    "multi_scale": DenseAugment((48, 48), short_sides=(24, 33, 50), longest=70, photometric=0.0),
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("epoch", range(5))
def test_boxes_and_masks_stay_on_their_objects(sample, name, epoch):
    """Each object is the only thing of its colour, so the changed picture itself says where it is."""
    dataset = DetectionDataset([sample], DenseTransform(PLAIN, SETTINGS[name]), masks=True, seed=epoch)
    dataset.set_epoch(epoch)
    image, target, index = dataset[0]
    assert index == 0
    assert image.shape[1:] == torch.Size(target["size"]) == target["masks"].shape[1:]
    place = {2: 0, 0: 1, 1: 2}  # the colour of each class
    height, width = target["size"]
    seen = {int(label) for label in target["labels"]}
    for colour, label in ((0, 2), (1, 0), (2, 1)):
        if (image[colour] > 0.9).sum() > 40:
            assert label in seen
    for box, label, mask, area in zip(
        target["boxes"], target["labels"].tolist(), target["masks"], target["area"], strict=True
    ):
        coloured = image[place[label]].numpy() > 0.5
        x0, y0, x1, y1 = box.tolist()
        assert 0 <= x0 < x1 <= width
        assert 0 <= y0 < y1 <= height
        np.testing.assert_allclose(mask_box(coloured), box.tolist(), atol=1.01)
        np.testing.assert_allclose(mask_box(mask.numpy()), box.tolist(), atol=1.01)
        assert (mask.numpy() ^ coloured).sum() <= 1.2 * (x1 - x0 + y1 - y0)  # at the rim alone
        assert float(area) == pytest.approx((x1 - x0) * (y1 - y0), rel=0.25, abs=4)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("epoch", range(3))
def test_semantic_masks_stay_on_their_image(labelled, name, epoch):
    dataset = SegmentationDataset([labelled], DenseTransform(PLAIN, SETTINGS[name], void=255))
    dataset.set_epoch(epoch)
    image, target, _ = dataset[0]
    mask = target["mask"].numpy()
    assert (mask.dtype, mask.shape) == (np.int64, tuple(image.shape[1:]))
    for number in (1, 2, 3):
        wrong = (mask == number) ^ (image[number - 1].numpy() > 0.5)
        assert wrong.sum() <= 0.2 * (mask == number).sum() + 8
    if name == "small":
        assert (mask == 255).sum() > 0.5 * mask.size  # where the image does not reach
    if name == "multi_scale":
        assert set(np.unique(mask)) == {0, 1, 2, 3}


def test_multi_scale_draws_each_side_and_keeps_the_longest(sample):
    dataset = DetectionDataset([sample], DenseTransform(RGB, SETTINGS["multi_scale"]))
    sizes = set()
    for epoch in range(20):
        dataset.set_epoch(epoch)
        sizes.add(dataset[0][1]["size"])
    assert sizes == {(24, 36), (33, 50), (47, 70)}


def test_masks_are_resized_by_pixel_centres():
    """torchvision's nearest takes the corner: enlarged threefold, the mask would sit a pixel beside its image."""
    mask = torch.zeros((1, 20, 20), dtype=torch.bool)
    mask[:, 7:13, 7:13] = True
    transform = DenseTransform(PLAIN, DenseAugment((48, 48), short_sides=(48,), hflip=0.0, photometric=0.0))
    picture = Image.fromarray(mask[0].numpy().astype(np.uint8) * 255).convert("RGB")
    boxes = tv_tensors.BoundingBoxes(torch.tensor([[7.0, 7, 13, 13]]), format="XYXY", canvas_size=(20, 20))
    out = transform({"image": picture, "boxes": boxes, "masks": tv_tensors.Mask(mask)})
    np.testing.assert_array_equal(out["masks"][0], out["image"][0] > 0.5)


@pytest.mark.parametrize("kind", ["detection", "segmentation"])
def test_seed_epoch_and_index_decide_everything(sample, labelled, kind):
    augment = DenseAugment((40, 40), photometric=0.9)
    transform = DenseTransform(RGB, augment)

    def made(seed=0):
        if kind == "detection":
            return DetectionDataset([sample] * 4, transform, seed=seed, masks=True)
        return SegmentationDataset([labelled] * 4, transform, seed=seed)

    def same(one, other):
        return torch.equal(one[0], other[0])

    first, second = made(), made()
    before = torch.get_rng_state()
    drawn = [first[index] for index in (0, 1, 2, 3)]
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    for index in (3, 1, 0, 2):  # in any order
        again = second[index]
        assert same(again, drawn[index])
        key = "boxes" if kind == "detection" else "mask"
        assert torch.equal(again[1][key], drawn[index][1][key])
    assert not same(drawn[0], drawn[1])
    assert not same(first[4], drawn[0])  # a repetition of image 0
    assert first[4][2] == 0
    assert not same(made(seed=1)[0], drawn[0])
    first.set_epoch(1)
    assert not same(first[0], drawn[0])


def test_workers_change_nothing(sample):
    dataset = DetectionDataset([sample] * 4, DenseTransform(RGB, SETTINGS["jitter"]), masks=True)
    loaders = [
        torch.utils.data.DataLoader(dataset, batch_size=2, num_workers=workers, collate_fn=collate_detection)
        for workers in (0, 1)
    ]
    for (images, targets, indices), (others, again, places) in zip(*loaders, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(indices, places)
        for one, other in zip(targets, again, strict=True):
            assert torch.equal(one["masks"], other["masks"])


def test_photometric_changes_leave_geometry_alone(sample):
    augment = DenseAugment(SIZE, scale=(1.0, 1.0), hflip=0.0, photometric=1.0)
    image, target, _ = DetectionDataset([sample], DenseTransform(RGB, augment), masks=True)[0]
    plain, before, _ = DetectionDataset([sample], WholeImage(RGB), masks=True)[0]
    assert not torch.equal(image, plain)
    assert torch.equal(target["boxes"], before["boxes"])
    assert torch.equal(target["masks"], before["masks"])


def test_what_the_image_does_not_reach_is_mean_colour_whatever_was_changed(sample):
    augment = DenseAugment((48, 44), scale=(0.2, 0.4), photometric=1.0)
    dataset = DetectionDataset([sample], DenseTransform(RGB, augment))
    for epoch in range(4):
        dataset.set_epoch(epoch)
        image = dataset[0][0]
        empty = (image.abs() < 0.5 / 255 / 0.2 + 1e-6).all(dim=0)  # zero but for the rounding to a whole colour
        assert empty.float().mean() > 0.75


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("preprocess", [RGB, GRAY])
def test_gray_images_and_gray_networks_are_trained_alike(tmp_path, mode, preprocess):
    photo(40, 60).convert(mode).save(tmp_path / "a.png")
    boxes = np.array([[5, 5, 50, 30]], dtype=np.float32)
    one = DetectionSample(
        tmp_path / "a.png", SIZE, boxes, np.array([0]), np.array([False]), np.array([9.0], np.float32)
    )
    for transform in (DenseTransform(preprocess, DenseAugment((32, 32), photometric=1.0)), WholeImage(preprocess)):
        image, target, _ = DetectionDataset([one], transform)[0]
        assert image.shape[0] == preprocess.channels
        assert "masks" not in target


def test_an_object_out_of_sight_is_dropped_with_all_that_belongs_to_it(sample):
    dataset = DetectionDataset([sample], DenseTransform(RGB, SETTINGS["large"]), masks=True)
    counts = set()
    for epoch in range(12):
        dataset.set_epoch(epoch)
        target = dataset[0][1]
        counts.add(len(target["boxes"]))
        for key in ("labels", "crowd", "area", "masks", "has_mask"):
            assert len(target[key]) == len(target["boxes"])
        assert (target["crowd"] == (target["labels"] == 0)).all()
    assert len(counts) > 1


def test_an_image_without_objects_keeps_its_shapes(tmp_path):
    photo(40, 60).save(tmp_path / "a.png")
    none = np.zeros(0)
    empty = DetectionSample(tmp_path / "a.png", SIZE, none.reshape(0, 4).astype(np.float32), none.astype(np.int64),
                            none.astype(bool), none.astype(np.float32))  # fmt: skip
    for transform in (DenseTransform(RGB, SETTINGS["jitter"]), WholeImage(RGB, 20)):
        image, target, _ = DetectionDataset([empty], transform, masks=True)[0]
        assert target["boxes"].shape == (0, 4)
        assert target["masks"].shape == (0, *image.shape[1:])


@pytest.mark.parametrize(
    ("size", "short", "longest", "expected"),
    [((40, 60), 20, None, (20, 30)), ((40, 60), 80, 90, (60, 90)), ((60, 40), 20, 25, (25, 17)),
     ((40, 60), None, None, (40, 60)), ((40, 60), None, 30, (20, 30)), ((2, 900), 1, None, (1, 450))],
)  # fmt: skip
def test_an_image_is_resized_whole(size, short, longest, expected):
    whole = WholeImage(RGB, short, longest)
    assert whole.resized(*size) == expected
    prepared = whole(photo(*size))
    assert prepared.image.shape == (3, *expected)
    assert prepared.original == size
    assert prepared.scale == (expected[1] / size[1], expected[0] / size[0])
    boxes = np.array([[1.0, 1.0, size[1], size[0]]])
    scaled = boxes * np.array([*prepared.scale, *prepared.scale])
    np.testing.assert_allclose(original_boxes(scaled, prepared.scale, prepared.original), boxes, rtol=1e-5)
    assert original_boxes(scaled + 1e4, prepared.scale, size).tolist() == [[size[1], size[0], size[1], size[0]]]


def test_pixels_are_those_of_timms_evaluation():
    """A square image resized to the network's size needs no crop, so both do the same there."""
    picture = photo(50, 50)
    whole = WholeImage(RGB, 32)(picture).image
    theirs = transforms_imagenet_eval(32, crop_pct=1.0, interpolation="bicubic", mean=RGB.mean, std=RGB.std)(picture)
    np.testing.assert_array_equal(whole, theirs.numpy())
    np.testing.assert_array_equal(whole, RGB(picture))


def test_evaluation_targets_are_in_the_inputs_pixels_and_lead_back(sample, labelled):
    image, target, _ = DetectionDataset([sample], WholeImage(RGB, 80), masks=True)[0]
    assert image.shape == (3, 80, 120)
    assert (target["size"], target["original_size"], target["scale"]) == ((80, 120), SIZE, (2.0, 2.0))
    np.testing.assert_array_equal(target["boxes"], sample.boxes * 2)
    assert target["masks"].sum(dim=(1, 2)).tolist() == (sample.area * 4).tolist() == target["area"].tolist()
    np.testing.assert_array_equal(original_boxes(target["boxes"].numpy(), target["scale"], SIZE), sample.boxes)
    image, pixels, _ = SegmentationDataset([labelled], WholeImage(RGB, 80))[0]
    assert image.shape == (3, 80, 120)
    assert pixels["mask"].shape == SIZE  # figures are of the original's pixels


def test_batches_are_padded_at_the_right_and_bottom(sample, labelled):
    whole = [DetectionDataset([sample], WholeImage(RGB, side), masks=True)[0] for side in (30, 40)]
    images, targets, indices = collate_detection(whole, divisor=16)
    assert images.shape == (2, 3, 48, 64)
    assert indices.tolist() == [0, 0]
    assert torch.equal(images[0, :, :30, :45], whole[0][0])
    assert not images[0, :, 30:].any()
    assert not images[0, :, :, 45:].any()
    assert [target["masks"].shape for target in targets] == [(3, 48, 64)] * 2
    assert whole[0][1]["masks"].shape == (3, 30, 45)  # the given ones stay as they were
    train = [
        SegmentationDataset([labelled], DenseTransform(RGB, DenseAugment((8, 8), short_sides=(side,))))[0]
        for side in (20, 30)
    ]
    images, masks, _ = collate_segmentation(train, divisor=32)
    assert (images.shape, masks.shape, masks.dtype) == ((2, 3, 32, 64), (2, 32, 64), torch.int64)
    assert (masks[0, 20:] == 255).all()
    images, targets, _ = collate_whole([SegmentationDataset([labelled], WholeImage(RGB, 20))[0]])
    assert (images.shape, targets[0]["mask"].shape) == ((1, 3, 32, 32), SIZE)


def test_an_unreadable_image_is_replaced_in_training_and_an_error_in_evaluation(sample, tmp_path, caplog):
    bad = DetectionSample(tmp_path / "gone.png", SIZE, sample.boxes, sample.labels, sample.crowd, sample.area)
    train = DetectionDataset([bad, sample], DenseTransform(RGB, SETTINGS["jitter"]))
    assert train[0][2] == 0
    assert train.failures == [str(bad.path)]
    assert "gone.png: no such file; another image takes its place" in caplog.text
    with pytest.raises(DataError, match=r"gone\.png: no such file"):
        DetectionDataset([bad, sample], WholeImage(RGB))[0]
    with pytest.raises(DataError, match="no image of this data set can be read any more"):
        DetectionDataset([bad], DenseTransform(RGB, SETTINGS["jitter"]))[0]
    with pytest.raises(DataError, match="without a single image"):
        DetectionDataset([], WholeImage(RGB))


def test_an_image_that_has_changed_its_size_is_refused(sample, labelled):
    photo(20, 20).save(sample.path)
    with pytest.raises(DataError, match="20 x 20 pixels, and 60 x 40 when its annotations were read"):
        DetectionDataset([sample], WholeImage(RGB))[0]
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(labelled.mask.path)
    with pytest.raises(DataError, match="its mask has 20 x 20 pixels, the image 60 x 40"):
        SegmentationDataset([labelled], WholeImage(RGB))[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"size": (0, 5)}, "size"), ({"scale": (2, 1)}, "scale"), ({"hflip": 1.5}, "hflip"), ({"longest": 50}, "longest"),
     ({"short_sides": (40,), "longest": 30}, "longest"), ({"short_sides": (0,)}, "short_sides"),
     ({"photometric": -1}, "photometric"), ({"scale": (0.0, 1.0)}, "scale")],
)  # fmt: skip
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=f"augment {message}: got"):
        DenseAugment(**{"size": (32, 32), **options})


def test_other_numbers_of_channels_and_sides_are_refused():
    five = Preprocess((32, 32), 1.0, "bicubic", (0.5,) * 5, (0.2,) * 5, channels=5)
    with pytest.raises(DataError, match="channels: got 5"):
        WholeImage(five)
    with pytest.raises(ConfigError, match="channels: got 5"):
        DenseTransform(five, DenseAugment((32, 32)))
    with pytest.raises(DataError, match="short_side: got 0"):
        WholeImage(RGB, 0)


def test_the_generators_are_as_before(sample):
    numpy_before = np.random.get_state()[1].copy()
    DetectionDataset([sample], DenseTransform(RGB, SETTINGS["jitter"]))[0]
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_before)
