"""Targets: what words mean, and what a model costs on paper."""

import json

import pytest
import timm
from cards import write_export_card

from cmtvision.bench.target import Work, find_targets
from cmtvision.errors import CheckpointError, ConfigError


def test_words_mean_names_patterns_and_runs_each_once(tmp_path):
    found = [target.name for target in find_targets(["resnet18", "cmt_ladder_?_*_nano", "cmt_ladder_3_lpu_nano"])]
    assert found[0] == "resnet18"
    assert len(found) == 7
    with pytest.raises(ConfigError, match="did you mean cmt_nano"):
        find_targets(["cmt_s", "cmt_nanno"])
    with pytest.raises(ConfigError, match=r"no model matches 'cmt_\?\?\?\?\?\?\?\?\?\?_no\*'"):
        find_targets(["cmt_??????????_no*"])
    with pytest.raises(CheckpointError, match=r"no model\.json"):
        find_targets([str(tmp_path)])


def test_a_name_may_carry_the_size_of_its_images():
    found = find_targets(["cmt_nano", "cmt_nano@64", "resnet1[08]@96"])
    assert [(one.name, one.architecture, one.img_size) for one in found] == [
        ("cmt_nano", "cmt_nano", None),
        ("cmt_nano@64", "cmt_nano", 64),
        ("resnet18@96", "resnet18", 96),
    ]
    assert found[1].work().input_size == (3, 64, 64)
    for word in ("cmt_s@", "@64", "cmt_s@0", "cmt_s@-4", "cmt_s@64x64", "cmt_s@99999999", "cmt_s@²"):
        with pytest.raises(ConfigError, match="such as cmt_s@288"):
            find_targets([word])


def test_an_export_is_found_by_its_folder_and_by_its_files(tmp_path):
    write_export_card(tmp_path)
    (export,) = find_targets([str(tmp_path / "model.onnx"), str(tmp_path), str(tmp_path / "model.json")])
    assert (export.file, export.runtime, export.precision) == (tmp_path, "onnx", "int8")
    assert export.work().input_size == (3, 48, 48)
    with pytest.raises(CheckpointError, match="an export for onnx, without the network's weights"):
        export.build()
    with pytest.raises(CheckpointError):
        find_targets([str(tmp_path / "gone" / "model.onnx")])
    (tmp_path / "other.onnx").touch()
    with pytest.raises(CheckpointError, match=r"other.onnx: not of the model beside it"):
        find_targets([str(tmp_path / "other.onnx")])


def test_an_export_of_a_run_with_a_size_of_its_own_counts_as_that_run(tmp_path):
    write_export_card(tmp_path, 64, img_size=[64, 64])
    (export,) = find_targets([str(tmp_path)])
    own = sum(value.numel() for value in timm.create_model("cmt_nano", num_classes=2, img_size=64).parameters())
    assert (export.work().input_size, export.work().parameters) == ((3, 64, 64), own)


@pytest.mark.parametrize("lost", ["export", "arguments", "runtime", "file"])
def test_a_card_that_is_not_whole_is_said_before_anything_is_measured(lost, tmp_path):
    card = write_export_card(tmp_path)
    del (card["export"] if lost in card["export"] else card)[lost]
    (tmp_path / "model.json").write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match=f"model.json: '{lost}' is missing"):
        find_targets(["cmt_nano", str(tmp_path)])


def test_what_a_pass_must_move():
    work = Work((3, 4, 4), parameters=900, values=1000, activations=2000)
    # a pass of 2 images: weights 1000 * 4, activations 2 * 2000 * 4 each, image 48 * 4 each
    assert work.bytes_moved(2, "fp32") == 4000 + 2 * (16_000 + 192)
    assert work.bytes_moved(2, "bf16") == 2000 + 2 * (8000 + 192)
    assert work.bytes_moved(2, "amp") == 4000 + 2 * (8000 + 192)  # weights stay in float32
    assert Work().bytes_moved(2, "fp32") is None


def test_a_model_is_counted_with_its_buffers_beside_its_parameters():
    work = find_targets(["cmt_nano"])[0].work()
    assert work.input_size == (3, 32, 32)
    assert work.parameters == 1_240_733
    assert work.macs == 6_035_904
    assert work.values > work.parameters
