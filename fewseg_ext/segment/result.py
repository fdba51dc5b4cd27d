"""What a segmenter says about one photo."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Told apart on most photos, and by the colour-blind (after Okabe and Ito).
COLORS = ((230, 100, 0), (0, 114, 178), (0, 158, 115), (204, 80, 167), (240, 228, 66), (86, 180, 233), (120, 60, 200))


@dataclass(frozen=True)
class SegmentationResult:
    """Everything has the photo's own size h x w, turned as its camera says (EXIF)."""

    photo: NDArray[np.uint8]
    """[h,w,3], RGB."""
    mask: NDArray[np.uint8]
    """[h,w]: 0 background, else the numbers of the masks given to ``fit`` (1 for a single class)."""
    probabilities: NDArray[np.float32]
    """[K,h,w]: background first, then the classes in the order of ``class_names``."""
    uncertainty: NDArray[np.float32]
    """[h,w], the entropy of the probabilities in nats: 0 certain, log K undecided."""
    mutual_information: NDArray[np.float32] | None
    """[h,w] in nats, with VPI: the part of the uncertainty that its samples disagree about."""
    class_names: Sequence[str]
    values: Sequence[int]
    """What ``mask`` calls each class."""
    path: str | None = None
    """Of the photo, where it came from a file."""

    @property
    def area(self) -> float:
        """Share of the photo that is not background, 0 to 1."""
        return float((self.mask > 0).mean())

    @property
    def confidence(self) -> float:
        """Mean probability of what was chosen, over the object where there is one, else over the photo."""
        chosen = self.probabilities.max(0)
        found = self.mask > 0
        return float(chosen[found].mean() if found.any() else chosen.mean())

    def overlay(self, opacity: float = 0.5) -> Image.Image:
        """The photo with every class tinted in a colour of its own and outlined.

        Args:
            opacity: of the tint, 0 to 1.

        Raises:
            ValueError: an opacity outside [0, 1].
        """
        return draw_overlay(self.photo, self.mask, self.values, opacity)


def draw_overlay(
    photo: NDArray[np.uint8], mask: NDArray[np.uint8], values: Sequence[int], opacity: float = 0.5
) -> Image.Image:
    """See :meth:`SegmentationResult.overlay`."""
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity: expected 0 to 1, got {opacity}")
    picture = photo.astype(np.float32)
    width = max(1, round(max(mask.shape) / 320))
    for index, value in enumerate(values):
        there = mask == value
        color = np.array(COLORS[index % len(COLORS)], np.float32)
        picture[there] = (1 - opacity) * picture[there] + opacity * color
        picture[_outline(there, width)] = color
    return Image.fromarray(picture.round().astype(np.uint8))


def _outline(mask: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """The pixels of ``mask`` that are at most ``width`` from its outside; the photo's border is no outside."""
    inside = mask
    for _ in range(width):
        padded = np.pad(inside, 1, mode="edge")
        inside = inside & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inside
