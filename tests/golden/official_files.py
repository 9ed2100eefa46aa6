"""Released checkpoints made by rule instead of training, so that figures can be compared without anyone's weights.

The rule (recorded with the figures in cmt_ti_official.json): tensor number i of the layout is a sine wave of its
entries, scaled by what it is.
"""

import argparse
import json
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
SIZES = ("cmt_ti", "cmt_xs", "cmt_s", "cmt_b")


def layout(name: str) -> list[tuple[str, list[int]]]:
    """Names and shapes of a released checkpoint, in its order."""
    return [(key, shape) for key, shape in json.loads((HERE / "official_layouts.json").read_text())[name]["state"]]


def filled_state(name: str) -> dict[str, torch.Tensor]:
    """The released layout of a size, filled by the rule."""
    state = {}
    for i, (key, shape) in enumerate(layout(name)):
        if key.endswith("num_batches_tracked"):
            state[key] = torch.zeros(shape, dtype=torch.long)
            continue
        n = torch.Size(shape).numel()
        value = torch.sin(0.7 * i + 0.37 * torch.arange(n, dtype=torch.float64)).reshape(shape)
        if key.endswith("running_var"):
            value = 1 + 0.3 * value
        elif key.endswith("running_mean"):
            value = 0.1 * value
        elif key.startswith("relative_pos"):
            value = 0.5 * value
        elif len(shape) == 1:
            value = 1 + 0.1 * value if key.endswith("weight") else 0.05 * value
        else:
            value = value * (2 / (n / shape[0])) ** 0.5
        state[key] = value.float()
    return state


def image(size: int) -> torch.Tensor:
    """The two images of the figures, (2, 3, size, size)."""
    x = torch.arange(2 * 3 * size * size, dtype=torch.float64)
    return (
        (torch.sin(0.013 * x + 0.3) + 0.5 * torch.sin(0.00071 * x * x.sqrt() + 0.3)).float().reshape(2, 3, size, size)
    )


def write_training_checkpoint(path: Path, state: dict[str, torch.Tensor], ema: dict[str, torch.Tensor] | None) -> Path:
    """What the released training script saves: weights, optimiser, averaged weights or None, and its arguments."""
    arguments = argparse.Namespace(lr=0.0032, model="CMT", data_path=None, opt_betas=[0.9, 0.999])
    optimizer = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-3}]}
    content = {"model": state, "optimizer": optimizer, "lr_scheduler": {"last_epoch": 3}, "epoch": 3, "model_ema": ema}
    torch.save({**content, "args": arguments}, path)
    return path
