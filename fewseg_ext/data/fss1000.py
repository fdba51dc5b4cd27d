"""Folders in the layout of FSS-1000: ``<class>/<name>.jpg`` with its mask ``<class>/<name>.png``."""

import os
import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

IMAGE_SUFFIXES = (".jpg", ".jpeg")
MASK_SUFFIX = ".png"
# A mask has soft, JPEG-like edges in some files, so it is cut in the middle.
FOREGROUND_FROM = 128


class FSS1000:
    """Images and masks of a folder with one sub-folder per class.

    Sub-folders without any image are skipped; classes are sorted by name and images by number.

    Args:
        root: the folder that holds the class folders.
        cache: keep every decoded image in memory (uint8), for data sets of a few thousand small images.

    Raises:
        FileNotFoundError: ``root`` is not a folder.
        ValueError: there is no class with images and masks, an image has no mask, or a mask is not as large as its
            image. The message names the file.
    """

    def __init__(self, root: str | os.PathLike[str], cache: bool = False) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise FileNotFoundError(f"FSS-1000 folder not found: {self.root}")
        self.files: dict[str, list[Path]] = {}
        for folder in sorted(path for path in self.root.iterdir() if path.is_dir()):
            images = sorted((p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES), key=_by_number)
            if images:
                self.files[folder.name] = images
        if not self.files:
            raise ValueError(f"{self.root} has no class folder with images and masks (<class>/1.jpg and <class>/1.png)")
        for images in self.files.values():
            for image in images:
                _check_pair(image)
        self.class_names = list(self.files)
        self._cache: dict[tuple[int, int], tuple[Tensor, Tensor]] | None = {} if cache else None

    def num_images(self, class_id: int) -> int:
        """How many images the class has."""
        return len(self.files[self.class_names[class_id]])

    def image_id(self, class_id: int, index: int) -> str:
        """``<class>/<file>``."""
        return "/".join(self.files[self.class_names[class_id]][index].parts[-2:])

    def read(self, class_id: int, index: int) -> tuple[Tensor, Tensor]:
        """The image, uint8 [3,h,w] in RGB, and its labels, int16 [h,w]: 0 background, class_id + 1 foreground."""
        if self._cache is not None and (class_id, index) in self._cache:
            return self._cache[class_id, index]
        path = self.files[self.class_names[class_id]][index]
        with Image.open(path) as file:
            image = torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1).contiguous()
        with Image.open(path.with_suffix(MASK_SUFFIX)) as file:
            foreground = torch.from_numpy(np.array(file.convert("L"))) >= FOREGROUND_FROM
        labels = foreground.to(torch.int16) * (class_id + 1)
        if self._cache is not None:
            self._cache[class_id, index] = image, labels
        return image, labels


def _by_number(path: Path) -> tuple[int, str]:
    """2.jpg before 10.jpg; names without a number come last, by name."""
    number = re.search(r"\d+", path.stem)
    return (int(number.group()) if number else 2**31, path.name)


def _check_pair(image: Path) -> None:
    mask = image.with_suffix(MASK_SUFFIX)
    if not mask.is_file():
        raise ValueError(f"{image} has no mask: expected {mask.name} beside it")
    # Opening reads the header only.
    with Image.open(image) as first, Image.open(mask) as second:
        if first.size != second.size:
            raise ValueError(
                f"{mask} is {second.width} x {second.height} pixels, but its image is {first.width} x {first.height}"
            )
