"""COCO-20i: the 80 classes of COCO in four folds of twenty.

Class k is the k-th of COCO's category ids in use (1..90, of which ten are not), counted from 1. In split-A fold i tests
the classes 20 i + 1 to 20 i + 20, in split-B the classes 4 x + 1 + i, x = 0..19. A photo counts for a class that covers
2,048 pixels of it.

The mask of a class is the union of all its instances, every polygon and every run-length code of them, crowds
included. COCO has no ignore label. Masks of different classes may overlap: the class that a photo is read for is whole,
and of the others the last in the order of ids lies on top.

`fewseg prepare coco20i` writes the index and the masks that `COCO20i` reads; it needs pycocotools.
"""

import contextlib
import io
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewseg_ext.data.folds import HeldOut, Split, check_choice, check_fold
from fewseg_ext.data.photos import PhotoSource
from fewseg_ext.data.transforms import SOURCE_IGNORE
from fewseg_ext.files import write_text

CATEGORY_IDS = tuple(i for i in range(1, 91) if i not in {12, 26, 29, 30, 45, 66, 68, 69, 71, 83})
VARIANTS = ("A", "B")
YEARS = (2014, 2017)
MIN_PIXELS = 2 * 32 * 32
PREPARED = "fewseg_coco20i"  # the folder inside ROOT
INDEX_VERSION = 1

Rle = dict[str, Any]  # pycocotools' {"size": [h, w], "counts": bytes}


class CocoObject(NamedTuple):
    """The mask of one class in one photo: where it lies in the file of masks."""

    label: int  # 1..80
    pixels: int
    offset: int  # in bytes
    length: int


@dataclass(frozen=True)
class CocoImage:
    """One photo of the index."""

    id: int
    file_name: str
    width: int
    height: int
    objects: tuple[CocoObject, ...]


def fold_labels(variant: str, fold: int, split: Split) -> list[int]:
    """The classes 1..80 that a fold tests, or trains on."""
    if variant not in VARIANTS:
        raise ValueError(f"COCO-20i: variant must be 'A' or 'B', got {variant!r}")
    check_fold("COCO-20i", fold)
    tested = range(20 * fold + 1, 20 * fold + 21) if variant == "A" else range(fold + 1, 81, 4)
    return [label for label in range(1, 81) if (label in tested) == (split == "test")]


def mask_tools() -> Any:
    """The module ``pycocotools.mask``.

    Raises:
        ImportError: it is not installed; the message says how to.
    """
    try:
        from pycocotools import mask
    except ImportError:
        raise ImportError("COCO's masks are read with pycocotools: pip install 'fewseg-ext[data]'") from None
    return mask


def load_coco(path: Path) -> Any:
    """``pycocotools.coco.COCO`` of a JSON file.

    Raises:
        ImportError: pycocotools is missing.
        ValueError: the file is not JSON of COCO's form.
    """
    mask_tools()
    from pycocotools.coco import COCO

    try:
        # It reports its progress by print.
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO(str(path))
        for key, fields in (
            ("images", ("id", "file_name", "width", "height")),
            ("annotations", ("id", "image_id")),
            ("categories", ("id", "name")),
        ):
            for item in coco.dataset[key]:
                for name in fields:
                    if name not in item:
                        raise ValueError(f"an item of {key!r} has no {name!r}")
        if not all(isinstance(item["id"], int) for item in coco.dataset["categories"]):
            raise ValueError("the ids of its categories are not whole numbers")
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{path} is not a COCO file of instances: {reason}") from error
    return coco


