"""Segmenters on CMT and other backbones: any size, rebuilt from plain data, weights from a file."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch

from cmtvision.engine.optim import build_optimizer, freeze
from cmtvision.errors import ConfigError
from cmtvision.models import segmenters
from cmtvision.models.segmenters import KINDS, create_segmenter, list_segmenters, segmenter_by_name
from cmtvision.recipe import load_recipe
from cmtvision.weights import write_safetensors
from random_weights import randomise

NARROW: dict[str, dict[str, Any]] = {
    "unet": {"decoder_channels": [24, 16, 12, 8, 8]},
    "fpn": {"decoder_pyramid_channels": 16, "decoder_segmentation_channels": 32},
    "upernet": {"decoder_channels": 16},
    "deeplabv3plus": {"decoder_channels": 16},
}


@pytest.mark.parametrize("kind", KINDS)
def test_logits_of_any_size_that_every_parameter_takes_part_in(kind: str) -> None:
    model = create_segmenter(kind, "cmt_nano", 3, decoder_arguments=NARROW[kind])
    logits = model(torch.randn(2, 3, 75, 50))
    assert logits.shape == (2, 3, 75, 50)
    torch.nn.functional.cross_entropy(logits, torch.randint(0, 3, (2, 75, 50))).backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]
    with torch.inference_mode():
        assert model.eval()(torch.randn(1, 3, 32, 64)).shape == (1, 3, 32, 64)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_rebuilt_from_its_arguments(kind: str) -> None:
    options = {"drop_path_rate": 0.1, "dims": (16, 32, 48, 80)}
    model = create_segmenter(kind, "cmt_nano", 3, decoder_arguments=NARROW[kind], backbone_arguments=options)
    randomise(model).eval()
    again = create_segmenter(**json.loads(json.dumps(model.arguments))).eval()
    again.load_state_dict(model.state_dict())
    images = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        assert torch.equal(again(images), model(images))


def test_the_library_takes_cmt_by_itself() -> None:
    network = smp.Unet("tu-cmt_nano", encoder_weights=None, classes=2, decoder_channels=(16, 8, 8, 8, 8)).eval()
    assert network.encoder.out_channels == [3, 0, 32, 64, 96, 160]  # nothing at stride 2
    with torch.inference_mode():
        maps = network.encoder(torch.randn(1, 3, 64, 64))
        assert [tuple(one.shape[1:3]) for one in maps[:3]] == [(3, 64), (0, 32), (32, 16)]
        assert network(torch.randn(1, 3, 64, 96)).shape == (1, 2, 64, 96)


def test_dilated_where_that_exists_and_enlarged_elsewhere() -> None:
    for backbone in ("resnet18", "cmt_nano"):
        model = create_segmenter("deeplabv3plus", backbone, 2, decoder_arguments=NARROW["deeplabv3plus"]).eval()
        with torch.inference_mode():
            assert model.encoder(torch.randn(1, 3, 64, 64))[-1].shape[2:] == (4, 4)
            assert model(torch.randn(1, 3, 64, 64)).shape == (1, 2, 64, 64)


@pytest.mark.parametrize("kind", ["fpn", "deeplabv3plus"])
def test_weights_of_a_classifier_load_into_the_backbone(kind: str, tmp_path: Path) -> None:
    classifier = randomise(timm.create_model("cmt_nano", num_classes=7)).eval()
    write_safetensors(classifier.state_dict(), tmp_path / "it.safetensors", {})
    model = create_segmenter(kind, "cmt_nano", 2, weights=tmp_path / "it.safetensors", grad_checkpointing=True)
    assert model.arguments["frozen_norms"] is True
    assert not model.encoder.model.stem.norm1.training
    assert model.encoder.model.stages_0.grad_checkpointing
    images = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        expected = classifier.forward_intermediates(images, intermediates_only=True)
        for ours, theirs in zip(model.eval().encoder.model(images), expected, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_by_name() -> None:
    assert {"cmt_s_upernet", "cmt_ti_unet"} <= set(list_segmenters())
    model = segmenters.cmt_nano_fpn(num_classes=2, decoder_arguments=NARROW["fpn"])
    assert (model.kind, model.arguments["backbone"]) == ("fpn", "cmt_nano")
    with pytest.raises(ConfigError, match=r"did you mean cmt_s_upernet\?"):
        segmenter_by_name("cmt_s_uppernet", 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "segformer"}, "expected unet, fpn, upernet or deeplabv3plus"),
        ({"num_classes": 0}, "expected at least one"),
        ({"backbone": "cmt_nanno"}, "did you mean cmt_nano"),
        ({"backbone": "vit_tiny_patch16_224"}, "vit_tiny_patch16_224"),
        ({"decoder_arguments": {"encoder_depth": 3}}, "encoder_depth, expected names with 'decoder_'"),
        ({"decoder_arguments": {"decoder_chanels": 3}}, "decoder_chanels"),
        ({"kind": "deeplabv3plus", "decoder_arguments": {"decoder_chanels": 3}}, "unknown decoder_chanels"),
        ({"backbone_arguments": {"num_classes": 3}}, "num_classes cannot be among"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_segmenter(**{"kind": "upernet", "backbone": "cmt_nano", "num_classes": 2, **arguments})


def test_without_the_library_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(ConfigError, match=r"pip install 'cmtvision\[segmentation\]'"):
        create_segmenter("unet", "cmt_nano", 2)


@pytest.mark.parametrize("kind", ["fpn", "deeplabv3plus"])
def test_layers_learn_at_rates_of_their_own(kind: str) -> None:
    model = create_segmenter(kind, "cmt_nano", 3, decoder_arguments=NARROW[kind])
    optimizer = build_optimizer(model, load_recipe("default", ["optim.layer_decay=0.5"]), 1e-3, torch.device("cpu"))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    scale = {names[id(one)]: group["lr_scale"] for group in optimizer.param_groups for one in group["params"]}
    assert all((rate < 1) == name.startswith("encoder.") for name, rate in scale.items())
    freeze(model, load_recipe("default", ["model.freeze=backbone"]))
    learns = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learns == {name for name in names.values() if not name.startswith("encoder.")}
