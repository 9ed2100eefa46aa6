import os
import shutil
from hashlib import sha256
from pathlib import Path

import pytest
from data_files import folder_dataset, photo, truncated_jpeg

from cmtvision.data import class_names_from, read_dataset, write_split
from cmtvision.data.listing.class_folders import images_below
from cmtvision.data.readers import held_out
from cmtvision.errors import DataError
from cmtvision.report.plot_files import save_figure


def names(index, samples):
    return [index.relative(sample.path) for sample in samples]


def test_class_folders_are_split_by_class_the_same_way_every_time(tmp_path):
    root = folder_dataset(tmp_path / "data", {"dog": 10, "cat": 5, "ant": 2, "bee": 1})
    index = read_dataset(root, val_fraction=0.2, split_seed=3)
    assert index.classes == ["ant", "bee", "cat", "dog"]
    counts = index.class_counts()
    assert {name: sum(both) for name, both in counts.items()} == {"ant": 2, "bee": 1, "cat": 5, "dog": 10}
    assert (counts["ant"], counts["bee"]) == ((1, 1), (1, 0))
    assert min(counts["cat"]) > 0 < min(counts["dog"])
    assert index.split_source == "seeded"
    again = read_dataset(root, val_fraction=0.2, split_seed=3)
    assert again == index
    other = read_dataset(root, val_fraction=0.2, split_seed=4)
    assert names(other, other.val) != names(index, index.val)
    assert not {sample.path for sample in index.train} & {sample.path for sample in index.val}


@pytest.mark.parametrize("seed", range(4))
def test_photos_added_later_move_no_other(seed):
    def split(counts):
        files = [f"{name}/{number:04d}.jpg" for name, count in counts.items() for number in range(count)]
        return dict(zip(files, held_out(files, [(name.split("/")[0],) for name in files], 0.2, seed), strict=True))

    before = split({"cat": 200, "dog": 60, "few": 3, "two": 2, "one": 1})
    after = split({"cat": 290, "dog": 160, "few": 3, "two": 2, "one": 1})
    assert {name: out for name, out in after.items() if name in before} == before
    assert sum(after.values()) == pytest.approx(0.2 * len(after), rel=0.3)
    assert before["one/0000.jpg"] is False
    assert [sum(out for name, out in before.items() if name.startswith(few)) for few in ("few", "two")] in (
        [1, 1],
        [2, 1],
    )


def test_the_exception_for_small_classes_moves_one_photo_at_most():
    """What chance would leave out of a part is in both; the photo moved for it may come back as the class grows."""
    names = [f"cat/{number}.jpg" for number in range(30)]
    for seed in range(40):
        first = [int.from_bytes(sha256(f"{seed}:{name}".encode()).digest()[:8], "big") for name in names]
        by_chance = [value / 2**64 < 0.2 for value in first]
        for count in range(1, 31):
            out = held_out(names[:count], [(0,)] * count, 0.2, seed)
            moved = sum(a != b for a, b in zip(out, by_chance, strict=False))
            one_sided = len(set(by_chance[:count])) == 1
            assert moved == (one_sided and (count > 1 or by_chance[0]))
            assert count == 1 or 0 < sum(out) < count


def test_several_labels_are_split_by_their_own_names_too():
    names = [f"{number}.jpg" for number in range(300)]
    labels = [(("a",), ("a", "b"), ("b",), ())[number % 4] for number in range(300)]
    first, second = held_out(names[:200], labels[:200], 0.2, 1), held_out(names, labels, 0.2, 1)
    assert second[:200] == first


def test_a_photo_added_to_one_class_moves_no_photo_of_another(tmp_path):
    root = folder_dataset(tmp_path, {"cat": 10, "dog": 10})
    before = read_dataset(root)
    photo(9, 9).save(root / "cat" / "zzz.png")
    after = read_dataset(root)
    dogs = [name for name in names(before, before.val) if name.startswith("dog/")]
    assert dogs == [name for name in names(after, after.val) if name.startswith("dog/")]
    assert before.fingerprint != after.fingerprint


