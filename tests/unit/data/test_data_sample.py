import gzip
import shutil
import struct

import numpy as np
import pytest
from data_files import photo
from PIL import Image

from cmtvision.data import read_dataset, write_sample_data
from cmtvision.data.idx import read_idx
from cmtvision.data.sample import CLASSES
from cmtvision.errors import DataError

HELD_OUT = [2, 5, 20, 21, 38, 40, 41, 43]  # the first of the 2,000


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample") / "photos"
    seen = []
    return write_sample_data(folder, progress=lambda done, total: seen.append((done, total))), seen


def test_the_bundled_photos_become_a_balanced_folder_dataset(written):
    summary, seen = written
    index = read_dataset(summary.directory, verify=False)
    assert (summary.num_train, summary.num_val, summary.source) == (8000, 2000, "bundled")
    assert index.classes == sorted(CLASSES)
    assert set(index.class_counts().values()) == {(800, 200)}
    assert index.skipped == []
    assert seen[-1] == (10_000, 10_000)
    assert "Zalando" in (summary.directory / "FASHION-MNIST-LICENSE.txt").read_text()


def test_the_photos_and_the_split_are_the_known_ones(written):
    """The first test photo is an ankle boot; the split is fixed for good, since records depend on it."""
    summary, _ = written
    first = next(summary.directory.glob("*/ankle_boot/00000.png"))
    image = np.asarray(Image.open(first))
    assert image.shape == (28, 28)
    assert image.sum() == 33456
    held_out = sorted(int(path.stem) for path in (summary.directory / "val").rglob("*.png"))
    assert held_out[:8] == HELD_OUT


def test_nothing_but_sample_data_is_overwritten(written, tmp_path):
    summary, _ = written
    with pytest.raises(DataError, match="not empty"):
        write_sample_data(summary.directory)
    folder = tmp_path / "mine"
    folder.mkdir()
    photo(9, 9).save(folder / "holiday.png")
    with pytest.raises(DataError, match=r"holiday\.png"):
        write_sample_data(folder, overwrite=True)
    assert [path.name for path in folder.iterdir()] == ["holiday.png"]
    with pytest.raises(DataError, match="is a file"):
        write_sample_data(folder / "holiday.png")


@pytest.fixture
def few(written, tmp_path):
    """Some of the photos, where they were written: what --overwrite replaces."""
    summary, _ = written
    for part in ("train", "val"):
        for name in CLASSES:
            (tmp_path / "photos" / part / name).mkdir(parents=True)
            for file in sorted((summary.directory / part / name).iterdir())[:2]:
                shutil.copy(file, tmp_path / "photos" / part / name)
    shutil.copy(summary.directory / "FASHION-MNIST-LICENSE.txt", tmp_path / "photos")
    return tmp_path / "photos"


def tree(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("train/bag/holiday.png", lambda file: photo(9, 9).save(file)),
        ("train/bag/00002.png", lambda file: photo(28, 28).save(file)),  # the name of one of ours, in another place
        ("train/bag/9999.png", lambda file: photo(28, 28).convert("L").save(file)),
        ("val/bag/notes", lambda file: (file.mkdir(), (file / "a.txt").write_text("x"))),
        ("train/scarf", lambda file: file.mkdir()),
        ("train/scarf/00000.png", lambda file: (file.parents[1] / "bag").rename(file.parent)),
        ("train/sandal/link.png", lambda file: file.symlink_to(file.parents[3] / "mine.png")),
        ("val/coat", lambda file: (file.rename(file.parents[2] / "coat"), file.symlink_to(file.parents[2] / "coat"))),
        ("split.csv", lambda file: file.write_text("path,label,split\n")),
    ],
)
def test_a_file_of_the_users_anywhere_below_is_never_deleted(name, change, few, tmp_path):
    photo().save(tmp_path / "mine.png")
    change(few / name)
    before = tree(tmp_path)
    with pytest.raises(DataError, match=rf"not overwritten.*it holds {name.partition('/0')[0]}"):
        write_sample_data(few, overwrite=True)
    assert tree(tmp_path) == before


def test_a_photo_of_the_full_set_that_the_user_repainted_is_not_deleted(few):
    full = few / "train" / "bag" / "51234.png"
    photo(28, 28).save(full)
    with pytest.raises(DataError, match=r"it holds train/bag/51234\.png"):
        write_sample_data(few, overwrite=True)
    Image.fromarray(np.zeros((28, 28), np.uint8)).save(full)  # as the full set has it
    write_sample_data(few, overwrite=True)
    assert not full.exists()


@pytest.mark.slow
def test_the_folder_itself_stays_where_it_is_there_already(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "here")
    number = (tmp_path / "here").stat().st_ino
    monkeypatch.chdir(tmp_path / "here")
    write_sample_data(".")
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == ["FASHION-MNIST-LICENSE.txt", "train", "val"]
    (tmp_path / "here" / "val" / "bag" / "00020.png").unlink(missing_ok=True)
    write_sample_data(tmp_path / "link", overwrite=True)
    assert (tmp_path / "here").stat().st_ino == number  # a shell or a mount that stands in it still does
    assert (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "link"]
    assert len(list((tmp_path / "here").iterdir())) == 3


@pytest.mark.slow
def test_overwrite_restores_and_an_interruption_leaves_nothing(tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_sample_data(tmp_path / "a", progress=stop)
    assert list(tmp_path.iterdir()) == []
    write_sample_data(tmp_path / "a")
    lost = next((tmp_path / "a").rglob("*.png"))
    lost.unlink()
    write_sample_data(tmp_path / "a", overwrite=True)
    assert lost.is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_full_from_damaged_or_missing_originals_is_one_line(tmp_path):
    with pytest.raises(DataError, match="train-images"):
        write_sample_data(tmp_path / "a", full=True, source=tmp_path)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"x" * 100))
    with pytest.raises(DataError, match="not an idx file"):
        write_sample_data(tmp_path / "a", full=True, source=tmp_path)
    assert not (tmp_path / "a").exists()


def test_offline_without_the_debian_package_the_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr("cmtvision.data.sample.DEBIAN_FOLDER", tmp_path / "absent")
    with pytest.raises(DataError, match=r"cannot be downloaded .* Debian package"):
        write_sample_data(tmp_path / "a", full=True, cache_dir=tmp_path / "cache")


def test_idx_checks_header_and_size_and_never_unpacks_more(tmp_path):
    header = struct.pack(">BBBBII", 0, 0, 8, 2, 2, 3)
    good, long, short, broken = (tmp_path / name for name in ("good.gz", "long.gz", "short.gz", "broken.gz"))
    good.write_bytes(gzip.compress(header + bytes(range(6))))
    assert read_idx(good, (2, 3)).tolist() == [[0, 1, 2], [3, 4, 5]]
    long.write_bytes(gzip.compress(header + bytes(10_000_000)))
    short.write_bytes(gzip.compress(header + bytes(5)))
    broken.write_bytes(good.read_bytes()[:-12])
    for path, shape in ((long, (2, 3)), (short, (2, 3)), (good, (3, 2)), (good, (6,)), (broken, (2, 3))):
        with pytest.raises(DataError, match=path.name):
            read_idx(path, shape)
