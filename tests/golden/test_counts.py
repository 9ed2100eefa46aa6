"""Parameters and multiply-adds of the paper's networks, and the counting against two networks that everyone knows."""

import json
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import cmtvision  # noqa: F401  # registers the models
from cmtvision.errors import ConfigError
from cmtvision.models.analysis.count import OTHER, count, total

GOLDEN = json.loads((Path(__file__).parent / "counts.json").read_text())
VARIANTS = [name for name in GOLDEN if name.startswith("cmt_")]


def shapes_only(name, **kwargs):
    with torch.device("meta"):
        return timm.create_model(name, **kwargs)


@pytest.mark.parametrize("name", VARIANTS)
def test_variant_has_the_parameters_and_gmacs_of_the_released_code(name):
    model = shapes_only(name)
    rows = count(model, GOLDEN[name]["input_size"])
    whole = total(rows)
    assert whole.parameters == sum(p.numel() for p in model.parameters()) == GOLDEN[name]["parameters"]
    assert whole.macs / 1e9 == pytest.approx(GOLDEN[name]["gmacs"], rel=0.001)
    assert [row.name for row in rows] == ["stem", *(f"stages.{i}" for i in range(4)), "final", "head"]
    side = GOLDEN[name]["input_size"][1]
    assert [row.output[2] for row in rows[:5]] == [side // stride for stride in (2, 4, 8, 16, 32)]


@pytest.mark.parametrize("fused", [True, False])
def test_attention_is_counted_whether_fused_or_not(fused, monkeypatch):
    """CMT-S without the attention's two products would be 0.17 GMACs short."""
    model = shapes_only("cmt_s")
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused
    assert total(count(model, (3, 224, 224))).macs / 1e9 == pytest.approx(4.032, rel=0.001)


@pytest.mark.parametrize(
    ("name", "parameters", "gmacs", "activations"),
    [("resnet50", 25_557_032, 4.11, 11.11), ("vit_tiny_patch16_224", 5_717_416, 1.26, 5.97)],
)
def test_other_networks_give_timms_published_figures(name, parameters, gmacs, activations):
    rows = count(shapes_only(name), (3, 224, 224))
    whole = total(rows)
    assert whole.parameters == parameters
    assert whole.macs / 1e9 == pytest.approx(gmacs, rel=0.01)
    assert whole.activations / 1e6 == pytest.approx(activations, rel=0.01)


def test_every_parameter_is_counted_once_even_where_two_parts_share_it():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.own = nn.Parameter(torch.zeros(5))
            self.first = nn.Conv2d(3, 3, 1, bias=False)
            self.second = nn.Conv2d(3, 3, 1, bias=False)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(self.first(x)) + self.own.sum()

    model = Shared()
    rows = {row.name: row for row in count(model, (3, 4, 4))}
    assert (rows["first"].parameters, rows[OTHER].parameters) == (9, 5)
    assert rows["second"].parameters == 0
    assert rows["second"].macs == rows["first"].macs == 3 * 3 * 16
    assert total(list(rows.values())).parameters == 14


def test_the_model_is_left_as_it_was():
    model = timm.create_model("cmt_nano").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    count(model, (3, 32, 32))
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_size_the_network_does_not_take_is_one_clear_error():
    with pytest.raises(ConfigError, match="cannot take an image of"):
        count(shapes_only("cmt_nano"), (1, 32, 32))
