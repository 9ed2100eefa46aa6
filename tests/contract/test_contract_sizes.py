"""Any image size: legal ones unchanged by padding, others padded, large ones within memory."""

import subprocess
import sys

import pytest
import timm
import torch
import torch.nn.functional as F
from networks import CMTS, LARGER

from cmtvision.models.cmt import CMT
from cmtvision.models.cmt.padding import pad_to_multiple
from random_weights import randomise

FAST = ("cmt_nano", "cmt_ti")
EACH = [
    pytest.param(
        name,
        marks=() if name in FAST else [pytest.mark.slow, *([pytest.mark.every_size] if name in LARGER else [])],
    )
    for name in CMTS
]

PEAK_MEMORY = """
import sys, cmtvision, timm, torch
model = timm.create_model(sys.argv[1]).eval()
with torch.inference_mode():
    features = model.forward_features(torch.randn(1, 3, 800, 1216))
assert features.shape == (1, 1280, 25, 38) and torch.isfinite(features).all()
# not getrusage: a child's maximum there begins at its parent's
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024)
"""


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("size", [(160, 160), (192, 256), (225, 300), (32, 32), (33, 47)])
def test_sizes_run(name: str, size: tuple[int, int]) -> None:
    model = randomise(timm.create_model(name, num_classes=3)).eval()
    with torch.inference_mode():
        maps = model.forward_intermediates(torch.randn(1, 3, *size), intermediates_only=True)
        logits = model(torch.randn(1, 3, *size))
    expected = [(-(-size[0] // s), -(-size[1] // s)) for s in (4, 8, 16, 32)]
    assert [tuple(y.shape[2:]) for y in maps] == expected
    assert torch.isfinite(logits).all()


def test_legal_sizes_are_not_padded() -> None:
    x = torch.randn(1, 2, 8, 12)
    assert pad_to_multiple(x, 4) is x
    padded = pad_to_multiple(x, 5)
    assert padded.shape == (1, 2, 10, 15)
    assert torch.equal(padded[:, :, :8, :12], x)
    assert padded.sum().item() == pytest.approx(x.sum().item(), abs=1e-5)


@pytest.mark.parametrize("rel_pos", ["stage", "block", "none"])
def test_size_changes_leave_no_trace(rel_pos: str) -> None:
    model = randomise(
        CMT(img_size=64, dims=(8, 16, 24, 32), depths=(1, 1, 2, 1), num_classes=5, rel_pos=rel_pos)
    ).eval()
    x = torch.randn(2, 3, 64, 64)
    before = model(x)
    model(F.interpolate(x, size=(75, 50)))
    assert torch.equal(model(x), before)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["cmt_s", *(pytest.param(n, marks=pytest.mark.every_size) for n in ("cmt_ti_kecam", "cmt_ti", "cmt_xs", "cmt_b"))],
)
def test_detection_size_within_memory(name: str) -> None:
    """800 x 1216 px, one image; CMT-S stays under 4 GB for the whole process, the smaller ones too."""
    run = subprocess.run([sys.executable, "-c", PEAK_MEMORY, name], capture_output=True, text=True, check=True)
    peak = int(run.stdout.split()[-1])
    assert peak < (5e9 if name == "cmt_b" else 4e9), f"{peak / 1e9:.2f} GB"
