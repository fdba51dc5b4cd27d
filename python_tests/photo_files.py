"""Writes small data sets in the layouts of the real ones."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from fewseg_ext.data.coco import CATEGORY_IDS

SIDE = 96  # three rows and columns of the pixels [1::32, 1::32]


def write_photo(path: Path, size=(SIDE, SIDE), seed=0, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path, **options)


def write_mask(path: Path, labels, palette=True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(labels, np.uint8))
    if palette:
        image = image.convert("P")
        image.putpalette([value for index in range(256) for value in (index * 7 % 256, index * 5 % 256, 90)])
        image.putdata(np.asarray(labels, np.uint8).ravel().tolist())
    image.save(path)


def two_boxes(left: int, right: int, border=255) -> np.ndarray:
    """Labels [96,96]: the left and the right third, a border of 255 beside the left one."""
    labels = np.zeros((SIDE, SIDE), np.uint8)
    labels[:, :40] = left
    labels[:, 40:42] = border
    labels[:, 64:] = right
    return labels


def write_voc(root: Path, sets: dict[str, dict[str, np.ndarray]], masks="SegmentationClassAug") -> Path:
    """``VOCdevkit/VOC2012`` with the photos of "train", "val" and "sbd", each with its labels."""
    devkit = root / "VOCdevkit" / "VOC2012"
    lists = devkit / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for name, photos in sets.items():
        for number, (photo, labels) in enumerate(photos.items()):
            size = (labels.shape[1], labels.shape[0])
            write_photo(devkit / "JPEGImages" / f"{photo}.jpg", size, seed=number)
            if masks is not None:
                write_mask(devkit / masks / f"{photo}.png", labels)
        if name != "sbd":
            (lists / f"{name}.txt").write_text("".join(f"{photo}\n" for photo in photos))
    return devkit


def coco_json(images: list[dict], annotations: list[dict], categories=None) -> dict:
    return {
        "images": [{"width": SIDE, "height": SIDE, **image} for image in images],
        "annotations": [
            {"id": number, "iscrowd": 0, **annotation} for number, annotation in enumerate(annotations, start=1)
        ],
        "categories": categories or [{"id": i, "name": f"class{i}"} for i in CATEGORY_IDS],
    }


def write_json(path: Path, content: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def box(x0: int, y0: int, x1: int, y1: int) -> list[int]:
    """A polygon of COCO."""
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below the folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