@pytest.mark.parametrize(
    ("train", "val"),
    [("train", "val"), ("Train", "Valid"), ("TRAINING", "VALIDATION"), ("training", "validation"), ("train", "dev")],
)
def test_train_and_val_folders_are_kept_as_they_are(tmp_path, train, val):
    folder_dataset(tmp_path / train, {"cat": 3, "dog": 4})
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


def test_names_of_every_kind_keep_their_split(tmp_path):
    """Names that a CSV would bend: spaces, quotes, line ends, backslashes, and bytes that are no UTF-8."""
    odd = [b" a.png", b"b .png", b"a,b.png", b"a\"b'.png", b"a\nb.png", b"a\rb.png", b"x\xff.png", b"back\\slash.png",
           b"lit\\udcfe.png", b"c..png", b"tab\t.png", b"\xe2\x80\xa8.png"]  # fmt: skip
    root = tmp_path / "data"
    for number, name in enumerate((b" spaces ", b"caf\xe9", "größe".encode())):
        folder = folder_dataset(tmp_path / f"{number}", {"x": len(odd)}) / "x"
        for file, new in zip(sorted(folder.iterdir()), odd, strict=True):
            file.rename(folder / os.fsdecode(new))
        root.mkdir(exist_ok=True)
        folder.rename(root / os.fsdecode(name))
    index = read_dataset(root, split_seed=1)
    assert len(index.samples) == 3 * len(odd)
    write_split(index, tmp_path / "run.csv")
    (tmp_path / "run.csv").read_text(encoding="utf-8")  # whoever else reads it finds UTF-8
    for split_seed in (1, 2):  # the file decides, not the seed
        again = read_dataset(root, split_file=tmp_path / "run.csv", split_seed=split_seed)
        assert (again.train, again.val, again.skipped) == (index.train, index.val, [])
    table = read_dataset(tmp_path / "run.csv", root=root)
    for part in ("train", "val"):  # a label's spaces are a typist's, in a table
        expected = [(one.path, index.classes[one.label].strip()) for one in getattr(index, part)]
        assert [(one.path, table.classes[one.label]) for one in getattr(table, part)] == expected
    rows = (tmp_path / "run.csv").read_text(encoding="utf-8")
    (tmp_path / "run.csv").write_text(rows.replace("split\n", "split\n spaces /b .png, spaces ,val\n", 1) + "x")
    with pytest.raises(DataError, match=r"run\.csv line"):
        read_dataset(root, split_file=tmp_path / "run.csv")


def test_a_split_file_decides_the_split_and_names_what_came_and_went(tmp_path):
    root = folder_dataset(tmp_path / "data", {"cat": 5, "dog": 6})
    index = read_dataset(root, split_seed=1)
    write_split(index, tmp_path / "run.csv")
    again = read_dataset(root, split_file=tmp_path / "run.csv", val_fraction=0)
    assert (again.train, again.val, again.fingerprint) == (index.train, index.val, index.fingerprint)
    assert again.split_source == "run"
    index.val[0].path.unlink()
    photo(9, 9).save(root / "cat" / "new.png")
    changed = read_dataset(root, split_file=tmp_path / "run.csv", val_fraction=0)
    assert changed.val == index.val[1:]
    assert changed.notes == ["1 of the 2 photos that the run held out are not in this data"]
    (new,) = changed.skipped
    assert new.path == root / "cat" / "new.png"
    assert new.reason.startswith("not in the run's run.csv: added since")


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
        ("shot,label\na,b\n", "no column image"),
        ("", "the file is empty"),
        ("path,label\n/etc/passwd,x\n", r"line 2: path '/etc/passwd' leads out"),
        ("path,label\na/../../x.png,x\n", "leads out"),
        ("path,label\n..\\x.png,x\n", "leads out"),
        ("path,label\nC:\\x.png,x\n", "leads out"),
        ("path,label\na.png,\n", "line 2: label is empty"),
        ("path,label\na.png,x\na.png,y\n", "line 3: a.png was listed before"),
        ("path,label,split\na.png,x,hold\n", "split 'hold', expected train, val or test"),
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


