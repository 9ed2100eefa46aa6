import io
import warnings

import numpy as np
import pytest
import torch
from data_files import odd_images, photo, truncated_jpeg
from PIL import Image

from cmtvision.data import Preprocess, each_image, open_image
from cmtvision.data.decode import MAX_PIXELS, image_size, up_to
from cmtvision.errors import DataError


def close(image, expected, tolerance=1.0):
    assert image.size == expected.size
    return np.abs(np.asarray(image, dtype=float) - np.asarray(expected, dtype=float)).mean() <= tolerance


def test_odd_images_all_open_as_rgb_or_gray(tmp_path):
    for name, path in odd_images(tmp_path).items():
        image = open_image(path)
        assert image.mode in ("RGB", "L"), name
        assert image.size == (60, 40), name


def test_odd_images_keep_their_picture(tmp_path):
    files = odd_images(tmp_path)
    picture = photo()
    gray = picture.convert("L")
    assert np.array_equal(open_image(files["sixteen_bit.png"]), gray)  # scaled, not clipped
    assert np.array_equal(open_image(files["sixteen_bit.tif"]), gray)
    assert np.array_equal(open_image(files["gray.png"]), gray)
    assert np.array_equal(open_image(files["palette.png"]), picture.quantize(64).convert("RGB"))
    assert close(open_image(files["cmyk.jpg"]), picture, 12)
    assert close(open_image(files["lab.tif"]), picture, 12)
    assert set(np.unique(open_image(files["one_bit.png"]))) == {0, 255}


