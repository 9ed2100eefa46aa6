import struct
import zlib

import numpy as np
import pytest
from annotated_files import ROTATED, jpeg, masks
from PIL import Image

from cmtvision.data import read_segmentation
from cmtvision.data.annotations.mask_files import read_mask
from cmtvision.data.decode import MAX_PIXELS
from cmtvision.errors import DataError


def striped(*values, height=20, width=30):
    """Rows of equal height, one for each value."""
    return np.repeat(np.array(values, dtype=np.uint8), height // len(values))[:, None].repeat(width, axis=1)


def test_images_and_masks_in_parts_are_read(tmp_path):
    root = masks(tmp_path, {"train": [striped(0, 1), striped(1, 255)], "val": [striped(0, 0)]})
    (root / "classes.txt").write_text("road\ntree\n")
    index = read_segmentation(root)
    assert (index.format, index.classes, index.void, index.split_source) == ("masks", ["road", "tree"], 255, "folders")
    assert [sample.labels for sample in index.train] == [(0, 1), (1,)]
    np.testing.assert_array_equal(index.train[1].mask.read(), striped(1, 255))
    assert index.class_counts() == {"road": (1, 1), "tree": (2, 0)}
    assert index.train[0].size == (20, 30)
    assert index.has_masks


def test_classes_are_numbers_where_nobody_named_them(tmp_path):
    root = masks(tmp_path, {"train": [striped(0, 3), striped(11, 1)], "val": [striped(0, 1)]})
    assert read_segmentation(root, void=11).classes == ["0", "1", "2", "3"]
    assert read_segmentation(root, void=11, verify=False).classes == ["0", "1", "2", "3"]
    assert len(read_segmentation(root).classes) == 12


def test_masks_of_0_and_255_are_background_and_foreground(tmp_path):
    """The commonest masks of two classes; 255 as void would leave a single class, with nothing to learn."""
    root = masks(tmp_path, {"train": [striped(0, 255), striped(0, 0)], "val": [striped(255, 255)]})
    index = read_segmentation(root)
    assert (index.classes, index.void) == (["background", "foreground"], 255)
    assert index.class_counts() == {"background": (2, 0), "foreground": (1, 1)}
    np.testing.assert_array_equal(index.train[0].mask.read(), striped(0, 1))
    assert index.notes == ["the masks hold 0 and 255 alone: 255 is read as class 1, 'foreground', not as void"]
    again = read_segmentation(root, classes=index.classes, verify=False)
    assert (again.fingerprint, again.train[0].mask) == (index.fingerprint, index.train[0].mask)
    white = masks(tmp_path / "white", {"test": [striped(255, 255)]})  # to measure that model on
    assert read_segmentation(white, val_fraction=0.0, classes=index.classes).test[0].labels == (1,)
    (root / "classes.txt").write_text("ground\nroof\n")
    assert read_segmentation(root).classes == ["ground", "roof"]
    Image.fromarray(striped(0, 1)).save(root / "train" / "masks" / "1.png")
    index = read_segmentation(root)  # where another number says what 255 is, nothing is guessed
    assert [sample.labels for sample in index.train] == [(0,), (0, 1)]


def test_images_and_masks_above_pillows_own_limit(tmp_path, monkeypatch):
    root = masks(tmp_path, {"train": [striped(0, 1)], "val": [striped(1, 0)]})
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)  # of 600; twice as many are an error
    with pytest.raises(DataError, match="more pixels than the limit"):
        read_segmentation(root)
    for verify in (True, False):
        index = read_segmentation(root, max_pixels=MAX_PIXELS + 1, verify=verify)
        assert index.train[0].mask.read().shape == (20, 30)


def test_masks_of_a_single_class_are_refused(tmp_path):
    root = masks(tmp_path, {"train": [striped(0, 255)], "val": [striped(0, 0)]})
    with pytest.raises(DataError, match=r"is of class '0' or of none \(255\); save a number of its own for each class"):
        read_segmentation(root, void=255)
    (root / "classes.txt").write_text("road\ntree\nsky\n")
    with pytest.raises(DataError, match=r"is of class 'road' or of none \(255\)"):
        read_segmentation(root)
    assert read_segmentation(root, classes=["road", "tree", "sky"]).classes  # to measure a model on it
    for part in ("train", "val"):
        Image.fromarray(striped(255, 255)).save(root / part / "masks" / "0.png")
    with pytest.raises(DataError, match=r"every pixel of its masks is of no class \(255\)"):
        read_segmentation(root)