def test_a_csv_may_use_the_usual_column_names_and_full_paths_inside_its_folder(tmp_path):
    root = folder_dataset(tmp_path / "real", {"cat": 3, "dog": 3})
    (tmp_path / "link").symlink_to(root)
    rows = [f"{root}/cat/000.png,cat", f"{tmp_path}/link/cat/001.png,cat", "cat/002.png,cat"]
    rows += [f"{root}//dog/00{n}.png,dog" for n in range(3)] + ["./cat/000.png,cat"]
    (root / "list.csv").write_text("Image,Class\n" + "\n".join(rows))
    index = read_dataset(root / "list.csv", val_fraction=0)
    assert names(index, index.train) == [f"{name}/00{n}.png" for name in ("cat", "dog") for n in range(3)]
    assert [item.reason for item in index.skipped] == ["listed twice"]
    assert index.train == read_dataset(root, val_fraction=0).train
    assert read_dataset(tmp_path / "link/list.csv", val_fraction=0).train == index.train
    (root / "out.csv").write_text(f"path,label\n{tmp_path}/elsewhere/1.png,cat\n")
    with pytest.raises(DataError, match=r"leads out of .*; keep all its images below that folder") as caught:
        read_dataset(root / "out.csv")
    assert "allow_outside" not in str(caught.value)
    (root / "ours.csv").write_text("image,path,label\nx,cat/000.png,cat\ny,dog/000.png,dog\n")
    assert len(read_dataset(root / "ours.csv", val_fraction=0).train) == 2  # path is the name of our own tables


def test_a_csv_with_a_test_part_keeps_it_apart(tmp_path):
    folder_dataset(tmp_path, {"cat": 20, "dog": 20})
    parts = ["train"] * 14 + ["Validation"] * 3 + ["testing"] * 3
    rows = [f"{name}/{n:03d}.png,{name},{parts[n]}" for name in ("cat", "dog") for n in range(20)]
    (tmp_path / "a.csv").write_text("path,label,split\n" + "\n".join(rows))
    index = read_dataset(tmp_path / "a.csv")
    assert (len(index.train), len(index.val), len(index.test), index.split_source) == (28, 6, 6, "csv")
    write_split(index, tmp_path / "split.csv")
    assert read_dataset(tmp_path / "split.csv").test == index.test
    again = read_dataset(tmp_path, split_file=tmp_path / "split.csv", val_fraction=0)
    assert (again.train, again.val, again.test) == (index.train, index.val, index.test)
    assert again.fingerprint == read_dataset(tmp_path).fingerprint  # of all photos, whatever their part
    # Without rows for val they are chosen of the training photos.
    (tmp_path / "b.csv").write_text("path,label,split\n" + "\n".join(r for r in rows if "Valid" not in r))
    index = read_dataset(tmp_path / "b.csv")
    assert (len(index.train) + len(index.val), len(index.test), index.split_source) == (28, 6, "seeded")
    assert index.val


@pytest.mark.parametrize(("train", "test"), [("train", "test"), ("Train", "Test"), ("training", "testing")])
def test_a_test_folder_is_a_part_of_its_own(tmp_path, train, test):
    folder_dataset(tmp_path / train, {"cat": 30, "dog": 30})
    folder_dataset(tmp_path / test, {"cat": 4, "dog": 3})
    index = read_dataset(tmp_path)
    assert (index.classes, len(index.test), index.split_source) == (["cat", "dog"], 7, "seeded")
    assert {name.split("/")[0] for name in names(index, [*index.train, *index.val])} == {train}
    assert names(index, index.test)[0] == f"{test}/cat/000.png"
    assert index.val == [one for one in index.samples if one in index.val]
    whole = read_dataset(tmp_path, val_fraction=0)
    assert (len(whole.train), whole.val, len(whole.test), whole.split_source) == (60, [], 7, "none")
    folder_dataset(tmp_path / "VAL", {"dog": 2})
    index = read_dataset(tmp_path)
    assert (len(index.train), len(index.val), len(index.test), index.split_source) == (60, 2, 7, "folders")