def test_transparency_is_composited_on_white(tmp_path):
    files = odd_images(tmp_path)
    half = np.asarray(photo(), dtype=float) * 128 / 255 + 255 * 127 / 255
    assert np.abs(np.asarray(open_image(files["rgba.png"]), dtype=float) - half).max() <= 1
    assert (np.asarray(open_image(files["la.png"])) == 255).all()
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30] + [0] * 765)
    palette.save(tmp_path / "clear.png", transparency=0)
    assert (np.asarray(open_image(tmp_path / "clear.png")) == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    upright = np.zeros((4, 6, 3), dtype=np.uint8)
    upright[0, 0] = 255  # a mark in the top left corner
    upright[0, -1] = (255, 0, 0)  # and a red one in the top right
    undo = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    stored = Image.fromarray(upright)
    stored = stored if undo is None else stored.transpose(Image.Transpose(undo))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(open_image(tmp_path / "turned.png"), upright)


def test_damaged_exif_does_not_cost_the_picture(tmp_path):
    photo().save(tmp_path / "a.png", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7f")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.array_equal(open_image(tmp_path / "a.png"), photo())


def test_bad_files_give_one_line_with_their_name(tmp_path):
    (tmp_path / "cut.jpg").write_bytes(truncated_jpeg())
    (tmp_path / "text.png").write_text("this is not a photo\n")
    (tmp_path / "noise.png").write_bytes(b"\x00\x01\x02\x03" * 20)
    (tmp_path / "empty.png").touch()
    (tmp_path / "page.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    expected = {
        "cut.jpg": "damaged image",
        "text.png": "it is text",
        "noise.png": "it begins with 00 01",
        "empty.png": "the file is empty",
        "page.eps": "not an image, or of a kind that cannot be read",
        "absent.png": "no such file",
        "": "is a folder",
    }
    for name, reason in expected.items():
        with pytest.raises(DataError) as caught:
            open_image(tmp_path / name)
        assert reason in str(caught.value)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_limit_above_pillows_own_is_honoured_and_pillows_is_what_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000)  # twice as many are an error of Pillow's
    photo(100, 100).save(tmp_path / "a.png")
    photo(100, 100).save(tmp_path / "a.tif")
    for name in ("a.png", "a.tif"):
        with pytest.raises(DataError, match="more pixels than the limit"):
            open_image(tmp_path / name)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert open_image(tmp_path / name, max_pixels=MAX_PIXELS + 1).size == (100, 100)
        assert image_size(tmp_path / name, max_pixels=MAX_PIXELS + 1) == (100, 100)
        assert Image.MAX_IMAGE_PIXELS == 1_000
    with up_to(MAX_PIXELS + 1), pytest.raises(DataError, match="100 x 100 is more pixels"):
        open_image(tmp_path / "a.png", max_pixels=9_999)


def test_limits_are_checked_before_decoding(tmp_path):
    photo(100, 100).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: 100 x 100 is more pixels than the limit of 9,999"):
        open_image(tmp_path / "a.png", max_pixels=9_999)
    with pytest.raises(DataError, match="more than the limit of 10"):
        open_image(tmp_path / "a.png", max_bytes=10)
    with pytest.raises(DataError, match=r"upload: .* bytes, more than"):
        open_image((tmp_path / "a.png").read_bytes(), max_bytes=10, name="upload")


def test_a_decompression_bomb_is_refused(tmp_path):
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    with pytest.raises(DataError, match=r"bomb\.png: more pixels than the limit"):
        open_image(tmp_path / "bomb.png")


def test_bytes_pil_and_arrays_agree_with_the_file(tmp_path):
    photo().save(tmp_path / "a.png")
    expected = np.asarray(photo())
    for source in ((tmp_path / "a.png").read_bytes(), photo(), expected, str(tmp_path / "a.png")):
        assert np.array_equal(open_image(source), expected)


def test_arrays_of_every_kind():
    gray = np.asarray(photo().convert("L"))
    assert np.array_equal(open_image(gray.astype(np.uint16) * 257), gray)
    assert np.array_equal(open_image(gray[:, :, None].astype(np.float32) / 255), gray)
    assert np.array_equal(open_image(gray > 100), (gray > 100) * 255)
    for bad, reason in [
        (gray.astype(np.float64), "expected 0..1"),
        (np.full((2, 2), np.nan), "expected 0..1"),
        (np.zeros((2, 2, 2), np.uint8), "shape"),
        (np.zeros((0, 2), np.uint8), "no pixels"),
        (np.full((2, 2), -1), r"int64 pixels from -1 to -1, expected 0\.\.255"),
        (gray.astype(np.int32) * 257, "pass 16-bit pixels as uint16"),
        (np.zeros((3, 20, 20), np.uint8), r"batch of images is \(N, H, W, C\)"),
        (np.array([["a"]]), "pixels of type"),
    ]:
        with pytest.raises(DataError, match=reason):
            open_image(bad)


@pytest.mark.parametrize("kind", ["int8", "int16", "int32", "int64", "uint32", ">i4", ">u2"])
def test_integers_are_eight_bits_and_only_uint16_is_sixteen(kind):
    gray = np.asarray(photo().convert("L")) // 2
    sixteen = np.dtype(kind).kind == "u" and np.dtype(kind).itemsize == 2
    pixels = (gray.astype(np.uint16) * 257 if sixteen else gray).astype(kind)
    assert np.array_equal(open_image(pixels), gray)
    # deep, however dark: sixteen bits, and what Pillow keeps as 32-bit integers is deep too
    assert np.asarray(open_image(np.full((2, 2), 200, np.dtype("u2").newbyteorder(">")))).max() == 1
    assert np.asarray(open_image(Image.fromarray(np.full((2, 2), 200, np.int32)))).max() == 1


def test_every_way_to_hold_a_file_gives_its_picture(tmp_path):
    photo().save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    written = io.BytesIO()
    photo().save(written, format="PNG")  # left at its end, as whoever has just written it does
    for source in (bytearray(content), memoryview(content), io.BytesIO(content), written):
        assert np.array_equal(open_image(source), photo())
    with (tmp_path / "a.png").open("rb") as file:
        assert np.array_equal(open_image(file), photo())
        with pytest.raises(DataError, match=r"a\.png: .*more than the limit of 10"):
            open_image(file, max_bytes=10)
    (tmp_path / "a.txt").write_text("x")
    with (tmp_path / "a.txt").open() as file, pytest.raises(DataError, match=r"a\.txt: .*binary"):
        open_image(file)
    with pytest.raises(DataError, match="empty"):
        open_image(io.BytesIO())
    with pytest.raises(DataError, match=r"cannot be read \(I/O operation on closed file"):
        open_image(file)


def test_tensors_have_their_channels_first_as_torchvision_gives_them():
    pixels = np.array(photo())
    first = torch.from_numpy(pixels).permute(2, 0, 1)
    for tensor in (first, torch.from_numpy(pixels), (first / 255).requires_grad_(), first.to(torch.int64)):
        assert np.array_equal(open_image(tensor), photo())
    gray = np.array(photo().convert("L"))
    assert np.array_equal(open_image(torch.from_numpy(gray)[None]), gray)
    assert close(open_image((first / 255).bfloat16()), photo(), 1)
    for tensor in (first / 255 * 4 - 2, first[:2], torch.empty(3, 4, 4, device="meta")):
        with pytest.raises(DataError, match="tensor"):
            open_image(tensor)
    planes = Preprocess((4, 4), 1.0, "bicubic", (0.5,) * 5, (0.5,) * 5, channels=5)
    five = np.random.default_rng(0).integers(0, 256, (6, 7, 5), dtype=np.uint8)
    assert np.array_equal(planes(torch.from_numpy(five).permute(2, 0, 1)), planes(five))


@pytest.mark.parametrize("odd", [None, 7, 1.5, object(), ["a.png"], {"a": 1}])
def test_what_is_no_image_at_all_is_one_line(odd):
    with pytest.raises(DataError, match="expected a path") as caught:
        open_image(odd)
    assert "\n" not in str(caught.value)


def test_a_pil_image_whose_file_is_cut_off_is_one_line():
    with Image.open(io.BytesIO(truncated_jpeg())) as picture, pytest.raises(DataError, match="damaged image"):
        open_image(picture)


def test_one_image_is_one_and_a_batch_is_many(tmp_path):
    pixels = np.array(photo())
    tensor = torch.from_numpy(pixels)
    one = ["a.png", tmp_path, b"x", bytearray(b"x"), io.BytesIO(b"x"), photo(), pixels, pixels[:, :, 0], tensor]
    for source in one:
        (found,) = each_image(source)
        assert found is source
    assert len(list(each_image(np.stack([pixels] * 3)))) == 3
    assert len(list(each_image(torch.stack([tensor.permute(2, 0, 1)] * 3)))) == 3
    assert list(each_image(np.array(["a.png", "b.png"]))) == ["a.png", "b.png"]
    assert list(each_image(name for name in ("a", "b"))) == ["a", "b"]
    assert list(each_image([])) == []
    for odd in (None, 7, np.zeros(5), np.zeros(()), np.zeros((1, 2, 3, 4, 5))):
        with pytest.raises(DataError, match="expected an image or several"):
            each_image(odd)


def test_a_plain_image_is_not_copied_and_a_file_image_is_not_changed(tmp_path):
    plain = photo()
    assert open_image(plain) is plain
    plain.save(tmp_path / "a.png", dpi=(72, 72))
    with Image.open(tmp_path / "a.png") as opened:
        again = open_image(opened)
        assert "dpi" in opened.info
    assert again.info == {}
    assert np.array_equal(again, plain)


def test_a_photo_is_shrunk_to_its_short_side_whatever_its_kind(tmp_path):
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((640, 480), Image.BICUBIC)
    wanted = smooth.resize((80, 60), Image.Resampling.BICUBIC)
    exif = smooth.getexif()
    exif[0x0112] = 6  # on its side
    smooth.save(tmp_path / "photo.png")
    smooth.save(tmp_path / "photo.jpg", quality=95)
    smooth.save(tmp_path / "turned.jpg", quality=95, exif=exif)
    assert np.array_equal(open_image(tmp_path / "photo.png", short_side=60), wanted)
    shrunk = open_image(tmp_path / "photo.jpg", short_side=60)
    assert shrunk.size == (80, 60)
    difference = np.asarray(shrunk, dtype=float) - np.asarray(wanted, dtype=float)
    assert abs(difference).mean() < 4  # of 255: decoded at a fraction of its size
    assert open_image(tmp_path / "turned.jpg", short_side=60).size == (60, 80)
    assert open_image(tmp_path / "photo.jpg", short_side=480).size == (640, 480)
    assert open_image(smooth, short_side=60).size == (80, 60)
    assert open_image(np.asarray(smooth), short_side=60).size == (80, 60)
    torn = tmp_path / "torn.jpg"
    torn.write_bytes((tmp_path / "photo.jpg").read_bytes()[:-3000])
    for side in (8, 64, None):
        with pytest.raises(DataError, match="damaged image"):
            open_image(torn, short_side=side)
    with pytest.raises(DataError, match="more pixels than the limit"):
        open_image(tmp_path / "photo.jpg", max_pixels=1000, short_side=8)
