"""What somebody reads to follow an image through the network: the files of the five ideas, and nothing else of ours."""

import sys
from pathlib import Path

import pytest
import timm
import torch

import cmtvision

PACKAGE = Path(cmtvision.__file__).parent
IDEAS = {"cmt.py", "stem.py", "stage.py", "lpu.py", "lmhsa.py", "irffn.py", "position.py"}


@pytest.mark.parametrize("size", [(224, 224), (160, 225)])
def test_a_forward_pass_goes_through_the_files_of_the_five_ideas(size: tuple[int, int]) -> None:
    model = timm.create_model("cmt_s", dims=(8, 16, 24, 32), depths=(1, 1, 2, 1)).eval()
    images = torch.randn(1, 3, *size)
    files: set[str] = set()
    with torch.inference_mode():
        sys.setprofile(lambda frame, event, _: files.add(frame.f_code.co_filename) if event == "call" else None)
        try:
            model(images)
        finally:
            sys.setprofile(None)
    ours = {Path(file).relative_to(PACKAGE).as_posix() for file in files if PACKAGE in Path(file).parents}
    assert ours == {f"models/cmt/{name}" for name in IDEAS | {"padding.py"}}
