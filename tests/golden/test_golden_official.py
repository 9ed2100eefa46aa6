"""The released networks: figures of the released code, its layout, and the ways its files reach a model."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from official_files import HERE, SIZES, filled_state, image, layout, write_training_checkpoint

from cmtvision.models import VARIANTS
from cmtvision.models.cmt.position import resample_bias_grid
from cmtvision.weights.files import read_state_dict
from cmtvision.weights.official import from_official, to_official

RELEASED = json.loads((HERE / "cmt_ti_official.json").read_text())
RECORDED = json.loads((HERE / "own_figures.json").read_text())
FIGURES = torch.tensor(RELEASED["values"])  # (2, 1000)
SPREAD = float(FIGURES.max() - FIGURES.min())

LOAD_AND_SAVE_LOGITS = """
import sys, cmtvision, timm, torch
name, file, images, out = sys.argv[1:]
model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=dict(file=file)).eval()
with torch.no_grad():
    torch.save(model(torch.load(images)), out)
"""


@pytest.fixture(scope="module")
def released_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_training_checkpoint(
        tmp_path_factory.mktemp("released") / "cmt_tiny.pth", filled_state("cmt_ti"), ema=None
    )


def create(file: Path, **kwargs: Any) -> torch.nn.Module:
    return timm.create_model("cmt_ti", pretrained=True, pretrained_cfg_overlay={"file": str(file)}, **kwargs).eval()


def logits(model: torch.nn.Module, size: int = 160) -> torch.Tensor:
    with torch.inference_mode():
        return model(image(size)).clone()


def assert_released_figures(values: torch.Tensor) -> None:
    assert (values - FIGURES).abs().max() < 1e-4 * SPREAD


@pytest.mark.parametrize("fused", [True, False])
def test_logits_of_the_released_code(released_file: Path, fused: bool) -> None:
    model = create(released_file)
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused
    assert_released_figures(logits(model))


def test_loss_and_gradients_of_the_released_code(released_file: Path) -> None:
    model = create(released_file, drop_rate=0.0).train()
    loss = (model(image(160)) ** 2).mean()
    loss.backward()
    assert loss.item() == pytest.approx(RELEASED["train_loss_value"], rel=1e-4)
    gradients = to_official({name: p.grad for name, p in model.named_parameters()})
    assert gradients.keys() == RELEASED["grad_norms"].keys()
    norms = torch.tensor([gradients[name].norm() for name in RELEASED["grad_norms"]])
    expected = torch.tensor(list(RELEASED["grad_norms"].values()))
    torch.testing.assert_close(norms, expected, rtol=2e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_each_size_read_by_timm_in_a_fresh_process(name: str, tmp_path: Path) -> None:
    file = write_training_checkpoint(tmp_path / "released.pth", filled_state(name), ema=None)
    torch.save(image(VARIANTS[name].input_size), tmp_path / "images.pt")
    out = tmp_path / "logits.pt"
    subprocess.run(
        [sys.executable, "-c", LOAD_AND_SAVE_LOGITS, name, str(file), str(tmp_path / "images.pt"), str(out)], check=True
    )
    values = torch.load(out)
    if name == "cmt_ti":
        assert_released_figures(values)
    recorded = torch.tensor(RECORDED[name]["logits"])
    assert (values[0, : len(recorded)] - recorded).abs().max() < 1e-4 * RECORDED[name]["spread"]


@pytest.mark.parametrize("name", SIZES)
def test_layout_is_the_released_one_in_order(name: str) -> None:
    model = timm.create_model(name, device="meta")
    ours = [(key, list(value.shape)) for key, value in to_official(dict(sorted(model.state_dict().items()))).items()]
    assert ours == layout(name)


@pytest.mark.parametrize("name", sorted(RECORDED.keys() & VARIANTS.keys()))
def test_parameters_as_recorded(name: str) -> None:
    model = timm.create_model(name, device="meta")
    assert sum(p.numel() for p in model.parameters()) == RECORDED[name]["params"]


@pytest.mark.parametrize(
    ("name", "params", "tables", "gmacs"),
    [
        ("cmt_ti", 9_492_426, 75_000, 0.639),
        ("cmt_xs", 15_247_208, 155_520, 1.547),
        ("cmt_s", 26_256_160, 288_120, 4.032),
        ("cmt_b", 45_715_076, 491_520, 9.317),
    ],
)
def test_counts_of_the_released_code(name: str, params: int, tables: int, gmacs: float) -> None:
    assert (RECORDED[name]["params"], RECORDED[name]["position_bias_params"]) == (params, tables)
    assert RECORDED[name]["macs"] == pytest.approx(gmacs * 1e9, rel=0.01)


def test_conversion_there_and_back_changes_no_bit() -> None:
    state = filled_state("cmt_ti")
    back = to_official(from_official(state))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], value) for key, value in state.items())


def test_release_url_alone(released_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`pretrained=True` and nothing else: timm finds the file of the release in its download cache."""
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    (cache / "cmt_tiny.pth").symlink_to(released_file)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    model = timm.create_model("cmt_ti", pretrained=True).eval()
    assert_released_figures(logits(model))
    assert model.pretrained_cfg["url"].endswith("/ggjy/CMT.pytorch/releases/download/release-v1/cmt_tiny.pth")


