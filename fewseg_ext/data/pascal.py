"""PASCAL-5i: the 20 classes of PASCAL VOC 2012 in four folds of five, fold i testing classes 5i + 1 to 5i + 5.

Three families of lists share the name, and scores on one are not comparable with scores on another:

======  ==========================================  ================================  ==================================
family  training photos                             test photos                       an object counts from
======  ==========================================  ================================  ==================================
P1      VOC train and SBD, without VOC val (10,582)  the same (PANet, PPNet)           1 pixel
P2      the same                                    VOC val (1,449) (CANet, BiOpt)    3 of the pixels ``[1::32, 1::32]``
P3      VOC train and SBD train, without VOC val    VOC val (1,449) (OSLSM, PFENet)   2,048 pixels
        (5,953)
======  ==========================================  ================================  ==================================

`fewseg prepare pascal5i` writes the index that `Pascal5i` reads.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fewseg_ext.data.folds import HeldOut, Split, check_choice, check_fold
from fewseg_ext.data.photos import PhotoSource, is_plain_name, read_mask
from fewseg_ext.data.transforms import SOURCE_IGNORE
from fewseg_ext.files import read_json, write_text

CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
VOC_IGNORE = 255
PREPARED = "fewseg_pascal5i"  # the folder inside ROOT
INDEX = "index.json"
INDEX_VERSION = 1


class PascalObject(NamedTuple):
    """What one photo shows of one class."""

    label: int  # 1..20
    pixels: int
    grid: int  # pixels among labels[1::32, 1::32]


@dataclass(frozen=True)
class PascalImage:
    """One photo of the index."""

    name: str
    voc_set: Literal["train", "val", "sbd"]  # of VOC 2012, or "sbd" for what SBD adds
    sbd_train: bool | None  # in SBD's train.txt; None where that file was not there
    mask: str  # relative to the devkit, or to the prepared folder where it begins with "masks/"
    objects: tuple[PascalObject, ...]

    @property
    def in_p3_train(self) -> bool | None:
        """Whether family P3 trains on it; None where SBD's train.txt was not there to tell."""
        return {"train": True, "val": False, "sbd": self.sbd_train}[self.voc_set]


@dataclass(frozen=True)
class Family:
    """The rules of one family of lists."""

    name: str
    test_photos: Literal["val", "trainaug"]
    train_photos: Literal["trainaug", "p3"]
    min_pixels: int = 1
    min_grid: int = 0

    def shows(self, item: PascalObject) -> bool:
        """Whether the object is large enough to count."""
        return item.pixels >= self.min_pixels and item.grid >= self.min_grid

    def photos(self, images: Iterable[PascalImage], split: Split) -> list[PascalImage]:
        """The photos of a split, whatever they show.

        Raises:
            ValueError: it cannot be told which they are.
        """
        chosen = self.test_photos if split == "test" else self.train_photos
        images = list(images)
        if chosen == "val":
            return [image for image in images if image.voc_set == "val"]
        if chosen == "trainaug":
            return [image for image in images if image.voc_set != "val"]
        if any(image.in_p3_train is None for image in images):
            raise ValueError(
                f"family {self.name} trains on VOC train and SBD train; which photos these are was not known when the "
                "data was prepared: put SBD's train.txt into ROOT/sbd (or give --lists with the published list) and "
                "run `fewseg prepare pascal5i` again"
            )
        return [image for image in images if image.in_p3_train]


FAMILIES = {
    "P1": Family("P1", test_photos="trainaug", train_photos="trainaug"),
    # Found by comparison with the published lists: OSLSM's removal of small objects.
    "P2": Family("P2", test_photos="val", train_photos="trainaug", min_grid=3),
    "P3": Family("P3", test_photos="val", train_photos="p3", min_pixels=2 * 32 * 32),
}


def fold_classes(fold: int, split: Split) -> list[str]:
    """The classes that a fold tests, or trains on."""
    check_fold("PASCAL-5i", fold)
    tested = CLASSES[5 * fold : 5 * fold + 5]
    return [name for name in CLASSES if (name in tested) == (split == "test")]


