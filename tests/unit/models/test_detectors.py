"""Detectors on CMT and other backbones: one contract, rebuilt from plain data, weights from a file."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import group_parameters
from torch import nn

from cmtvision.engine.optim import build_optimizer, freeze
from cmtvision.errors import CheckpointError, ConfigError
from cmtvision.models import detectors
from cmtvision.models.detectors import KINDS, create_detector, detector_by_name, list_detectors
from cmtvision.recipe import load_recipe
from cmtvision.weights import to_official, write_safetensors
from random_weights import randomise

TINY = {"fpn_width": 32, "anchor_scale": 0.25, "score_threshold": 0.0}


def detector(kind: str, backbone: str = "cmt_nano", **arguments: Any) -> nn.Module:
    options = {**TINY, **arguments}
    if kind == "fcos":
        options = {**options, "anchor_scale": 1.0, "fpn_width": 64}
    return create_detector(kind, backbone, 3, **options)


def scene(height: int, width: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """An image with two objects."""
    masks = torch.zeros(2, height, width, dtype=torch.uint8)
    masks[0, 4:20, 6:22] = 1
    masks[1, 10:30, 20:40] = 1
    boxes = torch.tensor([[6.0, 4, 22, 20], [20, 10, 40, 30]])
    return torch.randn(3, height, width), {"boxes": boxes, "labels": torch.tensor([0, 2]), "masks": masks}


@pytest.mark.parametrize("kind", KINDS)
def test_losses_reach_every_parameter_and_findings_are_in_the_image(kind: str) -> None:
    model = detector(kind)
    images, targets = zip(scene(48, 64), scene(37, 50), strict=True)
    losses = model(images, targets)
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]
    found = model.eval()(images)
    for image, one in zip(images, found, strict=True):
        assert 0 < len(one["boxes"]) == len(one["scores"]) == len(one["labels"]) <= 100
        assert ((one["labels"] >= 0) & (one["labels"] < 3)).all()
        height, width = image.shape[1:]
        assert (one["boxes"] >= 0).all()
        assert (one["boxes"] <= torch.tensor([width, height, width, height])).all()
        assert ("masks" in one) == model.has_masks == (kind == "maskrcnn")
        if model.has_masks:
            assert one["masks"].shape == (len(one["boxes"]), 1, height, width)


@pytest.mark.parametrize("kind", KINDS)
def test_images_without_objects_train(kind: str) -> None:
    model = detector(kind)
    image, target = scene(32, 32)
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64),
             "masks": torch.zeros(0, 32, 32, dtype=torch.uint8)}  # fmt: skip
    for targets in ([empty, empty], [empty, target]):
        assert all(torch.isfinite(loss) for loss in model([image, image], targets).values())


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_rebuilt_from_its_arguments(kind: str) -> None:
    model = randomise(detector(kind, backbone_arguments={"drop_path_rate": 0.1, "rel_pos": "block"})).eval()
    arguments = json.loads(json.dumps(model.arguments))
    again = create_detector(**arguments).eval()
    again.load_state_dict(model.state_dict())
    assert again.arguments == model.arguments
    image, _ = scene(64, 48)
    for ours, theirs in zip(model([image]), again([image]), strict=True):
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_by_name() -> None:
    assert {"cmt_s_retinanet", "cmt_s_maskrcnn", "cmt_ti_fcos", "cmt_b_fasterrcnn"} <= set(list_detectors())
    model = detectors.cmt_nano_fcos(num_classes=2, fpn_width=64)
    assert (model.kind, model.arguments["backbone"], model.num_classes) == ("fcos", "cmt_nano", 2)
    assert detector_by_name("resnet18_retinanet", 2, fpn_width=8).arguments["backbone"] == "resnet18"
    for name, hint in (("cmt_s_retinanett", "did you mean cmt_s_retinanet?"), ("fcos", "expected BACKBONE_KIND")):
        with pytest.raises(ConfigError, match=hint.replace("?", r"\?")):
            detector_by_name(name, 2)
    with pytest.raises(ConfigError, match="fpn_with"):
        detector_by_name("cmt_nano_fcos", 2, fpn_with=8)
    with pytest.raises(AttributeError):
        _ = detectors.cmt_nano_ssd


def test_images_pass_unchanged_but_for_padding() -> None:
    model = detector("retinanet").eval()
    seen = []
    model.network.backbone.body.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = [torch.randn(3, 40, 33), torch.randn(3, 20, 64)]
    model(images)
    assert seen[0].shape == (2, 3, 64, 64)
    assert torch.equal(seen[0][0, :, :40, :33], images[0])
    assert torch.equal(seen[0][1, :, :20, :64], images[1])
    assert seen[0][1, :, 20:].abs().sum() == 0


@pytest.mark.parametrize("layout", ["native", "released"])
def test_weights_of_a_classifier_load_into_the_backbone(layout: str, tmp_path: Path) -> None:
    classifier = randomise(timm.create_model("cmt_nano", num_classes=7)).eval()
    path = tmp_path / f"classifier{'.safetensors' if layout == 'native' else '.pth'}"
    if layout == "native":
        write_safetensors(classifier.state_dict(), path, {})
    else:
        torch.save({"model": to_official(classifier.state_dict())}, path)
    model = detector("fcos", weights=path).eval()
    assert model.arguments["frozen_norms"] is True
    assert "weights" not in model.arguments
    images = torch.randn(1, 3, 64, 96)
    expected = classifier.forward_intermediates(images, intermediates_only=True)
    for ours, theirs in zip(model.network.backbone.body(images), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_other_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    write_safetensors(timm.create_model("resnet18").state_dict(), path, {})
    with pytest.raises(CheckpointError, match=r"other.safetensors: not weights of this model"):
        detector("fcos", weights=path)
    with pytest.raises(CheckpointError, match=r"other.safetensors: not weights of 'convnext_atto'"):
        detector("fcos", "convnext_atto", weights=path)
    assert detector("fcos", "resnet18", weights=path).arguments["frozen_norms"]


def test_frozen_norms_stay_frozen_through_training_mode() -> None:
    model = detector("fcos", frozen_norms=True)
    body, fpn = model.network.backbone.body, model.network.backbone.fpn
    assert (body.stem.norm1.training, body.stem.training, fpn.training) == (False, True, True)
    assert not model.eval().train().network.backbone.body.stem.norm1.training
    assert detector("fcos").network.backbone.body.stem.norm1.training


@pytest.mark.parametrize("backbone", ["resnet18", "convnext_atto", "swin_tiny_patch4_window7_224"])
def test_other_backbones(backbone: str) -> None:
    size = {"img_size": 64} if backbone.startswith("swin") else {}
    model = detector("fasterrcnn", backbone, **size).eval()
    assert len(model([torch.randn(3, 64, 64)])[0]["boxes"]) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "ssd"}, "expected retinanet, fcos, fasterrcnn or maskrcnn"),
        ({"num_classes": 0}, "expected at least one"),
        ({"backbone": "cmt_nanno"}, "did you mean cmt_nano"),
        ({"backbone": "vit_tiny_patch16_224"}, "needs one of each of 8, 16, 32"),
        ({"finest_stride": 16}, "expected 4 or 8"),
        ({"kind": "maskrcnn", "finest_stride": 8}, "finest_stride 8, expected 4"),
        ({"kind": "fcos", "anchor_scale": 0.5}, "FCOS has no anchors"),
        ({"kind": "fcos", "fpn_width": 48}, "fpn_width 48, expected a multiple of 32 from 64"),
        ({"backbone_arguments": {"pretrained": True}}, "pretrained cannot be among"),
        ({"backbone_arguments": {"dims": {1}}}, "not JSON serializable"),
        ({"pretrained": True}, "no released weights"),
        ({"backbone": "resnet18", "img_size": 64}, "has no img_size"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_detector(**{"kind": "retinanet", "backbone": "cmt_nano", "num_classes": 2, **arguments})


@pytest.mark.parametrize("backbone", ["cmt_nano", "resnet18", "pvt_v1_nano"])
def test_layers_learn_at_rates_of_their_own_and_the_head_at_the_full_one(backbone: str) -> None:
    model = detector("retinanet", backbone)
    recipe = load_recipe("default", ["optim.layer_decay=0.5"])
    optimizer = build_optimizer(model, recipe, 1e-3, torch.device("cpu"))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    scale = {names[id(one)]: group["lr_scale"] for group in optimizer.param_groups for one in group["params"]}
    assert scale.keys() == set(names.values())
    body = {name: rate for name, rate in scale.items() if ".body." in name}
    assert all(rate == 1.0 for name, rate in scale.items() if name not in body)
    assert max(body.values()) == 0.5
    own = timm.create_model(backbone)  # as many layers as the classifier has, its head's not counted
    layers = group_parameters(own, own.group_matcher(coarse=False), reverse=True)
    kept = {name.replace(".", "_") for name in own.state_dict()} & {
        name.split("body.")[1].removeprefix("model.").replace(".", "_") for name in body
    }
    assert len(set(body.values())) == len({layers[name] for name in layers if name.replace(".", "_") in kept})
    first = min(body, key=body.__getitem__)
    assert first.split("body.")[1].startswith(("stem", "conv1", "bn1", "model.stages.0.embed"))


def test_a_frozen_backbone_leaves_the_head_to_learn() -> None:
    model = detector("maskrcnn")
    freeze(model, load_recipe("default", ["model.freeze=backbone"]))
    learns = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learns == {name for name, _ in model.named_parameters() if ".body." not in name}
