"""Weights survive every conversion bit by bit, and what is not theirs is refused before anything is written."""

import json

import pytest
import timm
import torch
from cli_process import assert_one_error, run_cli
from safetensors import safe_open
from timm.data import resolve_model_data_config

import cmtvision  # noqa: F401  # registers the models
from cmtvision.artefact import Artefact, write_artefact
from cmtvision.cli.conversion import convert_weights
from cmtvision.data import Preprocess
from cmtvision.errors import CheckpointError
from cmtvision.weights import read_state_dict, to_official

VARIANTS = ("cmt_ti", "cmt_xs", "cmt_s", "cmt_b")


def released(name, **kwargs):
    """A state dict as the released code has it, every tensor random, counters too."""
    state = {}
    for number, (key, value) in enumerate(timm.create_model(name, **kwargs).state_dict().items()):
        state[key] = torch.randn(value.shape) if value.is_floating_point() else torch.full_like(value, number)
    return to_official(state)


def assert_same(first, second):
    assert list(first) == list(second) or sorted(first) == sorted(second)
    for key, value in first.items():
        assert value.dtype == second[key].dtype, key
        assert torch.equal(value, second[key]), key


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_released_file_to_safetensors_and_back_is_bit_equal(name, tmp_path):
    state = released(name)
    torch.save({"model": state, "epoch": 3}, tmp_path / "a.pth")
    done = convert_weights(tmp_path / "a.pth", tmp_path / "b.safetensors")
    assert (done.model, done.layout) == (name, "native")
    with safe_open(str(tmp_path / "b.safetensors"), "pt") as file:
        assert {"model": name, "layout": "native"}.items() <= file.metadata().items()
    model = timm.create_model(name)
    model.load_state_dict(read_state_dict(tmp_path / "b.safetensors"))
    done = convert_weights(tmp_path / "b.safetensors", tmp_path / "c.pth")
    assert (done.model, done.layout) == (name, "official")
    assert_same(state, torch.load(tmp_path / "c.pth", weights_only=True)["model"])
    done = convert_weights(tmp_path / "a.pth", tmp_path / "d.safetensors", layout="official")
    assert done.layout == "official"
    assert_same(state, read_state_dict(tmp_path / "d.safetensors"))


@pytest.mark.parametrize(
    "kwargs",
    [
        {"num_classes": 7},
        {"in_chans": 4, "num_classes": 0},
        {"img_size": 64},
        {"img_size": (64, 96)},
        {"rel_pos": "block"},
        {"rel_pos": "none"},
    ],
)
def test_a_variant_is_recognised_whatever_its_classes_channels_size_and_bias(kwargs, tmp_path):
    state = timm.create_model("cmt_nano", **kwargs).half().state_dict()
    torch.save(state, tmp_path / "a.pth")
    assert convert_weights(tmp_path / "a.pth", tmp_path / "b.safetensors").model == "cmt_nano"
    assert_same(state, read_state_dict(tmp_path / "b.safetensors"))
    convert_weights(tmp_path / "b.safetensors", tmp_path / "c.pth")
    convert_weights(tmp_path / "c.pth", tmp_path / "d.safetensors")
    assert_same(state, read_state_dict(tmp_path / "d.safetensors"))


def test_averaged_weights_are_chosen_on_request(tmp_path):
    plain, averaged = released("cmt_nano"), released("cmt_nano")
    torch.save({"model": plain, "model_ema": averaged}, tmp_path / "a.pth")
    for use_ema, wanted in ((True, averaged), (False, plain)):
        target = tmp_path / f"{use_ema}.safetensors"
        convert_weights(tmp_path / "a.pth", target, layout="official", use_ema=use_ema)
        assert_same(wanted, read_state_dict(target))


@pytest.mark.slow
def test_what_is_no_network_of_ours_or_not_whole_is_refused_before_writing(tmp_path):
    state = released("cmt_nano")
    lacking = {key: value for key, value in state.items() if key != "_bn.weight"}
    torch.save(lacking, tmp_path / "lacking.pth")
    resnet = timm.create_model("resnet18", num_classes=4).state_dict()
    torch.save(resnet, tmp_path / "resnet.pth")
    target = tmp_path / "out.safetensors"
    with pytest.raises(CheckpointError, match="no model of ours"):
        convert_weights(tmp_path / "lacking.pth", target)
    with pytest.raises(
        CheckpointError, match=r"not weights of cmt_nano, 1 tensors are missing \(first: final.norm.weight"
    ):
        convert_weights(tmp_path / "lacking.pth", target, model="cmt_nano")
    with pytest.raises(CheckpointError, match="no model of ours"):
        convert_weights(tmp_path / "resnet.pth", target)
    assert not target.exists()
    assert convert_weights(tmp_path / "resnet.pth", target, model="resnet18").model == "resnet18"
    assert_same(resnet, read_state_dict(target))


def test_the_keras_familys_own_network_is_recognised_and_has_no_released_layout(tmp_path):
    state = timm.create_model("cmt_ti_kecam", num_classes=5).state_dict()
    torch.save(state, tmp_path / "a.pth")
    assert convert_weights(tmp_path / "a.pth", tmp_path / "b.pth").layout == "native"
    with pytest.raises(CheckpointError, match="is not in the layout"):
        convert_weights(tmp_path / "a.pth", tmp_path / "c.pth", layout="official")


@pytest.mark.slow
def test_the_command_names_the_variant_and_overwrites_only_when_told(tmp_path):
    torch.save(released("cmt_nano"), tmp_path / "a.pth")
    done = run_cli("convert", "a.pth", "b.safetensors", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"] == "cmt_nano"
    assert_one_error(run_cli("convert", "a.pth", "b.safetensors", cwd=tmp_path), "already exists", "--overwrite")
    assert_one_error(run_cli("convert", "a.pth", "b.bin", cwd=tmp_path), "name it .safetensors or .pth")
    assert_one_error(run_cli("convert", "gone.pth", "c.pth", cwd=tmp_path), "gone.pth: no such file")


def test_a_run_of_a_network_with_options_is_known_by_what_it_says_of_itself(tmp_path):
    options = {"lpu": False, "dims": [16, 32, 48, 80], "num_heads": [1, 2, 3, 5]}
    model = timm.create_model("cmt_nano", num_classes=2, **options)
    contract = Preprocess.from_timm(resolve_model_data_config(model))
    artefact = Artefact("cmt_nano", {"in_chans": 3, **options}, ["a", "b"], contract, model=model)
    write_artefact(tmp_path / "run", artefact)
    done = convert_weights(tmp_path / "run", tmp_path / "net.pth")
    assert (done.model, done.layout) == ("cmt_nano", "native")  # no released network has such a layout
    assert_same(read_state_dict(tmp_path / "net.pth"), model.state_dict())
