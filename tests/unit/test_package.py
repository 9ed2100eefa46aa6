"""Importing the package: models are known to timm in whatever order, and nothing heavy is imported too early."""

import json
import subprocess
import sys

import pytest


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "imports",
    [
        "import cmtvision, timm",
        "import timm, cmtvision",
        "import cmtvision; from timm.models import create_model; import timm",
        "import cmtvision; import timm.layers; import timm",
    ],
)
def test_models_are_registered_in_either_order(imports):
    shown = "[n for n in sorted(timm.list_models('cmt_*')) if not {'ladder', 'phi'} & set(n.split('_'))]"
    done = python(f"{imports}; print({shown})")
    names = ["cmt_b", "cmt_nano", "cmt_s", "cmt_ti", "cmt_ti_kecam", "cmt_xs"]
    assert done.stdout.strip() == str(names), done.stderr


@pytest.mark.parametrize("imports", ["import cmtvision, timm", "import timm, cmtvision"])
def test_a_model_that_the_user_named_is_known_in_either_order_too(imports, tmp_path, monkeypatch):
    """It is registered while timm itself is still being imported."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    folder = tmp_path / "cmtvision" / "models"
    folder.mkdir(parents=True)
    card = {"format": 1, "base": "cmt_nano", "input_size": 32, "options": {"depths": [1, 1, 1, 1]}}
    (folder / "my_small_cmt.json").write_text(json.dumps(card))
    done = python(f"{imports}; print(len(timm.create_model('my_small_cmt').stages[2].blocks))")
    assert (done.stdout.strip(), done.stderr) == ("1", "")


def test_the_bare_import_is_light():
    done = python(
        "import cmtvision, sys; print([m for m in ('torch', 'timm', 'numpy', 'pydantic') if m in sys.modules])"
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_public_names_come_from_their_homes():
    done = python(
        "import cmtvision; from cmtvision.engine import fit\n"
        "assert cmtvision.fit is fit\n"
        "assert set(cmtvision.__all__) <= set(dir(cmtvision))\n"
        "assert all(getattr(cmtvision, name) for name in cmtvision.__all__)\n"
        "assert cmtvision.list_models() and cmtvision.create_model('cmt_nano', num_classes=2).num_classes == 2\n"
        "cmtvision.nothing"
    )
    assert done.stderr.strip().endswith("AttributeError: module 'cmtvision' has no attribute 'nothing'")


def test_unknown_models_are_answered_with_a_suggestion():
    import cmtvision
    from cmtvision.errors import ConfigError

    with pytest.raises(ConfigError, match="did you mean cmt_s"):
        cmtvision.create_model("cmt_small")
    with pytest.raises(ConfigError, match="wings"):
        cmtvision.create_model("cmt_nano", wings=2)
