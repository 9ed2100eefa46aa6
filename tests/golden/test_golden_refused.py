"""Files that must not be loaded: other networks, other shapes, pickles that would run something."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from official_files import filled_state, write_training_checkpoint

from cmtvision.errors import CheckpointError
from cmtvision.weights.files import read_state_dict
from cmtvision.weights.pickles import suspicious_names


class Runs:
    """Unpickled by a careless reader, this makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def load(name: str, file: Path, **kwargs: Any) -> torch.nn.Module:
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(file)}, **kwargs)


def test_checkpoint_of_another_size_is_recognised(tmp_path: Path) -> None:
    file = write_training_checkpoint(tmp_path / "cmt_tiny.pth", filled_state("cmt_ti"), None)
    with pytest.raises(CheckpointError, match=r"cmt_tiny\.pth.*cmt_ti") as caught:
        load("cmt_xs", file)
    assert "\n" not in str(caught.value)


def test_checkpoint_of_another_architecture(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "vit.pth")
    with pytest.raises(CheckpointError, match=r"vit\.pth"):
        load("cmt_nano", tmp_path / "vit.pth")


@pytest.mark.parametrize(
    "key", ["patch_embed_b.proj.weight", "blocks_c.3.attn.q.weight", "relative_pos_c", "_bn.weight"]
)
def test_wrong_shape(tmp_path: Path, key: str) -> None:
    state = filled_state("cmt_ti")
    state[key] = torch.zeros(8, *state[key].shape[1:]) if key != "relative_pos_c" else torch.zeros(3, 100, 25)
    file = write_training_checkpoint(tmp_path / "odd.pth", state, None)
    with pytest.raises(CheckpointError, match=r"odd\.pth"):
        load("cmt_ti", file)


def test_missing_tensor_is_named(tmp_path: Path) -> None:
    state = filled_state("cmt_ti")
    del state["blocks_c.3.mlp.proj.weight"]
    file = write_training_checkpoint(tmp_path / "short.pth", state, None)
    with pytest.raises(CheckpointError, match=r"stages\.2\.blocks\.3\.irffn\.conv\.weight"):
        load("cmt_ti", file)


@pytest.mark.parametrize("where", ["model", "args", "extra"])
def test_pickle_that_runs_something_is_refused_by_name(tmp_path: Path, where: str) -> None:
    trap = tmp_path / "made"
    content: dict[str, Any] = {"model": filled_state("cmt_ti"), "model_ema": None, "args": None}
    content[where] = Runs(trap)
    torch.save(content, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=r"evil\.pth.*mkdir"):
        load("cmt_ti", tmp_path / "evil.pth")
    assert not trap.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_bare_pickle_of_any_protocol_is_refused_by_name(tmp_path: Path, protocol: int) -> None:
    trap = tmp_path / "made"
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"model": Runs(trap)}, protocol))
    with pytest.raises(CheckpointError, match=r"evil\.pth: refused.*mkdir") as caught:
        read_state_dict(tmp_path / "evil.pth")
    assert "\n" not in str(caught.value)
    assert not trap.exists()


def test_good_files_have_no_suspicious_names(tmp_path: Path) -> None:
    for legacy in (True, False):
        torch.save({"model": filled_state("cmt_ti")}, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
        assert suspicious_names(tmp_path / "x.pth") == []


@pytest.mark.parametrize("legacy", [True, False])
def test_torn_file(tmp_path: Path, legacy: bool) -> None:
    file = tmp_path / "torn.pth"
    torch.save(filled_state("cmt_ti"), file, _use_new_zipfile_serialization=not legacy)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=r"torn\.pth"):
        read_state_dict(file)


def test_advice_never_names_a_way_around(tmp_path: Path) -> None:
    (tmp_path / "odd.pth").write_bytes(pickle.dumps({"epoch": 3}, 4)[:-3])
    with pytest.raises(CheckpointError) as caught:
        read_state_dict(tmp_path / "odd.pth")
    assert "weights_only" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.pth: no such file"):
        load("cmt_ti", tmp_path / "none.pth")


def test_no_weights_in_it(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "model": {}}, tmp_path / "empty.pth")
    with pytest.raises(CheckpointError, match="holds no model weights"):
        read_state_dict(tmp_path / "empty.pth")
