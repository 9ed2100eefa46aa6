"""Networks that the user described, under a name or in a recipe: what timm makes of them, and what makes no sense."""

import pytest
import timm
import torch

from cmtvision.engine.build import portable
from cmtvision.errors import ConfigError
from cmtvision.models import build_shapes_only, create_model, user_models
from cmtvision.models.cmt.variants import VARIANTS
from cmtvision.models.ladder.parts import build
from cmtvision.models.peers.systems import find_system
from cmtvision.models.registry import check_name as check_name_of_model
from cmtvision.models.user_models import (
    Definition,
    check_definition,
    expand,
    register,
    registered_names,
)
from cmtvision.recipe import load_recipe

SMALL = {"stem_width": 8, "dims": (8, 16, 24, 40), "depths": (1, 1, 2, 1)}


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch):
    """A registry of the test's own."""
    import timm.models._registry as registry

    monkeypatch.setattr(registry, "_model_entrypoints", dict(registry._model_entrypoints))
    monkeypatch.setattr(user_models, "_definitions", {})


def shapes(model):
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def test_a_registered_name_is_a_model_of_timm():
    register("own_net", "cmt_nano", {**SMALL, "lpu": False}, 64)
    model = timm.create_model("own_net", num_classes=5)
    wanted = {**VARIANTS["cmt_nano"].constructor_args(), **SMALL, "lpu": False}
    assert shapes(model) == shapes(build(img_size=64, num_classes=5, **wanted))
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 5)
    assert model.pretrained_cfg["input_size"] == (3, 64, 64)
    assert model.pretrained_cfg["architecture"] == "own_net"
    assert model.pretrained_cfg["crop_pct"] == timm.get_pretrained_cfg("cmt_nano").crop_pct
    assert model.head_drop.p == VARIANTS["cmt_nano"].drop_rate
    assert timm.create_model("own_net", img_size=96, depths=(1, 1, 1, 1)).img_size == (96, 96)
    assert timm.create_model("own_net", features_only=True).feature_info.channels() == [8, 16, 24, 40]
    assert "own_net" in timm.list_models()
    assert not timm.is_model_pretrained("own_net")


def test_weights_of_a_registered_net_can_be_loaded(tmp_path):
    register("own_net", "cmt_nano", SMALL)
    first = timm.create_model("own_net", num_classes=3)
    overlay = {"state_dict": first.state_dict(), "custom_load": False, "num_classes": 3}
    second = timm.create_model("own_net", num_classes=3, pretrained=True, pretrained_cfg_overlay=overlay)
    assert torch.equal(first.head.weight, second.head.weight)
    with pytest.raises(RuntimeError, match="No pretrained weights exist for own_net"):
        timm.create_model("own_net", pretrained=True)


def test_what_a_name_stands_for():
    assert expand("own_net") is expand("cmt_s") is None
    register("own_net", "cmt_nano", SMALL)
    plain = {"stem_width": 8, "dims": [8, 16, 24, 40], "depths": [1, 1, 2, 1]}
    assert expand("own_net") == Definition("cmt_nano", 32, plain)
    assert registered_names() == ["own_net"]


def test_a_name_stands_for_one_network_unless_told_otherwise():
    register("own_net", "cmt_nano", SMALL)
    register("own_net", "cmt_nano", SMALL)
    with pytest.raises(ConfigError, match="'own_net': is another cmt_nano already; choose another, or --overwrite"):
        register("own_net", "cmt_nano", SMALL, 64)
    register("own_net", "cmt_nano", SMALL, 64, overwrite=True)
    assert timm.create_model("own_net").img_size == (64, 64)
    assert timm.get_pretrained_cfg("own_net").input_size == (3, 64, 64)


@pytest.mark.parametrize("name", ["", "Own", "9net", "own-net", "own.net", "../own", "own net", "é", "a" * 65])
def test_illegal_names(name):
    with pytest.raises(ConfigError, match="lower-case letters, digits and _"):
        register(name, "cmt_nano", SMALL)


