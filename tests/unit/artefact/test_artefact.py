"""An artefact written and opened: the same network, the same answers, and one clear line where something is off."""

import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import cmtvision
from cmtvision.artefact import Artefact, Predictor, read_artefact, write_artefact
from cmtvision.artefact.predictor import pick_device
from cmtvision.data import Preprocess
from cmtvision.errors import CheckpointError, ConfigError, DataError
from cmtvision.weights import read_state_dict, write_safetensors
from weight_server import served

CONTRACT = Preprocess((32, 32), 1.0, "bicubic", (0.5,) * 3, (0.25,) * 3)


@pytest.fixture
def artefact():
    model = timm.create_model("cmt_nano", num_classes=3, rel_pos="block").eval()
    return Artefact("cmt_nano", {"in_chans": 3, "rel_pos": "block"}, ["a", "b", "<c>"], CONTRACT, model=model)


@pytest.fixture
def folder(artefact, tmp_path):
    return write_artefact(tmp_path / "model", artefact)


def photo(seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8))


def test_what_is_opened_answers_as_what_was_written(artefact, folder):
    predictor, original = cmtvision.load(folder, plain=True), Predictor(artefact)
    images = [photo(i) for i in range(5)]
    assert torch.equal(predictor.logits(images), original.logits(images))
    assert predictor.classes == ["a", "b", "<c>"]
    assert predictor.preprocess == CONTRACT


def test_predictions_are_sorted_and_do_not_depend_on_the_batch(folder):
    predictor = cmtvision.load(folder / "model.json")
    images = [photo(i) for i in range(7)]
    one, many = predictor.predict(images, batch_size=1), predictor.predict(images, batch_size=7)
    for a, b in zip(one, many, strict=True):
        assert a.label == b.label
        assert a.probability == pytest.approx(b.probability, abs=1e-5)
        assert [p for _, p in a.top] == sorted((p for _, p in a.top), reverse=True)
        assert sum(p for _, p in a.top) == pytest.approx(1, abs=1e-5)
    assert len(predictor.predict(images[:1], top_k=2)[0].top) == 2


def test_an_image_that_is_none_is_named(folder, tmp_path):
    (tmp_path / "x.png").write_text("no")
    with pytest.raises(DataError, match=r"x\.png"):
        cmtvision.load(folder).predict([tmp_path / "x.png"])


def test_one_image_gives_one_prediction_however_it_is_held(folder, tmp_path):
    predictor = cmtvision.load(folder)
    picture = photo()
    picture.save(tmp_path / "a.png")
    content, pixels = (tmp_path / "a.png").read_bytes(), np.array(picture)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    expected = predictor.logits([picture])
    ways = [str(tmp_path / "a.png"), tmp_path / "a.png", content, bytearray(content), memoryview(content)]
    ways += [io.BytesIO(content), picture, pixels, pixels.astype(np.int32), tensor, tensor / 255]
    for way in ways:
        assert torch.equal(predictor.logits(way), expected)
        assert len(predictor.predict(way)) == len(list(predictor.stream([way]))) == 1
    for batch in (np.stack([pixels] * 3), torch.stack([tensor] * 3), (way for way in ways[:3])):
        assert torch.equal(predictor.logits(batch), predictor.logits([picture] * 3))
    assert len(predictor.predict(np.stack([pixels] * 3), batch_size=2)) == 3


def test_no_images_are_no_predictions_and_nonsense_is_one_line(folder, tmp_path):
    predictor = cmtvision.load(folder)
    assert predictor.predict([]) == predictor.predict(iter(())) == predictor.predict(np.zeros((0, 4, 4, 3))) == []
    assert predictor.logits([]).shape == (0, 3)
    assert len(predictor.predict(photo(), top_k=99)[0].top) == 3
    for nonsense in (None, 3, [None], [3], tmp_path, [[photo()]], np.zeros((2, 5, 5)), {"a": photo()}):
        with pytest.raises(DataError) as caught:
            predictor.predict(nonsense)
        assert "\n" not in str(caught.value)
    for wrong in ({"top_k": 0}, {"top_k": -1}, {"top_k": 1.5}, {"batch_size": 0}, {"batch_size": None}):
        with pytest.raises(ConfigError, match=r"expected a whole number of at least 1"):
            predictor.stream([photo()], **wrong)  # at once, not when the first one is asked for
    with pytest.raises(ConfigError, match="top_k"):
        predictor.decide(torch.zeros(1, 3), top_k=0)


