"""Builds and verifies the lists of PASCAL-5i."""

import io
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from fewseg_ext.data.folds import FOLDS, Split
from fewseg_ext.data.pascal import (
    CLASSES,
    FAMILIES,
    INDEX,
    PREPARED,
    VOC_IGNORE,
    Family,
    PascalImage,
    PascalObject,
    find_devkit,
    save_index,
)
from fewseg_ext.data.photos import check_photo, in_threads, read_mask, visible
from fewseg_ext.data.prepare.download import download_sbd, download_voc
from fewseg_ext.data.prepare.report import Report, Row, checksum, list_text, output_folder
from fewseg_ext.files import make_folder, read_text, write_atomically, write_text

VOC_SOURCE = "VOCtrainval_11-May-2012.tar of http://host.robots.ox.ac.uk/pascal/VOC/voc2012/, or --download"
SBD_SOURCE = (
    "benchmark.tgz of https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/, "
    "unpacked so that ROOT/sbd/cls/*.mat and ROOT/sbd/train.txt exist, or --download"
)
TRAIN, VAL, TRAINAUG, P3_TRAIN = 1464, 1449, 10582, 5953
# Different copies of the training masks change P2's training lists by a few dozen of their entries.
FEW_DOZEN = 60
PARTIAL = "partial data"
# SBD's own take a few kilobytes; compressed, this much can become a thousand times as much memory.
LARGEST_MAT = 500_000
P2_TRAIN_PHOTOS, P2_TRAIN_ENTRIES = 10092, 13680
# Published counts of entries (photo, class), and checksums of the published lists.
PUBLISHED_ENTRIES = {
    ("P2", "test", 0): 346,
    ("P2", "test", 1): 451,
    ("P2", "test", 2): 725,
    ("P2", "test", 3): 346,
    ("P2", "train", 0): 2286,
}
PUBLISHED_CHECKSUMS = {
    ("P2", "test", 0): "748e2f4732ac502cb3aa1f3768936b394bd7ba4e611ac5bf959291a268e249df",
    ("P2", "test", 1): "afce1929e4dacbc13c07f9a26d4ce7738d415e1b18443fe173e58303836f5c14",
    ("P2", "test", 2): "50b1f5218e8f882ca65d85da5be230b978a70067e9b3e0e9fca1528f546bd7fb",
    ("P2", "test", 3): "c3825d7c52d1608d4c62c5b85d6ef3f74cf5898032bc068a94c971df17bdf71a",
}
PUBLISHED_VAL = "cdc1326d12f69ce5153aa5da04a4d8783e146868d42d19f82f44e74b97ac907d"
PUBLISHED_P3_TRAIN = "a9bc0a1466deee7a9d4923ae677ec6098f090110a60cb769052a4abad586746c"

_ENTRY = re.compile(r"(\d{4}_\d{6})__(\d\d)")
_PHOTO = re.compile(r"JPEGImages/(\d{4}_\d{6})\.jpg\b")


@dataclass
class PublishedLists:
    """What the user's copies of published lists say."""

    entries: set[tuple[str, int]] = field(default_factory=set)  # P2: photo, label
    photos: list[set[str]] = field(default_factory=list)  # P3: of each file

    def train_photos(self, val: set[str]) -> set[str]:
        """Those of the files that name no test photo."""
        return set().union(*(photos for photos in self.photos if not photos & val))