def find_devkit(root: str | os.PathLike[str]) -> Path:
    """The folder ``VOC2012`` of the devkit, at ``root`` or one or two levels below it.

    Raises:
        FileNotFoundError: there is none.
    """
    root = Path(root)
    for folder in (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012"):
        if (folder / "JPEGImages").is_dir():
            return folder
    raise FileNotFoundError(
        f"no VOC 2012 devkit in {root}: expected {root / 'VOCdevkit' / 'VOC2012' / 'JPEGImages'} "
        "(VOCtrainval_11-May-2012.tar from http://host.robots.ox.ac.uk/pascal/VOC/voc2012/, or --download)"
    )


def save_index(path: Path, images: Sequence[PascalImage]) -> None:
    """One photo a line, so that two indices can be compared with diff."""
    rows = [[i.name, i.voc_set, i.sbd_train, i.mask, [list(item) for item in i.objects]] for i in images]
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    write_text(path, f'{{"version":{INDEX_VERSION},"images":[\n{lines}\n]}}\n')


def load_index(path: Path) -> list[PascalImage]:
    """Reads what `save_index` wrote.

    Raises:
        FileNotFoundError: there is none; the message says how to make it.
        ValueError: it was written by another version, or is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found: run `fewseg prepare pascal5i ROOT` first")
    content = read_json(path)
    try:
        if content["version"] != INDEX_VERSION:
            raise ValueError("another version")
        images = [
            PascalImage(name, voc_set, sbd_train, mask, tuple(PascalObject(*item) for item in objects))
            for name, voc_set, sbd_train, mask, objects in content["images"]
        ]
        strange = next((image for image in images if not _plausible(image)), None)
        if strange is not None:
            raise ValueError(f"the photo {str(strange.name)[:80]!r}")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged or was written by another version ({error}): run `fewseg prepare pascal5i ROOT` again"
        ) from error
    return images


def _plausible(image: PascalImage) -> bool:
    """Whether a line of an index, which somebody else may have written, can be used as it is."""
    return (
        is_plain_name(image.name)
        and image.voc_set in ("train", "val", "sbd")
        and (image.sbd_train is None or isinstance(image.sbd_train, bool))
        and isinstance(image.mask, str)
        and all(is_plain_name(part) for part in image.mask.split("/"))
        and all(type(number) is int and number >= 0 for item in image.objects for number in item)
        and all(1 <= item.label <= len(CLASSES) for item in image.objects)
    )


class Pascal5i(PhotoSource):
    """The photos of one fold, as an `ImageSource`.

    Labels of classes that are not in ``class_names`` are background, VOC's 255 is ignored.

    Args:
        root: the folder that was prepared.
        fold: 0..3, or None with ``classes``.
        split: "test" for the fold's five classes, "train" for the other fifteen.
        family: "P1", "P2" or "P3"; scores on one are not comparable with another's.
        classes: names of VOC classes in place of a fold.
        held_out: what the fold's test classes are in training photos. "background": the practice of the papers, which
            teaches the model that they are background. "ignore": their pixels do not count. "exclude": photos that
            show any of them are left out.
        prepared: where `fewseg prepare` wrote, if not into ``root``.

    Raises:
        FileNotFoundError: the data is not there, or not prepared.
        ValueError: an unknown fold, split, family or class, or no photo at all.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        fold: int | None = None,
        split: Split = "test",
        *,
        family: str = "P2",
        classes: Sequence[str] | None = None,
        held_out: HeldOut = "background",
        prepared: str | os.PathLike[str] | None = None,
    ) -> None:
        check_choice("Pascal5i", fold, split, classes, held_out)
        if family not in FAMILIES:
            raise ValueError(f"Pascal5i: family must be one of {', '.join(FAMILIES)}, got {family!r}")
        names = fold_classes(fold, split) if fold is not None else list(classes or ())
        unknown = sorted(set(names) - set(CLASSES))
        if unknown:
            raise ValueError(f"Pascal5i: not classes of VOC: {', '.join(unknown)}; they are {', '.join(CLASSES)}")
        if len(set(names)) != len(names):
            raise ValueError(f"Pascal5i: classes names one twice: {', '.join(names)}")

        self.devkit = find_devkit(root)
        self.prepared = Path(prepared) if prepared is not None else Path(root) / PREPARED
        self.family = FAMILIES[family]
        labels = [CLASSES.index(name) + 1 for name in names]
        held_out_labels: set[int] = set()
        if fold is not None and split == "train":
            held_out_labels = {CLASSES.index(name) + 1 for name in fold_classes(fold, "test")}
        images = self.family.photos(load_index(self.prepared / INDEX), split)
        if held_out == "exclude":
            images = [image for image in images if not held_out_labels & {item.label for item in image.objects}]

        photos: list[list[Path]] = [[] for _ in names]
        self._masks: dict[str, Path] = {}
        for image in images:
            shown = {item.label for item in image.objects if self.family.shows(item)}
            for class_id, label in enumerate(labels):
                if label in shown:
                    photos[class_id].append(self.devkit / "JPEGImages" / f"{image.name}.jpg")
                    base = self.prepared if image.mask.startswith("masks/") else self.devkit
                    self._masks[image.name] = base / image.mask
        if not self._masks:
            raise ValueError(f"Pascal5i: no {split} photo of {', '.join(names)} in {self.devkit} (family {family})")
        # Translates VOC's labels: an array lookup over the whole mask at once.
        self._class_of_label = np.zeros(256, np.int16)
        self._class_of_label[labels] = np.arange(1, len(names) + 1)
        self._class_of_label[VOC_IGNORE] = SOURCE_IGNORE
        if held_out == "ignore":
            self._class_of_label[list(held_out_labels)] = SOURCE_IGNORE
        self.title = f"PASCAL-5i {f'fold {fold} ' if fold is not None else ''}{split}, lists {family}"
        if held_out_labels:
            self.title += f", held-out classes: {held_out}"
        super().__init__(names, photos)

    def read_labels(self, class_id: int, index: int) -> Tensor:
        """The labels alone, int16 [h,w]."""
        path = self._masks[self.image_id(class_id, index)]
        labels = read_mask(path)
        if labels.dtype != np.uint8:
            raise ValueError(f"{path} is not a mask of VOC: expected 8 bits per pixel")
        return torch.from_numpy(self._class_of_label[labels])
