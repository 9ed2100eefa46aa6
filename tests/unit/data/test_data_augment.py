import random

import numpy as np
import pytest
import torch
from data_files import photo
from PIL import Image

from cmtvision.data.preprocess import Preprocess
from cmtvision.data.training.augment import keyed_rng, mixer, train_transform
from cmtvision.errors import ConfigError
from cmtvision.recipe import AugmentSection

PLAIN = {"auto_augment": None, "random_erasing": 0.0, "mixup": 0.0, "cutmix": 0.0}
PREPROCESS = Preprocess((32, 40), 1.0, "bicubic", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def draw() -> tuple[float, float, float]:
    return random.random(), np.random.rand(), float(torch.rand(()))


@pytest.mark.parametrize("python_only", [False, True])
def test_keyed_rng_restores_the_generators_even_after_an_error(python_only):
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    with pytest.raises(ZeroDivisionError), keyed_rng(1, 2, 3, python_only):
        _ = random.random() / 0
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before


def test_keyed_rng_depends_on_each_number():
    def values(*key):
        with keyed_rng(*key):
            return draw()

    drawn = [values(*key) for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, -1)]]
    assert values(0, 0, 0) == drawn[0]
    assert all(len({value[which] for value in drawn}) == 5 for which in range(3))


@pytest.mark.parametrize(
    "augment",
    [AugmentSection(), AugmentSection(auto_augment=None, color_jitter=0.4), AugmentSection(auto_augment="augmix-m5-w4"),
     AugmentSection(**{**PLAIN, "random_erasing": 1.0}, random_resized_crop=False, crop_padding=4, vflip=0.5)],
)  # fmt: skip
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_every_kind_gives_the_inputs_shape_and_repeats_by_key(augment, mode):
    transform = train_transform(PREPROCESS, augment)
    image = photo(50, 70).convert(mode)
    outs = []
    for index in (0, 0, 1):
        with keyed_rng(0, 0, index):
            outs.append(transform(image))
    assert outs[0].shape == (3, 32, 40)
    assert outs[0].dtype == torch.float32
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])


def test_with_nothing_random_training_sees_what_evaluation_sees():
    transform = train_transform(PREPROCESS, AugmentSection(random_resized_crop=False, hflip=0.0, **PLAIN))
    assert np.array_equal(transform(photo(60, 50)).numpy(), PREPROCESS(photo(60, 50)))


def test_padded_crop_is_a_window_of_the_bordered_image():
    transform = train_transform(
        PREPROCESS, AugmentSection(random_resized_crop=False, crop_padding=3, hflip=0.0, **PLAIN)
    )
    bordered = np.pad(PREPROCESS.prepare(photo(60, 50)), ((3, 3), (3, 3), (0, 0)))
    windows = {(i, j): PREPROCESS.finish(bordered[i : i + 32, j : j + 40]) for i in range(7) for j in range(7)}
    seen = set()
    for index in range(300):
        with keyed_rng(0, 0, index):
            out = transform(photo(60, 50)).numpy()
        seen.update(place for place, window in windows.items() if np.array_equal(window, out))
    assert len(seen) > 40  # nearly all of the 49 places, and nothing else would have counted
    assert {(0, 0), (6, 6)} & seen


def test_flips_are_flips():
    both = AugmentSection(random_resized_crop=False, **{**PLAIN, "hflip": 1.0, "vflip": 1.0})
    out = train_transform(PREPROCESS, both)(photo(60, 50)).numpy()
    assert np.array_equal(out, PREPROCESS(photo(60, 50))[:, ::-1, ::-1])


def test_one_channel_and_five_channels():
    gray = Preprocess((32, 32), 1.0, "bicubic", (0.5,), (0.2,), channels=1)
    assert train_transform(gray, AugmentSection())(photo()).shape == (1, 32, 32)
    five = Preprocess((32, 32), 1.0, "bicubic", (0.5,) * 5, (0.2,) * 5, channels=5)
    array = np.zeros((40, 40, 5), dtype=np.uint8)
    assert train_transform(five, AugmentSection(random_resized_crop=False, **PLAIN))(array).shape == (5, 32, 32)
    with pytest.raises(ConfigError, match="5 channels"):
        train_transform(five, AugmentSection())


