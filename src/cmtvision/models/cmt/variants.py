"""The paper's table of networks as data (CMT paper, table 1), and the released files that belong to them.

Variants differ only in these values. Measured parameters and GMACs are in tests/golden/counts.json.
"""

from dataclasses import asdict, dataclass
from typing import Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

RELEASE_URL = "https://github.com/ggjy/CMT.pytorch/releases/download/release-v1/"


@dataclass(frozen=True)
class Variant:
    """One row of the table. Sizes are in pixels, widths in channels.

    Attributes:
        input_size: side of the square training image.
        stem_width: channels of the stem.
        dims: channels of the four stages.
        depths: blocks of the four stages.
        mlp_ratio: R, the expansion of the IRFFN; hidden width int(dim * R).
        num_heads: attention heads of the four stages.
        kv_strides: k, the reduction of keys and values in the four stages.
        head_width: channels of the 1x1 convolution before pooling.
        drop_rate: dropout before the classifier.
        released_file: name of the released checkpoint, None if there is none.
    """

    input_size: int
    stem_width: int
    dims: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    mlp_ratio: float
    num_heads: tuple[int, int, int, int] = (1, 2, 4, 8)
    kv_strides: tuple[int, int, int, int] = (8, 4, 2, 1)
    head_width: int = 1280
    drop_rate: float = 0.1
    released_file: str | None = None

    def constructor_args(self) -> dict[str, Any]:
        """This row as keyword arguments of ``CMT``."""
        args = asdict(self)
        del args["input_size"], args["released_file"]
        return args

    @property
    def url(self) -> str:
        """Where the released checkpoint is, '' if there is none."""
        return RELEASE_URL + self.released_file if self.released_file else ""


VARIANTS: dict[str, Variant] = {
    # Ours, not the paper's: small enough to learn on a laptop. Its input is 7 times smaller than CMT-S's, so the
    # key grid of the paper (input / 32) would shrink to one key; the strides keep a 4 x 4 key grid instead.
    "cmt_nano": Variant(
        input_size=32,
        stem_width=16,
        dims=(32, 64, 96, 160),
        depths=(1, 2, 4, 1),
        mlp_ratio=3.0,
        num_heads=(1, 2, 3, 5),
        kv_strides=(2, 1, 1, 1),
        head_width=320,
        drop_rate=0.1,
    ),
    # Ours too, for 64 px: nano's depths, three quarters of its widths (the rule is in peers/small.py).
    "cmt_micro": Variant(
        input_size=64,
        stem_width=12,
        dims=(24, 48, 72, 120),
        depths=(1, 2, 4, 1),
        mlp_ratio=3.0,
        num_heads=(1, 2, 3, 5),
        kv_strides=(4, 2, 1, 1),
        head_width=240,
        drop_rate=0.1,
    ),
    "cmt_ti": Variant(160, 16, (46, 92, 184, 368), (2, 2, 10, 2), 3.6, released_file="cmt_tiny.pth"),
    "cmt_xs": Variant(192, 16, (52, 104, 208, 416), (3, 3, 12, 3), 3.77, released_file="cmt_xs.pth"),
    "cmt_s": Variant(224, 32, (64, 128, 256, 512), (3, 3, 16, 3), 4.0, released_file="cmt_small.pth"),
    "cmt_b": Variant(256, 38, (76, 152, 304, 608), (4, 4, 20, 4), 4.0, drop_rate=0.3, released_file="cmt_base.pth"),
}


def cmt_cfg(variant: str, **kwargs: Any) -> dict[str, Any]:
    """timm's pretrained config of a row of VARIANTS, with changes."""
    row = VARIANTS[variant]
    side = row.input_size
    return {
        "url": row.url,
        "custom_load": True,
        "num_classes": 1000,
        "input_size": (3, side, side),
        "pool_size": (side // 32, side // 32),
        "min_input_size": (3, 32, 32),
        "fixed_input_size": True,
        "crop_pct": 0.875 if side > 64 else 1.0,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.conv1",
        "classifier": "head",
        "origin_url": "https://github.com/ggjy/CMT.pytorch",
        "paper_name": "CMT: Convolutional Neural Networks Meet Vision Transformers",
        "paper_ids": "arXiv:2107.06263",
        **kwargs,
    }