def test_the_largest_number_of_16_bits_belongs_to_no_class(tmp_path):
    deep = striped(0, 1, 2, 255).astype(np.uint16)
    deep[deep == 255] = 65_535
    root = masks(tmp_path, {"train": [deep], "val": [striped(0, 1)]})
    for options in ({}, {"void": 9}):
        index = read_segmentation(root, **options)
        assert (index.classes[:3], index.train[0].labels) == (["0", "1", "2"], (0, 1, 2))
        assert index.train[0].mask.read()[-1, 0] == index.void == options.get("void", 255)
    (root / "classes.txt").write_text("".join(f"{number}\n" for number in range(300)))
    Image.fromarray(striped(0, 255)).save(root / "val" / "masks" / "0.png")
    index = read_segmentation(root)  # so many classes that 255 is one of them
    assert (index.void, index.train[0].mask.read()[-1, 0], index.val[0].labels) == (65_535, 65_535, (0, 255))


def test_numbers_that_are_no_classes_need_names(tmp_path):
    root = masks(tmp_path, {"train": [striped(0, 128)], "val": [striped(0, 128)]})
    with pytest.raises(DataError, match=r"its masks hold 2 numbers up to 128; save class numbers from 0 on"):
        read_segmentation(root)
    Image.fromarray(np.arange(255, dtype=np.uint8).reshape(5, 51)).save(root / "train" / "masks" / "0.png")
    jpeg(root / "train" / "images" / "0.jpg", 5, 51)
    with pytest.raises(DataError, match="its masks hold 255 numbers up to 254"):
        read_segmentation(root)


def test_classes_without_a_training_pixel_are_named(tmp_path):
    root = masks(tmp_path, {"train": [striped(0, 2)], "val": [striped(0, 1)]})
    (root / "classes.txt").write_text("road\ntree\nsky\n")
    assert read_segmentation(root).notes == ["1 of 3 classes have no training pixel: 'tree'"]
    assert not read_segmentation(root, verify=False).notes  # nobody has looked


def test_a_last_class_called_void_is_void(tmp_path):
    root = masks(tmp_path, {"train": [striped(0, 2)], "val": [striped(0, 1)]})
    (root / "classes.txt").write_text("road\ntree\nVoid\n")
    index = read_segmentation(root)
    assert (index.classes, index.void, index.train[0].labels) == (["road", "tree"], 2, (0,))
    with pytest.raises(DataError, match=r"void is 9, but classes\.txt names 'Void' as 2"):
        read_segmentation(root, void=9)
    with pytest.raises(DataError, match=r"void is 1, which is class 'tree'|names 'Void' as 2"):
        read_segmentation(root, void=1)
    (root / "classes.txt").write_text("void\nroad\ntree\n")  # as in ADE20K: 0 is no class, and 1 the first
    index = read_segmentation(root)
    assert (index.classes, index.void, index.train[0].labels) == (["road", "tree"], 255, (1,))
    np.testing.assert_array_equal(index.train[0].mask.read(), striped(255, 1))
    assert read_segmentation(root, void=0, classes=["road", "tree"]).fingerprint == index.fingerprint
    (root / "classes.txt").write_text("road\nvoid\ntree\n")
    with pytest.raises(DataError, match="'void' must be the first or last class"):
        read_segmentation(root)


@pytest.mark.parametrize("layout", ["{kind}/{part}", "{part}/{kind}"])
@pytest.mark.parametrize("kind", ["masks", "labels", "annotations"])
def test_the_usual_layouts_are_found(tmp_path, layout, kind):
    for part in ("train", "val"):
        jpeg(tmp_path / layout.format(kind="images", part=part) / "a.jpg", 20, 30, seed=len(part))
        folder = tmp_path / layout.format(kind=kind, part=part)
        folder.mkdir(parents=True)
        Image.fromarray(striped(0, 1)).save(folder / "a_mask.png")
    index = read_segmentation(tmp_path)
    assert [len(index.train), len(index.val)] == [1, 1]


def test_one_folder_of_each_is_split_by_seed(tmp_path):
    for number in range(10):
        jpeg(tmp_path / "images" / f"{number}.jpg", 20, 30, seed=number)
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(striped(0, 1)).save(tmp_path / "masks" / f"{number}.png")
    index = read_segmentation(tmp_path, val_fraction=0.3)
    assert index.split_source == "seeded"
    assert index.train
    assert index.val
    assert len(index.samples) == 10


