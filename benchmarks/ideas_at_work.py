"""What each idea does in a trained CMT, and how CMT and its peers take other sizes, shifts and turns of the image.

    python benchmarks/ideas_at_work.py --work DIR [--data DIR/photos] [--quick]

DIR is the one of comparison_study.py micro: its trained networks are used as they are, nothing is trained. Writes
records/ideas-at-work.json: for each, the images recognised of the test images, for each seed.

- ideas: of cmt_micro, one idea at a time, in one stage or in all. "zeroed": the depthwise convolution of the LPU or of
  the IRFFN gives nothing (the identity beside it stays), the position bias is 0, the keys and values all come from a
  reducing convolution that sees nothing. "averaged": each of these kernels has the mean of its taps in all of them, so
  it still sees its neighbourhood but not where in it; each key's bias is its mean over the queries, so that a key still
  has a weight but no position.
- sizes: every network at 48 to 128 px, images resized by the run's own preprocessing.
- shifts, turns: images moved to the right by some pixels, or turned by some degrees, the border mirrored.
"""

import argparse
import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from comparison_study import peers
from record import write_record
from torch import nn

from cmtvision.artefact import Artefact, read_artefact
from cmtvision.data import DatasetIndex, Sample, read_dataset
from cmtvision.errors import CmtvisionError

SIZES = (48, 64, 80, 96, 112, 128)
SHIFTS = (0, 1, 2, 4, 8)
TURNS = (0, 5, 10, 20, 30)
BATCH = 250
REFUSALS = (AssertionError, RuntimeError, ValueError, CmtvisionError)  # of a network that takes one size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="of comparison_study.py micro")
    parser.add_argument("--data", type=Path, help="default: WORK/photos")
    parser.add_argument("--quick", action="store_true", help="250 images, one seed; no record")
    args = parser.parse_args()
    index = read_dataset(args.data or args.work / "photos")
    runs = {name: seeds_of(args.work / "peers" / "runs" / name) for name in peers("micro")}
    runs = {name: seeds[:1] if args.quick else seeds for name, seeds in runs.items() if seeds}
    content: dict[str, Any] = {"data": index.fingerprint, "seeds": {name: len(seeds) for name, seeds in runs.items()}}
    content |= {"images": len(chosen(index, args.quick)), "ideas": {}, "sizes": {}, "shifts": {}, "turns": {}}
    for name, seeds in runs.items():
        for run in seeds:
            print(name, run.name, flush=True)
            found = kept(args.work / "ideas-at-work" / f"{name}-{run.name}.json", run, index, args.quick)
            for what, counts in found.items():
                rows = content[what] if what == "ideas" else content[what].setdefault(name, {})
                for key, count in counts.items():
                    rows.setdefault(key, []).append(count)
    if args.quick:
        print(content)
    else:
        write_record("ideas-at-work", "python benchmarks/ideas_at_work.py", content)


def kept(file: Path, run: Path, index: DatasetIndex, quick: bool) -> dict[str, dict[str, int]]:
    """What is measured of a run; a file keeps it, so that what is interrupted goes on."""
    if file.is_file() and not quick:
        found: dict[str, dict[str, int]] = json.loads(file.read_text(encoding="utf-8"))
        return found
    found = measured(run, index, quick)
    if not quick:
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(found), encoding="utf-8")
    return found


def measured(run: Path, index: DatasetIndex, quick: bool) -> dict[str, dict[str, int]]:
    """The images that a run's network recognises, without ideas if it is a CMT, and when they are changed."""
    artefact = read_artefact(run)
    images, labels = images_for(artefact, index, quick)
    found: dict[str, dict[str, int]] = {"sizes": {}}
    if artefact.architecture == "cmt_micro":
        found["ideas"] = {what: recognised(network, images, labels) for what, network in without_ideas(artefact.model)}
    for size in SIZES:
        network = resized(artefact.model, size)
        if network is not None:
            larger, _ = images_for(artefact, index, quick, size)
            found["sizes"][str(size)] = recognised(network, larger, labels)
    for what, moves, move in (("shifts", SHIFTS, shifted), ("turns", TURNS, turned)):
        found[what] = {str(one): recognised(artefact.model, move(images, one), labels) for one in moves}
    return found


