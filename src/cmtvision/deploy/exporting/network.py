"""The network traced for an export: the form suited to its runtime, float32 in and out, pixel arithmetic on request.

Whatever the precision, the graph's input "images" and output "logits" are float32, so that all exports of a model are
called the same way. With preprocess_inside the input is uint8 pixels (B, H, W, C), and x / 255, (x - mean) / std and
the layout (B, C, H, W) are in the graph. The resize is not: training, evaluation and timm resize with Pillow's filters,
no runtime has an operator that is bit-equal to them, and a resize that differs is the most common way for an export to
differ from its model.
"""

import copy
from typing import Literal, TypeAlias

import torch
from torch import nn

from cmtvision.artefact.card import RuntimeName
from cmtvision.data import Preprocess
from cmtvision.deploy.exporting.form import export_form

__all__ = ["ExportNetwork", "Precision", "RuntimeName", "explicit_attention", "network_to_export"]

Precision: TypeAlias = Literal["fp32", "fp16", "bf16"]
INPUT, OUTPUT = "images", "logits"
EXAMPLE_BATCH = 2  # an example batch of 1 would freeze it
_DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class ExportNetwork(nn.Module):
    """A network with fixed input and output types and, for pixel input, the arithmetic of its preprocessing.

    Args:
        network: float images (B, C, H, W) -> logits (B, classes); its parameters are converted to dtype.
        dtype: of the arithmetic.
        preprocess: if given, the input is uint8 pixels (B, H, W, C).
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype, preprocess: Preprocess | None = None) -> None:
        super().__init__()
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self.network = network.to(dtype)
        self.dtype = dtype
        self.takes_pixels = preprocess is not None
        mean, std = (preprocess.mean, preprocess.std) if preprocess is not None else ((), ())
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).reshape(1, -1, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) float32, or pixels (B, H, W, C) uint8 -> logits (B, classes) float32."""
        if self.takes_pixels:
            images = images.permute(0, 3, 1, 2).float() / 255.0  # (B, C, H, W)
            images = (images - self.mean) / self.std
        logits: torch.Tensor = self.network(images.to(self.dtype))
        return logits.float()


def network_to_export(
    model: nn.Module, runtime: RuntimeName, preprocess: Preprocess, precision: Precision, pixels: bool
) -> tuple[ExportNetwork, torch.Tensor]:
    """A copy of a model as it is traced for a runtime, and an example of its input, a batch of 2.

    The graphs of ONNX and OpenVINO are traced in the precision that their file computes in: bf16 is not supported for
    convolutions there, so it is derived from a float32 graph afterwards (see onnx_file, openvino_file).
    """
    model = copy.deepcopy(model).cpu().float().to(memory_format=torch.contiguous_format).eval()
    if runtime != "torch":
        explicit_attention(model)
    form = export_form(model, runtime, preprocess.size)
    dtype = _DTYPES[precision] if runtime == "torch" or (runtime, precision) == ("onnx", "fp16") else torch.float32
    network = ExportNetwork(form, dtype, preprocess if pixels else None).eval().requires_grad_(requires_grad=False)
    height, width = preprocess.size
    if pixels:
        return network, torch.zeros(EXAMPLE_BATCH, height, width, preprocess.channels, dtype=torch.uint8)
    return network, torch.zeros(EXAMPLE_BATCH, preprocess.channels, height, width)


def explicit_attention(model: nn.Module) -> None:
    """Within it, every attention is computed as explicit products and a softmax, in timm's models too.

    ONNX has an attention operator from opset 23 only, and decomposing PyTorch's fused one fails with a dynamic batch.
    """
    for module in model.modules():
        if isinstance(getattr(module, "fused_attn", None), bool):
            module.fused_attn = False  # type: ignore[assignment]
