"""FSS-1000, and folders in its layout: ``<class>/<name>.jpg`` with its mask ``<class>/<name>.png``."""

import os
import re
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewseg_ext.data.photos import FOREGROUND_FROM, MASK_SUFFIX, PhotoSource, check_pair, read_grey, visible

FSS_SUFFIXES = (".jpg", ".jpeg")
# The test classes are official; the other 760 are cut as most of the literature does. VPI trains on all 760.
SPLITS = {"train": ("train",), "val": ("val",), "test": ("test",), "trainval": ("train", "val")}
_CLASS_LIST = Path(__file__).with_name("fss1000_classes.txt")


def split_classes(split: str) -> list[str]:
    """The names of the classes of a split of FSS-1000, sorted: "train" 520, "val" 240, "test" 240, "trainval" 760.

    Raises:
        ValueError: an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"FSS-1000: split must be one of {', '.join(SPLITS)}, got {split!r}")
    lines = (line.split(maxsplit=1) for line in _CLASS_LIST.read_text().splitlines())
    return sorted(name for part, name in lines if part in SPLITS[split])


def find_class_folders(root: Path, suffixes: Iterable[str] = FSS_SUFFIXES) -> dict[str, list[Path]]:
    """The images in every sub-folder that has any, hidden ones aside: classes sorted by name, images by number."""
    classes = {}
    for folder in (path for path in visible(root) if path.is_dir()):
        images = sorted((path for path in visible(folder) if path.suffix.lower() in suffixes), key=_by_number)
        if images:
            classes[folder.name] = images
    return classes


def read_foreground(mask: Path) -> NDArray[np.bool_]:
    """Where a mask shows the class, [h,w]."""
    return read_grey(mask) >= FOREGROUND_FROM


class FSS1000(PhotoSource):
    """Images and masks of a folder with one sub-folder per class, as an `ImageSource`.

    Sub-folders without any image are skipped; classes are sorted by name and images by number.

    Args:
        root: the folder that holds the class folders.
        cache: keep every decoded image in memory (uint8), for data sets of a few thousand small images.
        split: "train", "val", "test" or "trainval" takes the classes of that split of FSS-1000 only, and warns of
            those that are not there; None takes every class folder.

    Raises:
        FileNotFoundError: ``root`` is not a folder.
        ValueError: there is no class with images and masks, an image has no mask, or a mask is not as large as its
            image (the message names the file); an unknown split.
    """

    def __init__(self, root: str | os.PathLike[str], cache: bool = False, split: str | None = None) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise FileNotFoundError(f"FSS-1000 folder not found: {self.root}")
        self.files = find_class_folders(self.root)
        if not self.files:
            raise ValueError(f"{self.root} has no class folder with images and masks (<class>/1.jpg and <class>/1.png)")
        if split is not None:
            names = split_classes(split)
            self.files = {name: images for name, images in self.files.items() if name in set(names)}
            if not self.files:
                raise ValueError(f"{self.root} has none of the {len(names)} {split} classes of FSS-1000")
            if len(self.files) < len(names):
                warnings.warn(
                    f"{self.root} has {len(self.files)} of the {len(names)} {split} classes of FSS-1000", stacklevel=2
                )
        for images in self.files.values():
            for image in images:
                problem = check_pair(image)
                if problem is not None:
                    raise ValueError(problem)
        self.title = f"FSS-1000 {split}" if split is not None else f"class folders {self.root.name}"
        self._cache: dict[tuple[int, int], tuple[Tensor, Tensor]] | None = {} if cache else None
        super().__init__(list(self.files), list(self.files.values()))

    def image_id(self, class_id: int, index: int) -> str:
        """``<class>/<file>``."""
        return "/".join(self.image_path(class_id, index).parts[-2:])

    def read(self, class_id: int, index: int) -> tuple[Tensor, Tensor]:
        """The image, uint8 [3,h,w] in RGB, and its labels, int16 [h,w]: 0 background, class_id + 1 foreground."""
        if self._cache is None:
            return super().read(class_id, index)
        if (class_id, index) not in self._cache:
            self._cache[class_id, index] = super().read(class_id, index)
        return self._cache[class_id, index]

    def read_labels(self, class_id: int, index: int) -> Tensor:
        """The labels alone, int16 [h,w]."""
        foreground = torch.from_numpy(read_foreground(self.image_path(class_id, index).with_suffix(MASK_SUFFIX)))
        return foreground.to(torch.int16) * (class_id + 1)


def _by_number(path: Path) -> tuple[int, str]:
    """2.jpg before 10.jpg; names without a number come last, by name."""
    number = re.search(r"\d+", path.stem)
    return (int(number.group()) if number else 2**31, path.name)