def seeds_of(folder: Path) -> list[Path]:
    """The finished runs of a network."""
    return [run for run in sorted(folder.glob("seed-*")) if (run / "model.safetensors").is_file()]


def chosen(index: DatasetIndex, quick: bool) -> Sequence[Sample]:
    """The test images."""
    return index.val[:: max(1, len(index.val) // 250)] if quick else index.val


def images_for(
    artefact: Artefact, index: DatasetIndex, quick: bool, size: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The test images (N, 3, H, W) as the network takes them, and their classes (N,)."""
    preprocess = artefact.preprocess if size is None else replace(artefact.preprocess, size=(size, size))
    samples = chosen(index, quick)
    pixels = np.stack([preprocess(sample.path) for sample in samples])
    assert index.classes == artefact.classes
    return torch.from_numpy(pixels), torch.tensor([sample.label for sample in samples])


def recognised(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> int:
    network.eval()
    with torch.inference_mode():
        found = torch.cat([network(batch).argmax(1) for batch in images.split(BATCH)])
    return int((found == labels).sum())


def without_ideas(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(what was done, the network to which it was done), first nothing."""
    yield "nothing", model
    for idea in ("lpu", "bias", "keys", "irffn"):
        for how in ("zeroed", "averaged"):
            for stages in ((0,), (1,), (2,), (3,), (0, 1, 2, 3)):
                network: Any = copy.deepcopy(model)
                changed = [change_stage(network.stages[place], idea, how) for place in stages]
                if any(changed):
                    yield f"{idea} {how} {'all' if len(stages) > 1 else stages[0] + 1}", network


def change_stage(stage: Any, idea: str, how: str) -> bool:
    """Change an idea in a stage; False where the stage does not have it (the last one reduces no keys)."""
    if idea == "bias":
        stage.position_bias = ChangedBias(stage.position_bias, how)
        return True
    parts = {"lpu": lambda block: block.lpu.conv, "keys": lambda block: block.lmhsa.kv_conv,
             "irffn": lambda block: block.irffn.conv}  # fmt: skip
    convolutions = [conv for block in stage.blocks if isinstance(conv := parts[idea](block), nn.Conv2d)]
    for conv in convolutions:
        change(conv, how)
    return bool(convolutions)


def change(conv: nn.Conv2d, how: str) -> None:
    """Zero a depthwise convolution, or give all its taps their mean."""
    weight = conv.weight.data
    if how == "zeroed":
        weight.zero_()
        if conv.bias is not None:
            conv.bias.data.zero_()
    else:
        weight.copy_(weight.mean(dim=(2, 3), keepdim=True).expand_as(weight))


class ChangedBias(nn.Module):
    """A position bias that is zero, or of each key the mean over the queries."""

    def __init__(self, bias: nn.Module, how: str) -> None:
        super().__init__()
        self.bias, self.how = bias, how

    def forward(self, height: int, width: int) -> torch.Tensor:
        """(1, h, N, M) for a grid of so many rows and columns."""
        bias: torch.Tensor = self.bias(height, width)
        return torch.zeros_like(bias) if self.how == "zeroed" else bias.mean(dim=2, keepdim=True).expand_as(bias)


def resized(model: nn.Module, size: int) -> nn.Module | None:
    """A copy for images of another size; None where the network takes no other."""
    network: Any = copy.deepcopy(model)
    if hasattr(network, "set_input_size"):
        try:
            network.set_input_size(img_size=(size, size))
        except REFUSALS:
            return None
    try:
        with torch.inference_mode():
            network.eval()(torch.zeros(1, 3, size, size))
    except REFUSALS:
        return None
    changed: nn.Module = network
    return changed


def shifted(images: torch.Tensor, pixels: int) -> torch.Tensor:
    """Moved to the right; what comes in is the mirrored border."""
    return F.pad(images, (pixels, 0, 0, 0), mode="reflect")[..., : images.shape[-1]] if pixels else images


def turned(images: torch.Tensor, degrees: float) -> torch.Tensor:
    """Turned about the centre, bilinear, the border mirrored."""
    angle = torch.deg2rad(torch.tensor(float(degrees)))
    rows = [[torch.cos(angle), -torch.sin(angle), 0.0], [torch.sin(angle), torch.cos(angle), 0.0]]
    grid = F.affine_grid(torch.tensor([rows]).expand(len(images), -1, -1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


if __name__ == "__main__":
    main()
