"""What an evaluation found: the tables in the papers' form, JSON, CSV and Markdown. Every form carries the protocol."""

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from fewseg_ext.evaluation.evaluator import Scores
from fewseg_ext.evaluation.protocol import EvaluationProtocol
from fewseg_ext.evaluation.published import PublishedScore, published_scores

METRICS = {
    "miou": "mIoU, for 1-way episodes also positive IoU accumulated per class",
    "fb_iou": "binary IoU (FB-IoU)",
    "positive_iou": "positive IoU averaged over images",
}
# Of a table on a console.
_MOST_ROWS = 25


class Spread(NamedTuple):
    """Over seeds, in per cent."""

    mean: float
    std: float  # of the sample; 0 for a single seed
    per_seed: list[float]

    def __str__(self) -> str:
        if self.mean != self.mean:
            return "-"
        return f"{self.mean:.2f} ± {self.std:.2f}" if len(self.per_seed) > 1 else f"{self.mean:.2f}"


@dataclass(frozen=True)
class FoldScores:
    """One fold's scores."""

    fold: int | None  # None for a data set without folds
    seeds: list[dict[str, Scores]]  # in the order of the protocol's seeds, by resolution
    data: str = ""  # the source's own description

    def spread(self, resolution: str, metric: str) -> Spread:
        """Of "miou", "fb_iou" or "positive_iou"."""
        return _spread([getattr(seed[resolution], metric) for seed in self.seeds])

    def class_spreads(self, resolution: str) -> dict[str, Spread]:
        """IoU by class name, over the seeds whose episodes drew the class."""
        by_seed = [seed[resolution].class_iou for seed in self.seeds]
        return {name: _spread([scores[name] for scores in by_seed]) for name in by_seed[0]}


@dataclass(frozen=True)
class EvaluationReport:
    """Everything that was measured, and what it was measured on."""

    dataset: str
    num_folds: int  # that the data set has; 0 without folds
    model: Mapping[str, Any]  # what it was, in plain values
    protocol: EvaluationProtocol
    folds: list[FoldScores]
    published: bool = True  # whether the papers' figures compare: not with a choice of classes or another year
    shared_photos: Sequence[str] = ()  # scored photos that the model was trained on, by name
    environment: Mapping[str, Any] = field(default_factory=dict)  # machine and speed: not part of the result

    def mean(self, resolution: str, metric: str) -> Spread | None:
        """Over folds, then over seeds; None where a fold is missing: a part's mean compares with nothing."""
        if len(self.folds) < self.num_folds:
            return None
        by_fold = [fold.spread(resolution, metric).per_seed for fold in self.folds]
        return _spread([statistics.fmean(seed) for seed in zip(*by_fold, strict=True)])

    def class_spreads(self, resolution: str) -> dict[str, Spread]:
        """IoU by class name, of all folds."""
        return {name: spread for fold in self.folds for name, spread in fold.class_spreads(resolution).items()}

    @property
    def title(self) -> str:
        """Data set and task."""
        return f"{self.dataset}, {self.protocol.ways}-way {self.protocol.shots}-shot"

    @property
    def protocol_line(self) -> str:
        """The data and the protocol."""
        return "; ".join([*(fold.data for fold in self.folds if fold.data), str(self.protocol)])

    @property
    def warning(self) -> str | None:
        """A sentence about photos of the training among those scored."""
        if not self.shared_photos:
            return None
        names = ", ".join(self.shared_photos[:5]) + (", ..." if len(self.shared_photos) > 5 else "")
        return f"{len(self.shared_photos)} of the scored photos were in the training too: {names}"


def comparison(report: EvaluationReport, metric: str) -> list[list[str]]:
    """One metric's table, head first: folds and mean in columns; this run's resolutions, then the papers' figures."""
    folds = [fold for fold in report.folds if fold.fold is not None]
    table = [["", *(f"fold {fold.fold}" for fold in folds), "mean"]]
    for resolution, words in report.protocol.resolutions.items():
        cells = [str(fold.spread(resolution, metric)) for fold in folds]
        table.append([f"this run, {words}", *cells, str(report.mean(resolution, metric) or "")])
    for row in _published(report, metric):
        cells = [f"{row.folds[fold.fold]:.2f}" if row.folds else "" for fold in folds if fold.fold is not None]
        table.append([f"paper: {row}", *cells, f"{row.mean:.2f}"])
    return table


