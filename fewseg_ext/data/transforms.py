"""What happens to an image and its labels together before a model sees them."""

import random

import torch
from torch import Tensor

from fewseg_ext.optional import need_torchvision

# ImageNet statistics of RGB values in [0, 1], which the pretrained backbones expect.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# What a source writes for pixels that count neither way: 255 could be a class.
SOURCE_IGNORE = -1
# Imported where it is used: importing this package must not need it.
_NEEDS = "transforms of images need"
# What fills the outside of a photo: zero after normalisation, but for rounding.
_MEAN_PIXEL = tuple(round(255 * value) for value in IMAGENET_MEAN)


class PairTransform:
    """Resizes, flips and normalises an image together with its labels.

    Args:
        size: side in pixels to which both are squashed, or None to keep their size.
        flip: mirror left and right with probability one half.
    """

    def __init__(self, size: int | None = None, flip: bool = False) -> None:
        if size is not None and size < 1:
            raise ValueError(f"PairTransform: size must be positive, got {size}")
        self.size = size
        self.flip = flip

    def __call__(self, image: Tensor, labels: Tensor, rng: random.Random) -> tuple[Tensor, Tensor]:
        """Transforms one pair.

        Args:
            image: uint8 [3,h,w], RGB.
            labels: any integer dtype [h,w].
            rng: the source of every random choice. It is the episode's own, so that the result does not depend on
                which worker draws it.

        Returns:
            The image, float32 [3,h,w] normalised with the ImageNet statistics, and the labels, dtype unchanged.
        """
        need_torchvision(_NEEDS)
        from torchvision.transforms.v2 import functional as F

        if self.size is not None:
            image, labels = _resize(image, labels, self.size)
        if self.flip and rng.random() < 0.5:
            image, labels = F.horizontal_flip(image), F.horizontal_flip(labels)
        return normalize(F.to_dtype(image, torch.float32, scale=True)), labels


class ScaleAndCrop(PairTransform):
    """BiOpt's augmentation of supports: squashed to ``size`` times a random scale, then a random crop of ``size``.

    The crop can miss an object that lies at the edge; the support then shows background only.

    Args:
        size: side of the crop in pixels.
        scale: the scale is drawn evenly between these two, the smaller of which is at least 1.
        flip: mirror left and right with probability one half.
    """

    def __init__(self, size: int = 417, scale: tuple[float, float] = (1.0, 1.5), flip: bool = False) -> None:
        super().__init__(size, flip)
        if not 1 <= scale[0] <= scale[1]:
            raise ValueError(f"ScaleAndCrop: scale must be two rising numbers from 1, got {scale}")
        self.side = size
        self.scale = scale

    def __call__(self, image: Tensor, labels: Tensor, rng: random.Random) -> tuple[Tensor, Tensor]:
        """See `PairTransform`."""
        side = round(self.side * rng.uniform(*self.scale))
        image, labels = _resize(image, labels, side)
        top, left = (rng.randint(0, side - self.side) for _ in range(2))
        window = (..., slice(top, top + self.side), slice(left, left + self.side))
        return super().__call__(image[window], labels[window], rng)


class RotateAndCrop(PairTransform):
    """VPI's augmentation of supports and query: rotated, flipped, then a random crop of ``size``, without resizing.

    What lies outside the photo is filled with the ImageNet mean and ignored.

    Args:
        size: side of the crop in pixels; a smaller photo is filled up to it, below and to the right.
        flip: mirror left and right with probability one half.
        degrees: the angle is drawn evenly between minus and plus this.
    """

    def __init__(self, size: int = 384, flip: bool = True, degrees: float = 10.0) -> None:
        super().__init__(size, flip)
        if degrees < 0:
            raise ValueError(f"RotateAndCrop: degrees must not be negative, got {degrees}")
        self.side = size
        self.degrees = degrees

    def __call__(self, image: Tensor, labels: Tensor, rng: random.Random) -> tuple[Tensor, Tensor]:
        """See `PairTransform`."""
        need_torchvision(_NEEDS)
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.v2 import functional as F

        angle = rng.uniform(-self.degrees, self.degrees)
        nearest, bilinear = InterpolationMode.NEAREST, InterpolationMode.BILINEAR
        image = F.rotate(image, angle, interpolation=bilinear, fill=list(_MEAN_PIXEL))
        labels = F.rotate(labels[None], angle, interpolation=nearest, fill=[SOURCE_IGNORE])[0]
        below, right = (max(0, self.side - length) for length in labels.shape)
        if below or right:
            image = F.pad(image, [0, 0, right, below], fill=list(_MEAN_PIXEL))
            labels = F.pad(labels[None], [0, 0, right, below], fill=SOURCE_IGNORE)[0]
        top, left = (rng.randint(0, length - self.side) for length in labels.shape)
        window = (..., slice(top, top + self.side), slice(left, left + self.side))
        return super().__call__(image[window], labels[window], rng)


def biopt_transforms(size: int = 417, flip: bool = False) -> tuple[PairTransform, PairTransform]:
    """What BiOpt trains with: the ``transform`` and the ``query_transform`` of an `EpisodeDataset`.

    Supports are scaled by 1 to 1.5 and cropped, the query is only resized (and flipped, if asked for).
    """
    return ScaleAndCrop(size, flip=flip), PairTransform(size, flip=flip)


def vpi_transforms(size: int = 384, degrees: float = 10.0) -> tuple[PairTransform, PairTransform]:
    """What VPI trains with: the ``transform`` and the ``query_transform`` of an `EpisodeDataset`.

    Supports and query are rotated by up to ``degrees`` either way, flipped and cropped.
    """
    transform = RotateAndCrop(size, degrees=degrees)
    return transform, transform


def _resize(image: Tensor, labels: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Squashes both to side x side: the image smoothly, the labels by the nearest pixel."""
    need_torchvision(_NEEDS)
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional as F

    if tuple(image.shape[-2:]) == (side, side):
        return image, labels
    size = [side, side]
    image = F.resize(image, size, interpolation=InterpolationMode.BILINEAR, antialias=True)
    return image, F.resize(labels[None], size, interpolation=InterpolationMode.NEAREST_EXACT)[0]


def squash_labels(labels: Tensor, side: int) -> Tensor:
    """uint8 [h,w] squashed to a square by the nearest pixel, as `PairTransform` does it."""
    return torch.nn.functional.interpolate(labels[None, None], size=(side, side), mode="nearest-exact")[0, 0]


def normalize(images: Tensor) -> Tensor:
    """RGB values in [0, 1], [...,3,h,w], with the ImageNet statistics."""
    mean, std = _statistics(images)
    return (images - mean) / std


def denormalize(images: Tensor) -> Tensor:
    """[...,3,h,w] normalised images -> RGB values in [0, 1], to look at."""
    mean, std = _statistics(images)
    return (images * std + mean).clamp(0, 1)


def _statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(x, dtype=images.dtype, device=images.device) for x in (IMAGENET_MEAN, IMAGENET_STD))
    return mean.view(3, 1, 1), std.view(3, 1, 1)
