"""A user's own photos, in any of three layouts that `open_folder` tells apart.

========================  ==========================================================================================
class folders             ``<class>/<photo>.jpg`` with its mask ``<class>/<photo>.png``: white, 1 or a colour of the
                          palette is the object
images and label masks    ``images/<photo>.jpg`` and ``masks/<photo>.png``, whose numbers are 0 background, 1, 2, ... a
                          class, 255 ignored; line n of a ``classes.txt`` beside them names class n
COCO-style JSON           a file of instances (polygons or run-length codes) in the folder or in ``annotations/``, and
                          the photos that it names in the folder, in ``images/`` or in a folder called like the file
========================  ==========================================================================================
"""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewseg_ext.data.coco import Rle, class_masks, load_coco, mask_tools, paint_labels
from fewseg_ext.data.fss1000 import find_class_folders
from fewseg_ext.data.photos import (
    FOREGROUND_FROM,
    IMAGE_SUFFIXES,
    MASK_IGNORE,
    MASK_SUFFIX,
    PHOTO_SUFFIXES,
    PhotoSource,
    check_pair,
    check_photo,
    in_threads,
    is_palette,
    read_mask,
    visible,
)
from fewseg_ext.data.transforms import SOURCE_IGNORE
from fewseg_ext.files import read_text

# More than any data set has, and few enough for the labels that sources give, which are int16.
MOST_LABELS = 10_000


def open_folder(path: str | os.PathLike[str], *, min_images: int = 2) -> PhotoSource:
    """Opens a folder of one's own photos, or a COCO-style JSON file, as an `ImageSource`.

    Every photo and mask is read once. What cannot be used is left out and listed in the result's ``problems``, with a
    warning that tells how many there are: broken files, photos without masks, masks of another size than their photo,
    empty masks, classes with fewer than ``min_images`` photos.

    Args:
        path: the folder or the JSON file.
        min_images: of a class; one more than the number of shots.

    Raises:
        FileNotFoundError: there is no such folder or file.
        ImportError: it is COCO-style JSON, and pycocotools is missing.
        ValueError: the layout is not one of the three, or nothing in it can be used.
    """
    path = Path(path)
    if path.is_file() and path.suffix.lower() == ".json":
        return JsonFolder(path, min_images)
    if not path.is_dir():
        raise FileNotFoundError(f"folder of photos not found: {path}")
    if (path / "images").is_dir() and (path / "masks").is_dir():
        return LabelMasks(path, min_images)
    files = sorted([*path.glob("*.json"), *path.glob("annotations/*.json")])
    if len(files) == 1:
        return JsonFolder(files[0], min_images)
    if len(files) > 1:
        raise ValueError(f"{path} has several JSON files, open one of them: {', '.join(map(str, files))}")
    if any(photo.with_suffix(MASK_SUFFIX).is_file() for photos in _class_folders(path).values() for photo in photos):
        return ClassFolders(path, min_images)
    raise ValueError(
        f"{path} has none of the layouts for photos: <class>/<photo>.jpg with <class>/<photo>.png, images/ with "
        "masks/, or a COCO-style JSON file"
    )


class ClassFolders(PhotoSource):
    """``<class>/<photo>.jpg`` and ``<class>/<photo>.png``; see `open_folder`."""

    def __init__(self, root: Path, min_images: int = 2) -> None:
        classes = _class_folders(root)
        problems: list[str] = []
        usable: dict[str, list[Path]] = {name: [] for name in classes}
        pairs = [(name, photo) for name, photos in classes.items() for photo in photos]
        checked = in_threads(lambda pair: check_pair(pair[1], lambda mask: foreground(mask) == 1), pairs)
        for (name, photo), problem in zip(pairs, checked, strict=True):
            if problem is None:
                usable[name].append(photo)
            else:
                problems.append(problem)
        super().__init__(*_large_classes(root, usable, min_images, problems))

    def image_id(self, class_id: int, index: int) -> str:
        """``<class>/<file>``."""
        return "/".join(self.image_path(class_id, index).parts[-2:])

    def read_labels(self, class_id: int, index: int) -> Tensor:
        """The labels alone, int16 [h,w]."""
        labels = foreground(self.image_path(class_id, index).with_suffix(MASK_SUFFIX))
        return torch.from_numpy(np.where(labels > 0, np.int16(class_id + 1), labels))


