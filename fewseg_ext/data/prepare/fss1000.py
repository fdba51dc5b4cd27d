"""Verifies FSS-1000 and builds its lists. Its masks are small already, so nothing is cached."""

import os
from pathlib import Path

from rich.console import Console

from fewseg_ext.data.fss1000 import find_class_folders, read_foreground, split_classes
from fewseg_ext.data.photos import check_pair, check_photo, in_threads
from fewseg_ext.data.prepare.report import Report, Row, list_text, output_folder
from fewseg_ext.files import make_folder, write_text

SOURCE = "fetch it from the link in https://github.com/HKUSTCVLAB/FSS-1000"
PREPARED = "fewseg_fss1000"
IMAGES_PER_CLASS = 10
SIDE = 224


def prepare_fss1000(
    root: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    download: bool = False,
    console: Console | None = None,
) -> Report:
    """Checks every photo and mask, writes the list of usable photos of each split, and says how they compare with the
    official 1,000 classes of 10 photos.

    Args:
        root: holds the class folders ``<class>/1.jpg``, ``<class>/1.png``, ..., or ``fewshot_data`` with them.
        out: what is written; None means ``root/fewseg_fss1000``.
        download: refused, unless the data is there already: no downloader of torchvision's can fetch it.
        console: shows bars; None shows nothing.

    Raises:
        FileNotFoundError: there is no class folder.
        ConnectionError: there is none, and ``download`` was asked for.
    """
    root = Path(root)
    try:
        folder = find_class_root(root)
    except FileNotFoundError as error:
        if download:
            raise ConnectionError(f"FSS-1000 lies behind a page for browsers, --download cannot: {SOURCE}") from error
        raise
    out = output_folder(root, out, PREPARED)
    make_folder(out / "lists", within=out)
    report = Report("FSS-1000", out)
    classes = find_class_folders(folder)
    photos = [photo for images in classes.values() for photo in images]
    usable: dict[str, list[str]] = {name: [] for name in classes}
    other_size = 0
    checked = in_threads(_check, photos, "reading photos and masks", console)
    for photo, (problem, side_is_224) in zip(photos, checked, strict=True):
        if problem is not None:
            report.problems.append(problem)
            continue
        usable[photo.parent.name].append(f"{photo.parent.name}/{photo.name}")
        other_size += not side_is_224

    known: set[str] = set()
    for split in ("train", "val", "test"):
        names = split_classes(split)
        known.update(names)
        here = [name for name in names if name in usable]
        absent = [name for name in names if name not in usable]
        entries = [entry for name in here for entry in usable[name]]
        write_text(out / "lists" / f"{split}.txt", list_text(entries))
        reason = "partial data"
        report.add_list(f"{split}: classes", here, len(names), reason=reason)
        report.add_list(f"{split}: usable photos", entries, IMAGES_PER_CLASS * len(names), reason=reason)
        if absent:
            shown = ", ".join(absent[:3]) + (", ..." if len(absent) > 3 else "")
            report.missing.append(
                f"{len(absent)} of the {len(names)} {split} classes ({shown}; all in {out / 'missing_classes.txt'}): "
                f"{SOURCE}"
            )
    write_text(out / "missing_classes.txt", list_text(known - set(usable)))
    others = [name for name in usable if name not in known]
    report.rows.append(Row("classes that FSS-1000 does not have", len(others), 0, reason="in no split"))
    few = [f"{name} {len(entries)}" for name, entries in usable.items() if len(entries) != IMAGES_PER_CLASS]
    if few:
        report.notes.append(f"classes with another number of usable photos than {IMAGES_PER_CLASS}: {', '.join(few)}")
    if other_size:
        report.notes.append(f"{other_size:,d} photos are not {SIDE} x {SIDE} pixels, as all of FSS-1000 are")
    report.save()
    return report


def find_class_root(root: Path) -> Path:
    """The folder with the class folders: ``root``, or ``fewshot_data`` in it, as in the official archive.

    Raises:
        FileNotFoundError: no class folder with photos is there.
    """
    for folder in (root, root / "fewshot_data", root / "fewshot_data" / "fewshot_data"):
        if folder.is_dir() and find_class_folders(folder):
            return folder
    raise FileNotFoundError(f"no class folder with photos (<class>/1.jpg) in {root}: {SOURCE}")


def _check(photo: Path) -> tuple[str | None, bool]:
    """What is wrong with a photo and its mask, and whether they have FSS-1000's size."""
    return check_pair(photo, read_foreground), check_photo(photo, (SIDE, SIDE), decode=False) is None
