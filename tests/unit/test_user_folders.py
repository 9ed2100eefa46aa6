"""Home and cache folders of a user who has none: what a container that runs as a bare number finds."""

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest
from data_files import folder_dataset

from cmtvision.data import read_dataset, write_shards
from cmtvision.data.user_cache import cache_folder
from cmtvision.errors import DataError
from cmtvision.user_folders import home_folder, temporary_folder, user_cache_folder


@pytest.fixture
def nobody(tmp_path, monkeypatch):
    """A user without HOME and without an entry in passwd."""

    def missing(number):
        raise KeyError(number)

    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", missing)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


def test_without_a_home_downloads_are_kept_among_the_temporary_files(nobody):
    assert home_folder() is None
    own = nobody / f"cmtvision-{os.getuid()}"
    assert cache_folder("shards") == own / "cmtvision" / "shards"
    assert own.stat().st_mode & 0o777 == 0o700
    assert cache_folder("shards").is_dir()  # and again, the same


def test_a_folder_that_others_can_write_to_is_not_trusted(nobody):
    own = nobody / f"cmtvision-{os.getuid()}"
    own.mkdir()
    own.chmod(0o777)
    assert temporary_folder() not in (own, temporary_folder())
    own.rmdir()
    own.symlink_to(nobody)
    assert temporary_folder().parent == nobody
    assert temporary_folder() != own


def test_a_home_that_is_not_there_or_not_ours_is_no_place_for_a_cache(nobody, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "nonexistent"))
    assert user_cache_folder().parent == nobody
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_cache_folder() == tmp_path / ".cache"
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # as HOME=/ of such a container
    assert user_cache_folder().parent == nobody
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "chosen"))
    assert user_cache_folder() == tmp_path / "chosen"
    (tmp_path / "chosen").touch()
    with pytest.raises(DataError, match=r"chosen.*set XDG_CACHE_HOME"):
        cache_folder()


@pytest.mark.slow
def test_commands_work_for_a_user_without_a_home(tmp_path):
    """A real process; a model is given a name and found again, and shards of another writer are indexed."""
    index = read_dataset(folder_dataset(tmp_path / "photos", {"ant": 2, "bee": 2}), val_fraction=0)
    write_shards(index, tmp_path / "shards")
    (tmp_path / "shards" / "index.json").unlink()
    script = (
        "import pwd, sys; pwd.getpwuid = lambda number: {}[number]; from cmtvision.cli import main; sys.exit(main())"
    )
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path)}

    def run(*words):
        done = subprocess.run(
            [sys.executable, "-c", script, *map(str, words)],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=200,
        )  # fmt: skip
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
        return done.stdout

    assert run("shard", "shards", "again").startswith("again: 4 photos")
    run("scale", "--from", "cmt_nano", "--phi", "1", "--out", "mine.yaml")
    assert "2,028,857" in run("info", "mine.yaml")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("~")] == []
    own = Path(tmp_path / f"cmtvision-{os.getuid()}")
    assert list((own / ".cache" / "cmtvision" / "shard_indices").iterdir())