def read_published_lists(folder: str | os.PathLike[str]) -> PublishedLists:
    """Reads every ``.txt`` below the folder: lines ``2007_000033__01`` are P2's, lines
    ``JPEGImages/2007_000033.jpg ...`` are P3's, others mean nothing here.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: no file has such lines.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"folder of published lists not found: {folder}")
    lists = PublishedLists()
    for path in sorted(path for path in folder.rglob("*.txt") if path.is_file()):
        photos = set()
        for line in path.read_text(errors="replace").splitlines():
            if match := _ENTRY.fullmatch(line.strip()):
                lists.entries.add((match[1], int(match[2])))
            elif match := _PHOTO.match(line.strip()):
                photos.add(match[1])
        if photos:
            lists.photos.append(photos)
    if not lists.entries and not lists.photos:
        raise ValueError(f"{folder} has no list with lines such as 2007_000033__01 or JPEGImages/2007_000033.jpg")
    return lists


def family_entries(family: Family, images: Iterable[PascalImage], split: Split, fold: int) -> list[str]:
    """The entries ``<photo>__<label>`` of the five classes of a fold, sorted as the published lists are."""
    labels = range(5 * fold + 1, 5 * fold + 6)
    return sorted(
        f"{image.name}__{item.label:02d}"
        for image in family.photos(images, split)
        for item in image.objects
        if item.label in labels and family.shows(item)
    )


def objects_of(labels: NDArray[Any]) -> tuple[PascalObject, ...]:
    """What a mask [h,w] of VOC's labels shows.

    Raises:
        ValueError: a label is neither 0..20 nor 255.
    """
    pixels = np.bincount(labels.ravel(), minlength=256)
    grid = np.bincount(labels[1::32, 1::32].ravel(), minlength=256)
    present = np.flatnonzero(pixels)
    strange = [int(label) for label in present if label > len(CLASSES) and label != VOC_IGNORE]
    if strange:
        raise ValueError(f"labels {strange}, but VOC has 0..{len(CLASSES)} and {VOC_IGNORE}")
    return tuple(PascalObject(int(k), int(pixels[k]), int(grid[k])) for k in present if 1 <= k <= len(CLASSES))


def prepare_pascal5i(
    root: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    download: bool = False,
    lists: str | os.PathLike[str] | None = None,
    console: Console | None = None,
) -> Report:
    """Writes the index that `Pascal5i` reads and the lists of all families, and says how they compare with what is
    known of them.

    A photo's mask is ``SegmentationClassAug/<photo>.png`` of the devkit, or else ``SegmentationClass/<photo>.png``, or
    else SBD's ``cls/<photo>.mat``, which is converted into a PNG of the output folder. Training photos are all that
    have a mask and are not in VOC's val.txt.

    Args:
        root: holds ``VOCdevkit/VOC2012`` and, unless there is a SegmentationClassAug, ``sbd``.
        out: what is written; None means ``root/fewseg_pascal5i``.
        download: fetch the VOC devkit and SBD into ``root`` first, where they are not there.
        lists: a folder with published lists of the families P2 and P3 to compare with.
        console: shows bars; None shows nothing.

    Raises:
        FileNotFoundError: there is no devkit, or it has no val.txt.
        ImportError: there are .mat files to read and scipy is missing.
        ConnectionError: a download failed.
    """
    root = Path(root)
    published = read_published_lists(lists) if lists is not None else PublishedLists()
    if download:
        try:
            devkit = find_devkit(root)
        except FileNotFoundError:
            download_voc(root, console)
        if not (find_devkit(root) / "SegmentationClassAug").is_dir() and _find_sbd(root) is None:
            download_sbd(root, console)
    devkit = find_devkit(root)
    val = _names(devkit / "ImageSets" / "Segmentation" / "val.txt")
    if val is None:
        raise FileNotFoundError(
            f"{devkit}/ImageSets/Segmentation/val.txt not found: without it test photos cannot be told from training "
            f"photos ({VOC_SOURCE})"
        )
    train = _names(devkit / "ImageSets" / "Segmentation" / "train.txt")
    sbd = _find_sbd(root)
    sbd_train = _names(sbd / "train.txt") if sbd is not None else None
    if sbd_train is None:
        # VOC train is in the published list, too; what a photo of VOC train is asked here does not matter.
        sbd_train = published.train_photos(val) or None
    masks = _find_masks(devkit, sbd)
    if any(mask.suffix == ".mat" for mask in masks.values()):
        _check_scipy()

    out = output_folder(root, out, PREPARED)
    make_folder(out / "masks", within=out)
    # Lists of an earlier run must not stand beside an index that they do not belong to.
    (out / INDEX).unlink(missing_ok=True)
    report = Report("PASCAL-5i", out)
    names = sorted(set(masks) | val | (train or set()))

    def examine(name: str) -> tuple[PascalImage | None, str | None]:
        voc_set: Literal["train", "val", "sbd"] = "sbd"
        if name in val:
            voc_set = "val"
        elif train is not None and name in train:
            voc_set = "train"
        in_sbd_train = None if sbd_train is None else name in sbd_train
        return _examine(name, voc_set, in_sbd_train, masks.get(name), devkit, out)

    images: list[PascalImage] = []
    for image, problem in in_threads(examine, names, "reading photos and masks", console):
        if image is not None:
            images.append(image)
        if problem is not None:
            report.problems.append(problem)

    origins = Counter("SBD" if image.mask.startswith("masks/") else image.mask.split("/")[0] for image in images)
    report.notes.append("masks: " + ", ".join(f"{count:,d} from {name}" for name, count in sorted(origins.items())))
    _missing(report, images, val, train, sbd_train, published, devkit)
    _rows(report, images, val, train, sbd_train is not None)
    if published.entries:
        _compare(report, images, published.entries)
    report.save()
    save_index(out / INDEX, images)
    return report


def _names(path: Path) -> set[str] | None:
    """The first word of every line, or None without the file."""
    if not path.is_file():
        return None
    return {line.split()[0] for line in read_text(path).splitlines() if line.strip()}


def _find_sbd(root: Path) -> Path | None:
    for name in ("sbd", "SBD", "benchmark_RELEASE/dataset"):
        if (root / name / "cls").is_dir() or (root / name / "train.txt").is_file():
            return root / name
    return None


def _find_masks(devkit: Path, sbd: Path | None) -> dict[str, Path]:
    """The mask of every photo that has one; the first folder that has it decides."""
    masks: dict[str, Path] = {}
    folders = [devkit / "SegmentationClassAug", devkit / "SegmentationClass"]
    for folder, suffix in [*((f, ".png") for f in folders), *([(sbd / "cls", ".mat")] if sbd is not None else [])]:
        for path in visible(folder) if folder.is_dir() else ():
            if path.suffix == suffix:
                masks.setdefault(path.stem, path)
    return masks


def _check_scipy() -> None:
    try:
        import scipy.io  # noqa: F401
    except ImportError:
        raise ImportError("SBD's .mat files are read with scipy: pip install 'fewseg-ext[data]'") from None


def _examine(
    name: str,
    voc_set: Literal["train", "val", "sbd"],
    sbd_train: bool | None,
    mask: Path | None,
    devkit: Path,
    out: Path,
) -> tuple[PascalImage | None, str | None]:
    """The photo's line of the index, if it is usable, and what is wrong with it, if anything."""
    if mask is None:
        return None, f"{name}: no mask"
    try:
        if mask.suffix == ".mat":
            mask = _convert(mask, out / "masks" / f"{name}.png")
        labels = read_mask(mask)
        if labels.dtype != np.uint8:
            raise ValueError("not a mask of VOC: expected 8 bits per pixel")
        objects = objects_of(labels)
    except (OSError, ValueError) as error:
        return None, str(error) if str(mask) in str(error) else f"{mask}: {error}"
    problem = check_photo(devkit / "JPEGImages" / f"{name}.jpg", (labels.shape[1], labels.shape[0]))
    if problem is not None:
        return None, problem
    base = out if mask.is_relative_to(out / "masks") else devkit
    image = PascalImage(name, voc_set, sbd_train, mask.relative_to(base).as_posix(), objects)
    return image, None if objects else f"{mask}: shows none of the {len(CLASSES)} classes"


