import gc
import io
import json
import os
import pickle
import tarfile

import fsspec
import numpy as np
import pytest
import torch
from data_files import folder_dataset, photo, truncated_jpeg

from cmtvision.data import Preprocess, group_numbers, open_image, read_dataset, write_shards, write_split
from cmtvision.data.shards import shard_index as shard_index_module
from cmtvision.data.training.augment import train_transform
from cmtvision.data.training.dataset import ImageDataset
from cmtvision.errors import DataError
from cmtvision.recipe import AugmentSection

SMALL = 12_000  # bytes of a shard: about eight of these photos


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    root = folder_dataset(tmp_path / "photos", {"ant": 12, "bee": 9, "cow": 5})
    photo(30, 20, seed=7).save(root / "cow" / "a photo.with.dots.JPEG", format="JPEG")
    return root


def message(path, **options):
    with pytest.raises(DataError) as caught:
        read_dataset(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_same_data(found, expected):
    assert (found.classes, found.fingerprint) == (expected.classes, expected.fingerprint)
    for part in ("train", "val", "test"):
        pairs = list(zip(getattr(found, part), getattr(expected, part), strict=True))
        assert [found.relative(a.path) for a, _ in pairs] == [expected.relative(b.path) for _, b in pairs]
        assert all(a.path.read() == b.path.read_bytes() for a, b in pairs)
        assert all(a[1:] == b[1:] for a, b in pairs)


def test_shards_give_the_same_photos_labels_and_split_as_the_folder(folder, tmp_path):
    expected = read_dataset(folder, split_seed=3)
    written = write_shards(read_dataset(folder, val_fraction=0), tmp_path / "flat", shard_bytes=SMALL)
    assert written.num_shards > 2
    assert sorted(file.name for file in (tmp_path / "flat").iterdir())[-2:] == ["classes.json", "index.json"]
    found = read_dataset(tmp_path / "flat", split_seed=3)
    assert_same_data(found, expected)
    assert found.split_source == "seeded"
    write_shards(expected, tmp_path / "split", shard_bytes=SMALL)
    kept = read_dataset(tmp_path / "split", split_seed=99)  # the split is in the shards now
    assert_same_data(kept, expected)
    assert kept.split_source == "folders"
    assert sorted({str(sample.path.store.location.split("/")[-2]) for sample in kept.val}) == ["val"]


def test_the_same_data_and_seed_give_the_same_bytes_and_classes_are_mixed(folder, tmp_path):
    index = read_dataset(folder, val_fraction=0)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_shards(index, tmp_path / name, shard_bytes=SMALL, seed=seed)
    content = {name: (tmp_path / name / "000000.tar").read_bytes() for name in "abc"}
    assert content["a"] == content["b"] != content["c"]
    assert (tmp_path / "a/index.json").read_bytes() == (tmp_path / "b/index.json").read_bytes()
    first = json.loads((tmp_path / "a/index.json").read_text())["shards"][0]
    assert len(set(first["labels"])) > 1


# The library leaves its files open, and their warnings are its own.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_larger_photos_are_shrunk_to_their_short_side_and_smaller_ones_kept(tmp_path):
    root = folder_dataset(tmp_path / "photos", {"ant": 2, "bee": 2})
    wide = photo(60, 90, seed=1)
    wide.save(root / "ant" / "wide.jpg", quality=98)
    wide.save(root / "bee" / "tall.png")
    index = read_dataset(root, val_fraction=0)
    write_shards(index, tmp_path / "shards", short_side=40)
    found = {index.relative(sample.path): sample for sample in read_dataset(tmp_path / "shards", val_fraction=0).train}
    for sample in index.train:
        name = index.relative(sample.path)
        own, kept = open_image(sample.path), found[name].path.read()
        if min(own.size) > 40:
            assert open_image(kept).size == (60, 40)
            expected = np.asarray(own.resize((60, 40), 3), dtype=float)
            assert abs(np.asarray(open_image(kept), dtype=float) - expected).mean() < (5 if "jpg" in name else 0.001)
        else:
            assert kept == sample.path.read_bytes()


# the library leaves its files to the garbage collector
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_webdataset_library_reads_what_we_write(folder, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    index = read_dataset(folder, val_fraction=0)
    write_shards(index, tmp_path / "out", shard_bytes=SMALL)
    urls = sorted(str(file) for file in (tmp_path / "out").glob("*.tar"))
    rows = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil").to_tuple("png;jpeg", "cls"))
    assert sorted(label for _, label in rows) == sorted(sample.label for sample in index.train)
    ours = [open_image(sample.path) for sample in read_dataset(tmp_path / "out", val_fraction=0).train]
    assert {np.asarray(picture).tobytes() for picture, _ in rows} == {np.asarray(one).tobytes() for one in ours}
    gc.collect()


def test_shards_that_the_webdataset_library_wrote_are_read(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    (tmp_path / "theirs").mkdir()
    for part, count in (("train", 8), ("val", 4)):
        with webdataset.TarWriter(str(tmp_path / "theirs" / f"{part}-000.tar")) as out:
            for i in range(count):
                out.write({"__key__": f"{part}/x{i}", "jpg": photo(12, 12, i), "cls": i % 2 + 1})
    index = read_dataset(tmp_path / "theirs")
    assert (index.classes, index.split_source) == (["1", "2"], "folders")
    assert [sample.label for sample in index.train] == [0, 1] * 4
    assert index.relative(index.val[0].path) == "val-000.tar/val/x0.jpg"
    assert len(list((tmp_path / "cache/cmtvision/shard_indices").iterdir())) == 2
    assert read_dataset(tmp_path / "theirs") == index  # now from what was kept
    (tmp_path / "theirs/classes.json").write_text('["zero", "one", "two"]')
    assert read_dataset(tmp_path / "theirs").classes == ["zero", "one", "two"]
    (tmp_path / "theirs/classes.json").write_text('["zero", "one"]')
    assert "label 2 of train/x1.jpg is outside the 2 classes" in message(tmp_path / "theirs")


def test_labels_may_stand_in_json_or_in_the_folder_of_the_name(tmp_path):
    def tar(name, files):
        with tarfile.open(tmp_path / name, "w") as out:
            for member, content in files.items():
                info = tarfile.TarInfo(member)
                info.size = len(content)
                out.addfile(info, io.BytesIO(content))

    def labelled(name, labels):
        files = {f"{i}.json": json.dumps(labels(i)).encode() for i in range(4)}
        tar(name, files | {f"{i}.png": picture for i in range(4)})

    picture = (folder_dataset(tmp_path / "p", {"x": 1}) / "x/000.png").read_bytes()
    labelled("json.tar", lambda i: {"what": "ab"[i % 2]})
    assert read_dataset(tmp_path / "json.tar", label_column="what").classes == ["a", "b"]
    assert "has no label" in message(tmp_path / "json.tar")
    tar("names.tar", {f"{name}/{i}.png": picture for name in ("cat", "dog") for i in range(3)})
    assert read_dataset(tmp_path / "names.tar").class_counts() == {"cat": (2, 1), "dog": (2, 1)}
    labelled("several.tar", lambda i: {"labels": ["a", "b"][: i % 3]})
    index = read_dataset(tmp_path / "several.tar", multi_label=True, val_fraction=0)
    assert [sample.labels for sample in index.train] == [(), (0,), (0, 1), ()]
    assert "set data.multi_label=true" in message(tmp_path / "several.tar")
    tar("link.tar", {"cat/0.png": picture})
    with tarfile.open(tmp_path / "link.tar", "a") as out:
        info = tarfile.TarInfo("dog/1.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        out.addfile(info)
    assert "only one class ('cat')" in message(tmp_path / "link.tar")


def test_several_labels_survive_the_shards(folder, tmp_path):
    rows = [f"photos/ant/{i:03d}.png,{'|'.join(['ant', 'zoo', 'far'][: i % 4])}" for i in range(12)]
    (tmp_path / "list.csv").write_text("path,label\n" + "\n".join(rows))
    index = read_dataset(tmp_path / "list.csv", multi_label=True)
    assert index.classes == ["ant", "far", "zoo"]
    assert index.train[0].labels in {(), (0,), (0, 2), (0, 1, 2)}
    write_shards(index, tmp_path / "out")
    assert_same_data(read_dataset(tmp_path / "out", multi_label=True), index)
    assert "set data.multi_label=true" in message(tmp_path / "out")


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_shards_elsewhere_are_fetched_once_and_checked(folder, tmp_path, kind):
    expected = read_dataset(folder)
    write_shards(read_dataset(folder, val_fraction=0), tmp_path / "out", shard_bytes=SMALL)
    if kind == "memory":
        files = fsspec.filesystem("memory")
        files.put(str(tmp_path / "out"), "/bucket/out", recursive=True)
        base = "memory://bucket/out"
    else:
        base = f"file://{tmp_path / 'out'}"
    assert_same_data(read_dataset(base), expected)
    shards = len(list((tmp_path / "out").glob("*.tar")))
    braces = f"{base}/{{000000..{shards - 1:06d}}}.tar"
    assert_same_data(read_dataset(braces), expected)
    one = read_dataset(f"{base}/000000.tar", val_fraction=0)
    assert 0 < len(one.train) < len(expected.samples)
    assert f"{base.removeprefix('file://')}/000077.tar" in message(f"{base}/000077.tar")
    if kind == "memory":
        cached = tmp_path / "cache/cmtvision/shards"
        assert len(list(cached.glob("*.tar"))) == shards
        files.rm("/bucket/out/index.json")
        found = read_dataset(base, val_fraction=0)
        assert len(found.train) == len(expected.samples)
        assert found.classes == expected.classes
        files.pipe("/bucket/out/000000.tar", b"gone")
        assert "not a whole" in message(base)
        files.rm("/bucket", recursive=True)
        assert "no shards found" in message(base)


def test_the_cache_of_fetched_shards_has_a_limit(folder, tmp_path, monkeypatch):
    write_shards(read_dataset(folder, val_fraction=0), tmp_path / "out", shard_bytes=SMALL)
    fsspec.filesystem("memory").put(str(tmp_path / "out"), "/limited", recursive=True)
    monkeypatch.setenv("CMTVISION_SHARD_CACHE_GB", "0.00003")
    index = read_dataset("memory://limited", val_fraction=0)
    assert all(sample.path.read() for sample in index.train)
    kept = list((tmp_path / "cache/cmtvision/shards").glob("*.tar"))
    assert 1 <= len(kept) <= 2
    fsspec.filesystem("memory").rm("/limited", recursive=True)


def test_an_unknown_or_uninstalled_protocol_is_one_line():
    assert "s3fs" in message("s3://bucket/train-{000..127}.tar")
    assert "expected a URL that fsspec knows" in message("nonsense://bucket/a.tar")
    assert "not a range of up to 100,000 numbers" in message("memory://bucket/{0..4999999}.tar")
    assert "1,000,000 shards" in message("memory://bucket/{0..999}-{0..999}.tar")


def test_damaged_shards_are_one_line_each(folder, tmp_path):
    out = tmp_path / "out"
    write_shards(read_dataset(folder, val_fraction=0), out, shard_bytes=SMALL)
    index = read_dataset(out)
    shard = out / "000001.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-4000])
    assert "its index says" in message(out)
    samples = [one for one in index.samples if one.path.store.location == str(shard)]
    with pytest.raises(DataError, match=r"000001\.tar: .*write or copy the shard again"):
        samples[-1].path.read()
    shard.unlink()
    assert "the shard is missing" in message(out)
    assert "the shard is missing" in message(shard)
    (out / "index.json").unlink()
    shard.write_bytes(whole[:5000])
    assert "000001.tar" in message(out)
    shard.write_bytes(b"not a tar" * 400)
    assert "not a whole, uncompressed tar" in message(out)
    shard.write_bytes(whole)
    (out / "other.tar.gz").touch()
    assert "unpack the compression first" in message(out / "other.tar.gz")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda index: index["shards"][0]["labels"].__setitem__(0, 3), "label 3 of .* outside the 3 classes"),
        (lambda index: index["shards"][0]["labels"].__setitem__(0, -1), "outside the 3 classes"),
        (lambda index: index["shards"][0].update(file="../secret.tar"), "is not the name of a shard"),
        (lambda index: index["shards"][0].update(file="/etc/a.tar"), "is not the name of a shard"),
        (lambda index: index["shards"][0]["offsets"].pop(), "not a whole index"),
        (lambda index: index["shards"][0].pop("size"), "not a whole index"),
        (lambda index: index.update(version=2), "version 2 of the index"),
        (lambda index: index.update(classes=[1, 2]), "not a whole index"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(folder, tmp_path, change, words):
    write_shards(read_dataset(folder, val_fraction=0), tmp_path / "out")
    file = tmp_path / "out/index.json"
    index = json.loads(file.read_text())
    change(index)
    file.write_text(json.dumps(index))
    with pytest.raises(DataError, match=words):
        read_dataset(tmp_path / "out")


def test_an_offset_behind_the_end_is_not_read(folder, tmp_path):
    write_shards(read_dataset(folder, val_fraction=0), tmp_path / "out")
    file = tmp_path / "out/index.json"
    index = json.loads(file.read_text())
    index["shards"][0]["offsets"][0] = 10**12
    file.write_text(json.dumps(index))
    bad = [one for one in read_dataset(tmp_path / "out").samples if one.path.place == 10**12]
    with pytest.raises(DataError, match="of a shard of"):
        bad[0].path.read()


def test_nothing_but_shards_is_overwritten(folder, tmp_path):
    index = read_dataset(folder, val_fraction=0)
    out = tmp_path / "out"
    write_shards(index, out, shard_bytes=SMALL)
    with pytest.raises(DataError, match="not empty"):
        write_shards(index, out)
    write_shards(index, out, overwrite=True)
    assert [file.name for file in sorted(out.iterdir())] == ["000000.tar", "classes.json", "index.json"]
    (out / "mine.tar").touch()
    with pytest.raises(DataError, match=r"it holds mine\.tar"):
        write_shards(index, out, overwrite=True)
    with pytest.raises(DataError, match=r"000\.png"):
        write_shards(index, folder, overwrite=True)
    index.train[0].path.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        write_shards(index, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert not list(tmp_path.glob(".new*"))


def test_names_in_tars_are_what_they_are_however_they_are_spelled(folder, tmp_path):
    """``tar cf x.tar ./ant ./bee`` writes ./ant/000.png; the run's split.csv must find it again."""
    files = {
        name: (folder / name).read_bytes() for name in ("ant/000.png", "ant/001.png", "bee/000.png", "bee/001.png")
    }

    def tar(name, spell):
        with tarfile.open(tmp_path / name, "w") as out:
            for member, content in files.items():
                info = tarfile.TarInfo(spell(member))
                info.size = len(content)
                out.addfile(info, io.BytesIO(content))
        return tmp_path / name

    spellings = [lambda one: f"./{one}", lambda one: one.replace("/", "//"), lambda one: f"/{one}", lambda one: one]
    for number, spell in enumerate(spellings):
        (tmp_path / str(number)).mkdir()
        index = read_dataset(tar(f"{number}/x.tar", spell), val_fraction=0.5)
        assert [index.relative(sample.path) for sample in index.samples] == [f"x.tar/{name}" for name in files]
        write_split(index, tmp_path / "split.csv")
        again = read_dataset(index.source, split_file=tmp_path / "split.csv", split_seed=9)
        assert (again.train, again.val) == (index.train, index.val)
        text = (tmp_path / "split.csv").read_text()
        (tmp_path / "split.csv").write_text(text.replace("x.tar/", "x.tar/./"))  # as earlier versions wrote it
        assert read_dataset(index.source, split_file=tmp_path / "split.csv").val == index.val
    twice = {f"{dots}ant/000.png": files["ant/000.png"] for dots in ("", "./")}
    files |= twice
    assert "two images are called ant/000" in message(tar("twice.tar", lambda one: one))


def test_shards_keep_names_that_are_no_utf8(folder, tmp_path):
    (folder / "ant").rename(folder / os.fsdecode(b"fourmi\xe9"))
    (folder / "bee" / "000.png").rename(folder / "bee" / os.fsdecode(b"\xff.png"))
    expected = read_dataset(folder, split_seed=3)
    write_shards(expected, tmp_path / "out")
    json.loads((tmp_path / "out" / "index.json").read_text(encoding="utf-8"))
    assert_same_data(read_dataset(tmp_path / "out"), expected)
    (tmp_path / "out" / "index.json").unlink()
    assert read_dataset(tmp_path / "out").classes == expected.classes  # classes.json
    several = read_dataset(folder, multi_label=True)
    write_shards(several, tmp_path / "several")
    (tmp_path / "several" / "index.json").unlink()
    assert read_dataset(tmp_path / "several", multi_label=True).classes == expected.classes


@pytest.mark.parametrize(
    "change",
    [
        lambda out: (out / "train" / "mine.txt").write_text("x"),
        lambda out: (out / "notes").mkdir(),
        lambda out: (out / "train" / "000009.tar").symlink_to(out / "train" / "000000.tar"),
        lambda out: ((out / "val").rename(out.parent / "val"), (out / "val").symlink_to(out.parent / "val")),
        lambda out: ((out / "classes.json").unlink(), (out / "classes.json").symlink_to(out.parent / "mine.json")),
    ],
)
def test_what_the_user_put_beside_shards_is_never_deleted(change, folder, tmp_path):
    index, out = read_dataset(folder), tmp_path / "out"
    (tmp_path / "mine.json").write_text("[]")
    write_shards(index, out)
    change(out)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=r"not overwritten.*it holds"):
        write_shards(index, out, overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_shards_are_written_into_the_current_folder(folder, tmp_path, monkeypatch):
    index, here = read_dataset(folder, val_fraction=0), tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    number = here.stat().st_ino
    for overwrite in (False, True):
        write_shards(index, ".", overwrite=overwrite)
        assert [file.name for file in sorted(here.iterdir())] == ["000000.tar", "classes.json", "index.json"]
    assert here.stat().st_ino == number
    index.train[0].path.unlink()
    before = {file: file.read_bytes() for file in here.iterdir()}
    with pytest.raises(DataError, match="cannot be read"):
        write_shards(index, ".", overwrite=True)
    assert {file: file.read_bytes() for file in here.iterdir()} == before


def test_a_data_set_of_shards_pickles_trains_and_replaces_what_is_damaged(folder, tmp_path):
    (folder / "bee" / "zzz.jpg").write_bytes(truncated_jpeg())
    index = read_dataset(folder, val_fraction=0, verify=False)
    write_shards(index, tmp_path / "out", shard_bytes=SMALL)
    samples = read_dataset(tmp_path / "out", val_fraction=0).train
    preprocess = Preprocess((16, 16), 1.0, "bicubic", (0.5,) * 3, (0.5,) * 3)
    flip = AugmentSection(random_resized_crop=False, auto_augment=None, random_erasing=0.0)
    dataset = ImageDataset(samples, train_transform(preprocess, flip))
    original = ImageDataset(index.train, train_transform(preprocess, flip))
    again = pickle.loads(pickle.dumps(dataset))
    for i in range(len(samples)):
        tensor, label, _ = again[i]
        assert label == original[i][1]
        assert torch.equal(tensor, original[i][0])
    assert [item.name for item in again.failures] == ["bee/zzz.jpg"]
    with pytest.raises(DataError, match=r"zzz\.jpg: .*more than the limit"):
        open_image(again.failures[0], max_bytes=10)
    groups = group_numbers(samples)
    assert len(groups) == len(samples)
    assert len(set(groups)) > 2
    assert group_numbers(index.train) is None


def test_a_split_file_decides_the_split_of_shards(folder, tmp_path):
    write_shards(read_dataset(folder, val_fraction=0), tmp_path / "out")
    index = read_dataset(tmp_path / "out", split_seed=5)
    write_split(index, tmp_path / "split.csv")
    again = read_dataset(index.source, split_file=tmp_path / "split.csv", val_fraction=0)
    assert (again.train, again.val, again.split_source) == (index.train, index.val, "run")
    (tmp_path / "other.csv").write_text("path,label,split\nx/y.png,ant,val\nx/z.png,ant,train\n")
    assert "names none of the photos" in message(tmp_path / "out", split_file=tmp_path / "other.csv")


def test_a_cut_off_record_of_a_scan_is_made_again(folder, tmp_path):
    write_shards(read_dataset(folder, val_fraction=0), tmp_path / "out")
    (tmp_path / "out" / shard_index_module.INDEX_FILE).unlink()
    index = read_dataset(tmp_path / "out")
    kept = next((tmp_path / "cache/cmtvision/shard_indices").glob("*.json"))
    kept.write_text(kept.read_text()[:50])
    assert read_dataset(tmp_path / "out") == index


def test_a_test_part_stays_apart_in_shards(tmp_path):
    folder_dataset(tmp_path / "photos" / "train", {"ant": 12, "bee": 9})
    folder_dataset(tmp_path / "photos" / "Test", {"ant": 4, "bee": 3})
    expected = read_dataset(tmp_path / "photos", split_seed=3)
    assert (len(expected.test), expected.split_source) == (7, "seeded")
    written = write_shards(read_dataset(tmp_path / "photos", val_fraction=0), tmp_path / "out", shard_bytes=SMALL)
    assert (written.num_train, written.num_val, written.num_test) == (21, 0, 7)
    found = read_dataset(tmp_path / "out", split_seed=3)
    assert_same_data(found, expected)
    assert found.split_source == "seeded"
    assert {sample.path.store.location.split("/")[-2] for sample in found.test} == {"test"}
    written = write_shards(expected, tmp_path / "three", shard_bytes=SMALL)
    assert written.num_val == len(expected.val)
    assert_same_data(read_dataset(tmp_path / "three"), expected)
    alone = read_dataset(tmp_path / "three" / "test" / f"{written.num_shards - 1:06d}.tar", classes=["ant", "bee"],
                         val_fraction=0)  # fmt: skip
    assert (alone.train, alone.val, bool(alone.test)) == ([], [], True)


def tar_of(file, names):
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as out:
        for number, name in enumerate(names):
            content = io.BytesIO()
            photo(12, 12, number).save(content, format="PNG")
            info = tarfile.TarInfo(name)
            info.size = content.tell()
            content.seek(0)
            out.addfile(info, content)
    return file


def test_a_tar_beside_class_folders_is_a_stray_one(folder, tmp_path):
    before = read_dataset(folder)
    stray = tar_of(folder / "backup.tar", ["x/0.png", "y/1.png"])
    after = read_dataset(folder)
    assert (after.samples, after.fingerprint) == (before.samples, before.fingerprint)
    assert [(item.path, item.reason) for item in after.skipped] == [(stray, "a tar next to class folders")]
    for part in ("train", "val"):
        folder_dataset(tmp_path / "parts" / part, {"ant": 3, "bee": 3})
    stray = tar_of(tmp_path / "parts" / "train" / "backup.tar", ["x/0.png", "y/1.png"])
    index = read_dataset(tmp_path / "parts")
    assert (index.classes, len(index.samples), [item.path for item in index.skipped]) == (["ant", "bee"], 12, [stray])
    # Our own index says that a folder is shards, whatever was put beside them.
    write_shards(before, tmp_path / "out")
    folder_dataset(tmp_path / "out", {"zebra": 2})
    assert_same_data(read_dataset(tmp_path / "out"), before)


def test_folders_of_shards_are_parts_whatever_their_case(tmp_path):
    root = tmp_path / "theirs"
    for part, count in (("Train", 8), ("Validation", 4), ("TEST", 6)):
        tar_of(root / part / "0.tar", [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(count // 2)])
    index = read_dataset(root)
    assert (len(index.train), len(index.val), len(index.test), index.split_source) == (8, 4, 6, "folders")
    fsspec.filesystem("memory").put(str(root), "/parts", recursive=True)
    there = read_dataset("memory://parts")
    fsspec.filesystem("memory").rm("/parts", recursive=True)
    assert (len(there.train), len(there.val), len(there.test)) == (8, 4, 6)
    stray = tar_of(root / "old.tar", ["cat/0.png", "dog/1.png"])
    again = read_dataset(root)
    assert (again.samples, [item.path for item in again.skipped]) == (index.samples, [stray])
    tar_of(root / "val" / "0.tar", ["cat/0.png"])
    assert "Validation and val both mean the validation part" in message(root)
    for name in ("test-0.tar", "train-0.tar"):
        tar_of(tmp_path / "flat" / name, [f"{kind}/{i}.png" for kind in ("cat", "dog") for i in range(5)])
    flat = read_dataset(tmp_path / "flat")
    assert (len(flat.test), flat.split_source) == (10, "seeded")
    assert all("train-0.tar/" in flat.relative(sample.path) for sample in [*flat.train, *flat.val])