def damage(folder, **changes):
    card = json.loads((folder / "model.json").read_text())
    card |= changes
    (folder / "model.json").write_text(json.dumps({k: v for k, v in card.items() if v is not ...}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format_version": 99}, "format 99"),
        ({"classes": ...}, "classes"),
        ({"preprocess": {"format_version": 1}}, "preprocess"),
        ({"architecture": "cmt_nanoo"}, "did you mean cmt_nano"),
        ({"architecture": "cmt_ti"}, "does not fit"),
        ({"classes": ["a"]}, "does not fit"),
        ({"arguments": {"wings": 2}}, "wings"),
        ({"task": "detection"}, "task 'detection' in format 1"),
        ({"task": "multi-label"}, "task 'multi-label' in format 1"),
        ({"format_version": 2, "task": ...}, "task 'single-label' in format 2"),
    ],
)
def test_a_card_that_is_off_is_one_clear_line(folder, changes, words):
    damage(folder, **changes)
    with pytest.raises(CheckpointError, match=words) as error:
        read_artefact(folder)
    assert "\n" not in str(error.value)


def test_a_card_without_a_task_has_one_label_a_photo(folder):
    damage(folder, task=...)
    assert json.loads((folder / "model.json").read_text())["format_version"] == 1  # a reader of 0.2 opens it
    assert cmtvision.load(folder).task == "single-label"


def test_a_multi_label_model_says_yes_or_no_to_each_class(artefact, tmp_path):
    several = write_artefact(tmp_path / "several", replace(artefact, task="multi-label"))
    # a reader that knows no task must refuse the file: softmax over these logits would be wrong
    assert json.loads((several / "model.json").read_text())["format_version"] == 2
    predictor = cmtvision.load(several)
    assert predictor.task == read_artefact(several).task == "multi-label"
    logits = torch.tensor([[2.0, -1.0, 0.0], [-3.0, -2.0, -4.0], [1.0, 2.0, 3.0]])
    found = predictor.decide(logits, top_k=2)
    assert [one.labels for one in found] == [["a", "<c>"], [], ["<c>", "b", "a"]]
    assert [one.label for one in found] == ["a", "b", "<c>"]
    assert [name for name, _ in found[0].top] == ["a", "<c>"]
    assert [p for _, p in found[1].top] == pytest.approx([1 / (1 + math.exp(2)), 1 / (1 + math.exp(3))])
    images = [photo(i) for i in range(3)]
    expected = predictor.logits(images).sigmoid().max(dim=1).values.tolist()
    assert [one.probability for one in predictor.predict(images)] == pytest.approx(expected, abs=1e-6)


def test_one_label_is_decided_however_unsure(artefact):
    (found,) = Predictor(artefact).decide(torch.tensor([[0.1, 0.0, 0.0]]), top_k=1)
    assert (found.label, found.labels, len(found.top)) == ("a", ["a"], 1)
    assert found.probability < 0.5


