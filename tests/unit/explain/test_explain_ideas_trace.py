"""The trace must be the network's own doing: logits, attention and convolutions equal what its modules compute."""

import pytest
import torch

from cmtvision.errors import ConfigError
from cmtvision.explain.ideas import measures
from cmtvision.explain.ideas.choices import choices, packed, unpacked
from cmtvision.explain.ideas.trace import as_cmt, evaluated, trace
from cmtvision.models import create_model
from random_weights import randomise

NETWORKS = {
    "paper": ("cmt_nano", {}),
    "wide image": ("cmt_nano", {"img_size": (50, 90)}),
    "a bias per block": ("cmt_nano", {"rel_pos": "block", "in_chans": 1}),
    "relative bias": ("cmt_nano", {"rel_pos": "relative", "qkv_bias": False, "kv_norm": "layer"}),
    "no shortcut": ("cmt_nano", {"ffn": "no_shortcut"}),
    "rung 2": ("cmt_ladder_2_stages_nano", {}),
}


def network_and_image(kind="paper"):
    name, options = NETWORKS[kind]
    network = randomise(create_model(name, num_classes=5, **options))
    return network, torch.randn(network.in_chans, *network.img_size)


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_trace_is_what_the_network_computes(kind):
    network, image = network_and_image(kind)
    network.train()
    found = trace(network, image)
    assert network.training
    assert not any(module._forward_hooks for module in network.modules())
    network.eval()
    with torch.inference_mode():
        torch.testing.assert_close(found.logits, network(image[None])[0], rtol=0, atol=0)
        for ours, theirs in zip(found.stages, network.forward_intermediates(image[None])[1], strict=True):
            torch.testing.assert_close(ours, theirs[0], rtol=0, atol=0)
        torch.testing.assert_close(found.stem[-1], network.stem(image[None])[0], rtol=0, atol=0)
    blocks = [block for stage in network.stages for block in stage.blocks]
    assert len(found.blocks) == len(blocks)
    for one, block in zip(found.blocks, blocks, strict=True):
        attention = one.attention
        weights = attention.weights()
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:2]))
        assert weights.shape[1:] == (attention.grid[0] * attention.grid[1], attention.keys[0] * attention.keys[1])
        mixed = (weights @ attention.v).transpose(0, 1).flatten(1)  # (N, C), what the fused path gave
        torch.testing.assert_close(mixed, attention.mixed, rtol=1e-4, atol=1e-5)
        with torch.inference_mode():
            for part, whole in ((one.lpu, block.lpu), (one.irffn, getattr(block.irffn, "neighbours", None))):
                if part is not None:
                    torch.testing.assert_close(part.after, whole(part.before[None])[0])


def test_what_a_network_lacks_is_named():
    lacking = {kind: trace(*network_and_image(kind)).lacks for kind in ("paper", "no shortcut", "rung 2")}
    assert lacking["paper"] == []
    assert lacking["no shortcut"] == ["the identity beside the IRFFN's convolution"]
    assert lacking["rung 2"] == [
        "the Local Perception Unit",
        "the reduced grid of keys and values",
        "the position bias B",
        "the depthwise convolution of the IRFFN",
    ]


def test_other_networks_are_refused_in_one_line():
    for name in ("resnet18", "cmt_ladder_0_deit_nano"):
        with pytest.raises(ConfigError, match=f"^{name}: .* is no CMT.*take cmt_nano"):
            as_cmt(create_model(name), name)


def test_silencing_an_idea_is_zeroing_its_weights():
    network, image = network_and_image()
    found = trace(network, image)
    without = {one.idea: one for one in measures.silenced(network, found)}
    assert list(without) == ["the LPU's convolution", "the position bias B", "the IRFFN's depthwise convolution"]
    torch.testing.assert_close(evaluated(network, image), found.logits, rtol=0, atol=0)  # the hooks are gone
    with torch.no_grad():
        for stage in network.stages:
            stage.position_bias.table.zero_()
    bare = evaluated(network, image)
    torch.testing.assert_close(without["the position bias B"].logits, bare)
    change = float((bare - found.logits).norm() / found.logits.norm())
    assert without["the position bias B"].change == pytest.approx(change, rel=1e-4)
    assert change > 1e-3
    assert measures.moved_by_bias(found.blocks[0].attention) > 0.05
    assert measures.moved_by_bias(trace(network, image).blocks[0].attention) == 0


def test_measures_of_known_maps():
    flat, ramp = torch.ones(3, 6, 6), torch.arange(36.0).reshape(1, 6, 6) - 17.5
    assert measures.between_positions(flat) == 0
    assert measures.between_positions(ramp) == 1
    assert measures.between_positions(ramp + 17.5) == pytest.approx(0.25, abs=0.02)
    image = torch.zeros(3, 24, 24)
    image[:, :, 12:] = 1  # a bright right half: one edge, at the seventh of twelve columns
    small = torch.nn.functional.avg_pool2d(image, 2).mean(0)
    edge = torch.nn.functional.pad(small.diff(dim=1), (0, 1))
    assert measures.followers(torch.stack([small, 2 - small, -edge, torch.randn(12, 12)]), image) == (2, 1)


@pytest.mark.parametrize("most", [10_000_000, 20_000])
def test_the_packed_table_holds_the_scores_and_the_bias_and_stays_within_its_size(most):
    network, image = network_and_image("wide image")
    found = trace(network, image)
    chosen = choices(found, most)
    assert sum(one.values for one in chosen) <= most
    assert all(len(one.blocks) == one.num_blocks for one in chosen)
    assert (chosen[0].cell == (1, 2)) == (most > 20_000)  # 13 x 23 positions, of which it offers 16 a side or fewer
    for one in chosen:
        height, width = one.attention.grid
        assert [row // one.cell[0] for row in one.rows] == list(range(-(-height // one.cell[0])))
        assert [column // one.cell[1] for column in one.columns] == list(range(-(-width // one.cell[1])))
        assert one.blocks[0].place == 1
        assert one.blocks[-1].place == one.num_blocks
        table = packed(one, 4)
        assert len(table["biases"]) == 1  # the stage's, shared
        places = [row * width + column for row in one.rows for column in one.columns]
        for block, entry in zip(one.blocks, table["blocks"], strict=True):
            scores = block.attention.scores[:, places].double()
            torch.testing.assert_close(unpacked(entry["scores"]), scores.flatten(), rtol=0, atol=1e-3)
        bias = one.attention.bias[:, places].double()
        torch.testing.assert_close(unpacked(table["biases"][0]), bias.flatten(), rtol=0, atol=1e-3)
