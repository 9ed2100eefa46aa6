"""The names we need from inside timm, in one place: when timm moves one, only this file changes."""

from timm.models._features import feature_take_indices
from timm.models._input import update_model_input_size
from timm.models._registry import generate_default_cfgs

__all__ = ["feature_take_indices", "generate_default_cfgs", "update_model_input_size"]
