"""Products by every library: each computes what is counted."""

import numpy as np
import pytest
import torch
from bench_workers import SMALL

from cmtvision.artefact.runtimes.openvino import capabilities, openvino_core
from cmtvision.bench.products import candidates, parse
from cmtvision.errors import ConfigError


@pytest.mark.parametrize("kind", ["fp32", "bf16", "int8"])
def test_each_library_computes_the_product_that_is_counted(kind):
    """Every candidate runs, and its FLOPs are those of its output: rows x columns x length of a dot product."""
    for one in candidates(kind, "cpu", SMALL):
        assert parse(one.name) == (kind, one.library, list(one.shape))
        M, K, N = one.shape
        if one.library == "ONNX Runtime" and kind == "bf16":
            continue  # it has none on a processor
        if one.library == "OpenVINO" and kind not in capabilities(openvino_core(), "CPU"):
            with pytest.raises(ConfigError, match=f"no {kind} arithmetic"):
                one.open()
            continue
        out = one.open()()
        found = next(iter(out.values())).shape if one.library == "OpenVINO" else np.shape(out)
        found = found[1:] if one.library == "ONNX Runtime" else found
        if "conv" in one.library:
            assert out.numel() == M * N
            assert out.is_contiguous(memory_format=torch.channels_last)
        else:
            assert tuple(found) == ((M, K) if one.library == "OpenVINO" else (M, N))
        products = 4 if one.library == "OpenVINO" else 1
        assert one.work == 2 * M * K * N * products
    libraries = {one.library for one in candidates(kind, "cpu", SMALL)}
    assert libraries >= {"torch.mm", "oneDNN linear", "OpenVINO", "ONNX Runtime"}
    assert ("PyTorch conv 3x3" in libraries) == (kind != "int8")
