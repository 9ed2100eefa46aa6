import pytest
from data_files import folder_dataset, photo, truncated_jpeg

from cmtvision.data import class_names_from, read_dataset, write_split
from cmtvision.errors import DataError


def names(index, samples):
    return [index.relative(sample.path) for sample in samples]


def test_class_folders_are_split_by_class_the_same_way_every_time(tmp_path):
    root = folder_dataset(tmp_path / "data", {"dog": 10, "cat": 5, "ant": 2, "bee": 1})
    index = read_dataset(root, val_fraction=0.2, split_seed=3)
    assert index.classes == ["ant", "bee", "cat", "dog"]
    assert index.class_counts() == {"ant": (1, 1), "bee": (1, 0), "cat": (4, 1), "dog": (8, 2)}
    assert index.split_source == "seeded"
    again = read_dataset(root, val_fraction=0.2, split_seed=3)
    assert again == index
    other = read_dataset(root, val_fraction=0.2, split_seed=4)
    assert names(other, other.val) != names(index, index.val)
    assert not {sample.path for sample in index.train} & {sample.path for sample in index.val}


def test_a_photo_added_to_one_class_moves_no_photo_of_another(tmp_path):
    root = folder_dataset(tmp_path, {"cat": 10, "dog": 10})
    before = read_dataset(root)
    photo(9, 9).save(root / "cat" / "zzz.png")
    after = read_dataset(root)
    dogs = [name for name in names(before, before.val) if name.startswith("dog/")]
    assert dogs == [name for name in names(after, after.val) if name.startswith("dog/")]
    assert before.fingerprint != after.fingerprint


@pytest.mark.parametrize("val", ["val", "valid", "validation", "test"])
def test_train_and_val_folders_are_kept_as_they_are(tmp_path, val):
    folder_dataset(tmp_path / "train", {"cat": 3, "dog": 4})
    folder_dataset(tmp_path / val, {"dog": 2})
    index = read_dataset(tmp_path)
    assert (index.split_source, index.class_counts()) == ("folders", {"cat": (3, 0), "dog": (4, 2)})


def test_train_without_val_is_split_and_zero_holds_out_nothing(tmp_path):
    folder_dataset(tmp_path / "train", {"cat": 5, "dog": 5})
    assert read_dataset(tmp_path).class_counts() == {"cat": (4, 1), "dog": (4, 1)}
    whole = read_dataset(tmp_path, val_fraction=0)
    assert (len(whole.train), whole.val, whole.split_source) == (10, [], "none")


def test_what_cannot_be_used_is_named_with_its_reason(tmp_path):
    root = folder_dataset(tmp_path, {"cat": 3, "dog": 3})
    (root / "cat" / "cut.jpg").write_bytes(truncated_jpeg())
    (root / "cat" / "text.png").write_text("hello")
    (root / "cat" / "notes.txt").write_text("hello")
    (root / "dog" / ".DS_Store").touch()
    (root / "dog" / "inner").mkdir()
    photo(9, 9).save(root / "dog" / "inner" / "a.JPG")
    (root / ".git").mkdir()
    (root / "README.md").touch()
    seen = []
    index = read_dataset(root, val_fraction=0, progress=lambda done, total: seen.append((done, total)))
    reasons = {item.path.name: item.reason for item in index.skipped}
    assert set(reasons) == {"cut.jpg", "text.png", "notes.txt", ".DS_Store", "README.md"}
    assert "damaged" in reasons["cut.jpg"]
    assert "text" in reasons["text.png"]
    assert "dog/inner/a.JPG" in names(index, index.train)
    assert len(index.train) == 7
    assert sum(index.skipped_counts.values()) == 5
    assert seen[-1] == (9, 9)


def test_links_out_of_the_folder_are_not_followed_and_circles_end(tmp_path):
    outside = folder_dataset(tmp_path / "outside", {"secret": 1})
    root = folder_dataset(tmp_path / "data", {"cat": 2, "dog": 2})
    (root / "secret").symlink_to(outside / "secret")
    (root / "cat" / "more").symlink_to(outside / "secret")
    (root / "dog" / "again").symlink_to(root / "dog")
    index = read_dataset(root, val_fraction=0)
    assert index.classes == ["cat", "dog"]
    assert len(index.train) == 4
    assert index.skipped_counts == {"a link to a folder outside the data folder": 2}


def test_a_csv_round_trips_the_split(tmp_path):
    root = folder_dataset(tmp_path / "data", {"cat": 5, "dog": 6})
    index = read_dataset(root, split_seed=1)
    write_split(index, tmp_path / "run.csv")
    back = read_dataset(tmp_path / "run.csv", root=root)
    assert (back.classes, back.train, back.val) == (index.classes, index.train, index.val)
    assert (back.fingerprint, back.split_source) == (index.fingerprint, "csv")
    write_split(index, root / "split.csv")
    assert read_dataset(root / "split.csv") == back
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "run.csv"]


