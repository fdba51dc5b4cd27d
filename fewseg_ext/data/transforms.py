"""What happens to an image and its labels together before a model sees them."""

import random

import torch
from torch import Tensor

# ImageNet statistics of RGB values in [0, 1], which the pretrained backbones expect.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# What a source writes for pixels that count neither way: 255 could be a class.
SOURCE_IGNORE = -1


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
        # torchvision cannot be imported beside every torch, so importing this package must not need it.
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.v2 import functional as F

        if self.size is not None and tuple(image.shape[-2:]) != (self.size, self.size):
            side = [self.size, self.size]
            image = F.resize(image, side, interpolation=InterpolationMode.BILINEAR, antialias=True)
            labels = F.resize(labels[None], side, interpolation=InterpolationMode.NEAREST_EXACT)[0]
        if self.flip and rng.random() < 0.5:
            image, labels = F.horizontal_flip(image), F.horizontal_flip(labels)
        image = F.to_dtype(image, torch.float32, scale=True)
        return F.normalize(image, list(IMAGENET_MEAN), list(IMAGENET_STD)), labels


def denormalize(images: Tensor) -> Tensor:
    """[...,3,h,w] normalised images -> RGB values in [0, 1], to look at."""
    mean = torch.tensor(IMAGENET_MEAN).view(3, 1, 1).to(images)
    std = torch.tensor(IMAGENET_STD).view(3, 1, 1).to(images)
    return (images * std + mean).clamp(0, 1)
