"""Random changes of an image together with its boxes and masks, by torchvision's transforms and its global generator.

Two kinds of geometry. Large-scale jitter: the image is fitted into the crop, enlarged or shrunk by a random factor, and
a window of fixed size is cut out, with mean colour where the image does not reach. Multi-scale: the shorter side gets
one of several lengths, and nothing is cropped. Besides, changes of brightness, contrast, saturation and hue, and a
mirror image. Boxes are cut at the window; an object of which less than a pixel is left is dropped.

Masks are resized to the nearest pixel by pixel centres; torchvision's own way takes the pixel's corner, which moves an
enlarged mask by half a pixel against its image.

H W height and width in pixels, N objects, C channels.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from cmtvision.data.preprocess import MAX_EDGE, Preprocess
from cmtvision.errors import ConfigError

Scene: TypeAlias = dict[str, Any]
"""'image' (PIL) with any of 'boxes' (N, 4), 'masks' (N, H, W) and 'mask' (H, W) as torchvision's tv_tensors."""
_LIGHT: tuple[dict[str, float], ...] = ({"brightness": 0.125}, {"contrast": 0.5})
_COLOUR = (*_LIGHT, {"saturation": 0.5}, {"hue": 0.05})
"""The reach of SSD's photometric distortion (Liu et al. 2016), without its exchange of colour channels: colours tell
classes apart."""


@dataclass(frozen=True)
class DenseAugment:
    """How training images of detection and segmentation are changed at random.

    Args:
        size: (height, width) of the window that large-scale jitter cuts out.
        scale: its least and greatest factor; 1 is an image that just fits into the window.
        short_sides: lengths of the shorter side, one of which multi-scale draws; given, nothing is jittered or cropped.
        longest: pixels that multi-scale allows the longer side.
        hflip: probability of a mirror image.
        photometric: probability of each change of colour.

    Raises:
        ConfigError: at construction, numbers out of range.
    """

    size: tuple[int, int]
    scale: tuple[float, float] = (0.5, 2.0)
    short_sides: tuple[int, ...] = ()
    longest: int | None = None
    hflip: float = 0.5
    photometric: float = 0.5

    def __post_init__(self) -> None:
        def refuse(key: str, expected: str) -> None:
            raise ConfigError(f"augment {key}: got {getattr(self, key)!r}, expected {expected}")

        if len(self.size) != 2 or not all(1 <= edge <= MAX_EDGE for edge in self.size):
            refuse("size", f"(height, width), each 1 to {MAX_EDGE:,} pixels")
        if not 0 < self.scale[0] <= self.scale[1] <= 10:
            refuse("scale", "(least, greatest), within 0 to 10")
        if not all(1 <= side <= MAX_EDGE for side in self.short_sides):
            refuse("short_sides", f"pixels, 1 to {MAX_EDGE:,} each")
        if self.longest is not None and not (self.short_sides and max(self.short_sides) <= self.longest <= MAX_EDGE):
            refuse("longest", f"nothing without short_sides, else the longest of them to {MAX_EDGE:,}")
        for key in ("hflip", "photometric"):
            if not 0 <= getattr(self, key) <= 1:
                refuse(key, "a probability")