def test_a_split_file_decides_the_split_and_names_what_came_and_went(tmp_path):
    root = folder_dataset(tmp_path / "data", {"cat": 5, "dog": 6})
    index = read_dataset(root, split_seed=1)
    write_split(index, tmp_path / "run.csv")
    again = read_dataset(root, split_file=tmp_path / "run.csv", val_fraction=0)
    assert (again.train, again.val, again.fingerprint) == (index.train, index.val, index.fingerprint)
    assert again.split_source == "csv"
    index.val[0].path.unlink()
    photo(9, 9).save(root / "cat" / "new.png")
    changed = read_dataset(root, split_file=tmp_path / "run.csv", val_fraction=0)
    assert changed.val == index.val[1:]
    assert {item.path: item.reason for item in changed.skipped} == {
        index.val[0].path: "in run.csv, but not in the data any more",
        root / "cat" / "new.png": "not in run.csv",
    }


def test_a_csv_without_split_is_split_and_missing_files_are_skipped(tmp_path):
    folder_dataset(tmp_path, {"a": 4, "b": 4})
    rows = [f"{name}/{n:03d}.png,{label}" for name, label in (("a", "cat"), ("b", "dog, big")) for n in range(5)]
    rows = [row.replace("dog, big", '"dog, big"') for row in rows]
    (tmp_path / "list.csv").write_text("\ufeffPath, Label\n" + "\n".join([*rows, rows[0]]) + "\n", encoding="utf-8")
    index = read_dataset(tmp_path / "list.csv", val_fraction=0.25)
    assert index.class_counts() == {"cat": (3, 1), "dog, big": (3, 1)}
    assert sorted(item.reason for item in index.skipped) == ["listed twice", "no such file", "no such file"]
    assert class_names_from(tmp_path / "list.csv") == ["cat", "dog, big"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na,b\n", "no column path"),
        ("", "the file is empty"),
        ("path,label\n/etc/passwd,x\n", r"line 2: path '/etc/passwd' leads out"),
        ("path,label\na/../../x.png,x\n", "leads out"),
        ("path,label\n..\\x.png,x\n", "leads out"),
        ("path,label\nC:\\x.png,x\n", "leads out"),
        ("path,label\na.png,\n", "line 2: label is empty"),
        ("path,label\na.png,x\na.png,y\n", "line 3: a.png was listed before"),
        ("path,label,split\na.png,x,hold\n", "split 'hold', expected train or val"),
        ("path,label,split\na.png,x,train\nb.png,x,\n", "some rows have a split"),
        ("path,label\na.png,x,y\n", "line 2: more fields"),
    ],
)
def test_a_malformed_csv_is_refused_by_line(tmp_path, text, message):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_dataset(tmp_path / "list.csv")


def test_a_csv_may_leave_its_folder_only_when_allowed(tmp_path):
    folder_dataset(tmp_path / "photos", {"cat": 2, "dog": 2})
    (tmp_path / "lists").mkdir()
    rows = [f"../photos/{name}/00{n}.png,{name}" for name in ("cat", "dog") for n in range(2)]
    (tmp_path / "lists" / "a.csv").write_text("path,label\n" + "\n".join(rows))
    index = read_dataset(tmp_path / "lists" / "a.csv", val_fraction=0, allow_outside=True)
    assert len(index.train) == 4


def test_errors_say_what_is_wrong(tmp_path):
    def message(path, **options):
        with pytest.raises(DataError) as caught:
            read_dataset(path, **options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no such folder or file" in message(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert "no class folders" in message(tmp_path / "empty")
    photo(9, 9).save(tmp_path / "empty" / "a.png")
    assert "holds images (a.png, ...) but no class folders" in message(tmp_path / "empty")
    assert "not a CSV" in message(tmp_path / "empty" / "a.png")
    folder_dataset(tmp_path / "one", {"cat": 2})
    assert "only one class ('cat')" in message(tmp_path / "one")
    (tmp_path / "one" / "dog").mkdir()
    assert "no usable image in class 'dog'" in message(tmp_path / "one")
    (tmp_path / "one" / "dog" / "a.png").write_text("x")
    assert "a.png: not an image" in message(tmp_path / "one")
    folder_dataset(tmp_path / "two" / "train", {"cat": 2, "dog": 2})
    folder_dataset(tmp_path / "two" / "val", {"cow": 1, "dog": 1})
    assert "class 'cow' is in the validation part" in message(tmp_path / "two")
    assert "val_fraction" in message(tmp_path / "two", val_fraction=1.0)
    (tmp_path / "bare" / "cat").mkdir(parents=True)
    assert "no photos found" in message(tmp_path / "bare")


def test_fixed_classes_keep_the_models_order_and_refuse_others(tmp_path):
    root = folder_dataset(tmp_path, {"dog": 2})
    index = read_dataset(root, val_fraction=0, classes=["zebra", "dog", "ant"])
    assert [sample.label for sample in index.train] == [1, 1]
    with pytest.raises(DataError, match="class 'dog' is not one of the model's 2 classes"):
        read_dataset(root, classes=["zebra", "ant"])