def _convert(mat: Path, png: Path) -> Path:
    """SBD's labels as a PNG, unless an earlier run has made it."""
    if png.is_file() and png.stat().st_mtime_ns >= mat.stat().st_mtime_ns:
        return png
    from scipy.io import loadmat

    try:
        if not mat.is_file() or mat.stat().st_size > LARGEST_MAT:
            raise ValueError(f"no file of at most {LARGEST_MAT:,d} bytes, as all of SBD's are")
        labels = loadmat(str(mat), variable_names=["GTcls"])["GTcls"][0]["Segmentation"][0]
        content = io.BytesIO()
        Image.fromarray(np.asarray(labels, dtype=np.uint8)).save(content, format="PNG", optimize=True)
    except Exception as error:  # scipy raises a different type for every way in which a file can be wrong
        raise ValueError(f"{mat} cannot be read: {error}") from error
    return write_atomically(png, lambda file: file.write(content.getvalue()))


def _missing(
    report: Report,
    images: list[PascalImage],
    val: set[str],
    train: set[str] | None,
    sbd_train: set[str] | None,
    published: PublishedLists,
    devkit: Path,
) -> None:
    def usable(*sets: str) -> int:
        return sum(image.voc_set in sets for image in images)

    lists = devkit / "ImageSets" / "Segmentation"
    if train is None:
        report.missing.append(f"{lists / 'train.txt'} ({TRAIN:,d} names): {VOC_SOURCE}")
    if len(val) < VAL:
        report.missing.append(f"{VAL - len(val):,d} of the {VAL:,d} names of {lists / 'val.txt'}: {VOC_SOURCE}")
        report.notes.append("a test photo whose name val.txt lacks would be taken for a training photo")
    if usable("val") < len(val):
        lost = len(val) - usable("val")
        report.missing.append(f"{lost:,d} of the {len(val):,d} photos named in val.txt, or their masks: {VOC_SOURCE}")
    if usable("train", "sbd") < TRAINAUG:
        report.missing.append(
            f"{TRAINAUG - usable('train', 'sbd'):,d} of the {TRAINAUG:,d} training photos or their masks: photos from "
            f"{VOC_SOURCE}; masks from a SegmentationClassAug folder in {devkit}, or SBD: {SBD_SOURCE}"
        )
    if sbd_train is None:
        report.notes.append(
            f"family P3 cannot be trained on without SBD's train.txt or its published list: {SBD_SOURCE}"
        )
    absent = set().union(*published.photos) - {image.name for image in images}
    if absent:
        write_text(report.out / "missing_photos.txt", list_text(absent))
        report.notes.append(
            f"the {len(absent):,d} photos of the published lists that are not here or not usable are named in "
            f"{report.out / 'missing_photos.txt'}"
        )


