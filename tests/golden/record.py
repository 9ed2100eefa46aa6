"""Record this package's own figures for the four sizes: parameters, GMACs, and the first logits of the filled weights.

    python tests/golden/record.py

Run it only when a change is meant to change numbers, and say why in the changelog.
"""

import json
import platform
import sys
from datetime import UTC, datetime

import timm
import torch
from official_files import HERE, SIZES, filled_state, image
from torch.utils.flop_counter import FlopCounterMode

import cmtvision
from cmtvision.models import VARIANTS

FIGURES = HERE / "own_figures.json"
FIRST = 20


def logits(name: str) -> torch.Tensor:
    """Logits of the two golden images with the filled weights, (2, 1000)."""
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"state_dict": filled_state(name)}).eval()
    with torch.inference_mode():
        return model(image(VARIANTS[name].input_size))


def macs(name: str) -> int:
    """Multiply-accumulates for one image at the variant's own size."""
    model = timm.create_model(name, device="meta").eval().requires_grad_(False)
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # the counter knows the explicit products on every device
    side = model.img_size[0]
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, side, side, device="meta"))
    return int(counter.get_total_flops()) // 2


def main() -> None:
    """Write own_figures.json."""
    figures: dict[str, object] = {
        "command": "python tests/golden/record.py",
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {"cmtvision": cmtvision.__version__, "torch": torch.__version__, "timm": timm.__version__},
        "hardware": f"{platform.machine()}, CPU, float32",
        "python": sys.version.split()[0],
    }
    for name in [*VARIANTS, "cmt_ti_kecam"]:
        model = timm.create_model(name, device="meta")
        biases = [p.numel() for n, p in model.named_parameters() if n.endswith("position_bias.table")]
        entry: dict[str, object] = {
            "img_size": model.img_size[0],
            "params": sum(p.numel() for p in model.parameters()),
            "position_bias_params": sum(biases),
            "macs": macs(name),
        }
        if name in SIZES:
            y = logits(name)
            entry["logits"] = [round(value, 6) for value in y[0, :FIRST].tolist()]
            entry["spread"] = round((y.max() - y.min()).item(), 6)
        figures[name] = entry
    FIGURES.write_text(
        "{\n" + ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in figures.items()) + "\n}\n"
    )


if __name__ == "__main__":
    main()
