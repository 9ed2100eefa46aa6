"""cmtvision: CMT (CNN meets vision transformer), exact to the paper and native to timm.

Importing this package makes every model of ours known to timm, whichever of the two is imported first, and costs
nothing until timm is imported: registration waits for ``timm.models`` (docs/decisions.md, "One import, two speeds").
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from wrapt import register_post_import_hook

if TYPE_CHECKING:
    from cmtvision.artefact import Prediction, Predictor
    from cmtvision.artefact.dense import open_model as load
    from cmtvision.deploy import export, verify
    from cmtvision.engine.calibrate import calibrate
    from cmtvision.engine.evaluation.evaluate import evaluate
    from cmtvision.engine.fit import fit
    from cmtvision.explain import explain_image
    from cmtvision.models import create_model, list_models
    from cmtvision.models.detectors import create_detector
    from cmtvision.models.segmenters import create_segmenter

__version__ = "0.1.0"
__all__ = [
    "Prediction",
    "Predictor",
    "calibrate",
    "create_detector",
    "create_model",
    "create_segmenter",
    "evaluate",
    "explain_image",
    "export",
    "fit",
    "list_models",
    "load",
    "verify",
]

_HOME = {
    "Prediction": "cmtvision.artefact",
    "Predictor": "cmtvision.artefact",
    "load": "cmtvision.artefact.dense:open_model",
    "export": "cmtvision.deploy",
    "verify": "cmtvision.deploy",
    "calibrate": "cmtvision.engine",
    "evaluate": "cmtvision.engine",
    "fit": "cmtvision.engine",
    "explain_image": "cmtvision.explain",
    "create_detector": "cmtvision.models.detectors",
    "create_model": "cmtvision.models",
    "create_segmenter": "cmtvision.models.segmenters",
    "list_models": "cmtvision.models",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its home on first use, so that importing the package stays light."""
    if name not in _HOME:
        raise AttributeError(f"module 'cmtvision' has no attribute {name!r}")
    module, _, other = _HOME[name].partition(":")
    return getattr(import_module(module), other or name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


def _register_with_timm(_timm_models: Any) -> None:
    import_module("cmtvision.models")


register_post_import_hook(_register_with_timm, "timm.models")