def class_masks(annotations: Iterable[dict[str, Any]], height: int, width: int) -> tuple[dict[int, Rle], list[str]]:
    """The union of a photo's instances for each category.

    Args:
        annotations: of one photo, as in COCO's JSON.
        height: of the photo.
        width: of the photo.

    Returns:
        The union by category id, in the order of ids, and what is wrong with the instances that are left out.
    """
    tools = mask_tools()
    parts: dict[int, list[Rle]] = {}
    problems = []
    for annotation in annotations:
        try:
            rle = _instance(annotation["segmentation"], height, width)
            parts.setdefault(int(annotation["category_id"]), []).append(rle)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else error
            problems.append(f"annotation {annotation.get('id', '?')}: {reason}")
    return {category: tools.merge(parts[category]) for category in sorted(parts)}, problems


def _instance(segmentation: Any, height: int, width: int) -> Rle:
    """One instance: a list of polygons, or a run-length code with its counts as a list or compressed."""
    tools = mask_tools()
    if isinstance(segmentation, list):
        # Fewer than three corners enclose nothing; pycocotools would take four numbers for a box.
        polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
        if not polygons:
            raise ValueError("its mask is empty")
        rle: Rle = tools.merge(tools.frPyObjects(polygons, height, width))
    else:
        if list(segmentation["size"]) != [height, width]:
            stored_height, stored_width = segmentation["size"]
            raise ValueError(f"its mask is {stored_width} x {stored_height}, but its photo is {width} x {height}")
        rle = segmentation
        if isinstance(segmentation["counts"], list):
            if sum(segmentation["counts"]) != height * width:
                raise ValueError(
                    f"its runs cover {sum(segmentation['counts'])} pixels, but its photo has {height * width}"
                )
            rle = tools.frPyObjects(segmentation, height, width)
    if tools.area(rle) == 0:
        raise ValueError("its mask is empty")
    return rle


def paint_labels(
    shape: tuple[int, int], masks: Sequence[tuple[int, NDArray[np.uint8]]], first: int
) -> NDArray[np.int16]:
    """A label map [h,w] of masks [h,w] that may overlap: ``first`` lies on top, of the others the later ones."""
    labels = np.zeros(shape, np.int16)
    for label, mask in sorted(masks, key=lambda item: item[0] == first):
        labels[mask != 0] = label
    return labels


def save_index(path: Path, class_names: Sequence[str], images: Sequence[CocoImage]) -> None:
    """One photo a line, so that two indices can be compared with diff."""
    rows = [[i.id, i.file_name, i.width, i.height, [list(item) for item in i.objects]] for i in images]
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    names = json.dumps(list(class_names))
    write_text(path, f'{{"version":{INDEX_VERSION},"class_names":{names},"images":[\n{lines}\n]}}\n')


