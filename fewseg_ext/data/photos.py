"""What the sources of photos share: reading an image and its mask, checking the pair."""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from rich.console import Console
from rich.progress import track
from torch import Tensor

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
MASK_SUFFIX = ".png"
# Where masks lie in another folder, a PNG is a photo too.
PHOTO_SUFFIXES = (*IMAGE_SUFFIXES, MASK_SUFFIX)
# A grey value from here on is the object: some masks have soft, JPEG-like edges, so they are cut in the middle.
FOREGROUND_FROM = 128
# What label maps call pixels that do not count.
MASK_IGNORE = 255
_EXIF_ORIENTATION = 0x0112

T = TypeVar("T")
R = TypeVar("R")


class PhotoSource:
    """An `ImageSource` over files: a list of photos for each class.

    Attributes:
        title: the data set and what was chosen of it, without the number of photos.

    Args:
        class_names: class c is called ``class_names[c]``.
        photos: for each class its photos.
        problems: what was left out, and why, one line for each; a warning tells how many there are.
    """

    title = "own photos"

    def __init__(
        self, class_names: Sequence[str], photos: Sequence[Sequence[Path]], problems: Sequence[str] = ()
    ) -> None:
        self.class_names = list(class_names)
        self.photos = [list(paths) for paths in photos]
        self.problems = list(problems)
        if self.problems:
            # The fourth caller is who called open_folder.
            warnings.warn(
                f"{len(self.problems)} left out, listed in `problems`; the first: {self.problems[0]}", stacklevel=4
            )

    def num_images(self, class_id: int) -> int:
        """How many images show the class."""
        return len(self.photos[class_id])

    def image_path(self, class_id: int, index: int) -> Path:
        """Where the photo lies."""
        return self.photos[class_id][index]

    def image_id(self, class_id: int, index: int) -> str:
        """The photo's name: the same string in whichever class."""
        return self.image_path(class_id, index).stem

    @property
    def description(self) -> str:
        """What a report says of the data."""
        photos = len({path for paths in self.photos for path in paths})
        return f"{self.title}, {photos:,d} photos of {len(self.class_names)} classes"

    def read(self, class_id: int, index: int) -> tuple[Tensor, Tensor]:
        """Image uint8 [3,h,w] and labels int16 [h,w]: 0 background, c + 1 for class c, -1 ignore."""
        labels = self.read_labels(class_id, index)
        return read_image(self.image_path(class_id, index), (labels.shape[1], labels.shape[0])), labels

    def read_labels(self, class_id: int, index: int) -> Tensor:
        """The labels alone."""
        raise NotImplementedError


