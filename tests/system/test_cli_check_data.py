"""`cmtvision check-data` as a person types it: planted faults, the page in a browser, the cleaned copy, odd data."""

import csv
import json
import shutil

import pytest
from cli_process import assert_one_error, run_cli
from data_files import photo
from PIL import Image

pytestmark = pytest.mark.slow


def files_of(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.fixture(scope="module")
def faulty(photos, tmp_path_factory):
    """train/ and val/ of two classes with one fault of every kind, and names that are markup."""
    root = tmp_path_factory.mktemp("faulty") / "photos"
    for name in ("bag", "trouser"):
        files = sorted((photos / name).iterdir())
        for number, file in enumerate(files):
            goal = root / ("val" if number < 3 else "train") / name / file.name
            goal.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, goal)
    train, val = root / "train", root / "val"
    bags = sorted((val / "bag").iterdir())
    shutil.copy(bags[0], train / "bag" / "leaked <b>.png")
    Image.open(bags[1]).resize((56, 56)).save(train / "bag" / "leaked\nlarger.png")
    shutil.copy(sorted((train / "trouser").iterdir())[0], train / "trouser" / "twice.png")
    shutil.copy(sorted((train / "trouser").iterdir())[1], train / "bag" / "other label.png")
    (train / "bag" / "torn.png").write_bytes(bags[2].read_bytes()[:150])
    photo(40, 40).convert("CMYK").save(train / "bag" / "cmyk.jpg")
    frames = [photo(30, 30, seed) for seed in range(3)]
    frames[0].save(train / "bag" / "moving.gif", save_all=True, append_images=frames[1:])
    Image.new("1", (20_000, 20_000)).save(train / "bag" / "bomb.png")
    return root


@pytest.fixture(scope="module")
def checked(faulty, tmp_path_factory):
    """(folder, finished process, source files before) of one check with everything."""
    folder = tmp_path_factory.mktemp("checked")
    before = files_of(faulty)
    done = run_cli("check-data", faulty, "--fix", "clean", "--out", "check.html", "--strict", "--json", cwd=folder)
    return folder, done, before


def names(found, kind):
    finding = next((one for one in found["findings"] if one["kind"] == kind), {"items": []})
    return [[photo["path"] for photo in item["photos"]] for item in finding["items"]]


def test_every_planted_fault_is_found(checked):
    _, done, _ = checked
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert found["serious"] is True
    leaks = {name for group in names(found, "leakage") for name in group}
    assert {"train/bag/leaked <b>.png", "train/bag/leaked\nlarger.png"} <= leaks
    assert {"train/bag/other label.png"} < {name for group in names(found, "contradictory-labels") for name in group}
    assert [group[1] for group in names(found, "exact-duplicates")] == ["train/trouser/twice.png"]
    assert names(found, "unreadable") == [["train/bag/bomb.png"], ["train/bag/torn.png"]]
    assert {"train/bag/cmyk.jpg", "train/bag/moving.gif"} <= {group[0] for group in names(found, "odd-modes")}
    order = [one["severity"] for one in found["findings"]]
    assert order == sorted(order, key=("serious", "warning", "note").index)


def test_the_cleaned_copy_lacks_them_and_the_source_is_untouched(checked, faulty):
    folder, _, before = checked
    assert files_of(faulty) == before
    kept = set(files_of(folder / "clean"))
    assert "val/bag/" + sorted((faulty / "val" / "bag").iterdir())[0].name in kept
    gone = {"train/bag/leaked <b>.png", "train/bag/leaked\nlarger.png", "train/trouser/twice.png", "train/bag/bomb.png"}
    assert not gone & kept
    assert "left-out/contradictory/train/bag/other label.png" in kept
    with (folder / "clean" / "left-out" / "left-out.csv").open(newline="") as text:
        reasons = {row["path"]: row["kind"] for row in csv.DictReader(text)}
    assert reasons["train/bag/leaked <b>.png"] == "leakage"
    assert reasons["train/bag/torn.png"] == "unreadable"
    assert not any(file.is_symlink() for file in (folder / "clean").rglob("*"))
    again = run_cli("check-data", "clean", "--out", "again.html", "--strict", cwd=folder)
    assert again.returncode == 0, again.stdout
    assert "left-out" not in again.stdout


