"""The bias over relative offsets against loops over every pair of query and key."""

import pytest
import torch

from cmtvision.models.cmt.position import RelativePositionBias, resample_offsets


@pytest.mark.parametrize(("height", "width", "kv_stride"), [(4, 4, 1), (4, 4, 2), (3, 5, 1), (4, 6, 2), (5, 7, 4)])
def test_every_pair_reads_its_offset(height: int, width: int, kv_stride: int) -> None:
    bias = RelativePositionBias(2, (height, width), kv_stride)
    torch.nn.init.normal_(bias.table)
    found = bias(height, width)
    cells = [(row, column) for row in range(height) for column in range(width)]
    keys = cells[-(-(-height // kv_stride) * -(-width // kv_stride)) :]  # the family takes the last queries for keys
    assert found.shape == (1, 2, len(cells), len(keys))
    for n, (query_row, query_column) in enumerate(cells):
        for m, (key_row, key_column) in enumerate(keys):
            row, column = query_row - key_row + height - 1, query_column - key_column + width - 1
            assert torch.equal(found[0, :, n, m], bias.table[:, row, column])


def test_another_grid_is_resampled_as_set_grid_does() -> None:
    bias = RelativePositionBias(2, (4, 4), 2)
    torch.nn.init.normal_(bias.table)
    on_the_fly = bias(6, 8)
    bias.set_grid((6, 8))
    assert bias.table.shape == (2, 11, 15)
    torch.testing.assert_close(bias(6, 8), on_the_fly)


def test_zero_offset_stays_in_the_middle() -> None:
    table = torch.zeros(1, 7, 7)
    table[0, 3, 3] = 1
    larger = resample_offsets(table, 11, 15)
    assert larger.flatten().argmax() == 5 * 15 + 7
    torch.testing.assert_close(larger, larger.flip(1, 2))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_gradient_reaches_the_table_and_script_agrees() -> None:
    bias = RelativePositionBias(2, (4, 4), 2)
    torch.nn.init.normal_(bias.table)
    bias(4, 4).sum().backward()
    assert bias.table.grad is not None
    assert bias.table.grad.sum() == 2 * 16 * 4  # every pair counts once
    with torch.no_grad():
        scripted = torch.jit.script(bias)
        assert torch.equal(scripted(4, 4), bias(4, 4))
        assert torch.equal(scripted(5, 3), bias(5, 3))
