"""CeiT's released layout and counts, and the ways its files reach a model or are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from official_files import filled_state, write_training_checkpoint

from cmtvision.errors import CheckpointError, ConfigError
from cmtvision.models.analysis.count import count, total
from cmtvision.models.peers.ceit import checkpoint_filter_fn
from random_weights import randomise

LAYOUTS = json.loads((Path(__file__).parent / "ceit_layouts.json").read_text())
TINY, SMALL = "ceit_tiny_patch16_224", "ceit_small_patch16_224"


def shapes_only(name: str, **kwargs: Any) -> Any:
    return timm.create_model(name, device="meta", **kwargs)


def create(name: str, file: Path, **kwargs: Any) -> Any:
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(file)}, **kwargs).eval()


@pytest.fixture(scope="module")
def source() -> Any:
    """A CeiT-T whose every tensor is random."""
    return randomise(timm.create_model(TINY)).eval()


@pytest.fixture(scope="module")
def released_file(source: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_training_checkpoint(tmp_path_factory.mktemp("ceit") / "ceit_t.pth", source.state_dict(), ema=None)


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_is_the_released_one_in_order(name: str) -> None:
    assert [[key, list(value.shape)] for key, value in shapes_only(name).state_dict().items()] == LAYOUTS[name]["state"]
    assert sum(p.numel() for p in shapes_only(name).parameters()) == LAYOUTS[name]["params"]


@pytest.mark.parametrize(
    ("name", "parameters", "gmacs"),
    [(TINY, 6_356_904, 1.40), (SMALL, 24_204_840, 4.76), ("ceit_base_patch16_224", 94_405_416, None)],
)
def test_parameters_and_gmacs(name: str, parameters: int, gmacs: float | None) -> None:
    rows = count(shapes_only(name), (3, 224, 224))
    assert total(rows).parameters == parameters
    assert gmacs is None or total(rows).macs / 1e9 == pytest.approx(gmacs, abs=0.005)
    assert [row.name for row in rows][:4] == ["i2t", "blocks.0", "blocks.1", "blocks.2"]


@pytest.mark.parametrize("num_classes", [10, 1000])
def test_nano_costs_what_cmt_nano_costs(num_classes: int) -> None:
    macs = {
        name: total(count(shapes_only(name, num_classes=num_classes), (3, 32, 32))).macs
        for name in ("cmt_nano", "ceit_nano")
    }
    assert macs["ceit_nano"] == pytest.approx(macs["cmt_nano"], rel=0.1)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_flat_state_dict(source: Any, tmp_path: Path, prefix: str) -> None:
    torch.save({prefix + key: value for key, value in source.state_dict().items()}, tmp_path / "flat.pth")
    model = create(TINY, tmp_path / "flat.pth")
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in source.state_dict().items())


def test_training_checkpoint_gives_the_same_logits(source: Any, released_file: Path) -> None:
    x = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(create(TINY, released_file)(x), source(x), rtol=0, atol=0)


def test_other_size_is_what_set_input_size_makes(source: Any, released_file: Path) -> None:
    model = create("ceit_tiny_patch16_384", released_file)
    assert model.pos_embed.shape == (1, 1 + 24 * 24, 192)
    before = source.pos_embed.detach()
    assert torch.equal(model.pos_embed[:, :1], before[:, :1])  # the class token has no place on the grid
    grids = [e[0, 1:].unflatten(0, (n, n)).permute(2, 0, 1) for e, n in ((model.pos_embed, 24), (before, 14))]
    torch.testing.assert_close(grids[0].mean((1, 2)), grids[1].mean((1, 2)), rtol=0, atol=0.02)
    resized = create(TINY, released_file)
    resized.set_input_size(384)
    torch.testing.assert_close(resized.pos_embed, model.pos_embed, rtol=0, atol=0)
    assert create(TINY, released_file, img_size=(224, 320)).pos_embed.shape[1] == 1 + 14 * 20


def test_other_classes_and_channels(source: Any, released_file: Path) -> None:
    model = create(TINY, released_file, num_classes=7, in_chans=1)
    assert model(torch.randn(1, 1, 224, 224)).shape == (1, 7)
    expected = source.i2t.backbone.conv.weight.sum(1, keepdim=True)  # timm's rule: grey is the sum of the colours
    torch.testing.assert_close(model.i2t.backbone.conv.weight, expected)
    assert torch.equal(model.pos_layer_embed, source.pos_layer_embed)


def test_features_of_a_released_file(source: Any, released_file: Path) -> None:
    x = torch.randn(1, 3, 224, 224)
    backbone = create(TINY, released_file, features_only=True, out_indices=(3, 7))
    with torch.inference_mode():
        expected = source.forward_intermediates(x, indices=[3, 7], intermediates_only=True)
        torch.testing.assert_close(backbone(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("kwargs", [{}, {"num_classes": 0}, {"img_size": (32, 64)}])
def test_native_state_dict_passes_the_filter_unchanged(kwargs: dict[str, Any]) -> None:
    model = timm.create_model("ceit_nano", **kwargs)
    state = model.state_dict()
    filtered = checkpoint_filter_fn(state, model)
    assert filtered.keys() == state.keys()
    assert all(torch.equal(filtered[key], value) for key, value in state.items())


def refusal(name: str, file: Path, **kwargs: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        create(name, file, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(file))
    return message


def test_checkpoint_of_another_size_is_recognised(released_file: Path) -> None:
    assert TINY in refusal(SMALL, released_file)
    assert TINY in refusal("ceit_nano", released_file)


def test_checkpoint_of_another_architecture(tmp_path: Path) -> None:
    file = write_training_checkpoint(tmp_path / "cmt_tiny.pth", filled_state("cmt_ti"), ema=None)
    assert "tensors are missing" in refusal(TINY, file)
    torch.save(timm.create_model("vit_tiny_patch16_224").state_dict(), tmp_path / "vit.pth")  # same width and depth
    assert "tensors are missing" in refusal(TINY, tmp_path / "vit.pth")


@pytest.mark.parametrize("key", ["i2t.backbone.conv.weight", "blocks.11.leff.conv2.bias", "pos_layer_embed"])
def test_missing_tensor_is_named(source: Any, tmp_path: Path, key: str) -> None:
    torch.save({k: v for k, v in source.state_dict().items() if k != key}, tmp_path / "short.pth")
    assert key in refusal(TINY, tmp_path / "short.pth")


@pytest.mark.parametrize(
    ("key", "shape"), [("i2t.backbone.conv.weight", (64, 3, 3, 3)), ("blocks.3.attn.qkv.weight", (192, 192))]
)
def test_wrong_shape_is_named(source: Any, tmp_path: Path, key: str, shape: tuple[int, ...]) -> None:
    torch.save({**source.state_dict(), key: torch.zeros(shape)}, tmp_path / "odd.pth")
    assert f"{key}: {shape} not" in refusal(TINY, tmp_path / "odd.pth")


def test_embedding_of_unknown_grid(tmp_path: Path) -> None:
    torch.save(timm.create_model("ceit_nano", img_size=(32, 64)).state_dict(), tmp_path / "wide.pth")
    assert "set_input_size" in refusal("ceit_nano", tmp_path / "wide.pth")
    assert create("ceit_nano", tmp_path / "wide.pth", img_size=(32, 64)).grid_size == (4, 8)


def test_nothing_to_download() -> None:
    with pytest.raises(ConfigError, match="ceit_nano: there are no weights"):
        timm.create_model("ceit_nano", pretrained=True)
