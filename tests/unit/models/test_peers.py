"""The other systems behave as timm's models do, equal transformers', and refuse what they cannot take."""

import copy
import pickle
import sys

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.optim import create_optimizer_v2

from cmtvision.cli.commands.models import _chosen, _row
from cmtvision.errors import CheckpointError, ConfigError
from cmtvision.models import create_model
from cmtvision.models.peers.pyramid import TokenPyramid
from cmtvision.models.peers.systems import SYSTEMS, find_system
from random_weights import randomise

NANO = ["vit_nano", "deit_nano_distilled", "cvt_nano", "pvt_v1_nano"]
PYRAMIDS = ["cvt_nano", "pvt_v1_nano"]
STRIDES = {"cvt_nano": [4, 8, 16], "pvt_v1_nano": [4, 8, 16, 32]}


def images(size=32, batch=2, channels=3):
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(1))


def made(name, **kwargs):
    model = create_model(name, **{"num_classes": 5, **kwargs})
    randomise(model)
    return model


def theirs(name, img_size=32):
    """The network of transformers with the same settings, and random weights."""
    import transformers

    if name == "cvt_nano":
        config = transformers.CvtConfig(
            embed_dim=(20, 60, 120), depth=(1, 2, 4), stride_kv=(2, 1, 1), num_labels=5, drop_path_rate=(0.0,) * 3
        )
        model = transformers.CvtForImageClassification(config)
    else:
        config = transformers.PvtConfig(
            image_size=img_size, hidden_sizes=(24, 48, 120, 192), depths=(2, 2, 2, 1),
            sequence_reduction_ratios=(2, 1, 1, 1), num_labels=5,
        )  # fmt: skip
        model = transformers.PvtForImageClassification(config)
    randomise(model)
    return model.eval()


def saved(model, folder):
    path = folder / "model.safetensors"
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
    return {"pretrained": True, "pretrained_cfg_overlay": {"file": str(path), "num_classes": 5}}


@pytest.mark.parametrize("name", PYRAMIDS)
def test_logits_and_weights_are_those_of_transformers(name, tmp_path):
    source = theirs(name)
    model = create_model(name, num_classes=5, **saved(source, tmp_path)).eval()
    with torch.no_grad():
        expected = source(images()).logits
        torch.testing.assert_close(model(images()), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.train()(images()), source.train()(images()).logits, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.01


@pytest.mark.parametrize("name", PYRAMIDS)
def test_pretrained_weights_fit_other_classes_channels_and_sizes(name, tmp_path):
    source = theirs(name)
    model = create_model(name, num_classes=3, in_chans=1, img_size=64, **saved(source, tmp_path)).eval()
    assert model(images(64, channels=1)).shape == (2, 3)
    state, own = source.state_dict(), model.state_dict()
    kept = [n for n in own if n.endswith("norm.weight") and "stages" not in n]
    assert torch.equal(
        own[kept[0]], state["layernorm.weight" if name == "cvt_nano" else "pvt.encoder.layer_norm.weight"]
    )
    if name == "pvt_v1_nano":
        before = state["pvt.encoder.patch_embeddings.3.position_embeddings"]  # (1, 1 + 1, C)
        after = own["stages.3.embed.position_embeddings"]  # (1, 1 + 4, C)
        assert torch.equal(after, before[:, [0, 1, 1, 1, 1]])


@pytest.mark.parametrize("name", PYRAMIDS)
def test_own_state_dict_loads_unchanged(name):
    model = made(name)
    state = model.state_dict()
    assert model.weights_from(state).keys() == state.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", NANO)
def test_two_classes_are_learned_in_thirty_steps(name):
    model = create_model(name, num_classes=2).train()
    labels = torch.arange(16) % 2
    x = images(batch=16) + labels[:, None, None, None]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(30):
        logits = model(x)
        assert logits.shape == (16, 2)
        loss = torch.nn.functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", PYRAMIDS)
def test_pyramid_of_maps(name):
    model = made(name).eval()
    x = images()
    tokens, maps = model.forward_intermediates(x)
    assert torch.equal(tokens, model.forward_features(x))
    assert [32 // m.shape[2] for m in maps] == STRIDES[name] == [i["reduction"] for i in model.feature_info]
    assert [m.shape[1] for m in maps] == [i["num_chs"] for i in model.feature_info]
    normed = model.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)[0]
    assert torch.equal(normed.flatten(2).transpose(1, 2), tokens[:, 1:])
    features = timm.create_model(name, features_only=True, out_indices=(0, 2)).eval()
    assert features.feature_info.reduction() == [4, 16]
    assert [tuple(m.shape) for m in features(x)] == [tuple(maps[0].shape), tuple(maps[2].shape)]
    assert {n.split(".")[1] for n, _ in features.named_parameters()} == {"stages"}


@pytest.mark.parametrize("name", PYRAMIDS)
def test_classifier_and_pooling(name):
    model = made(name, num_classes=0).eval()
    x = images()
    tokens = model.forward_features(x)
    assert torch.equal(model(x), tokens[:, 0])
    model.reset_classifier(7, "avg")
    assert model.get_classifier().out_features == model.num_classes == 7
    assert not model.head.training
    assert torch.equal(model.forward_head(tokens, pre_logits=True), tokens[:, 1:].mean(1))
    model.reset_classifier(3)
    assert model.global_pool == "avg"
    assert model(x).shape == (2, 3)
    with pytest.raises(ConfigError, match=r"global_pool 'catavgmax'.*'token'"):
        model.reset_classifier(3, "catavgmax")


@pytest.mark.parametrize("name", PYRAMIDS)
@pytest.mark.parametrize("rate", ["drop_rate", "drop_path_rate", "proj_drop_rate", "attn_drop_rate"])
def test_drop_rates_act_in_training_only(name, rate):
    model = made(name, **{rate: 0.5})
    assert torch.equal(model.eval()(images()), model(images()))
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    assert not torch.equal(model(images()), model(images()))


def test_drop_path_of_cvt_rises_over_the_last_stage_and_spares_the_shortcut():
    model = made("cvt_nano", drop_path_rate=0.3)
    rates = [[getattr(b.drop_path, "drop_prob", 0.0) for b in stage.blocks] for stage in model.stages]
    assert rates[:2] == [[0.0], [0.0, 0.0]]
    assert rates[2] == pytest.approx([0.0, 0.1, 0.2, 0.3])
    block = model.stages[2].blocks[3].train()
    block.drop_path.drop_prob = 1.0
    x = torch.randn(2, 5, 120)
    assert torch.equal(block(x, 2, 2), x)


def test_drop_path_of_pvt_rises_over_all_blocks():
    model = made("pvt_v1_nano", drop_path_rate=0.6)
    rates = [getattr(b.layer.drop_path, "drop_prob", 0.0) for stage in model.stages for b in stage.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6])


