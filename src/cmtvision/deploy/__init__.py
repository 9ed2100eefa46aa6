"""From a trained model to the file that is shipped: fused, exported, verified, quantised.

A module and its function share a name here (``export``, ``verify``, ``fuse``, ``quantize``), so all are imported at
once: a module imported later would take its function's place.
"""

from cmtvision.deploy.bundle import export_bundle, write_bundle
from cmtvision.deploy.export import Exported, export
from cmtvision.deploy.fuse import fuse
from cmtvision.deploy.quantize import quantize
from cmtvision.deploy.quantized import Quantized
from cmtvision.deploy.verify import Verification, verify

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