def foreground(path: Path) -> NDArray[np.int16]:
    """A mask file of one object, however it was saved, as [h,w]: 1 the object, 0 not, -1 ignore.

    Grey values from 128 are the object, or those of 1 in a file of zeros and ones. In a palette image every colour but
    the first is, and index 255 is ignored unless it is the only one.
    """
    mask = read_mask(path)
    values = np.unique(mask)
    if is_palette(path):
        labels = (mask > 0).astype(np.int16)
        if set(values.tolist()) - {0, MASK_IGNORE}:
            labels[mask == MASK_IGNORE] = SOURCE_IGNORE
        return labels
    return (mask >= (1 if values.max(initial=0) <= 1 else FOREGROUND_FROM)).astype(np.int16)


class LabelMasks(PhotoSource):
    """``images/<photo>.jpg`` and ``masks/<photo>.png`` with numbers; see `open_folder`."""

    def __init__(self, root: Path, min_images: int = 2) -> None:
        photos = [p for p in visible(root / "images") if p.suffix.lower() in PHOTO_SUFFIXES]
        self._masks = {photo: root / "masks" / f"{photo.stem}{MASK_SUFFIX}" for photo in photos}
        problems: list[str] = []
        by_label: dict[int, list[Path]] = {}
        only_255 = True
        for photo, (labels, problem) in zip(photos, in_threads(self._labels_of, photos), strict=True):
            only_255 = only_255 and labels == [MASK_IGNORE]
            shown = [label for label in labels if label != MASK_IGNORE]
            if problem is None and not shown:
                problem = f"{self._masks[photo]}: the mask is empty"
            if problem is not None:
                problems.append(problem)
                continue
            for label in shown:
                by_label.setdefault(label, []).append(photo)
        if photos and only_255:
            raise ValueError(
                f"{root / 'masks'}: the masks hold 0 and 255 only, and 255 is ignored: write 1 for the object, or use "
                "the layout <class>/<photo>.jpg with <class>/<photo>.png"
            )
        names = _names(root / "classes.txt")
        # Without a name a class is called by its number.
        name_of = {k: names[k - 1] if k <= len(names) else str(k) for k in sorted(by_label)}
        label_of = {name: k for k, name in name_of.items()}
        if len(label_of) < len(name_of):
            raise ValueError(f"{root / 'classes.txt'} calls a class by the number of another, which has no name there")
        classes = {name: by_label[k] for k, name in name_of.items()}
        super().__init__(*_large_classes(root, classes, min_images, problems))
        self._class_of_label = np.zeros(MOST_LABELS + 1, np.int16)
        for class_id, name in enumerate(self.class_names):
            self._class_of_label[label_of[name]] = class_id + 1
        self._class_of_label[MASK_IGNORE] = SOURCE_IGNORE

    def read_labels(self, class_id: int, index: int) -> Tensor:
        """The labels alone, int16 [h,w]; those of classes that were left out are background."""
        mask = read_mask(self._masks[self.image_path(class_id, index)])
        return torch.from_numpy(self._class_of_label[mask.astype(np.int64).clip(0, MOST_LABELS)])

    def _labels_of(self, photo: Path) -> tuple[list[int], str | None]:
        """The labels in a photo's mask, and what is wrong with the pair."""
        mask_path = self._masks[photo]
        try:
            mask = read_mask(mask_path)
        except FileNotFoundError:
            return [], f"{photo}: no mask {mask_path.name} in {mask_path.parent}"
        except ValueError as error:
            return [], str(error)
        labels = [int(k) for k in np.unique(mask) if k != 0]
        if labels and not (labels[0] >= 1 and labels[-1] <= MOST_LABELS):
            wrong = labels[0] if labels[0] < 1 else labels[-1]
            return [], f"{mask_path}: label {wrong}; expected 0 background, 1 to {MOST_LABELS} a class, 255 ignored"
        return labels, check_photo(photo, (mask.shape[1], mask.shape[0]))