@pytest.mark.parametrize("name", ["cmt_s", "cmt_nano", "resnet50", "cmt_ladder_5_irffn"])
def test_names_of_other_models_are_taken(name):
    with pytest.raises(ConfigError, match="is a model already"):
        register(name, "cmt_nano", SMALL, overwrite=True)


@pytest.mark.parametrize(
    ("base", "options", "side", "message"),
    [
        ("resnet50", {}, None, "base 'resnet50': expected one of cmt_nano"),
        ("cmt_s", {}, 16, "input_size: got 16"),
        ("cmt_s", {}, 224.0, "input_size: got 224.0"),
        ("cmt_s", {}, True, "input_size: got True"),
        ("cmt_s", {"width": 3}, None, "CMT has no argument 'width'"),
        ("cmt_s", {"num_classes": 3}, None, "CMT has no argument 'num_classes'"),
        ("cmt_s", {"dims": [64, 128, 256]}, None, "dims: got .* expected 4 whole numbers"),
        ("cmt_s", {"dims": [64, 128, 256, 511]}, None, "not multiples of num_heads"),
        ("cmt_s", {"num_heads": [1, 2, 3, 8]}, None, "not multiples of num_heads"),
        ("cmt_s", {"depths": [3, 3, 0, 3]}, None, "depths: got"),
        ("cmt_s", {"depths": "3333"}, None, "depths: got '3333'"),
        ("cmt_s", {"stem_width": 0}, None, "stem_width: got 0"),
        ("cmt_s", {"mlp_ratio": "4"}, None, "mlp_ratio: got '4'"),
        ("cmt_s", {"lpu": [1]}, None, "lpu: got"),
        ("cmt_s", [1], None, "options: got"),
    ],
)
def test_definitions_that_make_no_sense(base, options, side, message):
    with pytest.raises(ConfigError, match=message):
        check_definition(base, options, side)


RECIPE = """
base: default
model:
  name: cmt_nano
  img_size: 64
  rel_pos: block
  options: {dims: [8, 16, 24, 40], depths: [1, 1, 2, 1], lpu: false}
"""


@pytest.fixture
def recipe(tmp_path):
    """A recipe's file that describes a network, by its path."""
    path = tmp_path / "own.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return str(path)


def test_a_recipe_is_a_model_wherever_one_is_named(recipe):
    options = {"dims": (8, 16, 24, 40), "depths": (1, 1, 2, 1), "lpu": False}
    own = expand(recipe)
    assert (own.base, own.input_size, own.options) == ("cmt_nano", 64, {"rel_pos": "block", **options})
    model = create_model(recipe, num_classes=5)
    wanted = create_model("cmt_nano", num_classes=5, img_size=64, rel_pos="block", **options)
    assert shapes(model) == shapes(wanted)
    assert create_model(recipe, depths=(1, 1, 1, 1), img_size=96).img_size == (96, 96)
    shown, size = build_shapes_only(recipe)
    assert (shapes(shown), size) == (shapes(create_model(recipe)), (3, 64, 64))
    assert build_shapes_only(recipe, 96)[1] == (3, 96, 96)
    assert find_system(recipe).family == "CMT"
    check_name_of_model(recipe)


def test_a_run_by_a_recipes_network_keeps_what_it_stands_for(recipe):
    asked = portable(load_recipe("demo", [f"model.name={recipe}"]))
    assert (asked.model.name, asked.model.rel_pos) == ("cmt_nano", "block")
    assert asked.model.options == {"dims": (8, 16, 24, 40), "depths": (1, 1, 2, 1), "lpu": False}


def test_a_recipe_that_is_not_there_or_names_nothing(tmp_path):
    with pytest.raises(ConfigError, match=r"gone\.yaml"):
        create_model(str(tmp_path / "gone.yaml"))
    path = tmp_path / "odd.yaml"
    path.write_text("model: {name: cmt_smal}", encoding="utf-8")
    with pytest.raises(ConfigError, match="did you mean cmt_"):
        create_model(str(path))
    path.write_text(f"model: {{name: {path}}}", encoding="utf-8")
    with pytest.raises(ConfigError, match="describes its network by a recipe again"):
        create_model(str(path))
