import warnings

import numpy as np
import pytest
from data_files import odd_images, photo, truncated_jpeg
from PIL import Image

from cmtvision.data import open_image
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
        "": "is not a file",
    }
    for name, reason in expected.items():
        with pytest.raises(DataError) as caught:
            open_image(tmp_path / name)
        assert reason in str(caught.value)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


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
        (np.full((2, 2), -1), "outside 0..65535"),
        (np.array([["a"]]), "pixels of type"),
    ]:
        with pytest.raises(DataError, match=reason):
            open_image(bad)


def test_a_plain_image_is_not_copied_and_a_file_image_is_not_changed(tmp_path):
    plain = photo()
    assert open_image(plain) is plain
    plain.save(tmp_path / "a.png", dpi=(72, 72))
    with Image.open(tmp_path / "a.png") as opened:
        again = open_image(opened)
        assert "dpi" in opened.info
    assert again.info == {}
    assert np.array_equal(again, plain)
