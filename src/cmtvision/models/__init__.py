"""The networks. Importing this package registers them with timm."""

from cmtvision.models import cmt_networks, ladder  # noqa: F401
from cmtvision.models.cmt import CMT
from cmtvision.models.cmt.variants import VARIANTS, Variant
from cmtvision.models.peers import ceit, systems  # noqa: F401
from cmtvision.models.registry import build_shapes_only, create_model, list_models

__all__ = ["CMT", "VARIANTS", "Variant", "build_shapes_only", "create_model", "list_models"]