def test_pascal_voc_masks_are_read_with_their_classes(tmp_path):
    jpeg(tmp_path / "JPEGImages" / "a.jpg", 20, 30)
    jpeg(tmp_path / "JPEGImages" / "b.jpg", 20, 30, seed=1)
    (tmp_path / "SegmentationClass").mkdir()
    Image.fromarray(striped(0, 15, 255, 0)).save(tmp_path / "SegmentationClass" / "a.png")
    (tmp_path / "ImageSets" / "Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Segmentation" / "train.txt").write_text("a\nb\n")
    index = read_segmentation(tmp_path, val_fraction=0.0)
    assert (index.format, len(index.classes), index.void) == ("voc", 21, 255)
    assert [index.classes[label] for label in index.train[0].labels] == ["background", "person"]
    assert [(item.path.name, item.reason) for item in index.skipped] == [("b", "no such file")]


def test_masks_that_do_not_fit_are_skipped_by_name(tmp_path):
    good, other = striped(0, 1), striped(0, 1, height=10)
    root = masks(tmp_path, {"train": [good] * 6, "val": [good]})
    (root / "classes.txt").write_text("road\ntree\n")
    folder = root / "train" / "masks"
    Image.fromarray(other).save(folder / "1.png")
    Image.fromarray(striped(0, 7)).save(folder / "2.png")
    (folder / "3.png").write_bytes(b"no mask")
    (folder / "4.png").unlink()
    Image.fromarray(np.stack([good, good + 1, good], axis=2)).save(folder / "5.png")
    Image.fromarray(good).save(folder / "stray.png")
    index = read_segmentation(root)
    assert [sample.path.name for sample in index.train] == ["0.jpg"]
    reasons = {item.path.name: item.reason for item in index.skipped}
    assert reasons["1.png"] == "30 x 10 pixels, its image has 30 x 20"
    assert reasons["2.png"] == "value 7 is neither a class (0 to 1) nor void (255)"
    assert "not a mask" in reasons["3.png"]
    assert reasons["4.jpg"] == "no mask of this name in masks/"
    assert "a mask of colours" in reasons["5.png"]
    assert reasons["stray.png"] == "no image of this name in images/"


@pytest.mark.parametrize(
    "folders", [("images", "masks"), ("train/images", "train/masks"), ("JPEGImages", "SegmentationClass")]
)
def test_jpeg_is_no_format_of_masks(tmp_path, folders):
    for folder in folders:
        for number in range(2):
            jpeg(tmp_path / folder / f"{number}.jpg", 20, 30)
    with pytest.raises(
        DataError, match=r"0\.jpg: a mask that is a JPEG, which changes class numbers; save masks as PNG"
    ):
        read_segmentation(tmp_path)
    Image.fromarray(striped(0, 1)).save(tmp_path / folders[1] / "1.png")
    if folders[0] != "JPEGImages":
        index = read_segmentation(tmp_path, val_fraction=0.0)
        reason = "its mask is a JPEG, which changes class numbers; save masks as PNG"
        assert [(item.path.name, item.reason) for item in index.skipped] == [("0.jpg", reason)]


def test_nothing_usable_is_refused(tmp_path):
    root = masks(tmp_path, {"train": [striped(0, 9)], "val": [striped(0, 1)]})
    (root / "classes.txt").write_text("road\ntree\n")
    with pytest.raises(DataError, match="no image to train on"):
        read_segmentation(root)
    (root / "val" / "masks" / "0.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"no usable image; .*0\.png: not a mask"):
        read_segmentation(root)


@pytest.mark.parametrize("mode", ["P", "L", "1", "I;16", "RGB", "LA"])
def test_the_numbers_of_a_mask_count_whatever_its_mode(tmp_path, mode):
    numbers = striped(0, 1)
    picture = Image.fromarray(numbers)
    if mode == "P":
        picture.putpalette([9, 9, 9, 200, 30, 30])
    elif mode == "1":
        picture = Image.fromarray(numbers * 255).convert("1")
    elif mode == "I;16":
        picture, numbers = Image.fromarray(numbers.astype(np.uint16) * 300), numbers.astype(np.int64) * 300
    elif mode != "L":
        picture = picture.convert(mode)
    picture.save(tmp_path / "mask.png")
    found = read_mask(tmp_path / "mask.png")
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, numbers)


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def gray_png(file, numbers, bits):
    """A gray PNG of that many bits a value, as no writer of Pillow's makes it."""
    digits = (numbers[..., None].astype(np.int64) >> np.arange(bits - 1, -1, -1)) & 1
    rows = np.packbits(digits.reshape(len(numbers), -1), axis=1)
    packed = np.concatenate([np.zeros((len(rows), 1), np.uint8), rows], axis=1).tobytes()
    header = struct.pack(">IIBBBBB", *numbers.shape[::-1], bits, 0, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(packed)), chunk(b"IEND", b"")]
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_gray_values_of_any_depth_are_the_numbers_in_the_file(tmp_path, bits):
    numbers = np.arange(21).reshape(3, 7) * (300 if bits == 16 else 1) % 2**bits
    gray_png(tmp_path / "mask.png", numbers, bits)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), numbers)


