"""Whether two thumbnails show the same picture: one is moved onto the other, and what differs counts.

1. **Align**: a crop of ``a`` is sought that looks like ``b``: scales and shifts in x and y, by Gauss-Newton steps on
   the squared difference, from the virtual crop that found the pair.
2. **Compare**: resizing and re-encoding blur an image. So ``b`` is explained as a mixture of the aligned ``a`` and two
   blurred forms of it, by least squares, and also the other way round; the smaller remainder counts, as a share of the
   picture's own variation. Pictures that look alike differ in detail, which no mixture explains.

Legend: B pairs, C channels, 32 x 32 px.
"""

import torch
import torch.nn.functional as F

from cmtvision.quality.shapes import blurred, gradients

_LEAST_SCALE, _MOST_SCALE = 0.82, 1.06
_SLACK = 0.04  # how far a crop may reach over the border, in halves of a side
_BLURS = (0.7, 1.3)
_FADED = 0.15  # change of contrast that a copy may have
_FAINT = 3.0  # gray levels of deviation, below which a picture's own variation is not believed


def align(a: torch.Tensor, b: torch.Tensor, start: torch.Tensor, steps: int = 3) -> torch.Tensor:
    """The crops of ``a`` that look most like ``b``.

    Args:
        a, b: gray thumbnails (B, 1, 32, 32).
        start: crops to start from (B, 4), see ``shapes.CROPS``.
        steps: of Gauss and Newton.

    Returns:
        (B, 4).
    """
    crop = start.clone()
    y, x = _places(a)
    for _ in range(steps):
        moved = cut_out(a, crop, "bilinear")
        across, down = (one.squeeze(1) * (a.shape[-1] / 2) for one in gradients(moved))  # (B, 32, 32)
        slopes = torch.stack(
            [across / crop[:, 0, None, None], down / crop[:, 1, None, None]], 1
        )  # with respect to shifts
        slopes = torch.cat([slopes * torch.stack([x, y]), slopes], 1).flatten(2)  # (B, 4, 1024)
        remainder = (b - moved).flatten(2)  # (B, 1, 1024)
        system = slopes @ slopes.transpose(1, 2)  # (B, 4, 4)
        diagonal = system.diagonal(dim1=1, dim2=2)
        diagonal += 1e-3 * diagonal.mean(1, keepdim=True) + 1e-2
        step = torch.linalg.solve(system, slopes @ remainder.transpose(1, 2)).squeeze(2)
        crop = crop + step.clamp(-0.05, 0.05)
        scale = crop[:, :2].clamp(_LEAST_SCALE, _MOST_SCALE)
        most = (1 - scale).clamp(min=0) + _SLACK
        crop = torch.cat([scale, torch.maximum(torch.minimum(crop[:, 2:], most), -most)], 1)
    return crop


def cut_out(images: torch.Tensor, crop: torch.Tensor, mode: str = "bicubic") -> torch.Tensor:
    """Crops (B, 4) of images (B, C, H, W), enlarged to their size."""
    y, x = _places(images)
    scale, shift = crop[:, :2, None, None], crop[:, 2:, None, None]
    grid = torch.stack([x * scale[:, 0] + shift[:, 0], y * scale[:, 1] + shift[:, 1]], 3)  # (B, H, W, 2)
    return F.grid_sample(images, grid, mode=mode, padding_mode="border", align_corners=False)


def remainder(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """What ``a``, sharp or blurred, does not explain of ``b``: 0 for the same picture, about 1 for unrelated ones.

    Args:
        a, b: aligned thumbnails (B, C, 32, 32).

    Returns:
        (B,): root mean square of the difference by the deviation of the picture.
    """
    return torch.minimum(_unexplained(a, b), _unexplained(b, a))


def _unexplained(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    inner = (..., slice(2, -2), slice(2, -2))  # the border is where crops and filters disagree
    forms = torch.stack([a[inner], *(blurred(a, sigma)[inner] for sigma in _BLURS)], 1).flatten(2)  # (B, 3, n)
    forms = forms - forms.mean(2, keepdim=True)
    wanted = b[inner].flatten(1)
    wanted = wanted - wanted.mean(1, keepdim=True)  # (B, n)
    system = forms @ forms.transpose(1, 2)
    diagonal = system.diagonal(dim1=1, dim2=2)
    diagonal += 1e-4 * diagonal.mean(1, keepdim=True) + 1.0
    shares = torch.linalg.solve(system, forms @ wanted[..., None])  # (B, 3, 1)
    left = wanted - (forms * shares).sum(1)
    total = shares.sum((1, 2))  # a copy keeps its contrast
    faded = (total - 1).abs() * wanted.square().mean(1).sqrt() * ((total - 1).abs() > _FADED)
    deviation = wanted.square().mean(1).sqrt().clamp(min=_FAINT)
    unexplained: torch.Tensor = (left.square().mean(1) + faded.square()).sqrt() / deviation
    return unexplained


def _places(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Coordinates (H, W) of the pixels in y and x, from -1 to 1."""
    height, width = images.shape[-2:]
    y = (torch.arange(height) + 0.5) * 2 / height - 1
    x = (torch.arange(width) + 0.5) * 2 / width - 1
    return y[:, None].expand(height, width), x[None].expand(height, width)
