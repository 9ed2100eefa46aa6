import json
import resource

import numpy as np
import pytest
import torch
from data_files import photo
from timm.data import create_transform, resolve_data_config

from cmtvision.data.preprocess import Preprocess
from cmtvision.errors import DataError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INPUTS = [(28, 28), (31, 57), (300, 200), (20, 500), (224, 224), (7, 9), (1, 1), (256, 255)]


def make(size=(32, 32), crop_pct=0.9, interpolation="bicubic", mean=MEAN, std=STD, channels=3) -> Preprocess:
    return Preprocess(size, crop_pct, interpolation, mean, std, channels)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 1.0])
@pytest.mark.parametrize("size", [(32, 32), (224, 224), (160, 192), (65, 32)])
def test_bit_equal_to_timm(size, crop_pct, interpolation):
    ours = make(size, crop_pct, interpolation)
    theirs = create_transform((3, *size), crop_pct=crop_pct, interpolation=interpolation, mean=MEAN, std=STD)
    for height, width in INPUTS:
        image = photo(height, width)
        expected = theirs(image)
        got = ours(image)
        assert got.dtype == np.float32
        assert torch.equal(torch.from_numpy(got), expected), (height, width)


@pytest.mark.parametrize("size", [(33, 48), (48, 33)])
def test_an_image_smaller_than_the_crop_is_padded_as_timm_does(size):
    """For a size that is not square timm rounds the resized edges and may land below the crop; pad on odd sides."""
    ours = make(size, 1.0)
    theirs = create_transform((3, *size), crop_pct=1.0, interpolation="bicubic", mean=MEAN, std=STD)
    for height, width in [(a, b) for a in range(20, 40) for b in (29, 30, 41, 90)]:
        image = photo(height, width)
        assert torch.equal(torch.from_numpy(ours(image)), theirs(image)), (height, width)


def test_the_centre_crop_pads_like_torchvision():
    from torchvision.transforms import CenterCrop

    ours = make((40, 41), 1.0)
    for height, width in [(33, 60), (60, 34), (10, 11), (39, 40), (40, 41), (47, 52)]:
        image = photo(height, width)
        object.__setattr__(ours, "resized", lambda h, w: (h, w))  # no resize, only the crop
        assert np.array_equal(ours.prepare(image), np.asarray(CenterCrop((40, 41))(image))), (height, width)


def test_a_gray_image_for_an_rgb_network_equals_timm_on_its_rgb_copy():
    gray = photo(50, 37).convert("L")
    theirs = create_transform((3, 32, 32), crop_pct=0.9, interpolation="bicubic", mean=MEAN, std=STD)
    assert torch.equal(torch.from_numpy(make()(gray)), theirs(gray.convert("RGB")))


def test_one_channel_is_gray_and_equals_timm():
    ours = make(mean=(0.5,), std=(0.25,), channels=1)
    theirs = create_transform((1, 32, 32), crop_pct=0.9, interpolation="bicubic", mean=(0.5,), std=(0.25,))
    image = photo(50, 37)
    assert torch.equal(torch.from_numpy(ours(image)), theirs(image.convert("L")))


def test_five_channels_come_from_arrays_only():
    ours = make(mean=(0.1, 0.2, 0.3, 0.4, 0.5), std=(1.0,) * 5, channels=5)
    array = np.random.default_rng(0).integers(0, 256, (50, 37, 5), dtype=np.uint8)
    third = make(mean=(0.3,), std=(1.0,), channels=1)(np.ascontiguousarray(array[:, :, 2]))
    assert np.array_equal(ours(array)[2:3], third)
    with pytest.raises(DataError, match="5-channel model"):
        ours(photo())


def test_the_block_round_trips_through_json_and_refuses_what_it_does_not_know():
    ours = make((160, 192), 0.875)
    block = json.loads(json.dumps(ours.to_dict()))
    assert Preprocess.from_dict(block) == ours
    with pytest.raises(DataError, match="format_version 2"):
        Preprocess.from_dict({**block, "format_version": 2})
    with pytest.raises(DataError, match="colour"):
        Preprocess.from_dict({**block, "colour": "bgr"})
    with pytest.raises(DataError, match="preprocess block"):
        Preprocess.from_dict({**block, "size": "large"})


def test_from_timm_takes_the_config_and_adapts_the_channels():
    config = resolve_data_config(
        {}, pretrained_cfg={"input_size": (3, 64, 48), "crop_pct": 0.95, "mean": (0.1, 0.2, 0.6)}
    )
    ours = Preprocess.from_timm(config)
    assert (ours.size, ours.crop_pct, ours.interpolation, ours.mean) == ((64, 48), 0.95, "bicubic", (0.1, 0.2, 0.6))
    assert Preprocess.from_timm({**config, "input_size": (1, 64, 48)}).mean == pytest.approx((0.3,))
    assert Preprocess.from_timm({**config, "input_size": (4, 64, 48)}).mean == (0.1, 0.2, 0.6, 0.1)
    with pytest.raises(DataError, match="squash"):
        Preprocess.from_timm({**config, "crop_mode": "squash"})


@pytest.mark.parametrize(
    "change",
    [{"crop_pct": 0.0}, {"crop_pct": 1.1}, {"size": (0, 4)}, {"interpolation": "random"}, {"std": (1.0, 0.0, 1.0)},
     {"mean": (0.5,)}],
)  # fmt: skip
def test_senseless_values_are_refused_by_name(change):
    with pytest.raises(DataError, match=f"preprocess {next(iter(change))}: got"):
        make(**change)


@pytest.mark.parametrize("shape", [(1, 100_000), (100_000, 1), (1, 1400), (3, 60_000)])
@pytest.mark.parametrize("size", [(224, 224), (224, 160)])
def test_a_thread_of_pixels_takes_no_more_memory_than_its_crop(shape, size):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = make(size).prepare(pixels)
    assert found.shape == (*size, 3)
    assert found.std() > 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 400_000  # KB; the whole would be far more


@pytest.mark.parametrize("shape", [(5, 400), (400, 3), (31, 500), (2, 300)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos"])
def test_the_crop_of_a_thread_is_the_crop_of_the_whole(monkeypatch, shape, interpolation):
    pixels = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    for size in ((64, 64), (64, 48)):
        preprocess = make(size, interpolation=interpolation)
        whole = preprocess.prepare(pixels).astype(int)
        monkeypatch.setattr("cmtvision.data.preprocess.MAX_PIXELS", 1)
        part = preprocess.prepare(pixels).astype(int)
        monkeypatch.undo()
        assert abs(part - whole).max() <= 1


@pytest.mark.parametrize(
    "change",
    [{"size": [30_000, 30_000]}, {"size": [float("inf")] * 2}, {"size": [10**400] * 2}, {"crop_pct": 10**400},
     {"crop_pct": 1e-320}, {"channels": float("inf")}, {"mean": [1e39] * 3}, {"std": [1e-50] * 3}],
)  # fmt: skip
def test_a_block_that_would_fill_the_memory_or_give_no_numbers_is_refused(change):
    block = Preprocess((32, 32), 0.9, "bicubic", (0.5,) * 3, (0.5,) * 3).to_dict()
    with pytest.raises(DataError, match="preprocess"):
        Preprocess.from_dict(block | change)
