"""The page of the ideas: what it says of which network, and what a browser makes of it."""

import base64
import hashlib
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cmtvision.artefact import load
from cmtvision.data import Preprocess
from cmtvision.explain.ideas import words, write_ideas
from cmtvision.explain.ideas.choices import choices
from cmtvision.explain.ideas.figures import attention_figure
from cmtvision.explain.ideas.page import own_preprocess
from cmtvision.explain.ideas.pictures import diverging_map, feature_colours, sequential_map
from cmtvision.explain.ideas.trace import trace
from cmtvision.models import create_model
from random_weights import randomise

RELEASE = Path(__file__).parents[2] / "golden" / "release"
PHOTO = RELEASE / "photos" / "bag" / "00018.png"


@pytest.fixture
def photo(tmp_path):
    """A colour photo of 70 x 50 pixels with a name that needs escaping."""
    rows, columns = np.mgrid[:50, :70]
    pixels = np.stack([rows * 5, columns * 3, (rows // 10 + columns // 10) % 2 * 200], axis=2).astype(np.uint8)
    path = tmp_path / "a <b> & c.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def network():
    return randomise(create_model("cmt_nano", img_size=64, num_classes=5))


def test_the_page_allows_its_own_script_alone_and_names_no_path(network, photo, tmp_path):
    html = write_ideas(network, photo, tmp_path / "ideas.html", trained=False).read_text(encoding="utf-8")
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', html)[1]
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "a &lt;b&gt; &amp; c.png" in html
    assert str(tmp_path) not in html
    assert "<b> & c" not in html


def test_random_and_trained_weights_are_told_apart(network, photo, tmp_path):
    random = write_ideas(network, photo, tmp_path / "random.html", trained=False).read_text(encoding="utf-8")
    assert "<b>Random weights</b>" in random
    assert 'id="answers"' not in random
    trained = write_ideas(load(RELEASE / "run"), PHOTO, tmp_path / "trained.html", trained=True).read_text("utf-8")
    assert "<b>Trained weights</b>" in trained
    answer = load(RELEASE / "run").predict(PHOTO)[0]
    assert f"It takes this photo for {answer.label} ({words.percent(answer.probability)})" in trained
    assert "are random" not in trained
    assert 'id="lacks"' not in trained


def test_a_network_without_ideas_says_so_and_is_whole(photo, tmp_path):
    network = create_model("cmt_ladder_2_stages_nano", in_chans=1)
    html = write_ideas(network, photo, tmp_path / "rung.html", trained=False).read_text(encoding="utf-8")
    for said in ("It lacks the Local Perception Unit", "has no position bias", "plain feed-forward network here"):
        assert said in html
    assert 'id="map-bias"' not in html
    assert 'id="silenced"' not in html


def test_the_transform_is_the_network_s_own():
    network = create_model("cmt_nano", img_size=(48, 80), in_chans=1)
    assert own_preprocess(network).size == (48, 80)
    assert own_preprocess(network).channels == 1
    assert isinstance(own_preprocess(network), Preprocess)


def test_words_follow_the_numbers(network):
    image = torch.randn(3, 64, 64)
    found = trace(network, image)
    assert "zero everywhere" not in words.bias(found, trained=False)
    for block in found.blocks:
        block.attention.bias = torch.zeros_like(block.attention.scores)
    assert "B is zero everywhere" in words.bias(found, trained=True)
    for block in found.blocks:
        block.attention.bias = 100 * torch.randn_like(block.attention.scores)
    assert "In every block B weighs more" in words.bias(found, trained=True)
    fresh = trace(create_model("cmt_nano", img_size=64), image)
    assert "√(2/C): 11% at 160 channels, 25% at 32" in words.local(fresh, [block.lpu for block in fresh.blocks], False)
    assert "√(2/C)" not in words.local(found, [block.lpu for block in found.blocks], False)  # not drawn that way
    assert [words.percent(share) for share in (0, 0.0004, 0.0123, 0.5)] == ["0%", "<0.1%", "1.2%", "50%"]


def test_colours_rise_evenly_and_zero_is_pale():
    def lightness(colours):
        curved = colours.astype(float) / 255
        linear = np.where(curved <= 0.04045, curved / 12.92, ((curved + 0.055) / 1.055) ** 2.4)
        return np.cbrt(linear @ [0.2126, 0.7152, 0.0722])  # as CIE's lightness, up to scale

    steps = np.diff(lightness(sequential_map())[::15])
    assert steps.min() > 0.5 * steps.max()
    signed = lightness(diverging_map())
    assert signed.argmax() in (127, 128)
    assert abs(signed[0] - signed[-1]) < 0.06
    features = np.zeros((4, 2, 3), np.float32)
    features[:, :, 2] = 1
    colours = feature_colours(features)
    assert len(np.unique(colours.reshape(-1, 3), axis=0)) == 2  # like features, like colours


def pixels_of(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")).astype(int)


@pytest.mark.slow
def test_a_person_can_look_and_choose_in_a_browser(open_page, network, photo, tmp_path):
    page = write_ideas(network, photo, tmp_path / "ideas.html", trained=False)
    static = open_page(page, width=390, scripts=False)
    found = open_page(page, width=390, dark=True)
    for one in (static, found):
        one.assert_sound()
        assert one.pictures > 60

    maps = ("scores", "bias", "content", "weights")
    shown = {name: found.page.get_attribute(f"#map-{name}", "src") for name in maps}
    for name in maps:  # the script draws what is in the page without it
        before = pixels_of(static.page.get_attribute(f"#map-{name}", "src"))
        assert np.abs(pixels_of(shown[name]) - before).max() <= 6, name
    assert static.page.inner_text("#what") == found.page.inner_text("#what")

    found.page.focus("#picker")
    found.page.keyboard.press("ArrowUp")
    moved = {name: found.page.get_attribute(f"#map-{name}", "src") for name in maps}
    assert all(moved[name] != shown[name] for name in maps)
    found.page.keyboard.press("ArrowDown")
    assert found.page.get_attribute("#map-weights", "src") == shown["weights"]

    found.page.select_option("#block", label="stage 1, block 1")
    box = found.page.locator("#picker").bounding_box()
    found.page.mouse.click(box["x"] + 0.99 * box["width"], box["y"] + 0.01 * box["height"])
    assert found.page.inner_text("#where").startswith(
        "Row 1, column 16 of 16 \N{MULTIPLICATION SIGN} 16; stage 1, block 1"
    )
    choice = choices(trace(network, torch.from_numpy(own_preprocess(network)(photo))))[0]
    there = attention_figure(choice, 0, 0, 0, len(choice.columns) - 1)
    expected = pixels_of(there.weights)
    assert np.abs(pixels_of(found.page.get_attribute("#map-weights", "src")) - expected).max() <= 6
    assert f"column {there.best[1]} of" in found.page.inner_text("#what")

    found.page.select_option("#block", label="stage 2, block 2")
    one_head = found.page.get_attribute("#map-weights", "src")
    found.page.get_by_label("mean").check()
    assert found.page.get_attribute("#map-weights", "src") != one_head
    assert found.errors == []
