"""timm's own tests as a list of cases for our models.

timm parametrises its tests with its own model names when they are imported. Here each test function that applies is
called as it is, with our names in the place of timm's: `cases` gives (function, arguments) pairs. Nothing in timm is
changed. Functions and the parameters they take are looked up by name, so one that a new timm renames is an error.
"""

import importlib.util
import inspect
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

# tests that take a model name and nothing that depends on the model
BY_NAME = [
    "test_model_forward",
    "test_model_backward",
    "test_model_forward_torchscript",
    "test_model_forward_features",
    "test_model_forward_intermediates_features",
    "test_model_forward_intermediates",
    "test_model_forward_fx",
    "test_model_backward_fx",
    "test_model_forward_fx_torchscript",
    "test_prune_intermediate_layers_contract",
    "test_prune_intermediate_layers_params_used",
    "test_feature_getter_stage_ends_torchscript",
    "test_features_only_feature_cls_class",
    "test_features_only_grad_checkpointing_backward",
    "test_forward_after_prune_intermediate_layers",
    "test_reset_classifier_keeps_pool",
    "test_model_forward_torchscript_with_features_fx",
]
# the same, once for each pretrained tag
BY_TAG = ["test_model_default_cfgs"]
# the same, for models whose features are tokens
BY_TOKEN_TAG = ["test_model_default_cfgs_non_std"]
# the same, for models with released weights
BY_PRETRAINED = ["test_model_load_pretrained", "test_model_features_pretrained"]
# tests with more arguments of the model's: function -> what to give besides the name
WITH_ARGUMENTS: dict[str, dict[str, Any]] = {
    "test_head_hidden_size": {"model_kwargs": {}},
    "test_headless_checkpoint_reload": {"kwargs": {}},
    "test_model_init_weights_after_to_empty": {"kwargs": {"img_size": 64}},
    "test_prune_intermediate_layers_last_feature": {"stop_early_final": True},
    "test_forward_intermediates_stop_early_final_norm": {"model_kwargs": {}},
    "test_relpos_family_set_input_size": {"kwargs": {}, "img_size": 160, "new_size": 224},
    "test_relpos_non_square_checkpoint_reload": {"kwargs": {}},
    "test_relpos_non_square_set_input_size": {"kwargs": {}},
    "test_default_resize_hub_roundtrip": {"kwargs": {}, "img_size": 160, "new_size": 192},
}
NAMES = ("model_name", "name")
MARKERS = ["base", "forward", "backward", "cfg", "cfg_nonstd", "torchscript", "features", "fxforward", "fxbackward"]


def load(folder: Path, name: str) -> ModuleType:
    """Import one of timm's test files under a name of its own, so that its package never shadows ours."""
    alias = f"timm_own_{name}"
    if alias not in sys.modules:
        spec = importlib.util.spec_from_file_location(alias, folder / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[alias] = module
        spec.loader.exec_module(module)
    return sys.modules[alias]


def cases(
    folder: Path, names: list[str], tags: list[str], token_tags: list[str], pretrained: list[str]
) -> Iterator[tuple[str, Callable[..., None], dict[str, Any]]]:
    """All (model, test function, arguments) to run; fixtures (tmp_path, cfg_device) are left for the caller."""
    modules = [load(folder, "test_models"), load(folder, "test_model_input")]
    for group, models in (
        (BY_NAME, names), (BY_TAG, tags), (BY_TOKEN_TAG, token_tags), (BY_PRETRAINED, pretrained),
        (WITH_ARGUMENTS, names),
    ):  # fmt: skip
        for test in group:
            function = next(getattr(module, test) for module in modules if hasattr(module, test))
            given = WITH_ARGUMENTS.get(test, {})
            for model, kept in itertools.product(models, _kept_parameters(function, given)):
                name = next(n for n in NAMES if n in inspect.signature(function).parameters)
                yield model, function, {name: model, **given, **kept}


def _kept_parameters(function: Callable[..., None], given: dict[str, Any]) -> list[dict[str, Any]]:
    """The values of timm's own parametrize marks that do not speak of the model, all combinations."""
    kept = []
    for mark in getattr(function, "pytestmark", []):
        if mark.name != "parametrize":
            continue
        names = [n.strip() for n in mark.args[0].split(",")] if isinstance(mark.args[0], str) else list(mark.args[0])
        if not set(names) & {*NAMES, *given}:
            kept.append([dict(zip(names, row if len(names) > 1 else [row], strict=True)) for row in mark.args[1]])
    return [{key: value for part in parts for key, value in part.items()} for parts in itertools.product(*kept)]