def print_report(console: Console, report: EvaluationReport) -> None:
    """Tables, protocol and warning; more classes than a screen shows are left to the files."""
    for title, (head, *rows) in _all_tables(report).items():
        console.print(f"\n[bold]{title}[/bold]: {report.title}, per cent", highlight=False)
        if len(rows) > _MOST_ROWS:
            console.print(f"{len(rows)} classes: see the files", highlight=False)
            continue
        table = Table(head[0], *(Column(name, justify="right", no_wrap=True) for name in head[1:]))
        for row in rows:
            table.add_row(*map(Text, row))
        console.print(table)
    console.print(f"\nProtocol: {report.protocol_line}.", markup=False, highlight=False)
    if report.warning:
        console.print(f"Warning: {report.warning}.", style="yellow", highlight=False, markup=False)


def as_json(report: EvaluationReport) -> dict[str, Any]:
    """Plain values. All but ``environment`` repeats from run to run."""
    return {
        "dataset": report.dataset,
        "model": dict(report.model),
        "data": [fold.data for fold in report.folds],
        "protocol": {"line": report.protocol_line, **asdict(report.protocol)},
        "scores": {
            resolution: {
                **{
                    metric: {
                        "folds": [
                            {"fold": fold.fold, **_plain(fold.spread(resolution, metric))} for fold in report.folds
                        ],
                        "mean_over_folds": None if mean is None else _plain(mean),
                    }
                    for metric in METRICS
                    for mean in [report.mean(resolution, metric)]
                },
                "class_iou": {name: _plain(spread) for name, spread in report.class_spreads(resolution).items()},
            }
            for resolution in report.protocol.resolutions
        },
        "published": [asdict(row) for metric in METRICS for row in _published(report, metric) if row.metric == metric],
        "shared_photos": list(report.shared_photos),
        "environment": dict(report.environment),
    }


def as_csv(report: EvaluationReport) -> str:
    """One number per line, with its protocol."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["dataset", "fold", "seed", "resolution", "metric", "class", "per_cent", "protocol"])
    for fold in report.folds:
        for seed, by_resolution in zip(report.protocol.seeds, fold.seeds, strict=True):
            for resolution, scores in by_resolution.items():
                values = [(metric, "", getattr(scores, metric)) for metric in METRICS]
                values += [("class_iou", name, iou) for name, iou in scores.class_iou.items()]
                for metric, name, value in values:
                    number = "" if value != value else repr(value)
                    fold_name = "" if fold.fold is None else fold.fold
                    line = f"{fold.data}; {report.protocol}" if fold.data else str(report.protocol)
                    writer.writerow([report.dataset, fold_name, seed, resolution, metric, name, number, line])
    return text.getvalue()


def as_markdown(report: EvaluationReport) -> str:
    """The tables, for a README or an issue."""
    lines = [f"# {report.title}", "", f"Protocol: {report.protocol_line}.", ""]
    lines += [f"- {name}: {value}" for name, value in report.model.items()]
    if report.warning:
        lines += ["", f"**Warning: {report.warning}.**"]
    lines += ["", "IoU in per cent, mean and sample standard deviation over seeds."]
    for title, (head, *rows) in _all_tables(report).items():
        lines += ["", f"## {title}", "", f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
        lines += [f"| {' | '.join(row)} |" for row in rows]
    lines += ["", *(f"- {name}: {value}" for name, value in report.environment.items()), ""]
    return "\n".join(lines)


def _published(report: EvaluationReport, metric: str) -> list[PublishedScore]:
    """The papers do not say how they read "positive IoU", so those figures stand beside both readings."""
    if report.protocol.ways != 1 or not report.published:
        return []
    names = ("miou", "positive_iou") if metric == "miou" else (metric,)
    return [row for name in names for row in published_scores(report.dataset, report.protocol.shots, name)]


def _all_tables(report: EvaluationReport) -> dict[str, list[list[str]]]:
    """Every metric's, and that of the classes, by title."""
    resolutions = report.protocol.resolutions
    spreads = {resolution: report.class_spreads(resolution) for resolution in resolutions}
    classes = [["", *resolutions.values()]]
    classes += [[name, *(str(spreads[r][name]) for r in resolutions)] for name in spreads["original"]]
    return {title: comparison(report, metric) for metric, title in METRICS.items()} | {"IoU of every class": classes}


def _spread(values: Sequence[float]) -> Spread:
    known = [value for value in values if value == value]
    if not known:
        return Spread(float("nan"), 0.0, list(values))
    return Spread(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else 0.0, list(values))


def _plain(spread: Spread) -> dict[str, Any]:
    """JSON has no NaN."""
    mean, std, per_seed = spread
    return {
        "mean": mean if mean == mean else None,
        "std": std,
        "per_seed": [value if value == value else None for value in per_seed],
    }
