"""Reading the Keras family's HDF5 files: names, axis order, and a clear word for every file that is none."""

import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from cmtvision.errors import CheckpointError
from cmtvision.models import CMT
from cmtvision.models.cmt.checkpoint import checkpoint_filter_fn
from cmtvision.models.ladder.parts import build
from cmtvision.weights import read_state_dict

BLOCK = {
    "dw_conv": "lpu.conv",
    "attn_ln": "norm1",
    "light_mhsa_kv_sr_dw_conv": "lmhsa.kv_conv",
    "light_mhsa_query_conv": "lmhsa.q",
    "light_mhsa_output": "lmhsa.proj",
    "ffn_ln": "norm2",
    "ffn_1_conv": "irffn.expand",
    "ffn_1_bn": "irffn.expand_norm",
    "ffn_dw_conv": "irffn.conv",
    "ffn_2_bn": "irffn.conv_norm",
    "ffn_3_conv": "irffn.project",
    "ffn_3_bn": "irffn.project_norm",
}
TORCH_NAMES = {
    "kernel": "weight",
    "depthwise_kernel": "weight",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
Layers = dict[str, dict[str, np.ndarray]]


def tiny(own: bool, img_size: int = 64, **kwargs: object) -> CMT:
    torch.manual_seed(0)
    family = {"rel_pos": "relative", "qkv_bias": False, "kv_norm": "layer", "head_act_first": True} if own else {}
    model = build(
        img_size=img_size,
        num_classes=5,
        stem_width=4,
        dims=(4, 8, 8, 16),
        depths=(1, 2, 1, 1),
        mlp_ratio=2.0,
        num_heads=(1, 2, 2, 4),
        head_width=12,
        **{**family, **kwargs},
    )
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            torch.nn.init.normal_(tensor)
    return model


def keras_layers(model: CMT) -> Layers:
    """A network's weights as that package holds them, written down anew for the test."""
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    layers: Layers = {}

    def conv(layer: str, name: str, depthwise: bool = False) -> None:
        weight = state[f"{name}.weight"]
        weight = weight.reshape(*weight.shape, *[1] * (4 - weight.ndim))
        key = "depthwise_kernel" if depthwise else "kernel"
        layers[layer] = {key: weight.transpose((2, 3, 0, 1) if depthwise else (2, 3, 1, 0))}
        if f"{name}.bias" in state:
            layers[layer]["bias"] = state[f"{name}.bias"]

    def norm(layer: str, name: str) -> None:
        layers[layer] = {"gamma": state[f"{name}.weight"], "beta": state[f"{name}.bias"]}
        if f"{name}.running_mean" in state:
            layers[layer]["moving_mean"] = state[f"{name}.running_mean"]
            layers[layer]["moving_variance"] = state[f"{name}.running_var"]

    def dense(layer: str, name: str) -> None:
        layers[layer] = {"kernel": state[f"{name}.weight"].T}
        if f"{name}.bias" in state:
            layers[layer]["bias"] = state[f"{name}.bias"]

    for n in "123":
        conv(f"stem_{n}_conv", f"stem.conv{n}")
        norm(f"stem_{n}_bn", f"stem.norm{n}")
    conv("features_conv", "final.conv")
    norm("features_bn", "final.norm")
    dense("predictions", "head")
    for i, stage in enumerate(model.stages):
        conv(f"stack{i + 1}_down_sampleconv", f"stages.{i}.downsample.conv")
        norm(f"stack{i + 1}_ln", f"stages.{i}.downsample.norm")
        table = state.get(f"stages.{i}.position_bias.table")
        if table is not None:
            _, h, qh, qw, kh, kw = table.shape
            layers[f"stack{i + 1}_pos_emb"] = {"positional_embedding": table.reshape(h, qh * qw, kh * kw)}
        for j in range(len(stage.blocks)):
            theirs, ours = f"stack{i + 1}_block{j + 1}_", f"stages.{i}.blocks.{j}."
            for layer, module in BLOCK.items():
                if f"{ours}{module}.weight" not in state:
                    continue
                if layer.endswith(("_ln", "_bn")):
                    norm(theirs + layer, ours + module)
                elif layer.endswith("_output"):
                    dense(theirs + layer, ours + module)
                else:
                    conv(theirs + layer, ours + module, depthwise=layer.endswith("dw_conv"))
            kv = [state[f"{ours}lmhsa.{k}.weight"].T for k in "kv"]
            layers[theirs + "light_mhsa_key_value_conv"] = {"kernel": np.concatenate(kv, 1)[None, None]}
            if f"{ours}lmhsa.k.bias" in state:
                biases = [state[f"{ours}lmhsa.{k}.bias"] for k in "kv"]
                layers[theirs + "light_mhsa_key_value_conv"]["bias"] = np.concatenate(biases)
            if f"{ours}lmhsa.kv_norm.weight" in state:
                kind = "bn" if f"{ours}lmhsa.kv_norm.running_mean" in state else "ln"
                norm(theirs + "light_mhsa_kv_sr_" + kind, ours + "lmhsa.kv_norm")
            table = state.get(f"{ours}lmhsa.position_bias.table")
            if table is not None:
                layers[theirs + "light_mhsa_pos_emb"] = {"positional_embedding": table.reshape(table.shape[0], -1)}
    return layers


def write(path: Path, layers: Layers, group: str = "", suffix: str = ":0", torch_names: bool = False) -> Path:
    with h5py.File(path, "w") as file:
        root = file.create_group(group) if group else file
        root.create_group("input_1")  # layers without weights are groups without arrays
        for layer, arrays in layers.items():
            for name, value in arrays.items():
                known = TORCH_NAMES.get(name, "bb" if layer[6:] == "_pos_emb" else name) if torch_names else name
                root.create_dataset(f"{layer}/{layer}/{known}{suffix}", data=value)
    return path


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize(
    "layout", [{}, {"group": "model_weights"}, {"suffix": ""}, {"suffix": "", "torch_names": True}], ids=str
)
def test_every_tensor_comes_back(tmp_path: Path, own: bool, layout: dict[str, object]) -> None:
    model = tiny(own)
    found = read_state_dict(write(tmp_path / "a.h5", keras_layers(model), **layout))  # type: ignore[arg-type]
    wanted = model.state_dict()
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype, name
        if name.endswith("num_batches_tracked"):
            assert found[name] == 0
        else:
            assert torch.equal(found[name], value), name
    model.load_state_dict(found)


@pytest.mark.parametrize("own", [True, False])
def test_another_image_size_is_what_set_input_size_makes(tmp_path: Path, own: bool) -> None:
    model = tiny(own)
    path = write(tmp_path / "a.h5", keras_layers(model))
    larger = tiny(own, img_size=96)
    larger.load_state_dict(checkpoint_filter_fn(read_state_dict(path), larger))
    model.set_input_size(96)
    for name, value in model.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(larger.state_dict()[name], value)


def test_a_file_without_classifier_is_read(tmp_path: Path) -> None:
    layers = keras_layers(tiny(True))
    del layers["predictions"]
    found = read_state_dict(write(tmp_path / "a.h5", layers))
    assert not any(name.startswith("head.") for name in found)


@pytest.mark.parametrize(("own", "belongs_to"), [(True, "cmt_ti_kecam"), (False, "cmt_ti and kin")])
def test_the_other_family_is_refused_by_name(tmp_path: Path, own: bool, belongs_to: str) -> None:
    state = read_state_dict(write(tmp_path / "a.h5", keras_layers(tiny(own))))
    with pytest.raises(CheckpointError, match=belongs_to):
        checkpoint_filter_fn(state, tiny(not own))


def _drop(layer: str) -> Callable[[Layers], object]:
    return lambda layers: layers.pop(layer)


def _put(layer: str, array: str, value: np.ndarray) -> Callable[[Layers], object]:
    return lambda layers: layers.setdefault(layer, {}).update({array: value})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_put("conv1_pad", "kernel", np.zeros((1, 1, 2, 2), "f4")), "'conv1_pad' does not belong to a CMT"),
        (
            _put("stack1_block1_mlp", "kernel", np.zeros((1, 1, 2, 2), "f4")),
            "'stack1_block1_mlp' does not belong to a CMT",
        ),
        (_drop("stem_2_conv"), "'stem_2_conv' is missing"),
        (_drop("stack2_block1_ffn_3_bn"), "'stack2_block1_ffn_3_bn' is missing"),
        (_drop("stack2_block2_light_mhsa_key_value_conv"), "'stack2_block2_light_mhsa_key_value_conv' is missing"),
        (_drop("stack2_block2_light_mhsa_pos_emb"), "'stack2_block2_light_mhsa_pos_emb' is missing"),
        (_drop("stack3_ln"), "'stack3_ln' is missing"),
        (lambda layers: layers["stem_1_bn"].pop("moving_variance"), "stem_1_bn.*not its usual arrays"),
        (_put("stem_1_bn", "kernel_2", np.zeros(4, "f4")), "stem_1_bn.*unknown array 'kernel_2'"),
        (_put("stem_1_bn", "weight", np.zeros(4, "f4")), "stem_1_bn.*not its usual arrays"),
        (_put("stem_1_bn", "other/gamma", np.zeros(4, "f4")), "stem_1_bn.*'gamma' twice"),
        (_put("stem_1_bn", "gamma", np.zeros(4, "i4")), "not an array of numbers"),
        (_put("stem_1_conv", "kernel", np.zeros((3, 4), "f4")), r"stem_1_conv.*shape \(3, 4\)"),
        (_put("stack1_block1_light_mhsa_key_value_conv", "kernel", np.zeros((1, 1, 4, 7), "f4")), "7 outputs"),
        (_put("stack1_block1_light_mhsa_pos_emb", "positional_embedding", np.zeros((1, 35), "f4")), r"\(1, 35\)"),
        (_put("stack1_block1_light_mhsa_kv_sr_bn", "gamma", np.zeros(4, "f4")), "not its usual arrays"),
    ],
)
def test_spoilt_files_are_refused_by_layer(tmp_path: Path, spoil: Callable[[Layers], object], message: str) -> None:
    layers = keras_layers(tiny(True))
    spoil(layers)
    path = write(tmp_path / "spoilt.h5", layers)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_state_dict(path)
    assert "spoilt.h5" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    text = tmp_path / "text.h5"
    text.write_text("not HDF5")
    torn = write(tmp_path / "torn.h5", keras_layers(tiny(False)))
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
    empty = write(tmp_path / "empty.h5", {})
    for path, message in ((text, "not a whole HDF5"), (torn, "not a whole HDF5"), (empty, "no weights in it")):
        with pytest.raises(CheckpointError, match=message):
            read_state_dict(path)


