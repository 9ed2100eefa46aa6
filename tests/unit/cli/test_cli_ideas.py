"""``explain --ideas``: what it writes, says and refuses."""

import json
from pathlib import Path

import pytest

from cmtvision.cli.ideas import show_ideas
from cmtvision.errors import ConfigError, DataError

RELEASE = Path(__file__).parents[2] / "golden" / "release"
PHOTO = RELEASE / "photos" / "bag" / "00018.png"


def test_a_named_network_gives_the_same_page_twice_and_leaves_the_dice_alone(tmp_path, capsys):
    import torch

    before = torch.get_rng_state()
    pages = [tmp_path / name for name in ("one.html", "two.html")]
    for page in pages:
        show_ideas("cmt_nano", PHOTO, page, overwrite=False, json=False)
    assert pages[0].read_bytes() == pages[1].read_bytes()
    assert torch.equal(before, torch.get_rng_state())
    said = capsys.readouterr()
    assert said.out.startswith(f"page: {pages[0]} (")
    assert "random weights" in said.err


def test_a_run_is_named_and_nothing_is_overwritten_unasked(tmp_path, capsys):
    page = tmp_path / "ideas.html"
    show_ideas(str(RELEASE / "run"), PHOTO, page, overwrite=False, json=True)
    said = json.loads(capsys.readouterr().out)
    assert said == {"page": str(page), "model": "cmt_nano of run", "trained": True, "bytes": page.stat().st_size}
    with pytest.raises(ConfigError, match="already exists"):
        show_ideas("cmt_nano", PHOTO, page, overwrite=False, json=False)
    show_ideas("cmt_nano", PHOTO, page, overwrite=True, json=False)
    assert "Random weights" in page.read_text(encoding="utf-8")


def test_bad_input_is_refused_before_anything_is_written(tmp_path):
    page = tmp_path / "ideas.html"
    with pytest.raises(ConfigError, match=r"resnet18: .*no CMT"):
        show_ideas("resnet18", PHOTO, page, overwrite=False, json=False)
    with pytest.raises(ConfigError, match="did you mean"):
        show_ideas("cmt_nono", PHOTO, page, overwrite=False, json=False)
    with pytest.raises(DataError, match="no such file"):
        show_ideas(None, tmp_path / "gone.jpg", page, overwrite=False, json=False)
    assert not page.exists()
