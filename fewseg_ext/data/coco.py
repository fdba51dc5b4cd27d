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
from fewseg_ext.data.photos import PhotoSource, is_plain_name
from fewseg_ext.data.transforms import SOURCE_IGNORE
from fewseg_ext.files import read_json, write_text

CATEGORY_IDS = tuple(i for i in range(1, 91) if i not in {12, 26, 29, 30, 45, 66, 68, 69, 71, 83})
VARIANTS = ("A", "B")
YEARS = (2014, 2017)
MIN_PIXELS = 2 * 32 * 32
PREPARED = "fewseg_coco20i"  # the folder inside ROOT
INDEX_VERSION = 1
# More than Pillow takes for a photo.
MOST_PIXELS = 200_000_000

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

    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no ordinary file")
    try:
        # It reports its progress by print.
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO(str(path))
        for key, fields in (
            ("images", ("id", "file_name", "width", "height")),
            ("annotations", ("id", "image_id")),
            ("categories", ("id", "name")),
        ):
            items = coco.dataset[key]
            if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
                raise ValueError(f"{key!r} is not a list of objects")
            for item in items:
                for name in fields:
                    if name not in item:
                        raise ValueError(f"an item of {key!r} has no {name!r}")
        if not all(type(item["id"]) is int for item in coco.dataset["categories"]):
            raise ValueError("the ids of its categories are not whole numbers")
        if not all(isinstance(item["file_name"], str) for item in coco.dataset["images"]):
            raise ValueError("a 'file_name' is not a text")
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError, RecursionError) as error:
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
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else error
            problems.append(f"annotation {annotation.get('id', '?')}: {reason}")
    return {category: tools.merge(parts[category]) for category in sorted(parts)}, problems


def _instance(segmentation: Any, height: int, width: int) -> Rle:
    """One instance: a list of polygons, or a run-length code with its counts as a list or compressed."""
    tools = mask_tools()
    if isinstance(segmentation, list):
        # Fewer than three corners enclose nothing; pycocotools would take four numbers for a box.
        polygons = [_polygon(polygon, height, width) for polygon in segmentation if len(polygon) >= 6]
        if not polygons:
            raise ValueError("its mask is empty")
        rle: Rle = tools.merge(tools.frPyObjects(polygons, height, width))
    else:
        if list(segmentation["size"]) != [height, width]:
            stored_height, stored_width = segmentation["size"]
            raise ValueError(f"its mask is {stored_width} x {stored_height}, but its photo is {width} x {height}")
        # In the form that pycocotools itself gives it.
        rle = tools.encode(np.asfortranarray(decode_rle(segmentation["counts"], height, width)))
    if tools.area(rle) == 0:
        raise ValueError("its mask is empty")
    return rle


def _polygon(given: Any, height: int, width: int) -> list[float]:
    """The corners of a polygon: pycocotools would take as much memory as it is long, and numbers of any size."""
    corners = np.array(given, np.float64)
    if corners.ndim != 1:
        raise ValueError("its polygon is not a list of numbers")
    points = corners[: corners.size // 2 * 2].reshape(-1, 2)
    if not np.isfinite(points).all() or (np.abs(points) > 2 * max(height, width)).any():
        raise ValueError("its polygon leads far out of its photo")
    length = np.abs(points - np.roll(points, 1, 0)).max(1).sum()
    if length > 4 * (height + 1) * (width + 1):
        raise ValueError("its polygon is longer than its photo has pixels")
    return corners.tolist()


def decode_rle(counts: Any, height: int, width: int) -> NDArray[np.uint8]:
    """The mask [h,w] of a run-length code of COCO's, as a list of numbers or compressed into a text.

    pycocotools' own decoder trusts the code, and writes beyond its memory where the runs do not add up.

    Raises:
        ValueError, TypeError: it is none, or is damaged, or of another number of pixels.
    """
    pixels = height * width
    if isinstance(counts, list):
        if not all(type(count) is int for count in counts):
            raise ValueError("its runs are not whole numbers")
    else:
        counts = _decompress(counts.encode() if isinstance(counts, str) else counts).tolist()
    if sum(counts) != pixels:
        raise ValueError(f"its runs cover {sum(counts)} pixels, but its photo has {pixels}")
    if min(counts) < 0:
        raise ValueError("a run of it is negative")
    there = np.arange(len(counts)) % 2 == 1
    return np.repeat(there, counts).reshape((height, width), order="F").astype(np.uint8)


def _decompress(text: bytes) -> NDArray[np.int64]:
    """The runs of COCO's compressed text: numbers of five bits a letter, the lowest first, mostly as differences."""
    letters = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if letters.size == 0 or letters.min() < 0 or letters.max() > 63 or letters[-1] & 32:
        raise ValueError("its run-length code is damaged")
    last = np.flatnonzero(letters & 32 == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    lengths = last - first + 1
    if lengths.max() > 8:
        raise ValueError("its run-length code is damaged")
    shifts = 5 * (np.arange(letters.size) - np.repeat(first, lengths))
    runs = np.add.reduceat((letters & 31) << shifts, first)
    runs -= np.where(letters[last] & 16, 1 << (5 * lengths), 0)
    # From the fourth on each is the difference to the one before the last.
    runs[1::2] = runs[1::2].cumsum()
    runs[2::2] = runs[2::2].cumsum()
    return runs


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
        ValueError: it was written by another version, or is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found: run `fewseg prepare coco20i ROOT` first")
    content = read_json(path)
    try:
        if content["version"] != INDEX_VERSION:
            raise ValueError("another version")
        names = content["class_names"]
        images = [
            CocoImage(image_id, file_name, width, height, tuple(CocoObject(*item) for item in objects))
            for image_id, file_name, width, height, objects in content["images"]
        ]
        if len(names) != len(CATEGORY_IDS) or not all(isinstance(name, str) for name in list(names)):
            raise ValueError("the names of the classes")
        strange = next((image for image in images if not _plausible(image)), None)
        if strange is not None:
            raise ValueError(f"the photo {str(strange.file_name)[:80]!r}")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged or was written by another version ({error}): run `fewseg prepare coco20i ROOT` again"
        ) from error
    return names, images


def _plausible(image: CocoImage) -> bool:
    """Whether a line of an index, which somebody else may have written, can be used as it is."""
    numbers = (image.id, image.width, image.height, *(number for item in image.objects for number in item))
    return (
        all(type(number) is int and number >= 0 for number in numbers)
        and is_plain_name(image.file_name)
        and 0 < image.width * image.height <= MOST_PIXELS
        and all(1 <= item.label <= len(CATEGORY_IDS) for item in image.objects)
    )


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
        image = self._image(class_id, index)
        masks = []
        with self.masks_path.open("rb") as file:
            for item in image.objects:
                if item.label in self._class_of_label:
                    file.seek(item.offset)
                    counts = file.read(min(item.length, MOST_PIXELS))
                    try:
                        mask = decode_rle(counts, image.height, image.width)
                    except ValueError as error:
                        raise ValueError(f"{self.masks_path}: the mask of {image.file_name}: {error}") from error
                    masks.append((self._class_of_label[item.label], mask))
        return torch.from_numpy(paint_labels((image.height, image.width), masks, first=class_id + 1))

    def _image(self, class_id: int, index: int) -> CocoImage:
        return self._images[self.photos[class_id][index].name]
