"""The ways to run a target: which there are, which are here, and which cannot be."""

import pytest
from cards import write_export_card

from cmtvision.bench.runtimes import check_options, in_runtimes
from cmtvision.bench.target import find_targets
from cmtvision.errors import ConfigError


@pytest.mark.parametrize(
    ("runtimes", "precisions", "device", "said"),
    [
        (["openvin"], [], "cpu", "did you mean 'openvino'"),
        (["tensorrt9000"], [], "cpu", "expected one of eager"),
        ([], ["fp23"], "cpu", "did you mean"),
        ([], ["int8"], "cpu", "cmtvision quantize"),
        (["cuda-graph"], [], "cpu", "needs an NVIDIA GPU"),
        (["openvino"], [], "cuda", "add --device cpu"),
        (["onnx"], ["amp"], "cpu", "autocast is PyTorch's own"),
    ],
)
def test_options_that_cannot_be(runtimes, precisions, device, said):
    with pytest.raises(ConfigError, match=said):
        check_options(runtimes, precisions, device)


def test_a_runtime_that_is_not_installed_names_its_extra(monkeypatch):
    monkeypatch.setattr("cmtvision.bench.runtimes.find_spec", lambda name: None if name == "openvino" else object())
    with pytest.raises(ConfigError, match=r"pip install 'cmtvision\[openvino\]'"):
        check_options(["openvino"], [], "cpu")
    ways = in_runtimes(find_targets(["cmt_nano"]))
    assert [way.runtime for way in ways] == ["eager", "fused", "torch", "onnx"]


def test_names_have_every_way_and_exports_their_own(tmp_path):
    write_export_card(tmp_path)
    name, export = find_targets(["cmt_nano", str(tmp_path)])
    ways = in_runtimes([name, export], runtimes=["fused", "eager"], precisions=["fp32", "amp"])
    assert [(way.runtime, way.precision) for way in ways] == [
        ("eager", "fp32"), ("fused", "fp32"), ("eager", "amp"), ("fused", "amp"), ("onnx", "int8"),
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="--precision: fixed in an export"):
        in_runtimes([export], precisions=["bf16"])
    (square,) = in_runtimes([export], img_size=48)  # its own
    assert square.img_size is None
    with pytest.raises(ConfigError, match=r"--img-size: .* is an export for images of 48 x 48 px"):
        in_runtimes([name, export], runtimes=["eager"], img_size=64)
