"""What the page accepts: from where, how many photos, how large, and how a file becomes a photo."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from fewseg_ext.data.photos import check_format, turned_size

# Where nobody else can reach the page, so that no token is needed.
LOOPBACK = ("127.0.0.1", "localhost")
# Photos are shrunk to this before anything else: more than a screen shows and than the model sees.
LONGEST_SIDE = 1024


@dataclass(frozen=True)
class Limits:
    """Of one session."""

    photos: int = 24
    megabytes: int = 20  # of one file
    megapixels: int = 50  # of one photo

    @property
    def file_bytes(self) -> int:
        """The same as ``megabytes``, which are counted as Gradio counts them."""
        return self.megabytes * 2**20

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"{name}: expected 1 or more, got {value}")


@dataclass(frozen=True)
class Upload:
    """A photo that was read."""

    pixels: NDArray[np.uint8]
    """[h,w,3], RGB, the longer side at most ``LONGEST_SIDE``, turned as its camera says (EXIF)."""
    size: tuple[int, int]
    """(width, height) of the photo itself, turned."""


def read_upload(path: Path, limits: Limits) -> Upload:
    """Decode a file that a stranger sent.

    Raises:
        ValueError: too large in bytes or pixels, or not an image. The size in pixels is looked at before any of them
            is decoded.
    """
    if path.stat().st_size > limits.file_bytes:
        raise ValueError(f"more than {limits.megabytes} MB")
    try:
        with warnings.catch_warnings():
            # The limit below is ours; Pillow's own is for programs without one.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                check_format(file, "it")
                width, height = file.size
                if width * height > limits.megapixels * 1_000_000:
                    raise ValueError(_too_many_pixels(limits, f"{width} x {height} pixels"))
                size = turned_size(file)
                # A JPEG is decoded at a half, quarter or eighth where that is still larger than what is kept.
                file.draft("RGB", (LONGEST_SIDE, LONGEST_SIDE))
                image = ImageOps.exif_transpose(file).convert("RGB")
    except UnidentifiedImageError as error:
        raise ValueError("not an image file") from error
    except Image.DecompressionBombError as error:
        raise ValueError(_too_many_pixels(limits, "so many pixels that Pillow refuses it")) from error
    except ValueError:
        raise
    except Exception as error:  # Pillow raises a different type for every way in which a file can be wrong
        raise ValueError(f"cannot be read: {error}") from error
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    return Upload(np.array(image), size)


def _too_many_pixels(limits: Limits, size: str) -> str:
    return f"{size}, and the limit is {limits.megapixels} megapixels"
