"""Networks that the user named: what timm makes of them, what is written down, and files that went bad."""

import json
import logging
import multiprocessing
import os

import pytest
import timm
import torch

from cmtvision.errors import ConfigError
from cmtvision.models import user_models
from cmtvision.models.cmt import CMT
from cmtvision.models.user_models import (
    Definition,
    check_definition,
    expand,
    register,
    register_remembered,
    registered_names,
    registry_folder,
    remember,
)
from cmtvision.models.variants import VARIANTS

SMALL = {"stem_width": 8, "dims": (8, 16, 24, 40), "depths": (1, 1, 2, 1)}


@pytest.fixture(autouse=True)
def forget(tmp_path, monkeypatch):
    """A registry of the test's own; called, it forgets what this process registered, as a new process would."""
    import timm.models._registry as registry

    known = dict(registry._model_entrypoints)

    def forget_all():
        monkeypatch.setattr(registry, "_model_entrypoints", dict(known))
        monkeypatch.setattr(user_models, "_definitions", {})

    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    forget_all()
    return forget_all


def shapes(model):
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def test_a_registered_name_is_a_model_of_timm():
    register("own_net", "cmt_nano", {**SMALL, "lpu": False}, 64)
    model = timm.create_model("own_net", num_classes=5)
    wanted = {**VARIANTS["cmt_nano"].constructor_args(), **SMALL, "lpu": False}
    assert shapes(model) == shapes(CMT(img_size=64, num_classes=5, **wanted))
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
        remember(name, check_definition("cmt_nano", SMALL))
    assert not registry_folder().exists()


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
        ("cmt_s", {"dims": [64, 128, 256, 511]}, None, "no multiples of num_heads"),
        ("cmt_s", {"num_heads": [1, 2, 3, 8]}, None, "no multiples of num_heads"),
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


def test_later_processes_know_what_was_remembered(forget):
    definition = check_definition("cmt_nano", SMALL, 64)
    path = remember("own_net", definition, "cmtvision scale --phi 1")
    assert json.loads(path.read_text(encoding="utf-8"))["made_by"] == "cmtvision scale --phi 1"
    remember("own_net", definition)
    forget()
    assert not timm.is_model("own_net")
    with pytest.raises(ConfigError, match=r"own_net\.json: is there already and says something else"):
        remember("own_net", check_definition("cmt_nano", {}, 96))
    register_remembered()
    register_remembered()
    assert expand("own_net") == definition
    assert timm.create_model("own_net").img_size == (64, 64)
    remember("own_net", check_definition("cmt_nano", {}, 96), overwrite=True)
    forget()
    register_remembered()
    assert expand("own_net") == Definition("cmt_nano", 96, {})


def test_damaged_files_cost_one_warning_and_nothing_else(forget, caplog):
    good = remember("own_good", check_definition("cmt_nano", SMALL))
    text = good.read_text(encoding="utf-8")
    folder = registry_folder()
    for name, content in {
        "a_torn": text[: len(text) // 2],
        "b_empty": "",
        "c_list": "[]",
        "d_deep": "[" * 5000,
        "e_future": text.replace('"format": 1', '"format": 2'),
        "f_dims": text.replace("24", "25"),
        "g_base": text.replace("cmt_nano", "resnet50"),
        "h_options": json.dumps({"format": 1, "base": "cmt_nano", "input_size": 32, "options": "all"}),
        "i_large": text + " " * 20_000,
        "resnet50": text,
        "Bad-Name": text,
    }.items():
        (folder / f"{name}.json").write_text(content, encoding="utf-8")
    (folder / "j_bytes.json").write_bytes(b"\xff\xfe\x00")
    (folder / "k_folder.json").mkdir()
    forget()
    with caplog.at_level(logging.WARNING):
        register_remembered()
    assert registered_names() == ["own_good"]
    [record] = caplog.records
    message = record.getMessage()
    assert str(folder / "Bad-Name.json") in message
    assert "delete or mend" in message
    assert "(and 12 more)" in message


def test_no_registry_is_no_fault(monkeypatch, caplog, tmp_path):
    register_remembered()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))
    register_remembered()
    assert not caplog.records
    with pytest.raises(ConfigError, match="set XDG_DATA_HOME to a folder of yours"):
        remember("own_net", check_definition("cmt_nano", SMALL))


def write_many(worker):
    for i in range(5):
        remember(f"own_{worker}_{i}", check_definition("cmt_nano", SMALL))
        remember("own_shared", check_definition("cmt_nano", {"depths": [1, 1, 1, worker + 1]}), overwrite=True)
    os._exit(0)  # leave nothing to the test runner's own exit


def test_processes_that_write_at_once_lose_nothing(forget):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=write_many, args=(worker,)) for worker in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    register_remembered()
    assert registered_names() == sorted(["own_shared", *(f"own_{w}_{i}" for w in range(4) for i in range(5))])
    assert not [path for path in registry_folder().iterdir() if path.suffix != ".json"]