def test_a_class_without_training_photos_is_an_error_in_val_and_left_out_of_test(tmp_path):
    folder_dataset(tmp_path / "train", {"cat": 3, "dog": 3})
    folder_dataset(tmp_path / "test", {"cat": 1, "Dog": 1})
    index = read_dataset(tmp_path)  # nobody looks at test photos while a network is trained
    assert names(index, index.test) == ["test/cat/000.png"]
    assert [(Path(one.path).parent.name, one.reason) for one in index.skipped] == [
        ("Dog", "its class 'Dog' is in the test part but has no training image (is it 'dog'?)")
    ]
    again = read_dataset(tmp_path, classes=index.classes)  # as a trained model reads them
    assert (names(again, again.test), again.fingerprint) == (names(index, index.test), index.fingerprint)
    assert again.skipped[0].reason == "its class 'Dog' is in the test part but is none of the model's (is it 'dog'?)"
    with pytest.raises(DataError, match="class 'Dog' is not one of the model's 2 classes"):
        read_dataset(tmp_path / "test", classes=index.classes)
    folder_dataset(tmp_path / "val", {"Dogs": 1})
    with pytest.raises(DataError, match=r"class 'Dogs' is in the validation part .* \(is it 'dog'\?\)"):
        read_dataset(tmp_path)
    shutil.rmtree(tmp_path / "val")
    assert class_names_from(tmp_path) == ["cat", "dog"]
    assert len(read_dataset(tmp_path, classes=["Dog", "cat", "dog"], val_fraction=0).test) == 2


@pytest.mark.parametrize("pair", [("val", "validation"), ("test", "Testing"), ("train", "TRAIN")])
def test_two_folders_for_one_part_are_an_error(tmp_path, pair):
    for name in {"train", *pair}:
        folder_dataset(tmp_path / name, {"cat": 2, "dog": 2})
    with pytest.raises(DataError, match=rf"({pair[0]} and {pair[1]}|{pair[1]} and {pair[0]}) both mean the .* part"):
        read_dataset(tmp_path)
    for file in (tmp_path / pair[1]).rglob("*.png"):
        file.unlink()
    for folder in (tmp_path / pair[1]).iterdir():
        folder.rmdir()
    index = read_dataset(tmp_path)  # nothing in it: named, no more
    assert (tmp_path / pair[1], "no class folders in it") in index.skipped


@pytest.mark.parametrize("parts", [["test"], ["val"], ["val", "Test"]])
def test_held_out_photos_alone_are_not_yet_split_and_keep_their_parts_for_a_model(tmp_path, parts):
    for name in parts:
        folder_dataset(tmp_path / name, {"cat": 4, "dog": 4})
    index = read_dataset(tmp_path)
    apart = 8 if len(parts) == 2 else 0  # beside val, test is not learned from
    assert (index.split_source, index.classes, len(index.test)) == ("seeded", ["cat", "dog"], apart)
    assert len(index.samples) == 8 * len(parts)
    seen = read_dataset(tmp_path, classes=["cat", "dog"], val_fraction=0)
    assert seen.train == []
    assert [bool(seen.val), bool(seen.test)] == ["val" in parts, parts[-1].lower() == "test"]
    assert seen.fingerprint == index.fingerprint
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match=r"train: no image in it to train on"):
        read_dataset(tmp_path)
    (tmp_path / "train" / "cat").mkdir()
    with pytest.raises(DataError, match="no image in it to train on"):
        read_dataset(tmp_path)
    assert read_dataset(tmp_path, classes=["cat", "dog"], val_fraction=0).samples == seen.samples


