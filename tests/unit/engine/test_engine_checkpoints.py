"""Checkpoints: written whole, the one before kept, damage of any kind found, and the disk's refusals survived."""

import pytest
import torch

from cmtvision.artefact.run.names import LAST_CHECKPOINT, PREVIOUS_CHECKPOINT
from cmtvision.engine.checkpoints import find_checkpoint, random_state, save_checkpoint, set_random_state
from cmtvision.engine.distributed.processes import SINGLE
from cmtvision.errors import CheckpointError


def save(out, number):
    content = {"number": number, "weights": torch.rand(1000), "callbacks": {"RunCallback": {"watch": []}}}
    save_checkpoint(out, lambda path: torch.save(content, path), SINGLE)


@pytest.fixture
def saved(tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 2)
    return tmp_path


def number(path):
    return torch.load(path, weights_only=True)["number"]


def test_the_one_before_is_kept(saved):
    save(saved, 3)
    assert number(saved / LAST_CHECKPOINT) == 3
    assert number(saved / PREVIOUS_CHECKPOINT) == 2
    assert sorted(path.name for path in (saved / "checkpoints").iterdir()) == ["last.ckpt", "previous.ckpt"]
    assert find_checkpoint(saved) == (saved / LAST_CHECKPOINT, [])


def cut(content):
    return content[:-200]


def flip_a_bit_of_the_weights(content):
    place = content.index(b"data/0") + 2000
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize("damage", [cut, flip_a_bit_of_the_weights, lambda _: b"", lambda _: b"not a checkpoint"])
def test_a_damaged_one_gives_way_to_the_one_before(saved, damage):
    last = saved / LAST_CHECKPOINT
    last.write_bytes(damage(last.read_bytes()))
    path, damaged = find_checkpoint(saved)
    assert path == saved / PREVIOUS_CHECKPOINT
    assert len(damaged) == 1
    assert str(last) in damaged[0]


def test_killed_between_the_two_renames(saved):
    (saved / LAST_CHECKPOINT).rename(saved / PREVIOUS_CHECKPOINT)
    assert find_checkpoint(saved) == (saved / PREVIOUS_CHECKPOINT, [])


def test_one_of_an_older_version_is_named(saved):
    torch.save({"callbacks": {"RunCallback": {"rows": []}}}, saved / LAST_CHECKPOINT)
    assert "another version" in find_checkpoint(saved)[1][0]


def test_both_damaged_or_none_is_one_line(saved, tmp_path_factory):
    for path in (saved / LAST_CHECKPOINT, saved / PREVIOUS_CHECKPOINT):
        path.write_bytes(cut(path.read_bytes()))
    with pytest.raises(CheckpointError, match=r"last\.ckpt.*previous\.ckpt.*--overwrite"):
        find_checkpoint(saved)
    with pytest.raises(CheckpointError, match="nothing to resume"):
        find_checkpoint(tmp_path_factory.mktemp("empty"))


def test_a_full_disk_leaves_what_was_there(saved):
    def full(path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match=r"No space left on device.*kept.*--resume"):
        save_checkpoint(saved, full, SINGLE)
    assert find_checkpoint(saved) == (saved / LAST_CHECKPOINT, [])
    assert number(saved / LAST_CHECKPOINT) == 2
    assert not (saved / "checkpoints" / ".writing.ckpt").exists()


def test_random_states_survive_a_checkpoint(tmp_path):
    import random

    import numpy as np

    def draw():
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    before = random_state()
    try:
        save_checkpoint(tmp_path, lambda path: torch.save(before, path), SINGLE)
        first = draw()
        set_random_state(torch.load(tmp_path / LAST_CHECKPOINT, weights_only=True))
        assert draw() == first
    finally:
        set_random_state(before)