def read_image(path: Path, size: tuple[int, int] | None = None) -> Tensor:
    """A photo as uint8 [3,h,w] in RGB.

    Args:
        path: any format that Pillow reads.
        size: (width, height) of its mask. A photo that its camera marked as turned (EXIF) is shown turned by some
            programs and not by others; it is turned here unless only the stored orientation fits the mask.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be decoded, or does not have the size of its mask. The message names it.
    """
    with _opened(path) as file:
        turned = ImageOps.exif_transpose(file)
        image = turned if size is None or turned.size == size or file.size != size else file
        if size is not None and image.size != size:
            raise ValueError(f"{path} is {_size(image.size)} pixels, but its mask is {_size(size)}")
        pixels = np.array(image.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def read_mask(path: Path) -> NDArray[Any]:
    """The numbers in a mask file [h,w]: uint8, or int32 from files of 16 or 32 bits.

    A palette image gives its indices, not its colours. A colour image gives the largest of its channels, alpha aside.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be decoded.
    """
    with _opened(path) as file:
        return mask_numbers(file)


def mask_numbers(image: Image.Image) -> NDArray[Any]:
    """What :func:`read_mask` gives, of an opened image."""
    if image.mode in ("L", "P"):
        return np.array(image)
    if image.mode == "1":
        return np.array(image).astype(np.uint8)
    if image.mode.startswith("I"):
        return np.array(image).astype(np.int32)
    return np.array(image.convert("RGB")).max(2)


def read_grey(path: Path) -> NDArray[np.uint8]:
    """A mask file as grey values uint8 [h,w], colours of a palette too.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be decoded.
    """
    with _opened(path) as file:
        return np.array(file.convert("L"))


def is_palette(path: Path) -> bool:
    """Whether the image holds indices of colours."""
    with _opened(path) as file:
        return file.mode == "P"


def check_photo(path: Path, size: tuple[int, int] | None = None, decode: bool = True) -> str | None:
    """Says what is wrong with a photo, or None.

    Args:
        path: the photo.
        size: (width, height) of its mask, whether the photo is stored or shown so.
        decode: decodes the whole photo, a JPEG at an eighth of its size, which finds a truncated file in a fraction of
            the time; False reads the header only.
    """
    try:
        with _opened(path) as file:
            stored, turned = file.size, turned_size(file)
            if size is not None and size not in (stored, turned):
                return f"{path}: {_size(turned)} pixels, but its mask is {_size(size)}"
            if decode:
                file.draft("RGB", (max(1, stored[0] // 8), max(1, stored[1] // 8)))
                file.load()
    except FileNotFoundError:
        return f"{path}: missing"
    except ValueError as error:
        return str(error)
    return None


def check_pair(photo: Path, foreground: Callable[[Path], NDArray[np.bool_]] | None = None) -> str | None:
    """Says what is wrong with a photo and the mask beside it, the PNG of the same name, or None.

    Args:
        photo: the photo.
        foreground: reads a mask as bool [h,w]: both files are decoded then, and an empty mask is wrong. Without it
            only the headers are read, for the sizes.
    """
    mask = photo.with_suffix(MASK_SUFFIX)
    try:
        if foreground is None:
            with _opened(mask) as file:
                size = file.size
        else:
            there = foreground(mask)
            if not there.any():
                return f"{mask}: the mask is empty"
            size = (there.shape[1], there.shape[0])
    except FileNotFoundError:
        return f"{photo}: no mask, expected {mask.name} beside it"
    except ValueError as error:
        return str(error)
    return check_photo(photo, size, decode=foreground is not None)


def turned_size(file: Image.Image) -> tuple[int, int]:
    """(width, height) of a photo when it is turned as its camera says (EXIF)."""
    width, height = file.size
    return (height, width) if file.getexif().get(_EXIF_ORIENTATION, 1) >= 5 else (width, height)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """``Image.open`` whose errors, those of decoding inside the block too, name the file."""
    try:
        if path.exists() and not path.is_file():
            # A pipe would be waited for.
            raise ValueError(f"{path} cannot be read: no ordinary file")
        with Image.open(path) as file:
            check_format(file, str(path))
            yield file
    except FileNotFoundError:
        raise
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} cannot be read: not an image file") from error
    except Exception as error:  # Pillow raises a different type for every way in which a file can be wrong
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        raise ValueError(f"{path} cannot be read: {error}") from error


def check_format(image: Image.Image, name: str) -> None:
    """Refuses what Pillow would start another program for.

    Raises:
        ValueError: it is PostScript, which Ghostscript would run.
    """
    if image.format == "EPS":
        raise ValueError(f"{name} cannot be read: PostScript is a program, not a photo")


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def is_plain_name(name: Any) -> bool:
    """Whether it is the name of a file, without folders."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set("/\\\0") & set(name)


def visible(folder: Path) -> list[Path]:
    """What is in a folder, without hidden files (``.ipynb_checkpoints``, macOS's ``._1.jpg``)."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def in_threads(
    function: Callable[[T], R], items: Sequence[T], description: str = "", console: Console | None = None
) -> Iterator[R]:
    """``map(function, items)`` on all processors (Pillow decodes without holding Python's lock), with a progress bar
    where there is a console."""
    executor = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))
    try:
        results = executor.map(function, items)
        yield from track(results, description, total=len(items), console=console, disable=console is None)
    finally:
        # An interruption must not wait for what is still queued.
        executor.shutdown(cancel_futures=True)