def test_folders_that_may_mean_two_things_are_refused_or_named(tmp_path):
    root = folder_dataset(tmp_path / "a", {"cat": 2, "dog": 2})
    folder_dataset(root / "test", {"cat": 1, "dog": 1})
    with pytest.raises(DataError, match=r"test/ holds class folders \(cat, ...\), and so does"):
        read_dataset(root)
    folder_dataset(tmp_path / "b", {"Train": 2, "Test": 2})
    with pytest.raises(DataError, match=r"no class folders in Test/, Train/; put the images of each class"):
        read_dataset(tmp_path / "b")
    folder_dataset(tmp_path / "c" / "train", {"cat": 3, "dog": 3})
    folder_dataset(tmp_path / "c", {"extra": 2})
    for name in ("LICENSE", "stray.png", "old.tar"):
        (tmp_path / "c" / name).touch()
    index = read_dataset(tmp_path / "c")
    reasons = {item.path.name: item.reason for item in index.skipped}
    assert reasons == {
        "extra": "next to train/, not part of it",
        "stray.png": "not inside a class folder",
        "old.tar": "a tar next to class folders",
    }
    # Classes may be called so, where they are no parts.
    root = folder_dataset(tmp_path / "d", {"valid": 2, "invalid": 2})
    assert read_dataset(root).classes == ["invalid", "valid"]
    root = folder_dataset(tmp_path / "e", {"train": 2, "bus": 2})
    assert read_dataset(root).classes == ["bus", "train"]


def test_an_empty_class_folder_stops_training_only_where_it_is_learned(tmp_path):
    folder_dataset(tmp_path / "train", {"cat": 3, "dog": 3})
    folder_dataset(tmp_path / "val", {"cat": 2, "dog": 0, "cow": 0})
    folder_dataset(tmp_path / "test", {"dog": 1, "cat": 0})
    index = read_dataset(tmp_path)
    assert (index.classes, len(index.val), len(index.test)) == (["cat", "dog"], 2, 1)
    empty = {tmp_path / "val/dog", tmp_path / "val/cow", tmp_path / "test/cat"}
    assert {item.path for item in index.skipped if item.reason == "no usable image in this class"} == empty
    assert class_names_from(tmp_path) == ["cat", "dog"]
    (tmp_path / "train" / "sheep").mkdir()
    with pytest.raises(DataError, match="no usable image in class 'sheep'"):
        read_dataset(tmp_path)
    alone = folder_dataset(tmp_path / "alone", {"cat": 2, "dog": 0})
    (alone / "cat" / "Thumbs.db").touch()
    seen = read_dataset(alone, classes=["cat", "dog", "sheep"], val_fraction=0)
    assert [sample.label for sample in seen.train] == [0, 0]
    assert {item.path.name for item in seen.skipped} == {"dog", "Thumbs.db"}


def own_folders(root):
    """What cmtvision leaves where it is told, or not told, to write; returns the folders that must be left out."""
    run = root / "runs" / "photos-cmt_ti-20260101-120000"
    for file in ("recipe.yaml", "run.json", "exports/a/model.json", "report/plot.png"):
        (run / file).parent.mkdir(parents=True, exist_ok=True)
        (run / file).write_bytes(b"")
    photo(9, 9).save(run / "report" / "plot.png")
    photo(9, 9).save(root / "runs" / "lr-find.png")
    return [root / "runs"]


