"""Data that is no folder: Parquet, Hugging Face, torchvision; each with real photos and the real library."""

import gzip
import pickle
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from data_files import folder_dataset, truncated_jpeg

from cmtvision.data import EpochSampler, class_names_from, open_image, read_dataset, write_shards, write_split
from cmtvision.data.sources.torchvision_sets import SETS
from cmtvision.data.sources.words import source_text
from cmtvision.errors import DataError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def photos(tmp_path):
    """(bytes, class) of real PNG files, classes in turn."""
    root = folder_dataset(tmp_path / "photos", {"ant": 6, "bee": 6})
    files = sorted(root.rglob("*.png"), key=lambda file: (file.name, file.parent.name))
    return [(file.read_bytes(), file.parent.name) for file in files]


def message(path, **options):
    with pytest.raises(DataError) as caught:
        read_dataset(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def parquet(file, **columns):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as writer

    writer.write_table(pyarrow.table(columns), file, row_group_size=5)
    return file


def test_a_parquet_table_may_hold_the_photos(photos, tmp_path):
    content, names = zip(*photos, strict=True)
    file = parquet(tmp_path / "a.parquet", image=[{"bytes": one, "path": "x.png"} for one in content], label=names)
    index = read_dataset(file, val_fraction=0.25)
    assert {name: sum(both) for name, both in index.class_counts().items()} == {"ant": 6, "bee": 6}
    for sample in index.samples:
        row = int(index.relative(sample.path).removeprefix("a/"))
        assert sample.path.read() == content[row]
        assert index.classes[sample.label] == names[row]
    assert str(index.train[0].path).startswith(str(file))
    assert read_dataset(file, val_fraction=0.25) == index  # unpacked before
    assert len(list((tmp_path / "cache/cmtvision/tables").iterdir())) == 1
    plain = parquet(tmp_path / "b.pq", shot=list(content), what=[name == "bee" for name in names])
    assert "no column image; name it by data.image_column=... (it has shot, what)" in message(plain)
    assert "no column 'x' (data.label_column)" in message(plain, image_column="shot", label_column="x")
    index = read_dataset(plain, image_column="shot", label_column="what")
    assert index.classes == ["0", "1"]
    write_split(index, tmp_path / "split.csv")
    again = read_dataset(plain, image_column="shot", label_column="what", split_file=tmp_path / "split.csv")
    assert again.val == index.val


def test_a_parquet_table_may_hold_paths_and_a_split(photos, tmp_path):
    paths = sorted(file.relative_to(tmp_path).as_posix() for file in (tmp_path / "photos").rglob("*.png"))
    split = ["train", "val"] * 6
    file = parquet(tmp_path / "a.parquet", path=paths, label=[path.split("/")[1] for path in paths], split=split)
    index = read_dataset(file)
    assert [index.relative(sample.path) for sample in index.train] == paths[::2]
    assert index.split_source == "csv"
    out = parquet(tmp_path / "out.parquet", path=["../x.png", "/etc/passwd"], label=["a", "b"])
    assert "leads out of" in message(out)


def test_a_folder_of_parquet_is_split_by_name_as_the_hub_has_it(photos, tmp_path):
    (tmp_path / "hub").mkdir()
    content, names = zip(*photos, strict=True)
    numbers = [int(name == "bee") * 2 for name in names]
    parquet(tmp_path / "hub/train-00000-of-00002.parquet", img=list(content[:4]), label=numbers[:4])
    parquet(tmp_path / "hub/train-00001-of-00002.parquet", img=list(content[4:8]), label=numbers[4:8])
    parquet(tmp_path / "hub/validation-00000-of-00001.parquet", img=list(content[8:]), label=numbers[8:])
    index = read_dataset(tmp_path / "hub")
    assert (index.classes, len(index.train), len(index.val)) == (["0", "2"], 8, 4)
    # Numbers without names mean a trained model's classes: by name where they fit, else by place.
    assert read_dataset(tmp_path / "hub", classes=["0", "1", "2"]).val[1].label == 2
    assert read_dataset(tmp_path / "hub", classes=["ant", "cow", "bee"]).classes == ["ant", "cow", "bee"]
    assert "label 2 of photo" in message(tmp_path / "hub", classes=["ant", "bee"])


def test_a_folder_of_parquet_keeps_its_test_part_and_leaves_out_one_without_labels(photos, tmp_path):
    hub = tmp_path / "hub"
    hub.mkdir()
    content, names = zip(*photos, strict=True)
    parquet(hub / "Train-0.parquet", image=list(content[:8]), label=names[:8])
    parquet(hub / "test-0.parquet", image=list(content[8:]), label=names[8:])
    index = read_dataset(hub)
    assert (len(index.test), index.split_source) == (4, "seeded")
    assert {index.relative(sample.path).split("/")[0] for sample in [*index.train, *index.val]} == {"Train-0"}
    for blank in ({}, {"label": [-1] * 4}, {"label": [None] * 4}):
        parquet(hub / "test-0.parquet", image=list(content[8:]), **blank)
        index = read_dataset(hub)
        assert (len(index.samples), index.test) == (8, [])
        assert [(item.path.name, item.reason) for item in index.skipped] == [
            ("test-0.parquet", "a test part without labels")
        ]
    parquet(hub / "training-1.parquet", image=list(content[8:]), label=names[8:])
    assert "Train and training both mean the training part" in message(hub)


def test_a_table_beside_class_folders_is_refused(photos, tmp_path):
    file = parquet(
        tmp_path / "photos" / "a.parquet", image=[one for one, _ in photos], label=[name for _, name in photos]
    )
    assert f"holds a table (a.parquet) and class folders (ant, bee, ...); give {file} itself" in message(file.parent)
    assert len(read_dataset(file).samples) == 12
    whole = parquet(tmp_path / "paths.parquet", path=["photos/ant/000.png", str(tmp_path / "photos/bee/000.png")],
                    label=["a", "b"])  # fmt: skip
    assert len(read_dataset(tmp_path).samples) == len(read_dataset(whole).samples) == 2  # its photos lie beside it


def test_numbers_sort_as_numbers(photos, tmp_path):
    file = parquet(tmp_path / "a.parquet", image=[one for one, _ in photos], label=[9, 10, 100] * 4)
    assert read_dataset(file).classes == class_names_from(file) == ["9", "10", "100"]


def test_several_labels_in_a_table(photos, tmp_path):
    labels = [["bee", "zoo"], [], ["ant"], ["zoo", "ant", "zoo"]] * 3
    file = parquet(tmp_path / "a.parquet", image=[one for one, _ in photos], labels=labels)
    index = read_dataset(file, multi_label=True, val_fraction=0)
    assert index.classes == ["ant", "bee", "zoo"]
    assert [(sample.label, sample.labels) for sample in index.train[:4]] == [
        (1, (1, 2)), (-1, ()), (0, (0,)), (0, (0, 2)),
    ]  # fmt: skip
    assert index.class_counts() == {"ant": (6, 0), "bee": (3, 0), "zoo": (6, 0)}
    assert "has a list of labels; set data.multi_label=true" in message(file)
    held_out = read_dataset(file, multi_label=True, val_fraction=0.3).val
    assert {sample.labels for sample in held_out} >= {(), (1, 2)}  # some of the rarest class too


@pytest.mark.parametrize("label", [None, 1.5, " "])
def test_a_row_without_a_label_is_named(photos, tmp_path, label):
    file = parquet(tmp_path / "a.parquet", image=[photos[0][0]] * 3, label=[label] * 3)
    assert "photo a/00000000 has " in message(file)


def test_a_bad_table_is_one_line(photos, tmp_path):
    file = parquet(tmp_path / "a.parquet", image=[photos[0][0], truncated_jpeg(), b""] * 2, label=["x", "x", "y"] * 2)
    assert "no usable image in class 'y'" in message(file)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    assert "cannot be read as Parquet" in message(tmp_path / "bad.parquet")
    empty = parquet(tmp_path / "none.parquet", image=[photos[0][0], None], label=["x", "y"])
    assert "row 1: image has no image in it" in message(empty)
    assert "holds int64" in message(parquet(tmp_path / "c.parquet", image=[1], label=["x"]))
    assert not list((tmp_path / "cache/cmtvision/tables").glob(".partial*"))


def test_a_missing_package_names_the_extra(tmp_path):
    (tmp_path / "a.parquet").touch()
    code = (
        "import sys; sys.modules['pyarrow'] = sys.modules['datasets'] = None\n"
        "from cmtvision.data import read_dataset\n"
        "from cmtvision.errors import DataError\n"
        f"for source in ({str(tmp_path / 'a.parquet')!r}, 'hf:some/name'):\n"
        "    try: read_dataset(source)\n"
        "    except DataError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count("pip install 'cmtvision[data]'") == len(done.stdout.splitlines()) == 2


def test_a_csv_may_name_its_columns_and_several_labels(photos, tmp_path):
    rows = ["photos/ant/000.png,ant|small", "photos/ant/001.png,", "photos/bee/000.png,bee"]
    (tmp_path / "list.csv").write_text("Photo,What\n" + "\n".join(rows))
    options = {"image_column": "photo", "label_column": "What", "multi_label": True, "val_fraction": 0}
    index = read_dataset(tmp_path / "list.csv", **options)
    assert index.classes == ["ant", "bee", "small"]
    assert [sample.labels for sample in index.train] == [(0, 2), (), (1,)]
    write_split(index, tmp_path / "split.csv")
    assert read_dataset(tmp_path / "split.csv", multi_label=True, val_fraction=0).train == index.train
    assert "no column label; name it by data.label_column=" in message(tmp_path / "list.csv")
    assert "data.image_column cannot be used" in message(tmp_path / "photos", image_column="x")


@pytest.fixture
def saved(photos, tmp_path, monkeypatch):
    """A data set that Hugging Face's library saved, photos embedded, classes not in alphabetical order."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "picture": datasets.Image(),
            "label": datasets.ClassLabel(names=["bee", "ant"]),
            "note": datasets.Value("string"),
        }
    )
    rows = [
        {"picture": {"bytes": content, "path": None}, "label": name, "note": f"no {i}"}
        for i, (content, name) in enumerate(photos)
    ]
    whole = datasets.Dataset.from_list(rows, features=features)
    parts = datasets.DatasetDict({"train": whole.select(range(8)), "test": whole.select(range(8, 12))})
    parts.save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_saved_hugging_face_data_set_is_read(saved, photos, tmp_path):
    index = read_dataset(f"hf:{saved}")
    assert (index.classes, index.split_source) == (["bee", "ant"], "seeded")
    assert (len(index.train) + len(index.val), len(index.test)) == (8, 4)
    assert [index.relative(sample.path) for sample in index.test][:1] == ["test/00000000"]
    rows = [*sorted([*index.train, *index.val], key=lambda sample: index.relative(sample.path)), *index.test]
    assert [sample.path.read() for sample in rows] == [content for content, _ in photos]
    assert [index.classes[sample.label] for sample in rows] == [name for _, name in photos]
    assert read_dataset(saved) == index  # hf: may be left out
    assert "no column 'x'" in message(f"hf:{saved}", label_column="x")
    assert "is not an Image" in message(f"hf:{saved}", image_column="note")
    write_shards(index, tmp_path / "out")
    back = read_dataset(tmp_path / "out")
    assert (back.classes, back.fingerprint) == (index.classes, index.fingerprint)
    assert open_image(back.train[0].path).size == (12, 12)


def test_the_parts_of_a_hugging_face_data_set(saved, tmp_path):
    import datasets

    whole = datasets.load_from_disk(str(saved))
    train, test = whole["train"], whole["test"]
    parts = {"train": train.select(range(6)), "validation": train.select(range(6, 8)), "test": test, "extra": test}

    def read(**parts):
        folder = tmp_path / f"saved{len(list(tmp_path.iterdir()))}"
        datasets.DatasetDict(parts).save_to_disk(folder)
        return folder

    index = read_dataset(read(**parts))
    assert (len(index.train), len(index.val), len(index.test), index.split_source) == (6, 2, 4, "folders")
    assert [item.reason for item in index.skipped] == ["a split that is neither train, val nor test"]
    hidden = test.map(lambda row: {"label": -1})
    index = read_dataset(read(train=train, test=hidden))
    assert (len(index.samples), index.test) == (8, [])
    assert [(str(item.path).endswith(":test"), item.reason) for item in index.skipped] == [
        (True, "a test part without labels")
    ]
    assert "val and validation both mean the validation part" in message(read(train=train, val=test, validation=test))
    alone = read(test=test)
    assert (read_dataset(alone).test, len(read_dataset(alone).samples)) == ([], 4)
    assert len(read_dataset(alone, classes=["bee", "ant"], val_fraction=0).test) == 4


@pytest.mark.slow
def test_a_hugging_face_data_set_has_the_same_fingerprint_in_every_process(saved):
    index = read_dataset(saved)
    code = f"from cmtvision.data import read_dataset; print(read_dataset({str(saved)!r}).fingerprint)"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == index.fingerprint


def test_a_hugging_face_data_set_that_cannot_be_loaded_is_one_line(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    assert "hf:nobody/nothing-here: cannot be loaded" in message("hf:nobody/nothing-here")
    assert "expected hf:NAME" in message("hf:")


@pytest.fixture(scope="module")
def fashion(tmp_path_factory):
    """Fashion-MNIST as torchvision keeps it; the package's photos, the test part, stand for both parts."""
    root = tmp_path_factory.mktemp("torchvision")
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    bundled = resources.files("cmtvision.data") / "fashion_mnist"
    for kind in ("images-idx3", "labels-idx1"):
        for part in ("train", "t10k"):
            source, target = bundled / f"t10k-{kind}-ubyte.gz", raw / f"{part}-{kind}-ubyte"
            with source.open("rb") as packed, gzip.open(packed) as content, target.open("wb") as out:
                shutil.copyfileobj(content, out)
    return root


def test_a_set_of_torchvision_is_read(fashion):
    index = read_dataset(f"torchvision:FashionMNIST:{fashion}")
    assert (index.classes[0], index.classes[9], len(index.test)) == ("T-shirt/top", "Ankle boot", 10_000)
    assert (index.split_source, len(index.train) + len(index.val)) == ("seeded", 10_000)
    assert sum(sample.label == index.classes.index("Bag") for sample in index.test) == 1000
    from torchvision.datasets import FashionMNIST

    original = FashionMNIST(str(fashion), train=False)
    for row in (0, 17, 9999):
        picture, label = original[row]
        assert index.test[row].label == label
        assert np.array_equal(np.asarray(open_image(index.test[row].path)), np.asarray(picture))


def test_the_parts_that_sets_of_torchvision_come_with_are_arguments_that_they_take():
    from inspect import signature

    from torchvision import datasets

    for name, parts in SETS.items():
        assert parts[0], name
        for arguments in (one for choices in parts for one in choices):
            assert set(dict(arguments)) <= set(signature(getattr(datasets, name)).parameters), name
    assert all(SETS[name][2] for name in ("CIFAR10", "OxfordIIITPet", "Food101", "Flowers102", "DTD", "Country211"))
    assert all(SETS[name][1] for name in ("Flowers102", "DTD", "ImageNet", "Imagenette"))
    assert not SETS["ImageNet"][2]


def test_a_set_of_torchvision_that_is_not_there_is_one_line(tmp_path):
    assert "did you mean CIFAR10?" in message("torchvision:CIFAR-10")
    assert "no classification set of torchvision; known are CIFAR10" in message("torchvision:zzzzzz")
    offline = message(f"torchvision:Flowers102:{tmp_path}")
    assert "cannot be downloaded" in offline
    assert "connect to the internet, or give its folder" in offline
    assert "have one class each" in message("torchvision:CIFAR10", multi_label=True)


def test_a_url_that_passed_through_a_path_is_itself_again():
    assert source_text(Path("s3://bucket/a-{0..3}.tar")) == "s3://bucket/a-{0..3}.tar"
    assert source_text("file:///data/a%20b.tar") == "/data/a b.tar"
    assert source_text(Path("file:///data/x.tar")) == "/data/x.tar"
    assert source_text(Path("torchvision:CIFAR10")) == "torchvision:CIFAR10"
    assert source_text("C:/data") == "C:/data"


def test_a_source_is_named_independently_of_the_current_folder(saved, fashion, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_dataset("hf:saved").source == f"hf:{saved}"
    assert read_dataset("photos").source == str(tmp_path / "photos")
    monkeypatch.chdir(fashion.parent)
    assert read_dataset(f"torchvision:FashionMNIST:{fashion.name}").source == f"torchvision:FashionMNIST:{fashion}"


def test_a_cache_folder_that_cannot_be_made_is_one_line(photos, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    file = parquet(tmp_path / "a.parquet", image=[one for one, _ in photos], label=[9, 10, 100] * 4)
    assert "set XDG_CACHE_HOME" in message(file)


def test_data_at_rest_pickles_into_workers(saved):
    index = read_dataset(saved)
    again = pickle.loads(pickle.dumps(index))
    assert again == index
    order = EpochSampler(len(again.train), uneven=True)
    assert all(again.train[i].path.read() for i in order)
