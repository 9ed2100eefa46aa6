"""Importing the package: models are known to timm in whatever order, and nothing heavy is imported too early."""

import subprocess
import sys

import pytest


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.slow
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
    names = ["cmt_b", "cmt_micro", "cmt_nano", "cmt_s", "cmt_ti", "cmt_ti_kecam", "cmt_xs"]
    assert done.stdout.strip() == str(names), done.stderr


def test_the_bare_import_is_light():
    done = python(
        "import cmtvision, sys; print([m for m in ('torch', 'timm', 'numpy', 'pydantic') if m in sys.modules])"
    )
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.slow
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