def test_the_page_is_sound_in_a_browser(checked, open_page):
    folder, _, _ = checked
    page = (folder / "check.html").read_text()
    assert "leaked <b>" not in page
    assert "leaked &lt;b&gt;" in page
    found = open_page(folder / "check.html", width=390, dark=True)
    found.assert_sound()
    assert found.pictures > 8
    open_page(folder / "check.html").assert_sound()


def test_nothing_is_overwritten_and_the_source_is_refused(checked, faulty):
    folder, _, _ = checked
    assert_one_error(run_cli("check-data", faulty, "--out", "check.html", cwd=folder), "already exists", "--overwrite")
    inside = run_cli("check-data", faulty, "--fix", faulty / "clean", cwd=folder)
    assert_one_error(inside, "inside .* or around it", "choose another folder")
    assert_one_error(run_cli("check-data", faulty, "--fix", faulty.parent, cwd=folder), "inside .* or around it")
    assert_one_error(run_cli("check-data", faulty, "--fix", "clean", "--out", "b.html", cwd=folder), "--overwrite")
    (folder / "clean" / "mine.txt").write_text("keep me")
    taken = run_cli("check-data", faulty, "--fix", "clean", "--out", "b.html", "--overwrite", cwd=folder)
    assert_one_error(taken, "mine.txt")
    (folder / "clean" / "mine.txt").unlink()


def test_train_says_what_it_sees(faulty, tmp_path):
    done = run_cli("train", faulty, "--recipe", "demo", "--set", "train.max_steps=1", "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("check: ")]
    assert len(said) == 1
    assert "1 training image is also held out, as the same file (train/bag/leaked <b>.png = val/bag/" in said[0]


def test_a_table_and_shards_and_several_labels(photos, tmp_path):
    rows = [["path", "label", "split"]]
    for number, file in enumerate(sorted(photos.rglob("*.png"))):
        rows.append([str(file.relative_to(photos)), file.parent.name, "val" if number % 4 == 0 else "train"])
    shutil.copytree(photos, tmp_path / "data")
    shutil.copy(tmp_path / "data" / rows[1][0], tmp_path / "data" / "copy.png")
    rows.append(["copy.png", rows[1][1], "train"])
    with (tmp_path / "data" / "list.csv").open("w", newline="") as text:
        csv.writer(text).writerows(rows)
    table = run_cli("check-data", "data/list.csv", "--out", "a.html", "--fix", "clean", "--json", cwd=tmp_path)
    assert table.returncode == 0, table.stderr
    assert sorted(names(json.loads(table.stdout), "leakage")[0]) == sorted(["copy.png", rows[1][0]])
    assert len((tmp_path / "clean" / "data.csv").read_text().splitlines()) == len(rows) - 1
    assert run_cli("shard", "data/list.csv", "shards", cwd=tmp_path).returncode == 0
    shards = run_cli("check-data", "shards", "--out", "b.html", "--fix", "clean2", "--json", cwd=tmp_path)
    assert shards.returncode == 0, shards.stderr
    found = json.loads(shards.stdout)
    assert len(names(found, "leakage")) == 1
    assert found["fix"]["kept"] == len(rows) - 2
    again = run_cli("check-data", "clean2/data.csv", "--out", "c.html", "--strict", cwd=tmp_path)
    assert again.returncode == 0, again.stdout
    several = run_cli("check-data", "data/list.csv", "--multi-label", "--out", "d.html", cwd=tmp_path)
    assert "not checked: probable label errors (an image may have several classes here)" in several.stdout


def test_data_that_training_would_refuse_is_still_checked(photos, tmp_path):
    (tmp_path / "one" / "only").mkdir(parents=True)
    shutil.copy(next((photos / "bag").iterdir()), tmp_path / "one" / "only")
    (tmp_path / "one" / "empty").mkdir()
    done = run_cli("check-data", "one", "--out", "one.html", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "without a readable training image: empty" in done.stdout
    assert_one_error(run_cli("check-data", "nothing", cwd=tmp_path), "no such folder")
    assert not (tmp_path / "runs").exists()


def test_a_run_judges_labels(trained, mixed_photos, tmp_path):
    done = run_cli("check-data", mixed_photos, "--model", trained[0], "--out", "a.html", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "serious  2 images that cannot be read" in done.stdout
    assert_one_error(run_cli("check-data", mixed_photos, "--model", tmp_path, "--out", "b.html", cwd=tmp_path), "model")