@pytest.mark.parametrize("name", PYRAMIDS)
def test_checkpointing_changes_memory_and_nothing_else(name):
    plain, checkpointed = made(name).train(), made(name).train()
    checkpointed.set_grad_checkpointing()
    for model in (plain, checkpointed):
        model(images()).square().sum().backward()
    for (n, p), (_, q) in zip(plain.named_parameters(), checkpointed.named_parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-4, atol=1e-4 * float(p.grad.abs().max()), msg=n)
    for (n, p), (_, q) in zip(plain.named_buffers(), checkpointed.named_buffers(), strict=True):
        torch.testing.assert_close(q, p, msg=n)


@pytest.mark.parametrize("name", PYRAMIDS)
def test_layer_wise_learning_rates_and_weight_decay(name):
    model = made(name)
    assert model.no_weight_decay() == {n for n, p in model.named_parameters() if p.ndim == 3}
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1.0, weight_decay=0.05, layer_decay=0.5)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    scales = {n: groups[id(p)]["lr_scale"] for n, p in model.named_parameters()}
    order = [next(s for n, s in scales.items() if n.startswith("stages.0.embed"))]
    for i, stage in enumerate(model.stages):
        order += [
            next(s for n, s in scales.items() if n.startswith(f"stages.{i}.blocks.{j}."))
            for j in range(len(stage.blocks))
        ]
    order.append(scales["head.weight"])
    assert order == sorted(set(order))
    assert all(groups[id(p)]["weight_decay"] == 0 for n, p in model.named_parameters() if n.endswith("cls_token"))


@pytest.mark.parametrize("name", PYRAMIDS)
def test_device_dtype_meta_and_initialisation(name):
    model = create_model(name, device="meta", dtype=torch.bfloat16)
    tensors = [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]
    assert {(t.device.type, t.dtype) for t in tensors} == {("meta", torch.bfloat16)}
    model = create_model(name, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(7)
    model.init_weights()
    left = [n for n, t in model.state_dict().items() if t.is_floating_point() and (t == 7).all()]
    assert left == []


@pytest.mark.parametrize("name", NANO)
def test_copy_pickle_channels_and_channels_last(name):
    model = made(name, in_chans=1).eval()
    x = images(channels=1)
    expected = model(x)
    for same in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(same(x), expected)
    last = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-4)


def test_cvt_takes_any_size_from_three_pixels():
    model = made("cvt_nano").eval()
    for size in (3, 4, 17, 33, (3, 50), (40, 21)):
        assert torch.isfinite(model(images(size))).all()
    with pytest.raises(ConfigError, match="from 3 x 3 px up, got 2 x 9"):
        model(images((2, 9)))
    with pytest.raises(ConfigError, match="from 3 x 3 px up, got 2 x 2"):
        create_model("cvt_nano", img_size=2)