def test_a_policy_timm_cannot_read_is_a_config_error():
    with pytest.raises(ConfigError, match="auto_augment"):
        train_transform(PREPROCESS, AugmentSection(auto_augment="rand-nonsense-q7"))


@pytest.mark.parametrize("batch", [8, 5, 1])
@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_mixed_labels_say_what_was_mixed(batch, mixup, cutmix):
    """Photos of a constant value, one class each: the share of pixels must be the share in the label."""
    mix = mixer(AugmentSection(mixup=mixup, cutmix=cutmix, label_smoothing=0.0), num_classes=8)
    labels = torch.arange(batch)
    for step in range(10):
        images, soft = mix(labels.float().view(-1, 1, 1, 1).expand(-1, 3, 32, 32).clone(), labels, step=step)
        assert torch.allclose(soft.sum(1), torch.ones(batch))
        assert torch.allclose(images.mean((1, 2, 3)), soft @ torch.arange(8.0), atol=1e-4)


def test_several_labels_are_mixed_by_the_share_of_pixels():
    """Photo i has the labels i and 0: after mixing each label stands with the share of the photos that have it."""
    mix = mixer(AugmentSection(mixup=0.0, cutmix=1.0, label_smoothing=0.1), num_classes=4)
    labels = torch.eye(4)
    labels[:, 0] = 1
    for step in range(5):
        values = torch.arange(4.0).view(-1, 1, 1, 1).expand(-1, 3, 32, 32).clone()
        images, mixed = mix(values, labels, step=step)
        assert torch.equal(mixed[:, 0], torch.ones(4))  # all have it; smoothing is the loss's part
        assert torch.allclose(images.mean((1, 2, 3)), mixed[:, 1:] @ torch.arange(1.0, 4.0), atol=1e-4)


def test_mixing_is_keyed_and_leaves_the_generators_alone():
    mix = mixer(AugmentSection(), 4)
    images, labels = torch.rand(4, 3, 8, 8), torch.arange(4)
    np.random.seed(0)
    state = np.random.get_state()[1].tolist()
    outs = [mix(images.clone(), labels, seed=1, epoch=2, step=step)[0] for step in (0, 0, 1)]
    assert np.random.get_state()[1].tolist() == state
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])


def test_mixing_ends_at_its_epoch_but_smoothing_does_not():
    mix = mixer(AugmentSection(mix_off_epoch=3, label_smoothing=0.1), 4)
    images, labels = torch.rand(4, 3, 8, 8), torch.arange(4)
    for epoch, same in ((2, False), (3, True), (9, True)):
        out, soft = mix(images.clone(), labels, epoch=epoch)
        assert torch.equal(out, images) is same
    assert torch.allclose(soft, torch.eye(4) * 0.9 + 0.025)
    assert mixer(AugmentSection(mixup=0.0, cutmix=0.0), 4) is None
    assert mixer(AugmentSection(mix_prob=0.0), 4) is None


def test_randaugment_may_keep_no_bits() -> None:
    """Pillow 13 refuses what timm's PosterizeIncreasing asks for at full magnitude."""
    preprocess = Preprocess((16, 16), 1.0, "bicubic", (0.0,) * 3, (1.0,) * 3)
    transform = train_transform(preprocess, AugmentSection(auto_augment="rand-m10-mstd0-inc1", random_erasing=0.0))
    operations = transform._pixel_changes.transforms[0].ops
    (posterize,) = [operation for operation in operations if operation.name == "PosterizeIncreasing"]
    posterize.prob = 1.0
    white = Image.new("RGB", (16, 16), "white")
    assert np.asarray(posterize(white)).max() == 0