class JsonFolder(PhotoSource):
    """COCO-style JSON; see `open_folder`. A class is whole in the photos that are read for it, as in `COCO20i`."""

    def __init__(self, path: Path, min_images: int = 2) -> None:
        coco = load_coco(path)
        names = _category_names(coco.dataset["categories"])
        items = coco.dataset["images"]
        if not items:
            raise ValueError(f"{path} names no photos")
        find = _photo_finder(path)

        def check(item: dict[str, Any]) -> str | None:
            try:
                return check_photo(find(item["file_name"]), (item["width"], item["height"]))
            except (OSError, ValueError) as error:
                return str(error)

        problems: list[str] = []
        by_category: dict[int, list[Path]] = {}
        self._masks: dict[Path, dict[int, Rle]] = {}
        for item, problem in zip(items, in_threads(check, items), strict=True):
            if problem is not None:
                problems.append(problem)
                continue
            photo = find(item["file_name"])
            masks, wrong = class_masks(coco.imgToAnns.get(item["id"], []), item["height"], item["width"])
            wrong += [f"category {category} is not in the list" for category in masks if category not in names]
            masks = {category: rle for category, rle in masks.items() if category in names}
            problems.extend(f"{item['file_name']}: {text}" for text in wrong)
            if not masks:
                problems.append(f"{item['file_name']}: no usable annotation")
            self._masks[photo] = masks
            for category in masks:
                by_category.setdefault(category, []).append(photo)
        classes = {names[category]: photos for category, photos in sorted(by_category.items())}
        super().__init__(*_large_classes(path, classes, min_images, problems))
        number_of = {name: number for number, name in enumerate(self.class_names, start=1)}
        self._class_of_category = {category: number_of[name] for category, name in names.items() if name in number_of}

    def read_labels(self, class_id: int, index: int) -> Tensor:
        """The labels alone, int16 [h,w]; the pixels of ``class_id`` are exact, whatever else covers them."""
        tools = mask_tools()
        rles = self._masks[self.image_path(class_id, index)]
        height, width = next(iter(rles.values()))["size"]
        masks = [
            (self._class_of_category[category], tools.decode(rle))
            for category, rle in rles.items()
            if category in self._class_of_category
        ]
        return torch.from_numpy(paint_labels((height, width), masks, first=class_id + 1))


def _class_folders(root: Path) -> dict[str, list[Path]]:
    return find_class_folders(root, IMAGE_SUFFIXES)


def _large_classes(
    root: Path, classes: dict[str, list[Path]], min_images: int, problems: list[str]
) -> tuple[list[str], list[list[Path]], list[str]]:
    """The names, photos and problems, without the classes that have too few photos, which become problems."""
    if min_images < 1:
        raise ValueError(f"min_images must be at least 1, got {min_images}")
    kept = {name: photos for name, photos in classes.items() if len(photos) >= min_images}
    problems = problems + [
        f"class {name}: {len(photos)} usable photos, {min_images} are needed"
        for name, photos in classes.items()
        if name not in kept
    ]
    if not kept:
        first = f"; the first of {len(problems)} problems: {problems[0]}" if problems else ""
        raise ValueError(f"{root} has no class with {min_images} usable photos{first}")
    return list(kept), list(kept.values()), problems


def _names(path: Path) -> list[str]:
    names = [line.strip() for line in read_text(path).splitlines() if line.strip()] if path.exists() else []
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated:
        raise ValueError(f"{path} names a class twice: {', '.join(repeated)}")
    return names


def _category_names(categories: list[dict[str, Any]]) -> dict[int, str]:
    """The name of every category; one that stands for several gets their ids."""
    names = [str(item["name"]) for item in categories]
    count = Counter(names)
    return {
        item["id"]: name if count[name] == 1 else f"{name} ({item['id']})"
        for item, name in zip(categories, names, strict=True)
    }


def _photo_finder(path: Path) -> Callable[[str], Path]:
    """Where the photos of a JSON file lie: the first of the usual folders that has them.

    A relative name may not lead out of the data's folder; an absolute one is what `fewseg segment --coco` writes.
    """
    stem = path.stem.removeprefix("instances_")
    base = path.parent.parent if path.parent.name == "annotations" else path.parent
    folders = [path.parent, base, base / "images", base / stem, base / "images" / stem]

    def find(name: str) -> Path:
        if not os.path.isabs(name) and not _normal(path.parent / name).is_relative_to(_normal(base)):
            raise ValueError(f"{name[:80]!r} leads out of {base}")
        return next((folder / name for folder in folders if (folder / name).is_file()), base / name)

    return find


def _normal(path: Path) -> Path:
    """Without "..", links left as they are."""
    return Path(os.path.normpath(path))