@pytest.mark.parametrize("side", [32, 33, 47, 50, 64, 95, 256])
def test_pvt_takes_every_square_it_was_built_for(side):
    model = create_model("pvt_v1_tiny", img_size=side, depths=(1, 1, 1, 1), num_classes=2).eval()
    assert model(images(side, batch=1)).shape == (1, 2)


def test_pvt_takes_other_sizes_with_its_positions_resampled():
    model = made("pvt_v1_nano", img_size=64).eval()
    for size in (32, 33, 96, (32, 128), (70, 45)):  # (32, 128) has as many tokens as 64 x 64
        assert torch.isfinite(model(images(size))).all()
    wide = made("pvt_v1_nano", img_size=96).eval()  # resampled when weights are loaded, or in the pass: the same
    wide.load_state_dict(wide.weights_from(model.state_dict()))
    torch.testing.assert_close(model(images(96)), wide(images(96)))
    plain = made("pvt_v1_nano", img_size=64).eval()
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():  # positions that are the same everywhere are so on every grid
        for stage in plain.stages:
            stage.embed.position_embeddings[:] = stage.embed.position_embeddings[:, -1:]
    grid = plain(images(96))
    with torch.no_grad():
        for stage in plain.stages:
            stage.embed.position_embeddings[:] += 0.1 * torch.randn_like(stage.embed.position_embeddings)
    assert not torch.allclose(plain(images(96)), grid)


def test_pvt_refuses_sizes_without_a_grid():
    for img_size in (31, (32, 64), 0):
        with pytest.raises(ConfigError, match=r"square images from 32 x 32 px up, got"):
            create_model("pvt_v1_nano", img_size=img_size)
    with pytest.raises(ConfigError, match=r"images from 32 px up, got 64 x 31"):
        made("pvt_v1_nano")(images((64, 31)))


@pytest.mark.parametrize("name", PYRAMIDS)
def test_other_channels_and_unknown_arguments_are_refused(name):
    with pytest.raises(ConfigError, match=r"takes images \(B, 3, H, W\), got \(2, 1, 32, 32\).*in_chans"):
        made(name)(images(channels=1))
    with pytest.raises(ConfigError, match="qk_norm"):
        create_model(name, qk_norm=True)


@pytest.mark.parametrize("name", [*NANO, "cvt_13", "pvt_v1_small"])
def test_weights_that_are_nowhere_are_refused(name):
    with pytest.raises(ConfigError, match=r"no weights to download.*pretrained_cfg_overlay"):
        create_model(name, pretrained=True)


def test_a_misspelt_name_gets_a_hint():
    with pytest.raises(ConfigError, match="did you mean pvt_v1_small"):
        create_model("pvt_v1_smal")


@pytest.mark.parametrize("name", PYRAMIDS)
def test_without_transformers_the_extra_is_named(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"pip install 'cmtvision\[peers\]'"):
        create_model(name)


def test_a_file_of_weights_is_read_safely(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps({"stages": print}, protocol=2))
    with pytest.raises(CheckpointError, match=r"weights\.pth"):
        create_model("cvt_nano", pretrained=True, pretrained_cfg_overlay={"file": str(path)})


def test_the_list_shows_ours_and_peers_on_request():
    plain, both = _chosen(None, peers=False), _chosen(None, peers=True)
    assert "cmt_s" in plain
    assert not {"cvt_13", "vit_nano", "cmt_ladder_3_lpu"} & set(plain)
    assert both == [*plain, *(system.name for system in SYSTEMS if system.made_by != "ours")]
    assert _chosen("pvt_v1_?mall", peers=False) == ["pvt_v1_small"]
    assert "cmt_ladder_3_lpu" in _chosen("ladder", peers=False)


def test_the_list_needs_no_transformers(monkeypatch):
    row = _row("cvt_nano")
    assert (row["parameters"], row["made_by"], row["missing"]) == (1_011_420, "transformers", None)
    monkeypatch.setitem(sys.modules, "transformers", None)
    row = _row("cvt_nano")
    assert (row["parameters"], row["gmacs"], row["input_size"]) == (None, None, [3, 32, 32])
    assert "cmtvision[peers]" in row["missing"]


def test_every_system_has_one_name_that_makes_it():
    names = [system.name for system in SYSTEMS]
    assert len(set(names)) == len(names)
    assert [name for name in names if not timm.is_model(name)] == []
    assert (find_system("cmt_ladder_1_stem").family, find_system("ceit_nano").family) == ("CMT", "CeiT")


@pytest.mark.parametrize("name", NANO)
def test_configuration_of_the_nano_peers(name):
    cfg = create_model(name).pretrained_cfg
    assert cfg["input_size"] == (3, 32, 32)
    assert cfg["fixed_input_size"] == (name != "cvt_nano")
    assert isinstance(create_model(name), TokenPyramid) == (name in PYRAMIDS)
