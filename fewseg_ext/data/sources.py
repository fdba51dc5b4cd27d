"""Data sets by name, as the command line calls them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewseg_ext.data.coco import YEARS, COCO20i
from fewseg_ext.data.folder import open_folder
from fewseg_ext.data.folds import FOLDS
from fewseg_ext.data.fss1000 import FSS1000, find_class_folders, split_classes
from fewseg_ext.data.pascal import Pascal5i
from fewseg_ext.data.photos import PhotoSource
from fewseg_ext.data.subset import ClassSubset


@dataclass(frozen=True)
class SourceKind:
    """How to open one data set."""

    # Called with the root, and of fold, classes, year and prepared those that the data set has.
    open: Callable[..., PhotoSource]
    folds: int = 0  # how many there are; 0 for a data set without folds
    takes_year: bool = False
    takes_prepared: bool = False  # whether it reads what `fewseg prepare` wrote


def _pascal(family: str) -> SourceKind:
    def open_family(root: Path, **choice: Any) -> PhotoSource:
        return Pascal5i(root, family=family, **choice)

    return SourceKind(open_family, FOLDS, takes_prepared=True)


def _coco(variant: str) -> SourceKind:
    def open_variant(root: Path, year: int | None = None, **choice: Any) -> PhotoSource:
        return COCO20i(root, variant=variant, year=YEARS[0] if year is None else year, **choice)

    return SourceKind(open_variant, FOLDS, takes_year=True, takes_prepared=True)


def _open_fss1000(root: Path) -> PhotoSource:
    """The official test classes, or every class where they are not all there, which its title then says."""
    if root.is_dir() and set(split_classes("test")) <= set(find_class_folders(root)):
        return FSS1000(root, split="test")
    source = FSS1000(root)
    source.title += " (not the official test classes of FSS-1000)"
    return source


SOURCES: dict[str, SourceKind] = {
    "pascal5i-p1": _pascal("P1"),
    "pascal5i-p2": _pascal("P2"),
    "pascal5i-p3": _pascal("P3"),
    "coco20i-a": _coco("A"),
    "coco20i-b": _coco("B"),
    "fss1000": SourceKind(_open_fss1000),
    "folder": SourceKind(open_folder),
}


def source_kind(dataset: str) -> SourceKind:
    """The entry of that name.

    Raises:
        ValueError: an unknown name.
    """
    if dataset not in SOURCES:
        raise ValueError(f"dataset: {dataset!r} is unknown, expected one of {', '.join(SOURCES)}")
    return SOURCES[dataset]


def open_source(
    dataset: str,
    root: Path,
    fold: int | None = None,
    *,
    classes: Sequence[str] | None = None,
    year: int | None = None,
    prepared: Path | None = None,
) -> PhotoSource:
    """The test images of a data set.

    Args:
        dataset: one of `SOURCES`.
        root: its folder.
        fold: 0, 1, ...; None for a data set without folds, or with ``classes``.
        classes: names of some classes, in place of a fold.
        year: of COCO, 2014 (None) or 2017.
        prepared: where `fewseg prepare` wrote, if not into ``root``.

    Raises:
        ValueError: an unknown name, or what the data set does not have; the message names it.
        FileNotFoundError: no such folder, or not prepared.
    """
    kind = source_kind(dataset)
    if classes is not None and (not classes or len(set(classes)) < len(classes)):
        raise ValueError(f"classes: expected different names, got {', '.join(classes) or 'none'}")
    if classes is not None and fold is not None:
        raise ValueError("classes: they stand in place of a fold, so give one of the two")
    if (fold not in range(kind.folds)) if kind.folds and classes is None else (fold is not None):
        expected = f"expected one of 0..{kind.folds - 1}" if kind.folds else "it has no folds"
        raise ValueError(f"fold: {dataset}, fold {fold}: {expected}")
    if year is not None and not kind.takes_year:
        raise ValueError(f"year: {dataset} has no years, only COCO has")
    if prepared is not None and not kind.takes_prepared:
        raise ValueError(f"prepared: {dataset} is read as it is, without `fewseg prepare`")
    choice: dict[str, Any] = {}
    if kind.takes_year:
        choice["year"] = year
    if kind.takes_prepared:
        choice["prepared"] = prepared
    if kind.folds:
        choice.update({"fold": fold} if classes is None else {"classes": classes})
    source = kind.open(root, **choice)
    if classes is None or kind.folds:
        return source
    unknown = [name for name in classes if name not in source.class_names]
    if unknown:
        raise ValueError(f"classes: {', '.join(unknown)} not in the data, which has {', '.join(source.class_names)}")
    return ClassSubset(source, [source.class_names.index(name) for name in classes])