def test_torn_and_missing_files_are_named(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        read_artefact(folder)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        read_artefact(folder)
    (folder / "model.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"model\.json"):
        read_artefact(folder)


def test_weights_survive_a_failed_rewrite(folder, monkeypatch):
    before = read_state_dict(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_safetensors({"a": torch.zeros(1)}, folder / "model.json" / "x.safetensors", {})
    assert read_state_dict(folder / "model.safetensors").keys() == before.keys()


def test_devices_that_are_not_there_are_refused():
    assert pick_device("cpu") == "cpu"
    with pytest.raises(ConfigError, match="tpu"):
        pick_device("tpu")


def foreign(folder, **arguments):
    """The folder with other arguments in its card, as a stranger may write them."""
    card = json.loads((folder / "model.json").read_text())
    damage(folder, arguments=card["arguments"] | arguments)


@pytest.fixture
def listener(tmp_path, monkeypatch):
    """A real server that stands for everything a card could make us ask: addresses, the Hub, and its cache is empty."""
    from huggingface_hub import constants as hub

    with served(b"no weights") as serving:
        for name in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{serving.port}")
        monkeypatch.setattr(hub, "ENDPOINT", f"http://127.0.0.1:{serving.port}")
        monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
        yield serving


@pytest.mark.allow_hosts(["127.0.0.1"])
@pytest.mark.parametrize(
    "arguments",
    [
        {"pretrained": True},
        {"pretrained": True, "pretrained_cfg_overlay": {"url": "URL"}},
        {"pretrained": True, "pretrained_cfg": {"url": "URL", "architecture": "cmt_nano"}},
        {"pretrained": True, "pretrained_cfg_overlay": {"hf_hub_id": "someone/weights"}},
        {"pretrained": True, "pretrained_cfg_overlay": {"file": "weights.pth"}},
        {"checkpoint_path": "weights.pth"},
        {"cache_dir": "elsewhere"},
        {"pretrained_strict": False},
        {"pretrained_model_args": {}},
        {"features_only": True},
        {"scriptable": True},
        {"device": "cuda"},
        {"dtype": "float16"},
    ],
)
def test_a_card_cannot_say_where_weights_come_from(folder, listener, arguments):
    said = json.loads(json.dumps(arguments).replace("URL", listener.url()))
    foreign(folder, **said)
    with pytest.raises(CheckpointError, match=r"model\.json.*says where weights come from") as caught:
        cmtvision.load(folder)
    assert "\n" not in str(caught.value)
    assert listener.asked == []


@pytest.mark.allow_hosts(["127.0.0.1"])
@pytest.mark.parametrize("name", ["hf-hub:someone/model", "hf_hub:someone/model", "local-dir:LOCAL", "someone/model"])
def test_a_card_names_models_that_are_registered(folder, listener, name, tmp_path):
    local = tmp_path / "local"
    local.mkdir()
    (local / "config.json").write_text(json.dumps({"architecture": "cmt_nano", "pretrained_cfg": {}}))
    damage(folder, architecture=name.replace("LOCAL", str(local)))
    with pytest.raises(CheckpointError, match="is no name of a model in timm"):
        cmtvision.load(folder)
    assert listener.asked == []


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_a_name_with_a_tag_loads_nothing(listener, tmp_path):
    model = timm.create_model("test_resnet", num_classes=3).eval()
    original = Artefact("test_resnet.r160_in1k", {"in_chans": 3}, ["a", "b", "c"], CONTRACT, model=model)
    opened = read_artefact(write_artefact(tmp_path / "model", original))
    assert torch.equal(opened.model.fc.weight, model.fc.weight)
    assert listener.asked == []


@pytest.mark.parametrize(
    "arguments",
    [
        {"img_size": 1_000_000},
        {"img_size": 4096},  # tables of 70 GB
        {"in_chans": 10**15},
        {"dims": [32, 64, 96, 65_536]},
        {"depths": [1, 2, 60_000, 1]},
        {"depths": [1, 2, 10**15, 1]},
        {"mlp_ratio": 1e300},
        {"mlp_ratio": math.nan},
        {"head_width": 65_536, "num_heads": [1, 2, 3, 5]},
        {"dims": [[32], 64, 96, 160]},
        {"dims": [1] * 100_000},
        {"rel_pos": {"a": 1}},
        {"norm": "os.system"},
        {"num_heads": [0, 0, 0, 0]},
        {"lpu": "no"} | {"dims": "abc"},
    ],
)
def test_absurd_arguments_are_one_line_and_no_memory(folder, arguments):
    import resource

    foreign(folder, **arguments)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match="model") as caught:
        cmtvision.load(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_500_000  # kB


@pytest.mark.parametrize(
    "shape", [[2**62, 4], [0, 2**60], [-1], [2**31, 2**31], [1] * 100, ["a"]], ids=lambda shape: str(shape)[:20]
)
def test_tensors_of_absurd_shapes(folder, shape):
    header = {"stem.conv1.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(CheckpointError):
        cmtvision.load(folder)


@pytest.mark.parametrize(
    "arguments",
    [{"in_chans": 3, "img_size": [64, 48]}, {"in_chans": 1, "rel_pos": "none", "lpu": False, "dims": [8, 16, 24, 40]}],
)
def test_what_our_own_runs_say_of_a_network_still_opens(arguments, tmp_path):
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}
    model = timm.create_model("cmt_nano", num_classes=3, **given).eval()
    channels = arguments["in_chans"]
    contract = replace(CONTRACT, channels=channels, mean=(0.5,) * channels, std=(0.25,) * channels)
    written = write_artefact(tmp_path / "m", Artefact("cmt_nano", arguments, ["a", "b", "c"], contract, model=model))
    opened = read_artefact(written).model.state_dict()
    assert all(torch.equal(opened[name], value) for name, value in model.state_dict().items())


def test_logits_that_are_no_numbers_are_no_prediction(tmp_path):
    model = timm.create_model("cmt_nano", num_classes=2, img_size=32).eval()
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    predictor = Predictor(Artefact("cmt_nano", {"img_size": 32}, ["a", "b"], CONTRACT, model=model), "cpu")
    with pytest.raises(CheckpointError, match="no numbers"):
        predictor.predict(np.zeros((32, 32, 3), np.uint8))
