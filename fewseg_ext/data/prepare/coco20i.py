"""Builds and verifies the lists and masks of COCO-20i."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import track

from fewseg_ext.data.coco import (
    CATEGORY_IDS,
    MIN_PIXELS,
    PREPARED,
    VARIANTS,
    YEARS,
    CocoImage,
    CocoObject,
    class_masks,
    find_photos,
    fold_labels,
    load_coco,
    mask_tools,
    save_index,
)
from fewseg_ext.data.folds import FOLDS
from fewseg_ext.data.photos import check_photo, in_threads, is_plain_name
from fewseg_ext.data.prepare.download import download_coco
from fewseg_ext.data.prepare.report import Report, Row, list_text, output_folder
from fewseg_ext.files import make_folder, write_atomically, write_text

PHOTOS_SOURCE = "http://images.cocodataset.org/zips/{photo_set}.zip, or --download"
JSON_SOURCE = "http://images.cocodataset.org/annotations/annotations_trainval{year}.zip, or --download"
# Of the official JSON: photos, photos with annotations.
OFFICIAL_PHOTOS = {
    "train2014": (82783, 82081),
    "val2014": (40504, 40137),
    "train2017": (118287, 117266),
    "val2017": (5000, 4952),
}
# Photos of val2014 by fold of split-B, as published with PFENet.
PUBLISHED_PHOTOS = {("val2014", "B", fold): n for fold, n in enumerate((26052, 15305, 13138, 12640))}
UNION_REASON = (
    "the published count is of label maps in which later instances overwrite earlier ones; here a class has all its "
    "pixels, so a little more reach 2,048"
)
PARTIAL = "partial data"


def prepare_coco20i(
    root: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    year: int = 2014,
    download: bool = False,
    console: Console | None = None,
) -> Report:
    """Writes the index and the masks that `COCO20i` reads and the lists of both splits, and says how they compare with
    what is known of them.

    Args:
        root: holds ``annotations/instances_{train,val}<year>.json`` and the photos in ``train<year>`` and
            ``val<year>``.
        out: what is written; None means ``root/fewseg_coco20i``.
        year: 2014 or 2017.
        download: fetch photos and JSON into ``root`` first, where they are not there.
        console: shows bars; None shows nothing.

    Raises:
        FileNotFoundError: neither JSON is there.
        ImportError: pycocotools is missing.
        ValueError: a JSON file is damaged or not COCO's.
        ConnectionError: a download failed.
    """
    if year not in YEARS:
        raise ValueError(f"prepare coco20i: year must be 2014 or 2017, got {year}")
    mask_tools()
    root = Path(root)
    if download:
        download_coco(root, year, console)
    files = {s: root / "annotations" / f"instances_{s}.json" for s in (f"train{year}", f"val{year}")}
    if not any(path.is_file() for path in files.values()):
        paths = " nor ".join(str(path) for path in files.values())
        raise FileNotFoundError(f"neither {paths} found ({JSON_SOURCE.format(year=year)})")
    report = Report(f"COCO-20i {year}", output_folder(root, out, PREPARED))
    for photo_set, path in files.items():
        if path.is_file():
            _prepare_set(report, root, photo_set, path, console)
        else:
            report.missing.append(f"{path}: {JSON_SOURCE.format(year=year)}")
    report.save()
    return report


def _prepare_set(report: Report, root: Path, photo_set: str, path: Path, console: Console | None) -> None:
    """One JSON file: its masks, its index, its rows."""
    if console is not None:
        console.print(f"reading {path}", markup=False, highlight=False)
    coco = load_coco(path)
    categories = {item["id"]: item["name"] for item in coco.dataset["categories"]}
    if tuple(sorted(categories)) != CATEGORY_IDS:
        raise ValueError(f"{path} has {len(categories)} categories, not the 80 of COCO")
    folder = find_photos(root, photo_set)
    if not all(type(item["id"]) is int and item["id"] >= 0 for item in coco.dataset["images"]):
        raise ValueError(f"{path}: the ids of its photos are not whole numbers")
    if not all(isinstance(name, str) for name in categories.values()):
        raise ValueError(f"{path}: the names of its categories are not texts")
    items = sorted(coco.dataset["images"], key=lambda item: item["id"])

    def check(item: dict[str, Any]) -> str | None:
        if not is_plain_name(item["file_name"]):
            return f"{item['file_name'][:80]!r} is not the name of a file in {folder}"
        return check_photo(folder / item["file_name"], (item["width"], item["height"]))

    problems = list(in_threads(check, items, f"reading photos of {photo_set}", console))
    usable = [item for item, problem in zip(items, problems, strict=True) if problem is None]
    missing = sum(problem is not None and problem.endswith(": missing") for problem in problems)
    report.problems.extend(problem for problem in problems if problem is not None)

    index, masks = report.out / f"{photo_set}.json", report.out / f"{photo_set}.masks"
    # An interruption between the two files must not leave an index beside masks of another run.
    index.unlink(missing_ok=True)
    images = []

    def write_masks(file: IO[bytes]) -> None:
        for item in track(usable, f"masks of {photo_set}", console=console, disable=console is None):
            annotations = coco.imgToAnns.get(item["id"], [])
            unions, found = class_masks(annotations, item["height"], item["width"])
            report.problems.extend(f"{photo_set}: {problem}" for problem in found)
            objects = []
            for category, rle in unions.items():
                if category not in CATEGORY_IDS:
                    report.problems.append(f"{photo_set}: photo {item['id']}: {category} is no category of COCO")
                    continue
                label = CATEGORY_IDS.index(category) + 1
                area = int(mask_tools().area(rle))
                objects.append(CocoObject(label, area, file.tell(), len(rle["counts"])))
                file.write(rle["counts"])
            images.append(CocoImage(item["id"], item["file_name"], item["width"], item["height"], tuple(objects)))

    write_atomically(masks, write_masks)
    save_index(index, [categories[i] for i in CATEGORY_IDS], images)

    official, annotated = OFFICIAL_PHOTOS[photo_set]
    with_annotations = sum(item["id"] in coco.imgToAnns for item in items)
    partial = len(items) < official or len(usable) < len(items)
    for what, count, known in (
        (f"{photo_set}: photos in the JSON", len(items), official),
        (f"{photo_set}: those with annotations", with_annotations, annotated),
        (f"{photo_set}: usable photos", len(usable), official),
    ):
        report.rows.append(Row(what, count, known, reason="" if count == known else PARTIAL))
    if len(items) < official:
        source = JSON_SOURCE.format(year=photo_set[-4:])
        report.missing.append(f"{official - len(items):,d} of the {official:,d} photos in {path}: {source}")
    if missing:
        source = PHOTOS_SOURCE.format(photo_set=photo_set)
        report.missing.append(f"{missing:,d} photos of {path.name}, expected in {folder}: {source}")
    _fold_rows(report, photo_set, images, partial)


def _fold_rows(report: Report, photo_set: str, images: list[CocoImage], partial: bool) -> None:
    folder = make_folder(report.out / "lists", within=report.out)
    for variant in VARIANTS:
        for fold in range(FOLDS):
            labels = set(fold_labels(variant, fold, "test"))
            entries = entries_of(images, labels)
            write_text(folder / f"{photo_set}_{variant}_fold{fold}.txt", list_text(entries))
            photos = len({entry[:12] for entry in entries})
            expected = PUBLISHED_PHOTOS.get((photo_set, variant, fold))
            more = expected is not None and photos > expected and not partial
            reason = UNION_REASON if more else "" if expected in (None, photos) else PARTIAL
            what = f"{photo_set} split-{variant} fold {fold}"
            report.rows.append(Row(f"{what}: photos", photos, expected, reason=reason, explained=more))
            report.add_list(f"{what}: entries", entries)


def entries_of(images: Iterable[CocoImage], labels: set[int]) -> list[str]:
    """The entries ``<photo>__<class>`` of some classes 1..80 that cover 2,048 pixels, sorted."""
    return sorted(
        f"{image.id:012d}__{item.label:02d}"
        for image in images
        for item in image.objects
        if item.label in labels and item.pixels >= MIN_PIXELS
    )
