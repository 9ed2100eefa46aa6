"""A small folder of photos, odd and damaged ones among them, and one small run, trained once for all system tests."""

import shutil

import pytest
from cli_process import run_cli
from PIL import Image

from cmtvision.data import write_sample_data

CLASSES = ("bag", "sandal", "trouser")
PER_CLASS = 12


@pytest.fixture(scope="session")
def sample(tmp_path_factory):
    """The bundled photos as a folder."""
    return write_sample_data(tmp_path_factory.mktemp("sample") / "photos").directory


@pytest.fixture(scope="session")
def photos(sample, tmp_path_factory):
    """Three classes of twelve photos each: a folder of class folders, all of them good."""
    root = tmp_path_factory.mktemp("data") / "photos"
    for name in CLASSES:
        folder = root / name
        folder.mkdir(parents=True)
        for file in sorted((sample / "train" / name).iterdir())[:PER_CLASS]:
            shutil.copy(file, folder)
    return root


@pytest.fixture(scope="session")
def mixed_photos(photos, tmp_path_factory):
    """The same with every odd kind of image that must work, a truncated JPEG and a text named .png."""
    root = tmp_path_factory.mktemp("mixed") / "photos"
    shutil.copytree(photos, root)
    good = Image.open(sorted((photos / "bag").iterdir())[0]).convert("RGB")
    folder = root / "bag"
    exif = good.getexif()
    exif[0x0112] = 6
    good.convert("L").convert("I;16").save(folder / "deep.png")
    good.convert("P").save(folder / "palette.png")
    good.convert("CMYK").save(folder / "cmyk.jpg")
    good.convert("RGBA").save(folder / "alpha.png")
    good.save(folder / "rotated.jpg", exif=exif)
    whole = root / "sandal" / "torn.jpg"
    good.save(whole)
    whole.write_bytes(whole.read_bytes()[:400])
    (root / "trouser" / "notes.png").write_text("these are not the pixels you are looking for")
    return root


@pytest.fixture(scope="session")
def trained(mixed_photos, tmp_path_factory):
    """(run folder, the finished process) of one epoch of cmt_nano at 32 px on the mixed photos."""
    folder = tmp_path_factory.mktemp("runs")
    done = run_cli(
        "train", mixed_photos, "--recipe", "demo", "--epochs", "1", "--batch-size", "8", "--out", "run", cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return folder / "run", done
