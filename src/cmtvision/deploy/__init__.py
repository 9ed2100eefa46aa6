"""From a trained model to the deployed file: fused, exported, verified, quantised.

A module and its function share a name here (``export``, ``verify``, ``fuse``, ``quantize``), so all are imported at
once: a module imported later would take its function's place.
"""

from cmtvision.deploy.bundling.bundle import export_bundle, write_bundle
from cmtvision.deploy.exporting.export import Exported, export
from cmtvision.deploy.quantizing.quantize import quantize
from cmtvision.deploy.quantizing.quantized import Quantized
from cmtvision.deploy.verifying import Verification, verify
from cmtvision.models.accelerate.fusing.fuse import fuse

__all__ = [
    "Exported",
    "Quantized",
    "Verification",
    "export",
    "export_bundle",
    "fuse",
    "quantize",
    "verify",
    "write_bundle",
]