@pytest.mark.parametrize("parts", [False, True])
def test_what_cmtvision_wrote_among_the_photos_is_never_data(tmp_path, parts):
    for part in ("train", "val") if parts else ("",):
        folder_dataset(tmp_path / part, {"cat": 5, "dog": 5})
    before = read_dataset(tmp_path)
    left_out = own_folders(tmp_path)
    inner = tmp_path / "train" / "cat" if parts else tmp_path / "cat"
    for study, marks in {"search": ("tune.json", "recipe.yaml"), "out": ("model.json", "model.onnx")}.items():
        (inner / study).mkdir()
        for mark in marks:
            (inner / study / mark).touch()
        photo(9, 9).save(inner / study / "a.png")
        left_out.append(inner / study)
    (inner.parent / "exp" / "first").mkdir(parents=True)  # a folder of runs that is called otherwise
    for mark in ("run.json", "recipe.yaml"):
        (inner.parent / "exp" / "first" / mark).touch()
    left_out.append(inner.parent / "exp")
    (inner.parent / "begun").mkdir()  # locked by a process that is about to write into it
    (inner.parent / "begun" / ".lock").touch()
    left_out.append(inner.parent / "begun")
    after = read_dataset(tmp_path)
    assert (after.samples, after.fingerprint, after.classes) == (before.samples, before.fingerprint, ["cat", "dog"])
    named = {item.path for item in after.skipped if item.reason == "written by cmtvision, not data"}
    assert named == set(left_out)
    assert images_below(tmp_path / "runs" / "photos-cmt_ti-20260101-120000") != []  # asked for by name, it is read


def test_plots_alone_are_no_class_and_a_class_may_be_called_runs(tmp_path):
    root = folder_dataset(tmp_path, {"cat": 3, "dog": 3})
    (root / "runs").mkdir()
    (root / "runs" / "photos-cmt_ti-20260101-120000.svg").write_text("<svg/>")
    figure = pytest.importorskip("matplotlib.figure").Figure()
    save_figure(figure, root / "runs" / "lr.png")
    assert read_dataset(root).classes == ["cat", "dog"]
    photo(9, 9).save(root / "runs" / "home.png")
    photo(9, 9).save(root / "runs" / "out.png")
    assert read_dataset(root, val_fraction=0).classes == ["cat", "dog", "runs"]


def test_images_below_a_folder_are_those_that_training_would_take(tmp_path):
    folder_dataset(tmp_path, {"cat": 2, "__MACOSX": 1, ".cache": 1, "a/b/c": 1})
    photo(9, 9).save(tmp_path / "cat" / "._000.png")
    (tmp_path / "cat" / "Thumbs.db").touch()
    own_folders(tmp_path)
    found = [file.relative_to(tmp_path).as_posix() for file in images_below(tmp_path)]
    assert found == ["a/b/c/000.png", "cat/000.png", "cat/001.png", "runs/lr-find.png"]


@pytest.mark.parametrize(
    "names", [("training_set", "test_set"), ("Train Set", "testset"), ("train-images", "test-images")]
)
def test_sets_are_parts_too(tmp_path, names):
    for name in names:
        folder_dataset(tmp_path / "data" / name, {"cat": 6, "dog": 6})
    index = read_dataset(tmp_path / "data", val_fraction=0.25)
    assert index.classes == ["cat", "dog"]
    assert (len(index.train) + len(index.val), len(index.test)) == (12, 12)


def test_a_flat_test_folder_beside_class_folders_is_not_guessed_at(tmp_path):
    root = folder_dataset(tmp_path / "data", {"cat": 3, "dog": 3, "test": 3})
    with pytest.raises(DataError, match=r"test/ is next to class folders \(cat, \.\.\.\) and may be a part or a class"):
        read_dataset(root)


def test_of_val_and_test_alone_the_test_part_stays_apart(tmp_path):
    for part, count in (("val", 8), ("test", 5)):
        folder_dataset(tmp_path / "data" / part, {"cat": count, "dog": count})
    index = read_dataset(tmp_path / "data", val_fraction=0.25)
    assert (len(index.train) + len(index.val), len(index.test)) == (16, 10)
    assert all("/test/" in sample.path.as_posix() for sample in index.test)


def test_somebody_elses_index_is_no_mark_of_ours(tmp_path):
    root = folder_dataset(tmp_path / "data" / "train", {"cat": 3, "dog": 3}).parent
    for name in ("index.json", "classes.json"):
        (root / "train" / name).write_text("[]")
    assert len(read_dataset(root).samples) == 6
