"""Copies: what must be found, what must not, and what they mean for training."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cmtvision.data.sample import _test_photos
from cmtvision.quality.copies import copy_findings
from cmtvision.quality.duplicates import Pair, group_numbers, near_pairs, same_content
from cmtvision.quality.listing import Photo


@pytest.fixture(scope="module")
def pictures():
    """300 photos as PIL images."""
    return [Image.fromarray(pixels) for pixels in _test_photos()[0][:300]]


def thumbnails(pictures):
    return np.stack([np.asarray(one.convert("RGB").resize((32, 32), Image.Resampling.BICUBIC)) for one in pictures])


def altered(picture, kind):
    width, height = picture.size
    if kind == "resized":
        return picture.resize((width * 2, height * 2), Image.Resampling.BILINEAR)
    if kind == "cropped":
        return picture.crop((1, 0, width, height - 1))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=75)
    return Image.open(out)


@pytest.mark.slow
def test_altered_copies_are_found_and_nothing_else(pictures):
    kinds = ("resized", "re-encoded", "cropped")
    originals = list(range(0, 300, 5))
    copies = [altered(pictures[place], kinds[number % 3]) for number, place in enumerate(originals)]
    found = {(one.first, one.second) for one in near_pairs(thumbnails([*pictures, *copies]), np.arange(360))}
    planted = {(place, 300 + number) for number, place in enumerate(originals)}
    for kind in range(3):
        assert len({pair for pair in planted & found if (pair[1] - 300) % 3 == kind}) >= 19, kinds[kind]
    assert len(found - planted) <= 2


def test_a_thousand_equal_images_are_one_group_and_not_half_a_million_pairs(pictures):
    many = np.repeat(thumbnails(pictures[:2]), [1000, 1], axis=0)
    pairs = near_pairs(many, np.arange(1001))
    assert len(pairs) == 999
    assert len(set(group_numbers(1001, [(one.first, one.second) for one in pairs]).tolist())) == 2


def test_images_of_one_colour_are_not_copies_of_each_other():
    flat = np.stack([np.full((32, 32, 3), level, np.uint8) for level in (10, 10, 200)])
    assert near_pairs(flat, np.arange(3)) == []


def test_one_image_and_none():
    assert near_pairs(np.zeros((0, 32, 32, 3), np.uint8), np.arange(0)) == []
    assert near_pairs(np.zeros((1, 32, 32, 3), np.uint8), np.arange(1)) == []


def photo(name, label, part):
    return Photo(Path(name), name, (label,), part)


def findings_of(photos, same, pairs, seeded=False):
    return {one.kind: one for one in copy_findings(photos, np.array(same), pairs, seeded)}


def test_a_copy_in_two_parts_leaks_and_one_in_the_same_part_does_not():
    photos = [
        photo("a", "cat", "train"),
        photo("b", "cat", "val"),
        photo("c", "cat", "train"),
        photo("d", "cat", "train"),
    ]
    found = findings_of(photos, [0, 0, 2, 3], [Pair(2, 3, 0.01)])
    assert set(found) == {"leakage", "near-duplicates"}
    assert [one.name for one in found["leakage"].items[0].photos] == ["a", "b"]
    assert found["leakage"].severity == "serious"
    assert found["leakage"].summary.startswith("1 training image is also held out")


def test_a_near_copy_of_a_file_that_is_held_out_too_leaks():
    photos = [photo("a", "cat", "train"), photo("b", "cat", "val"), photo("c", "cat", "train")]
    found = findings_of(photos, [0, 0, 2], [Pair(0, 2, 0.01)])
    assert {frozenset(one.name for one in item.photos) for item in found["leakage"].items} == {
        frozenset("ab"),
        frozenset("bc"),
    }


def test_copies_with_other_labels_contradict():
    photos = [photo("a", "cat", "train"), photo("b", "dog", "train")]
    found = findings_of(photos, [0, 1], [Pair(0, 1, 0.01)])
    assert set(found) == {"contradictory-labels"}
    assert found["contradictory-labels"].severity == "serious"


def test_equal_keys_are_paired_with_their_first():
    assert same_content([b"x", b"y", b"x", b"x"]) == [(0, 2), (0, 3)]
    assert group_numbers(5, [(3, 1), (4, 3)]).tolist() == [0, 1, 2, 1, 1]