def load_index(path: Path) -> tuple[list[str], list[CocoImage]]:
    """Reads what `save_index` wrote: the names of the 80 classes, and the photos.

    Raises:
        FileNotFoundError: there is none; the message says how to make it.
        ValueError: it was written by another version.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found: run `fewseg prepare coco20i ROOT` first")
    content = json.loads(path.read_text())
    if content["version"] != INDEX_VERSION:
        raise ValueError(f"{path} was written by another version: run `fewseg prepare coco20i ROOT` again")
    return content["class_names"], [
        CocoImage(image_id, file_name, width, height, tuple(CocoObject(*item) for item in objects))
        for image_id, file_name, width, height, objects in content["images"]
    ]


def find_photos(root: Path, photo_set: str) -> Path:
    """The folder of a photo set such as "val2014": ``root/val2014`` or ``root/images/val2014``."""
    folder = root / "images" / photo_set
    return folder if folder.is_dir() else root / photo_set


class COCO20i(PhotoSource):
    """The photos of one fold, as an `ImageSource`: of train<year> to train on, of val<year> to test.

    Labels of classes that are not in ``class_names`` are background.

    Args:
        root: the folder that was prepared.
        fold: 0..3, or None with ``classes``.
        split: "test" for the fold's twenty classes, "train" for the other sixty.
        variant: "A" or "B", the two ways of cutting the classes into folds.
        year: 2014, which the papers use, or 2017.
        classes: names of COCO's categories in place of a fold.
        held_out: what the fold's test classes are in training photos. "background": the practice of the papers, which
            teaches the model that they are background. "ignore": their pixels do not count. "exclude": photos that
            show any of them are left out.
        prepared: where `fewseg prepare` wrote, if not into ``root``.

    Raises:
        FileNotFoundError: the data is not prepared.
        ImportError: pycocotools is missing.
        ValueError: an unknown fold, split, variant, year or class, or no photo at all.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        fold: int | None = None,
        split: Split = "test",
        *,
        variant: str = "A",
        year: int = 2014,
        classes: Sequence[str] | None = None,
        held_out: HeldOut = "background",
        prepared: str | os.PathLike[str] | None = None,
    ) -> None:
        check_choice("COCO20i", fold, split, classes, held_out)
        if year not in YEARS:
            raise ValueError(f"COCO20i: year must be 2014 or 2017, got {year}")
        mask_tools()
        photo_set = f"{'train' if split == 'train' else 'val'}{year}"
        self.folder = find_photos(Path(root), photo_set)
        self.prepared = Path(prepared) if prepared is not None else Path(root) / PREPARED
        names, images = load_index(self.prepared / f"{photo_set}.json")
        if fold is not None:
            labels = fold_labels(variant, fold, split)
        else:
            unknown = sorted(set(classes or ()) - set(names))
            if unknown:
                raise ValueError(f"COCO20i: not classes of COCO: {', '.join(unknown)}; they are {', '.join(names)}")
            labels = list(dict.fromkeys(names.index(name) + 1 for name in classes or ()))
        held_out_labels = set(fold_labels(variant, fold, "test")) if fold is not None and split == "train" else set()
        if held_out == "exclude":
            images = [image for image in images if not held_out_labels & {item.label for item in image.objects}]

        self.masks_path = self.prepared / f"{photo_set}.masks"
        self._class_of_label = {label: class_id + 1 for class_id, label in enumerate(labels)}
        if held_out == "ignore":
            self._class_of_label.update(dict.fromkeys(held_out_labels, SOURCE_IGNORE))
        photos: list[list[Path]] = [[] for _ in labels]
        self._images: dict[str, CocoImage] = {}
        for image in images:
            path = self.folder / image.file_name
            for item in image.objects:
                class_id = self._class_of_label.get(item.label, 0) - 1
                if class_id >= 0 and item.pixels >= MIN_PIXELS:
                    photos[class_id].append(path)
                    self._images[image.file_name] = image
        chosen = [names[label - 1] for label in labels]
        if not self._images:
            raise ValueError(f"COCO20i: no photo of {', '.join(chosen)} in {self.prepared / photo_set}.json")
        self.title = f"COCO-20i {f'split-{variant} fold {fold} ' if fold is not None else ''}{split}, {photo_set}"
        if held_out_labels:
            self.title += f", held-out classes: {held_out}"
        super().__init__(chosen, photos)

    def image_id(self, class_id: int, index: int) -> str:
        """COCO's number of the photo, twelve digits: the same in 2014 and 2017."""
        return f"{self._image(class_id, index).id:012d}"

    def read_labels(self, class_id: int, index: int) -> Tensor:
        """The labels alone, int16 [h,w]; the pixels of ``class_id`` are exact, whatever else covers them."""
        tools = mask_tools()
        image = self._image(class_id, index)
        masks = []
        with self.masks_path.open("rb") as file:
            for item in image.objects:
                if item.label in self._class_of_label:
                    file.seek(item.offset)
                    rle = {"size": [image.height, image.width], "counts": file.read(item.length)}
                    masks.append((self._class_of_label[item.label], tools.decode(rle)))
        return torch.from_numpy(paint_labels((image.height, image.width), masks, first=class_id + 1))

    def _image(self, class_id: int, index: int) -> CocoImage:
        return self._images[self.photos[class_id][index].name]
