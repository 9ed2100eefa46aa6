"""What detectors on CMT-S cost: parameters and multiply-adds beside the paper's, and peak memory.

    python benchmarks/dense_counts.py [--quick]

Writes records/dense-counts.json:

- counts: at 1280 x 800 px with 80 classes, on shapes alone, part by part, each as gigas of multiply-adds (the paper's
  FLOPs are multiply-adds: 4.04 for CMT-S at 224 px). A two-stage detector's heads are counted for 1,000 boxes and 100
  masks. "products" are all of convolutions, linear layers and attention, as in ``cmtvision models``; "layers" leaves
  attention's two products (q k^T and its result times v) out, as counters do that look at layers.
- memory: the most that a process holds, PyTorch itself included, in inference and in two training steps; with the
  position bias as it is, in factors where it is large, and with it always computed whole.
- passes: processor seconds of the backbone's forward pass on one thread, the least of three, in both ways in turn.
"""

import argparse
import json
import subprocess
import sys
import time
from typing import Any

import timm
import torch
from record import write_record
from torch import nn

from cmtvision.models.analysis.count import count
from cmtvision.models.analysis.dense_products import BOXES, MASKS, Products
from cmtvision.models.cmt import position
from cmtvision.models.detectors import Detector, detector_by_name

CLASSES = 80  # of COCO
HEIGHT, WIDTH = 800, 1280
PAPER_GFLOPS = {"cmt_s_retinanet": 231, "cmt_s_maskrcnn": 249}
GIGA = 1e9
BIAS = {True: "whole", False: "as it is"}
RUN = """
import sys, time, torch
from cmtvision.models.cmt.position import PositionBias
from cmtvision.models.detectors import detector_by_name
name, task, images, height, width, whole = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
torch.set_num_threads(1)
torch.manual_seed(0)
model = detector_by_name(name, 80)
for module in model.modules():
    if whole and isinstance(module, PositionBias):
        module.most_entries = 2**60
begun = time.process_time()
if task == "inference":
    with torch.inference_mode():
        model.eval()([torch.randn(3, height, width)])
else:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    for _ in range(2):  # the optimiser's own memory is there from the second on
        boxes = torch.tensor([[20.0, 30, 200, 240], [100, 50, 180, 130]])
        masks = torch.zeros(2, height, width, dtype=torch.uint8)
        masks[:, 60:120, 110:170] = 1
        target = {"boxes": boxes, "labels": torch.tensor([3, 17]), "masks": masks}
        loss = sum(model([torch.randn(3, height, width)] * images, [target] * images).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
seconds = time.process_time() - begun
# not getrusage: a child's maximum there begins at its parent's
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024, seconds)
"""


def counted(name: str) -> dict[str, Any]:
    """One detector's parameters and multiply-adds."""
    detector = detector_by_name(name, CLASSES)
    limit(detector, 2**60)  # attention as the paper writes it
    rows = count(Products(detector), (3, HEIGHT, WIDTH))
    attention = attention_macs(detector)
    products = sum(row.macs for row in rows)
    parameters = sum(parameter.numel() for parameter in detector.parameters())
    assert parameters == sum(row.parameters for row in rows)
    return {
        "parameters": parameters,
        "parts": {row.name: {"parameters": row.parameters, "gmacs": round(row.macs / GIGA, 2)} for row in rows},
        "gmacs": {"products": round(products / GIGA, 1), "layers": round((products - attention) / GIGA, 1)},
        "paper_gflops": PAPER_GFLOPS.get(name),
        "over_paper": {
            "products": round(products / GIGA / PAPER_GFLOPS[name] - 1, 4),
            "layers": round((products - attention) / GIGA / PAPER_GFLOPS[name] - 1, 4),
        },
    }


def attention_macs(detector: Detector) -> int:
    """Multiply-adds of attention's two products: 2 N M C in each block."""
    body: Any = detector.network.backbone.body
    total = 0
    for stage, stride in zip(body.feature_info.module_name(), body.feature_info.reduction(), strict=True):
        for block in getattr(body, stage.replace(".", "_")).blocks:
            k = block.lmhsa.kv_stride
            height, width = -(-HEIGHT // stride), -(-WIDTH // stride)
            total += 2 * height * width * -(-height // k) * -(-width // k) * block.lmhsa.q.in_features
    return total


def peak(name: str, task: str, images: int, height: int, width: int, whole: bool) -> dict[str, Any]:
    """Gigabytes and processor seconds of a process of one thread."""
    command = [sys.executable, "-c", RUN, name, task, *map(str, (images, height, width, int(whole)))]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    row = {"detector": name, "task": task, "images": images, "height": height, "width": width,
           "bias": BIAS[whole], "peak_gb": round(float(found[0]) / GIGA, 2),
           "processor_seconds": round(float(found[1]), 1)}  # fmt: skip
    print(row, flush=True)
    return row


def passes(height: int, width: int) -> dict[str, Any]:
    """Processor seconds of the backbone's forward pass."""
    torch.set_num_threads(1)
    body = timm.create_model("cmt_s", features_only=True).eval()
    image = torch.randn(1, 3, height, width)
    least: dict[str, float] = {}
    for turn in range(4):
        for whole, said in BIAS.items():
            limit(body, 2**60 if whole else position.MOST_ENTRIES)
            begun = time.process_time()
            with torch.inference_mode():
                body(image)
            spent = time.process_time() - begun
            if turn:  # the first one warms up
                least[said] = round(min(spent, least.get(said, spent)), 2)
    return {"backbone": "cmt_s", "height": height, "width": width, "processor_seconds": least}


def limit(network: nn.Module, most_entries: int) -> None:
    for module in network.modules():
        if isinstance(module, position.PositionBias):
            module.most_entries = most_entries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="count only, and write nothing")
    args = parser.parse_args()
    content: dict[str, Any] = {
        "classes": CLASSES, "height": HEIGHT, "width": WIDTH, "boxes": BOXES, "masks": MASKS,
        "counts": {name: counted(name) for name in PAPER_GFLOPS},
    }  # fmt: skip
    print(json.dumps(content, indent=1), flush=True)
    if args.quick:
        return
    content["memory"] = [
        peak(name, task, images, height, width, whole)
        for name, task, images, height, width, whole in (
            ("cmt_s_retinanet", "inference", 1, 800, 1333, True),
            ("cmt_s_retinanet", "inference", 1, 800, 1333, False),
            ("cmt_s_retinanet", "inference", 1, 1200, 2000, False),
            ("cmt_s_retinanet", "training", 2, 512, 512, False),
            ("cmt_s_maskrcnn", "training", 2, 512, 512, False),
            ("cmt_s_retinanet", "training", 1, 800, 800, True),
            ("cmt_s_retinanet", "training", 1, 800, 800, False),
        )
    ]
    content["passes"] = passes(800, 1333)
    print(content["passes"], flush=True)
    write_record("dense-counts", "python benchmarks/dense_counts.py", content)


if __name__ == "__main__":
    main()
