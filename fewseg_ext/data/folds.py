"""What the benchmarks in folds, PASCAL-5i and COCO-20i, let one choose."""

from collections.abc import Sequence
from typing import Literal, get_args

FOLDS = 4

Split = Literal["train", "test"]
# What the pixels of a fold's test classes are in training photos; "exclude" leaves these photos out.
HeldOut = Literal["background", "ignore", "exclude"]


def check_choice(source: str, fold: int | None, split: Split, classes: Sequence[str] | None, held_out: HeldOut) -> None:
    """Of the arguments of a source of that name.

    Raises:
        ValueError: an unknown split or held_out, or not exactly one of fold and classes.
    """
    if split not in get_args(Split):
        raise ValueError(f"{source}: split must be 'train' or 'test', got {split!r}")
    if held_out not in get_args(HeldOut):
        raise ValueError(f"{source}: held_out must be 'background', 'ignore' or 'exclude', got {held_out!r}")
    if (fold is None) == (classes is None):
        raise ValueError(f"{source}: give either fold or classes")


def check_fold(benchmark: str, fold: int) -> None:
    """Raises ValueError for what is no fold."""
    if fold not in range(FOLDS):
        raise ValueError(f"{benchmark}: fold must be 0, 1, 2 or 3, got {fold}")