@pytest.mark.parametrize("name", SIZES)
def test_each_size_knows_its_release_file(name: str) -> None:
    files = {"cmt_ti": "cmt_tiny.pth", "cmt_xs": "cmt_xs.pth", "cmt_s": "cmt_small.pth", "cmt_b": "cmt_base.pth"}
    assert timm.get_pretrained_cfg(name).url.rsplit("/", 1)[1] == files[name]


def test_flat_state_dict(tmp_path: Path) -> None:
    state = filled_state("cmt_ti")
    torch.save({f"module.{key}": value for key, value in state.items()}, tmp_path / "flat.pth")
    assert_released_figures(logits(create(tmp_path / "flat.pth")))


def test_averaged_weights_are_preferred_and_can_be_declined(tmp_path: Path) -> None:
    averaged = filled_state("cmt_ti")
    plain = {key: value * 0.5 if value.is_floating_point() else value for key, value in averaged.items()}
    file = write_training_checkpoint(tmp_path / "both.pth", plain, ema=averaged)
    assert_released_figures(logits(create(file)))
    assert torch.equal(read_state_dict(file)["head.weight"], averaged["head.weight"])
    chosen = read_state_dict(file, use_ema=False)
    assert torch.equal(chosen["head.weight"], plain["head.weight"])
    model = timm.create_model("cmt_ti", pretrained=True, pretrained_cfg_overlay={"state_dict": chosen})
    assert torch.equal(model.head.weight, plain["head.weight"])


def test_own_safetensors_of_the_same_weights(tmp_path: Path) -> None:
    from cmtvision.weights.files import write_safetensors

    write_safetensors(from_official(filled_state("cmt_ti")), tmp_path / "cmt_ti.safetensors", {})
    assert_released_figures(logits(create(tmp_path / "cmt_ti.safetensors")))


@pytest.mark.parametrize("num_classes", [7, 0])
def test_other_number_of_classes(released_file: Path, num_classes: int) -> None:
    model = create(released_file, num_classes=num_classes)
    expected = from_official(filled_state("cmt_ti"))
    state = model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in expected.items() if not key.startswith("head."))
    assert logits(model).shape == (2, num_classes or 1280)


@pytest.mark.parametrize("in_chans", [1, 4])
def test_other_number_of_channels(released_file: Path, in_chans: int) -> None:
    model = create(released_file, in_chans=in_chans)
    weight, released = model.stem.conv1.weight, filled_state("cmt_ti")["stem_conv1.weight"]
    assert weight.shape[1] == in_chans
    if in_chans == 1:  # timm's rule: grey is the sum of the colours
        torch.testing.assert_close(weight, released.sum(1, keepdim=True))
    with torch.inference_mode():
        assert torch.isfinite(model(torch.randn(1, in_chans, 160, 160))).all()


@pytest.mark.parametrize("img_size", [192, (128, 224)])
def test_other_image_size_resamples_the_tables(released_file: Path, img_size: int | tuple[int, int]) -> None:
    model = create(released_file, img_size=img_size)
    expected = from_official(filled_state("cmt_ti"))
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    for i, (stride, k) in enumerate([(4, 8), (8, 4), (16, 2), (32, 1)]):
        table = model.stages[i].position_bias.table
        grid = (height // stride, width // stride)
        keys = (-(-grid[0] // k), -(-grid[1] // k))
        assert table.shape[2:] == (*grid, *keys)
        torch.testing.assert_close(
            table, resample_bias_grid(expected[f"stages.{i}.position_bias.table"], *grid, *keys), rtol=0, atol=0
        )
    x = torch.randn(1, 3, height, width)
    dynamic = create(released_file)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), dynamic(x), rtol=1e-4, atol=1e-4)


def test_one_table_per_block_starts_from_the_stage_table(released_file: Path) -> None:
    model = create(released_file, rel_pos="block")
    tables = [block.lmhsa.position_bias.table for block in model.stages[2].blocks]
    assert len(tables) == 10
    assert len({id(table) for table in tables}) == 10
    assert len({table.data_ptr() for table in tables}) == 10
    assert_released_figures(logits(model))


def test_no_bias_leaves_the_tables_out(released_file: Path) -> None:
    model = create(released_file, rel_pos="none")
    assert not any("position_bias" in key for key in model.state_dict())
    assert (logits(model) - FIGURES).abs().max() > 5e-4 * SPREAD


def test_features_of_a_released_file(released_file: Path) -> None:
    backbone = create(released_file, features_only=True)
    expected = create(released_file).forward_intermediates(image(160), intermediates_only=True)
    for ours, theirs in zip(backbone(image(160)), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("rel_pos", ["stage", "block", "none"])
def test_native_state_dict_passes_the_filter_unchanged(rel_pos: str) -> None:
    from cmtvision.models.cmt.cmt import checkpoint_filter_fn

    model = timm.create_model("cmt_nano", rel_pos=rel_pos, num_classes=0)
    state = model.state_dict()
    filtered = checkpoint_filter_fn(state, model)
    assert filtered.keys() == state.keys()
    assert all(torch.equal(filtered[key], value) for key, value in state.items())