def test_a_palette_of_few_colours_is_not_scaled(tmp_path):
    picture = Image.fromarray(striped(0, 1, 3))
    picture.putpalette([9, 9, 9, 200, 30, 30, 0, 0, 0, 5, 5, 5])
    picture.save(tmp_path / "mask.png", bits=2)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), striped(0, 1, 3))


def test_decimal_numbers_and_deep_colours_are_refused(tmp_path):
    Image.fromarray(striped(0, 1).astype(np.float32) * 300).save(tmp_path / "mask.tif")
    with pytest.raises(DataError, match="a mask of decimal numbers"):
        read_mask(tmp_path / "mask.tif")
    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)  # Pillow would drop the lower half of each value
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"\0" + b"\0\3" * 3)), chunk(b"IEND", b"")]
    (tmp_path / "mask.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    with pytest.raises(DataError, match="a mask of 16-bit colours"):
        read_mask(tmp_path / "mask.png")


def test_a_mask_that_is_drawn_again_changes_the_fingerprint(tmp_path):
    root = masks(tmp_path, {"train": [striped(0, 1, 2, 0)], "val": [striped(0, 1)]})
    file = root / "train" / "masks" / "0.bmp"
    file.with_suffix(".png").unlink()
    prints = []
    for drawn in (striped(0, 1, 2, 0), striped(0, 2, 1, 0), striped(0, 1, 2, 0)):
        Image.fromarray(drawn).save(file)  # of the same size in bytes
        for verify in (True, False):
            prints.append(read_segmentation(root, verify=verify, classes=["road", "tree", "sky"]).fingerprint)
    assert prints[0] == prints[1] == prints[4] != prints[2] == prints[3]


def test_limits_and_missing_files_of_masks(tmp_path):
    Image.fromarray(striped(0, 1)).save(tmp_path / "mask.png")
    with pytest.raises(DataError, match="no such file"):
        read_mask(tmp_path / "gone.png")
    with pytest.raises(DataError, match="more pixels than the limit"):
        read_mask(tmp_path / "mask.png", max_pixels=100)
    with pytest.raises(DataError, match="more than the limit of 10"):
        read_mask(tmp_path / "mask.png", max_bytes=10)
    Image.fromarray(striped(0, 1).astype(np.int32) - 1).save(tmp_path / "deep.tif")
    with pytest.raises(DataError, match="values from -1 to 0, expected class numbers"):
        read_mask(tmp_path / "deep.tif")
    data = (tmp_path / "mask.png").read_bytes()
    (tmp_path / "mask.png").write_bytes(data[:50])
    with pytest.raises(DataError, match="damaged mask"):
        read_mask(tmp_path / "mask.png")


@pytest.mark.parametrize("stored", [True, False])
def test_a_mask_of_a_rotated_image_is_turned_where_it_is_as_stored(tmp_path, stored):
    numbers = np.arange(600, dtype=np.uint8).reshape(20, 30) % 7
    upright = np.rot90(numbers, -1)
    root = masks(tmp_path, {"train": [numbers], "val": [numbers]})
    for part in ("train", "val"):
        jpeg(root / part / "images" / "0.jpg", 20, 30, seed=len(part), orientation=ROTATED)
        Image.fromarray(np.ascontiguousarray(numbers if stored else upright)).save(root / part / "masks" / "0.png")
    index = read_segmentation(root)
    assert index.train[0].size == (30, 20)
    np.testing.assert_array_equal(index.train[0].mask.read(), upright)
    assert bool(index.notes) == stored


def test_the_classes_of_a_model_must_be_those_of_the_data(tmp_path):
    root = masks(tmp_path, {"train": [striped(0, 1)], "val": [striped(0, 1)]})
    assert read_segmentation(root, classes=["road", "tree"]).classes == ["road", "tree"]
    (root / "classes.txt").write_text("road\ntree\n")
    with pytest.raises(DataError, match=r"its classes .* are not the model's"):
        read_segmentation(root, classes=["tree", "road"])


def test_an_image_of_two_parts_through_a_link_is_refused(tmp_path):
    root = masks(tmp_path, {"train": [striped(0, 1)], "val": [striped(0, 1)]})
    (root / "val" / "images" / "0.jpg").unlink()
    (root / "val" / "images" / "0.jpg").symlink_to(root / "train" / "images" / "0.jpg")
    with pytest.raises(DataError, match="is also in the training part, as a link"):
        read_segmentation(root)
