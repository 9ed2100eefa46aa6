"""Released weights as timm, recipes and teachers ask for them: from the cache, a real server, or one clear line."""

import io
import json

import pytest
import timm
import torch
from engine_photos import CLASSES, TINY, write_photos
from huggingface_hub import constants as hub

import cmtvision
from cmtvision.cli.plan import show_plan
from cmtvision.engine import fit
from cmtvision.engine.build import build_model, fetch_pretrained
from cmtvision.engine.choosing.choose import Chosen
from cmtvision.errors import CheckpointError, ConfigError
from cmtvision.models import create_model
from cmtvision.models.weight_sources import fetch_weights
from cmtvision.recipe import load_recipe
from cmtvision.weights import to_official
from cmtvision.weights.fetch import FetchError
from weight_server import served

HERE = pytest.mark.allow_hosts(["127.0.0.1"])
ADDRESS = "https://github.com/ggjy/CMT.pytorch/releases/download/release-v1/cmt_tiny.pth"


@pytest.fixture(scope="module")
def released():
    """A network of ours with random weights, and a file of the released kind with them."""
    torch.manual_seed(5)
    model = timm.create_model("cmt_ti").eval()
    buffer = io.BytesIO()
    torch.save({"model": to_official(model.state_dict())}, buffer)
    return model, buffer.getvalue()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and no proxy that the machine may have."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def closed_proxy(cache, monkeypatch):
    """Every way into the network ends here: a proxy that lets nobody through, and remembers what was asked for."""
    with served() as proxy:
        for name in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        yield proxy


def same(model, other):
    return all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_file_in_the_cache_needs_no_network(released, cache):
    model, content = released
    cache.mkdir(parents=True)
    (cache / "cmt_tiny.pth").write_bytes(content)
    assert same(timm.create_model("cmt_ti", pretrained=True), model)
    fetch_pretrained(load_recipe("finetune"))
    built = build_model(load_recipe("finetune"), 3).model
    assert torch.equal(built.stem.conv1.weight, model.stem.conv1.weight)


@pytest.mark.slow
@HERE
@pytest.mark.parametrize("make", [timm.create_model, create_model])
def test_timm_downloads_by_us_and_goes_on_after_a_break(released, cache, make):
    model, content = released
    with served(content) as server:
        server.breaks = [1_000_000]
        overlay = {"url": server.url("cmt_tiny.pth")}
        assert same(make("cmt_ti", pretrained=True, pretrained_cfg_overlay=overlay), model)
        assert server.parts == [None, "bytes=1000000-"]
        assert make("cmt_ti", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=7).num_classes == 7
        assert len(server.asked) == 2
    assert [path.name for path in cache.iterdir() if not path.name.endswith(".lock")] == ["cmt_tiny.pth"]


@HERE
@pytest.mark.parametrize("name", ["ceit_nano", "pvt_v1_nano", "cmt_nano"])
def test_every_network_of_ours_takes_an_address(name, cache):
    model = timm.create_model(name)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    with served(buffer.getvalue()) as server:
        overlay = {"url": server.url(f"{name}.pth")}
        assert same(timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay), model)
        elsewhere = cache.parent / "mine"
        timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, cache_dir=elsewhere)
        assert (elsewhere / f"{name}.pth").is_file()


@HERE
@pytest.mark.parametrize("make", [timm.create_model, create_model])
def test_no_way_out_is_one_line_with_the_address_and_the_place(closed_proxy, cache, make):
    with pytest.raises(FetchError) as caught:
        make("cmt_ti", pretrained=True)
    message = str(caught.value)
    assert message.startswith(f"{ADDRESS}: cannot be fetched (Tunnel connection failed: 403 Forbidden, asked by the")
    assert message.endswith(
        f"; put the file at {cache / 'cmt_tiny.pth'}, which is looked at first, or name a file with --weights FILE"
    )
    assert [asked for asked, _ in closed_proxy.asked] == ["github.com:443"]


@HERE
@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("resnet18", "timm/resnet18.a1_in1k cannot be fetched from the Hugging Face Hub"),
        ("hf-hub:someone/model@v2", "someone/model@v2 cannot be fetched from the Hugging Face Hub"),
        ("gcvit_base", "gcvit_base_224_nvidia-f009139b.pth: cannot be fetched"),
    ],
)
@pytest.mark.parametrize("ask", [fetch_weights, lambda name: create_model(name, pretrained=True)])
def test_models_that_are_timms_own_are_one_line_too(closed_proxy, name, where, ask):
    with pytest.raises(FetchError) as caught:
        ask(name)
    message = str(caught.value)
    assert where in message
    assert "403 Forbidden" in message
    assert "\n" not in message
    assert message.endswith("or name a file with --weights FILE")
    assert len(closed_proxy.asked) == 1  # one attempt, not five of the Hub's library