def test_links_and_claims_of_size_are_not_followed(tmp_path: Path) -> None:
    layers = keras_layers(tiny(True))
    write(tmp_path / "other.h5", layers)
    del layers["stem_1_conv"]
    linked = write(tmp_path / "linked.h5", layers)
    with h5py.File(linked, "a") as file:
        file["stem_1_conv"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/stem_1_conv")
    with pytest.raises(CheckpointError, match="'stem_1_conv' is missing"):
        read_state_dict(linked)

    whole = tmp_path / "whole.h5"
    with h5py.File(whole, "w") as file:
        file["model_weights"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/")
    with pytest.raises(CheckpointError, match="no weights in it"):
        read_state_dict(whole)

    outside = write(tmp_path / "outside.h5", layers)
    (tmp_path / "raw.bin").write_bytes(bytes(16))
    with h5py.File(outside, "a") as file:
        file.create_dataset("stem_1_conv/bias", (4,), "f4", external=[(str(tmp_path / "raw.bin"), 0, 16)])
    with pytest.raises(CheckpointError, match="another file"):
        read_state_dict(outside)

    huge = write(tmp_path / "huge.h5", layers)
    with h5py.File(huge, "a") as file:
        file.create_dataset("stem_1_conv/kernel", (2**20, 2**20), "f4", chunks=(1024, 1024))
    assert huge.stat().st_size < 2**20
    with pytest.raises(CheckpointError, match="claims 4096 GiB"):
        read_state_dict(huge)


def test_without_h5py_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.h5", keras_layers(tiny(True)))
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(CheckpointError, match=r"cmtvision\[keras\]"):
        read_state_dict(path)
