"""`fewseg evaluate` on the five animals of PASCAL VOC 2012 val, with all options of that command.

The val list of PASCAL-5i's family P3 for cat, cow, dog, horse and sheep: photos with at least 2,048 pixels of the
class. The five belong to different folds, so the mean is no fold's.

Example:

    python benchmarks/evaluate_voc.py --root VOCdevkit/VOC2012 --backbone mobilenet_v2 --weights IMAGENET1K_V1
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fewseg_ext import cli
from fewseg_ext.data.sources import SOURCES, SourceKind

CLASSES = {8: "cat", 10: "cow", 12: "dog", 13: "horse", 17: "sheep"}
SMALLEST = 2048
IGNORE = 255


class FiveAnimals:
    """An `ImageSource` over a VOC 2012 folder (JPEGImages, SegmentationClassAug, ImageSets/Segmentation/val.txt)."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.class_names = list(CLASSES.values())
        self.photos: list[list[str]] = [[] for _ in CLASSES]
        for name in (root / "ImageSets" / "Segmentation" / "val.txt").read_text().split():
            sizes = np.bincount(self._mask(name).ravel(), minlength=256)
            for photos, label in zip(self.photos, CLASSES, strict=True):
                if sizes[label] >= SMALLEST:
                    photos.append(name)

    def num_images(self, class_id: int) -> int:
        return len(self.photos[class_id])

    def image_id(self, class_id: int, index: int) -> str:
        return self.photos[class_id][index]

    def read(self, class_id: int, index: int) -> tuple[Tensor, Tensor]:
        name = self.photos[class_id][index]
        with Image.open(self.root / "JPEGImages" / f"{name}.jpg") as file:
            image = torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1).contiguous()
        table = torch.zeros(256, dtype=torch.int16)
        table[list(CLASSES)] = torch.arange(1, len(CLASSES) + 1, dtype=torch.int16)
        table[IGNORE] = -1
        return image, table[torch.from_numpy(self._mask(name)).long()]

    def _mask(self, name: str) -> np.ndarray:
        with Image.open(self.root / "SegmentationClassAug" / f"{name}.png") as file:
            return np.array(file)


def main() -> None:
    SOURCES["voc-animals"] = SourceKind(lambda root, fold: FiveAnimals(root))
    sys.argv = ["fewseg", "evaluate", "--dataset", "voc-animals", *sys.argv[1:]]
    cli.main()


if __name__ == "__main__":
    main()
