"""timm's own generic tests, run on every model of ours."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from fetch_timm_tests import timm_tests
from networks import CMTS, LARGER, PYRAMIDS, TOKENS
from timm_suite import cases

from cmtvision.models import VARIANTS
from cmtvision.weights.official import to_official

TESTS = timm_tests()
FETCH = f"{sys.executable} {Path(__file__).with_name('fetch_timm_tests.py')}"
PRETRAINED = [name for name in CMTS if timm.get_pretrained_cfg(name).has_weights]
# tests that timm does not ask of its own ViT, and that it would fail: hooks instead of stages, no map for a head
NOT_FOR_TOKENS = {
    "test_feature_getter_stage_ends_torchscript",
    "test_features_only_grad_checkpointing_backward",
    "test_forward_after_prune_intermediate_layers",
    "test_head_hidden_size",
    "test_prune_intermediate_layers_last_feature",
    "test_forward_intermediates_stop_early_final_norm",
    "test_reset_classifier_keeps_pool",
    "test_model_forward_torchscript_with_features_fx",
    "test_relpos_family_set_input_size",
    "test_relpos_non_square_checkpoint_reload",
    "test_relpos_non_square_set_input_size",
}
# what may depend on a network's numbers
ASKED_OF_ALL = {"test_model_forward", "test_model_default_cfgs", "test_model_load_pretrained"}
# the smallest runs in the fast set; what changes nothing but sizes is slow
FAST = "cmt_nano"
SLOW_TESTS = {"test_relpos_non_square_set_input_size", "test_relpos_non_square_checkpoint_reload"}


def _all_cases() -> list[Any]:
    if not (TESTS / "test_models.py").is_file():
        return []
    tags = {tag: tag.partition(".")[0] for tag in timm.list_models([*CMTS, *PYRAMIDS, *TOKENS], include_tags=True)}
    map_tags, token_tags = [[tag for tag, name in tags.items() if (name in TOKENS) == t] for t in (False, True)]
    listed = []
    for model, function, arguments in cases(TESTS, [*CMTS, *PYRAMIDS, *TOKENS], map_tags, token_tags, PRETRAINED):
        if model in TOKENS and function.__name__ in NOT_FOR_TOKENS:
            continue
        repeats = model in LARGER and function.__name__ not in ASKED_OF_ALL
        slow = not model.startswith(FAST) or function.__name__ in SLOW_TESTS
        kept = "-".join(
            str(v) for k, v in arguments.items() if k not in ("model_name", "name", "kwargs", "model_kwargs")
        )
        listed.append(
            pytest.param(
                function,
                arguments,
                id=f"{function.__name__}-{model}" + (f"-{kept}" if kept else ""),
                marks=[
                    mark for mark, wanted in ((pytest.mark.slow, slow), (pytest.mark.every_size, repeats)) if wanted
                ],
            )
        )
    return listed


@pytest.fixture
def cfg_device() -> str:
    """timm's fixture of that name: its structure tests build models without storage."""
    return "meta"


@pytest.fixture
def download_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a file of the release, with untrained weights, where timm would have downloaded it to."""

    def fill(name: str) -> None:
        cache = tmp_path / "hub" / "checkpoints"
        cache.mkdir(parents=True)
        torch.save(
            {"model": to_official(timm.create_model(name).state_dict())}, cache / str(VARIANTS[name].released_file)
        )
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    return fill


def test_timm_tests_are_here() -> None:
    assert _all_cases(), f"timm's own tests are not at {TESTS}; fetch them with: {FETCH}"


# their tests script and trace, which PyTorch has deprecated and timm has not
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:.*deprecated.*:UserWarning")
@pytest.mark.parametrize(("function", "arguments"), _all_cases())
def test_timm(
    function: Callable[..., None],
    arguments: dict[str, Any],
    request: pytest.FixtureRequest,
    download_cache: Callable[[str], None],
) -> None:
    if function.__name__ in ("test_model_load_pretrained", "test_model_features_pretrained"):
        download_cache(arguments["model_name"])
    code = function.__code__
    wanted = set(code.co_varnames[: code.co_argcount]) - arguments.keys()
    function(**arguments, **{name: request.getfixturevalue(name) for name in wanted})
