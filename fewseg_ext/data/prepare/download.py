"""Fetches the official archives through torchvision, and puts each into place only when it is whole."""

import shutil
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from fewseg_ext.optional import need_torchvision

STAGING = ".fewseg-download"

COCO_ARCHIVES = {
    "train{year}": "http://images.cocodataset.org/zips/train{year}.zip",
    "val{year}": "http://images.cocodataset.org/zips/val{year}.zip",
    "annotations": "http://images.cocodataset.org/annotations/annotations_trainval{year}.zip",
}


def download_voc(root: Path, console: Console | None = None) -> None:
    """``root/VOCdevkit`` (2 GB) by `torchvision.datasets.VOCSegmentation`, unless it is there."""

    def fetch(staging: Path) -> Path:
        from torchvision.datasets import VOCSegmentation

        VOCSegmentation(str(staging), year="2012", image_set="train", download=True)
        return staging / "VOCdevkit"

    _into_place(fetch, root / "VOCdevkit", console)


def download_sbd(root: Path, console: Console | None = None) -> None:
    """``root/sbd`` (1.4 GB) by `torchvision.datasets.SBDataset`, unless it is there."""

    def fetch(staging: Path) -> Path:
        from torchvision.datasets import SBDataset

        # A second attempt must not find what an interrupted first one has moved.
        for name in ("cls", "img", "inst", "benchmark_RELEASE"):
            shutil.rmtree(staging / name, ignore_errors=True)
        SBDataset(str(staging), image_set="train", mode="segmentation", download=True)
        whole = staging / "whole"
        whole.mkdir(exist_ok=True)
        for name in ("cls", "img", "inst", "train.txt", "val.txt"):
            (staging / name).replace(whole / name)
        return whole

    _into_place(fetch, root / "sbd", console)


def download_coco(root: Path, year: int, console: Console | None = None) -> None:
    """``root/train<year>``, ``root/val<year>`` and the instances' JSON (20 GB), unless they are there."""
    for pattern, url in COCO_ARCHIVES.items():
        name = pattern.format(year=year)

        def fetch(staging: Path, name: str = name, url: str = url.format(year=year)) -> Path:
            from torchvision.datasets.utils import download_and_extract_archive

            download_and_extract_archive(url, str(staging))
            return staging / name

        if name != "annotations":
            _into_place(fetch, root / name, console)
        elif not (root / name / f"instances_val{year}.json").exists():
            # The other year's annotations may be there already, so the files go one by one.
            _into_place(fetch, root / f".annotations{year}", console)
            (root / name).mkdir(exist_ok=True)
            for file in sorted((root / f".annotations{year}").iterdir()):
                file.replace(root / name / file.name)
            (root / f".annotations{year}").rmdir()


def _into_place(fetch: Callable[[Path], Path], target: Path, console: Console | None) -> None:
    """Runs ``fetch`` in a folder beside the target, and renames what it returns.

    Raises:
        ConnectionError: it failed. What was fetched so far stays in the staging folder for the next attempt.
        ImportError: torchvision is missing.
    """
    if target.exists():
        return
    need_torchvision("--download needs")
    if console is not None:
        console.print(f"fetching {target}", markup=False, highlight=False)
    staging = target.parent / STAGING / target.name.lstrip(".")
    staging.mkdir(parents=True, exist_ok=True)
    try:
        whole = fetch(staging)
        whole.replace(target)
    except (OSError, RuntimeError, EOFError) as error:
        raise ConnectionError(
            f"could not fetch {target.name} for {target.parent}: {error}; fetch it by hand (docs/datasets.md) or try "
            "again"
        ) from error
    shutil.rmtree(staging)
    if not any(staging.parent.iterdir()):
        staging.parent.rmdir()
