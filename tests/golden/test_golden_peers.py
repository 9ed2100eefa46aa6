"""Parameters and multiply-adds of the systems CMT is compared with, each under its one name."""

import pytest
import timm
import torch

from cmtvision.models.analysis.count import count, total
from cmtvision.models.peers.systems import SYSTEMS

PARAMETERS = {
    "vit_tiny_patch16_224": 5_717_416,
    "vit_small_patch16_224": 22_050_664,
    "vit_base_patch16_224": 86_567_656,
    "vit_large_patch16_224": 304_326_632,
    "vit_giant_patch14_224": 1_012_611_432,
    "vit_gigantic_patch14_224": 1_844_440_680,
    "deit_tiny_patch16_224": 5_717_416,
    "deit_small_patch16_224": 22_050_664,
    "deit_base_patch16_224": 86_567_656,
    "deit_tiny_distilled_patch16_224": 5_910_800,
    "deit_small_distilled_patch16_224": 22_436_432,
    "deit_base_distilled_patch16_224": 87_338_192,
    "mobilenetv3_small_100": 2_542_856,
    "mobilenetv3_large_100": 5_483_032,
    "cvt_13": 19_997_480,
    "cvt_21": 31_622_696,
    "cvt_w24": 277_196_392,
    "pvt_v1_tiny": 13_229_288,
    "pvt_v1_small": 24_485_864,
    "pvt_v1_medium": 44_208_104,
    "pvt_v1_large": 61_369_320,
}
# in millions, as they are written where the systems are described
DESCRIBED = {
    "vit_tiny_patch16_224": 5.72,
    "vit_small_patch16_224": 22.05,
    "vit_base_patch16_224": 86.57,
    "vit_large_patch16_224": 304.33,
    "vit_giant_patch14_224": 1012.61,
    "vit_gigantic_patch14_224": 1844.44,
    "mobilenetv3_small_100": 2.54,
    "mobilenetv3_large_100": 5.48,
    "pvt_v1_tiny": 13.23,
    "pvt_v1_small": 24.49,
    "pvt_v1_medium": 44.21,
    "pvt_v1_large": 61.37,
}
GMACS = {
    "cvt_13": 4.566,
    "pvt_v1_small": 3.816,
    "mobilenetv3_large_100": 0.217,
    "vit_giant_patch14_224": 267.2,
    "vit_gigantic_patch14_224": 484.0,
}
NANO = ["vit_nano", "deit_nano_distilled", "cvt_nano", "pvt_v1_nano"]
MICRO = [name.replace("nano", "micro") for name in NANO]


def shapes_only(name, **kwargs):
    with torch.device("meta"):
        return timm.create_model(name, **kwargs)


def macs(name, side, **kwargs):
    return total(count(shapes_only(name, **kwargs), (3, side, side))).macs


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name):
    model = shapes_only(name)
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters == PARAMETERS[name]
    assert round(parameters / 1e6, 2) == DESCRIBED.get(name, round(parameters / 1e6, 2))
    assert next(model.parameters()).device.type == "meta"


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if "vit_g" in n else ()) for n in GMACS])
def test_multiply_adds_at_224_px(name):
    assert macs(name, 224) / 1e9 == pytest.approx(GMACS[name], rel=0.002)


@pytest.mark.parametrize("num_classes", [10, 1000])
@pytest.mark.parametrize(
    ("name", "cmt", "side"),
    [
        *((name, "cmt_nano", 32) for name in [*NANO, "ceit_nano"]),
        *((name, "cmt_micro", 64) for name in [*MICRO, "ceit_micro"]),
    ],
)
def test_small_peers_cost_what_cmt_costs(name, cmt, side, num_classes):
    ratio = macs(name, side, num_classes=num_classes) / macs(cmt, side, num_classes=num_classes)
    assert 0.9 < ratio < 1.1


def test_every_counted_system_is_listed():
    assert {*PARAMETERS, *NANO, *MICRO} == {system.name for system in SYSTEMS if system.made_by != "ours"}
