"""Data sets by name, as the command line calls them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fewseg_ext.data.episodes import ImageSource
from fewseg_ext.data.fss1000 import FSS1000


@dataclass(frozen=True)
class SourceKind:
    """How to open one data set."""

    open: Callable[[Path, int | None], ImageSource]  # root, fold -> the images of the fold's test classes
    folds: int = 0  # how many there are; 0 for a data set without folds


SOURCES: dict[str, SourceKind] = {
    "fss1000": SourceKind(lambda root, fold: FSS1000(root)),
}


def source_kind(dataset: str) -> SourceKind:
    """The entry of that name.

    Raises:
        ValueError: an unknown name.
    """
    if dataset not in SOURCES:
        raise ValueError(f"dataset: {dataset!r} is unknown, expected one of {', '.join(SOURCES)}")
    return SOURCES[dataset]


def open_source(dataset: str, root: Path, fold: int | None = None) -> ImageSource:
    """The test images of a data set.

    Args:
        dataset: one of `SOURCES`.
        root: its folder.
        fold: 0, 1, ...; None for a data set without folds.

    Raises:
        ValueError: an unknown name, or a fold that the data set does not have.
        FileNotFoundError: no such folder.
    """
    kind = source_kind(dataset)
    if (fold not in range(kind.folds)) if kind.folds else (fold is not None):
        expected = f"expected one of 0..{kind.folds - 1}" if kind.folds else "it has no folds"
        raise ValueError(f"fold: {dataset}, fold {fold}: {expected}")
    return kind.open(root, fold)
