"""The papers' own figures, to be printed beside a run's. They are kept in published.csv, in per cent."""

import csv
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True)
class PublishedScore:
    """One line of a paper's table, in per cent, for 1-way episodes."""

    method: str
    backbone: str
    dataset: str  # "pascal5i", "coco20i-a", "coco20i-b", "fss1000"; "coco20i" where the paper does not name the split
    shots: int
    metric: str  # "miou", "fb_iou" or "positive_iou"
    folds: tuple[float, ...]  # empty where the paper gives the mean only
    mean: float
    note: str
    source: str

    def __str__(self) -> str:
        return f"{self.method}, {self.backbone}{', ' + self.note if self.note else ''} [{self.source}]"


def published_scores(dataset: str, shots: int, metric: str) -> list[PublishedScore]:
    """The figures to compare with; none for data sets that the papers do not use."""
    # "coco20i" stands for both of its splits.
    names = (dataset, dataset.split("-")[0])
    return [s for s in _read() if s.dataset in names and s.shots == shots and s.metric == metric]


def _read() -> list[PublishedScore]:
    text = resources.files("fewseg_ext.evaluation").joinpath("published.csv").read_text()
    return [
        PublishedScore(
            method=row["method"],
            backbone=row["backbone"],
            dataset=row["dataset"],
            shots=int(row["shots"]),
            metric=row["metric"],
            folds=tuple(float(row[f"fold{i}"]) for i in range(4) if row[f"fold{i}"]),
            mean=float(row["mean"]),
            note=row["note"],
            source=row["source"],
        )
        for row in csv.DictReader(text.splitlines())
    ]