@HERE
@pytest.mark.parametrize("name", ["cmt_ti", "resnet18", "hf-hub:someone/model", "gcvit_base"])
def test_offline_asks_nobody(closed_proxy, name, monkeypatch):
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    with pytest.raises(FetchError, match="HF_HUB_OFFLINE is set") as caught:
        create_model(name, pretrained=True)
    assert "\n" not in str(caught.value)
    assert closed_proxy.asked == []


@HERE
def test_a_damaged_file_of_timms_own_is_not_kept(cache, monkeypatch):
    with served(b"\x80damaged") as server:
        monkeypatch.setattr(
            "cmtvision.models.weight_sources.timm.get_pretrained_cfg",
            lambda *_, **__: timm.models.PretrainedCfg(url=server.url("model.pth")),
        )
        with pytest.raises(FetchError, match=r"model\.pth: cannot be fetched \(what came is damaged"):
            fetch_weights("resnet18")
    assert not (cache / "model.pth").exists()


@HERE
def test_a_teacher_without_a_network_names_its_own_setting(closed_proxy):
    chosen = load_recipe("demo", ["distill.teacher=resnet18", "distill.weights=pretrained", "distill.kind=feature"])
    with pytest.raises(FetchError, match=r"^distill\.weights: model resnet18: .* with distill\.weights=FILE$"):
        fetch_pretrained(chosen)


@pytest.mark.slow
@HERE
def test_the_plan_is_not_said_before_the_weights_are_there(closed_proxy, tmp_path, capsys):
    photos = write_photos(tmp_path / "photos", 4)
    with pytest.raises(FetchError):
        show_plan(Chosen(load_recipe("finetune")), photos, tmp_path / "run", resume=False)
    assert capsys.readouterr().err == ""
    closed_proxy.asked.clear()
    with pytest.raises(ConfigError):  # what is wrong with the plan costs no download
        show_plan(Chosen(load_recipe("finetune", ["model.options.wings=2"])), photos, tmp_path / "run", resume=False)
    assert closed_proxy.asked == []
    show_plan(Chosen(load_recipe("finetune")), photos, tmp_path / "run", resume=True)  # its checkpoint has the weights
    assert "cmt_ti" in capsys.readouterr().err
    assert closed_proxy.asked == []


def test_a_run_goes_on_although_the_weights_it_began_with_are_gone(tmp_path):
    photos = write_photos(tmp_path / "photos", 8)
    weights = tmp_path / "begin.pth"
    torch.save(timm.create_model("cmt_nano", num_classes=3).state_dict(), weights)
    chosen = load_recipe("demo", [*TINY, f"model.weights={weights}"])

    def stop(_):
        raise KeyError

    with pytest.raises(KeyError):
        fit(chosen, photos, tmp_path / "run", on_epoch=stop)
    weights.unlink()
    assert fit(chosen, photos, tmp_path / "run", resume=True).epochs == 2


def test_a_run_from_a_described_model_opens_without_the_description(tmp_path):
    photos = write_photos(tmp_path / "photos", 8)
    described = tmp_path / "described"
    timm.models.save_for_hf(
        timm.create_model("cmt_nano", num_classes=3, rel_pos="block", dims=(8, 16, 24, 40)),
        described,
        safe_serialization=True,
        model_args={"rel_pos": "block", "dims": [8, 16, 24, 40]},
    )
    out = tmp_path / "run"
    chosen = load_recipe("demo", [*TINY, f"model.name=local-dir:{described}", "model.weights=pretrained"])
    fit(chosen, photos, out)
    (described / "config.json").unlink()
    card = json.loads((out / "model.json").read_text())
    assert card["architecture"] == "cmt_nano"
    assert card["arguments"]["dims"] == [8, 16, 24, 40]
    assert cmtvision.load(out).classes == list(CLASSES)


@pytest.mark.parametrize("option", ["pretrained=true", "checkpoint_path=x.pth", "cache_dir=x", "features_only=true"])
def test_options_of_a_recipe_are_the_networks(option):
    with pytest.raises(ConfigError, match=r"model\.options\.\w+: says where weights come from"):
        build_model(load_recipe("demo", [f"model.options.{option}"]), 3)


def test_a_folder_that_describes_nothing(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json"):
        create_model(f"local-dir:{tmp_path}")
