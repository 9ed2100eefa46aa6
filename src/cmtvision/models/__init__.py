"""The networks. Importing this package registers them with timm."""

from cmtvision.models import ceit, ladder, peers  # noqa: F401
from cmtvision.models.cmt import CMT
from cmtvision.models.registry import build_shapes_only, create_model, list_models
from cmtvision.models.user_models import register_remembered
from cmtvision.models.variants import VARIANTS, Variant

__all__ = ["CMT", "VARIANTS", "Variant", "build_shapes_only", "create_model", "list_models"]

register_remembered()  # behind all of ours, whose names are taken