class DenseTransform:
    """Turns an image with its boxes and masks into a randomly changed network input; see the module's docstring.

    Args:
        preprocess: filter, mean, std and channels.
        augment: what is changed.
        void: what fills a semantic mask where the image does not reach. Objects' masks are bytes, in which it is no
            object; for detection leave it.

    Raises:
        ConfigError: a number of channels other than 1 or 3.
    """

    def __init__(self, preprocess: Preprocess, augment: DenseAugment, void: int = 255) -> None:
        if preprocess.channels not in (1, 3):
            raise ConfigError(f"channels: got {preprocess.channels}, expected 1 or 3 for detection and segmentation")
        self.preprocess, self.augment, self.void = preprocess, augment, void
        mode = InterpolationMode(preprocess.interpolation)
        colour = tuple(round(value * 255) for value in preprocess.mean)
        fill: dict[Any, Any] = {Image.Image: colour if len(colour) == 3 else colour[0], tv_tensors.Mask: void}
        steps: list[v2.Transform]
        if augment.short_sides:
            steps = [_ShortSide(augment.short_sides, augment.longest, mode)]
        else:
            steps = [_Jitter(augment.size, augment.scale, mode)]
        if augment.photometric:  # before the window, whose mean colour stays what it is
            changes = _COLOUR if preprocess.channels == 3 else _LIGHT
            steps += [v2.RandomApply([v2.ColorJitter(**change)], p=augment.photometric) for change in changes]
        if not augment.short_sides:
            steps.append(v2.RandomCrop(augment.size, pad_if_needed=True, fill=fill))
        if augment.hflip:
            steps.append(v2.RandomHorizontalFlip(augment.hflip))
        self._steps = v2.Compose(steps)

    def __call__(self, scene: Scene) -> Scene:
        """A scene changed by torch's global generator (see ``keyed_rng``), 'image' now a tensor (C, H, W) float32.

        'objects' (M,) says which of the N objects are left; 'boxes' and 'masks' are theirs, as plain tensors. Boxes are
        cut at the image's edges.
        """
        picture: Image.Image = scene["image"]
        wanted = "L" if self.preprocess.channels == 1 else "RGB"
        masks = scene.get("masks")
        if masks is not None:
            scene = {**scene, "masks": tv_tensors.Mask(masks.to(torch.uint8))}
        out: Scene = self._steps({**scene, "image": picture if picture.mode == wanted else picture.convert(wanted)})
        pixels = np.asarray(out["image"])
        out["image"] = torch.from_numpy(self.preprocess.finish(pixels if pixels.ndim == 3 else pixels[:, :, None]))
        if masks is not None:
            out["masks"] = out["masks"].as_subclass(torch.Tensor) == 1  # (N, H, W); what was filled is not
        if "mask" in out:
            out["mask"] = out["mask"].as_subclass(torch.Tensor)
        if "boxes" in out:
            boxes = F.clamp_bounding_boxes(out["boxes"]).as_subclass(torch.Tensor)
            left = ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(dim=1)
            if masks is not None:  # of an object with a mask, something must be seen
                left &= out["masks"].any(dim=(1, 2)) | ~masks.any(dim=2).any(dim=1)
                out["masks"] = out["masks"][left]
            out["boxes"], out["objects"] = boxes[left], left.nonzero().flatten()
        return out


class _Resize(v2.Transform):  # type: ignore[misc]  # torchvision has no types
    """Resizes to a size that depends on the image and on chance."""

    def __init__(self, mode: InterpolationMode) -> None:
        super().__init__()
        self.mode = mode

    def new_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that an image of this size gets."""
        raise NotImplementedError

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Drawn once for the image, its boxes and its masks."""
        picture = next(one for one in flat_inputs if isinstance(one, Image.Image))
        return {"size": list(self.new_size(picture.height, picture.width))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """The image by its filter, boxes by their corners, masks by the nearest pixel centre."""
        if isinstance(inpt, tv_tensors.Mask):
            plain = inpt.as_subclass(torch.Tensor)
            planes = plain if plain.ndim == 3 else plain[None]
            resized = F.resize_image(planes, params["size"], interpolation=InterpolationMode.NEAREST_EXACT)
            return tv_tensors.wrap(resized if plain.ndim == 3 else resized[0], like=inpt)
        return self._call_kernel(F.resize, inpt, size=params["size"], interpolation=self.mode, antialias=True)


class _Jitter(_Resize):
    def __init__(self, size: tuple[int, int], scale: tuple[float, float], mode: InterpolationMode) -> None:
        super().__init__(mode)
        self.size, self.scale = size, scale

    def new_size(self, height: int, width: int) -> tuple[int, int]:
        factor = self.scale[0] + float(torch.rand(())) * (self.scale[1] - self.scale[0])
        factor *= min(self.size[0] / height, self.size[1] / width)
        return max(1, round(height * factor)), max(1, round(width * factor))


class _ShortSide(_Resize):
    def __init__(self, sides: tuple[int, ...], longest: int | None, mode: InterpolationMode) -> None:
        super().__init__(mode)
        self.sides, self.longest = sides, longest

    def new_size(self, height: int, width: int) -> tuple[int, int]:
        side = self.sides[int(torch.randint(len(self.sides), ()))]
        factor = side / min(height, width)
        if self.longest is not None:
            factor = min(factor, self.longest / max(height, width))
        return max(1, round(height * factor)), max(1, round(width * factor))
