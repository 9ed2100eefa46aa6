"""The form that a model is opened in: as fast as may be, and never another answer."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from seen_norms import network
from torch import nn

import cmtvision
from cmtvision.artefact import Artefact, write_artefact
from cmtvision.artefact.runtimes.fast import PART, SAME, FastRuntime
from cmtvision.artefact.runtimes.torch import NetworkRuntime
from cmtvision.data import Preprocess

CONTRACT = Preprocess((32, 48), 1.0, "bicubic", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def batch(count, height=32, width=48):
    return np.random.default_rng(count).normal(size=(count, 3, height, width)).astype(np.float32)


@pytest.mark.parametrize("count", [1, 3, 2 * PART, 4 * PART + 1])
def test_a_cmt_is_fused_and_gives_the_same_numbers(count):
    plain, fast = NetworkRuntime(network(), "cpu"), FastRuntime(network(), "cpu", threads=2)
    images = batch(count)
    for _ in range(2):
        expected, features = plain.with_features(images)
        found, others = fast.with_features(images)
        assert fast.fused is not None
        np.testing.assert_allclose(found, expected, rtol=0, atol=SAME * max(1, np.abs(expected).max()))
        np.testing.assert_allclose(others, features, rtol=0, atol=SAME * max(1, np.abs(features).max()))
        np.testing.assert_array_equal(fast(images), found)


def test_a_network_that_was_changed_stays_as_it_is():
    model = network()
    model.head.register_forward_hook(lambda module, given, out: 2 * out)  # a fused network would not have it
    fast = FastRuntime(model, "cpu")
    images = batch(3)
    np.testing.assert_array_equal(fast(images), NetworkRuntime(model, "cpu")(images))
    assert fast.fused is None


def test_a_network_that_cannot_be_fused_stays_as_it_is():
    model = network()
    model.stem.norm1 = nn.Identity()  # not what folding expects
    fast = FastRuntime(model, "cpu")
    images = batch(3)
    np.testing.assert_array_equal(fast(images), NetworkRuntime(model, "cpu")(images))
    assert fast.fused is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_not_taken_for_the_same(value):
    model = network()
    nn.init.constant_(model.head.bias, value)
    fast = FastRuntime(model, "cpu")
    assert not np.isfinite(fast(batch(2))).any()
    assert fast.fused is None


def test_other_networks_are_computed_in_parts_only():
    model = network("resnet10t")
    fast = FastRuntime(model, "cpu", threads=2)
    images = batch(2 * PART + 3, 64, 64)
    np.testing.assert_allclose(fast(images), NetworkRuntime(model, "cpu")(images), rtol=0, atol=1e-5)
    assert fast.fused is None


def test_threads_of_the_process_keep_their_number():
    before = torch.get_num_threads()
    try:
        fast = FastRuntime(network(), "cpu", threads=3)
        fast(batch(3 * PART))
        assert torch.get_num_threads() == 3
        with ThreadPoolExecutor(1) as other:  # a thread that begins afterwards
            assert other.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)


def test_several_threads_may_ask_at_once():
    fast = FastRuntime(network(), "cpu", threads=2)
    images = batch(2 * PART)
    expected = NetworkRuntime(network(), "cpu")(images)
    together = threading.Barrier(4)

    def ask(_):
        together.wait()
        return fast(images)

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(ask, range(4)):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_what_is_opened_is_fast_and_plain_where_that_is_asked(tmp_path):
    model = network(img_size=(32, 48))
    write_artefact(tmp_path, Artefact("cmt_nano", {"img_size": [32, 48]}, list("abcde"), CONTRACT, model=model))
    images = torch.from_numpy(batch(4))
    fast, plain = cmtvision.load(tmp_path, "cpu"), cmtvision.load(tmp_path, "cpu", plain=True)
    np.testing.assert_array_equal(plain.forward(images).numpy(), NetworkRuntime(model, "cpu")(images.numpy()))
    np.testing.assert_allclose(fast.forward(images), plain.forward(images), rtol=0, atol=1e-5)
    assert fast.runtime.fused is not None
    assert not isinstance(plain.runtime, FastRuntime)