def _rows(
    report: Report, images: list[PascalImage], val: set[str], train: set[str] | None, know_sbd_train: bool
) -> None:
    test = [image.name for image in images if image.voc_set == "val"]
    trainaug = [image for image in images if image.voc_set != "val"]
    whole = len(trainaug) == TRAINAUG
    for name, names, count in (("train.txt", train, TRAIN), ("val.txt", val, VAL)):
        reason = "no such file" if names is None else PARTIAL if len(names) < count else ""
        report.rows.append(Row(f"names in {name}", len(names or ()), count, reason=reason))
    report.add_list("photos with masks: test", test, VAL, PUBLISHED_VAL, PARTIAL)
    report.add_list("photos with masks: training", [image.name for image in trainaug], TRAINAUG, reason=PARTIAL)
    for family in FAMILIES.values():
        splits: list[Split] = ["train", "test"]
        if family.test_photos == family.train_photos or (family.train_photos == "p3" and not know_sbd_train):
            splits = ["test"]
        elif family.train_photos == "p3":
            photos = [image.name for image in family.photos(images, "train")]
            report.add_list(f"{family.name} train: photos", photos, P3_TRAIN, PUBLISHED_P3_TRAIN, PARTIAL)
        for split in splits:
            what = f"{family.name} {'train and test' if family.test_photos == family.train_photos else split}"
            folder = make_folder(report.out / "lists" / family.name / split, within=report.out)
            lists = [family_entries(family, images, split, fold) for fold in range(FOLDS)]
            for fold, entries in enumerate(lists):
                write_text(folder / f"fold{fold}.txt", list_text(entries))
                key = (family.name, split, fold)
                expected, published = PUBLISHED_ENTRIES.get(key), PUBLISHED_CHECKSUMS.get(key, "")
                report.add_list(f"{what} fold {fold}: entries", entries, expected, published, PARTIAL)
            if (family.name, split) == ("P2", "train"):
                everything = [entry for entries in lists for entry in entries]
                report.add_list(f"{what}: entries of all folds", everything, P2_TRAIN_ENTRIES, reason=PARTIAL)
                shown = sorted({entry[:11] for entry in everything})
                report.add_list(f"{what}: photos", shown, P2_TRAIN_PHOTOS, reason=PARTIAL)
    if whole:
        report.rows = [_excuse_train_masks(row) for row in report.rows]
    _note_small_classes(report, images)


def _excuse_train_masks(row: Row) -> Row:
    """P2's training lists differ a little with every copy of the training masks."""
    if row.expected is None or not row.what.startswith("P2 train") or row.found == row.expected:
        return row
    if abs(row.found - row.expected) > FEW_DOZEN:
        return replace(row, reason="other masks than those of the published lists")
    return replace(row, reason="copies of the training masks differ in a few dozen entries", explained=True)


def _note_small_classes(report: Report, images: list[PascalImage]) -> None:
    few = []
    for label, name in enumerate(CLASSES, start=1):
        count = sum(image.voc_set == "val" and any(i.label == label for i in image.objects) for image in images)
        if count < 6:
            few.append(f"{name} {count}")
    if few:
        report.notes.append(f"too few test photos for 5-shot episodes, which need 6: {', '.join(few)}")


def _compare(report: Report, images: list[PascalImage], published: set[tuple[str, int]]) -> None:
    """P2 against the user's published lists, on the photos that are here."""
    family = FAMILIES["P2"]
    here = {image.name: image for image in images}
    for split, in_split in (("test", True), ("train", False)):
        known = {(n, k) for n, k in published if n in here and (here[n].voc_set == "val") == in_split}
        if not known:
            continue
        # A published list may cover some folds only.
        folds = {(label - 1) // 5 for _, label in known}
        found = {
            (image.name, item.label)
            for image in images
            if (image.voc_set == "val") == in_split
            for item in image.objects
            if family.shows(item) and (item.label - 1) // 5 in folds
        }
        for title, entries in (("published only", known - found), ("regenerated only", found - known)):
            report.differences.extend(f"P2 {split}: {name}__{label:02d} {title}" for name, label in sorted(entries))
        reason = "equal, entry by entry"
        if known != found:
            reason = f"{len(known - found)} published only, {len(found - known)} regenerated only"
        digest = checksum(f"{name}__{label:02d}" for name, label in found)
        what = f"P2 {split}: published entries of photos here"
        few = split == "train" and len(known ^ found) <= FEW_DOZEN
        report.rows.append(Row(what, len(found), len(known), digest, reason, explained=few))
