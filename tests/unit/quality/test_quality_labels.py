"""Label errors, and images unlike their class."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from cmtvision.data.sample import _test_photos
from cmtvision.errors import ConfigError
from cmtvision.quality.label_errors import find_label_errors, out_of_fold
from cmtvision.quality.outliers import reduced, unlike_their_class
from cmtvision.quality.patches import patch_features

COUNT = 1200


@pytest.fixture(scope="module")
def embedded():
    """(features, labels) of 1,200 photos."""
    pixels, labels = _test_photos()
    small = [np.asarray(Image.fromarray(one).convert("RGB").resize((32, 32))) for one in pixels[:COUNT]]
    return patch_features(np.stack(small)), labels[:COUNT].astype(np.int64)


@pytest.mark.slow
def test_flipped_labels_come_first(embedded):
    features, labels = embedded
    generator = np.random.default_rng(0)
    flipped = generator.permutation(COUNT)[:60]
    given = labels.copy()
    given[flipped] = (labels[flipped] + generator.integers(1, 10, 60)) % 10
    found = find_label_errors(features, given, np.arange(COUNT))
    first = set(found.wrong[:60].tolist())
    assert len(first & set(flipped.tolist())) >= 36
    assert 0.7 < found.accuracy < 0.9
    assert (found.suggested[found.wrong] != given[found.wrong]).mean() > 0.9


@pytest.mark.slow
def test_a_copy_does_not_vouch_for_its_own_label():
    generator = np.random.default_rng(0)
    noise = generator.normal(size=(100, 400)).astype(np.float16)
    features, labels = np.concatenate([noise, noise]), np.tile(generator.integers(0, 2, 100), 2)
    fair = out_of_fold(features, labels, np.tile(np.arange(100), 2)).argmax(1)
    fooled = out_of_fold(features, labels, np.arange(200)).argmax(1)
    assert (fair == labels).mean() < 0.65  # there is nothing to learn
    assert (fooled == labels).mean() > 0.8


@pytest.mark.slow
def test_embedding_is_repeatable_and_leaves_the_global_generator_alone(embedded):
    thumbnails = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    before = torch.get_rng_state()
    first, second = patch_features(thumbnails), patch_features(thumbnails)
    reduced(embedded[0], 16)
    assert np.array_equal(first, second)
    assert np.isfinite(first).all()
    assert torch.equal(before, torch.get_rng_state())


def test_one_image_far_from_its_class_is_named_first():
    generator = np.random.default_rng(0)
    near = generator.normal(size=(60, 8)) * 0.1 + np.eye(8)[0]
    near[17] = np.eye(8)[5]
    embeddings = (near / np.linalg.norm(near, axis=1, keepdims=True)).astype(np.float32)
    found = unlike_their_class(embeddings, np.zeros(60, np.int64), np.arange(60))
    assert found[0][0] == 17
    assert len(found) <= 3


def test_without_cleanlab_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cleanlab.count", None)
    with pytest.raises(ConfigError, match=r"pip install 'cmtvision\[quality\]'"):
        find_label_errors(np.zeros((4, 2), np.float16), np.zeros(4, np.int64), np.arange(4))
