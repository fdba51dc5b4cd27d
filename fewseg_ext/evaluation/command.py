"""What `fewseg evaluate` does."""

import hashlib
import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from fewseg_ext.data.episodes import ImageSource
from fewseg_ext.data.overlap import seen_photos
from fewseg_ext.data.sources import open_source, source_kind
from fewseg_ext.data.transforms import PairTransform
from fewseg_ext.evaluation.evaluate import example_rows
from fewseg_ext.evaluation.evaluator import DEFAULT_CACHE_BYTES, Evaluator
from fewseg_ext.evaluation.pictures import draw_class_scores, draw_grid, save_figure
from fewseg_ext.evaluation.protocol import EvaluationProtocol
from fewseg_ext.evaluation.report import (
    EvaluationReport,
    FoldScores,
    as_csv,
    as_json,
    as_markdown,
    print_report,
)
from fewseg_ext.files import remove_leftovers, write_text
from fewseg_ext.models.biopt import BiOpt, PrototypeBaseline, PrototypeModel
from fewseg_ext.models.vpi import VPI
from fewseg_ext.progress import progress_bar
from fewseg_ext.training.checkpoint import load_model

METHODS: dict[str, type[BiOpt] | type[PrototypeBaseline]] = {"biopt": BiOpt, "baseline": PrototypeBaseline}
EXAMPLES = 6
# What stands for the fold's number in the name of a checkpoint.
FOLD = "{fold}"


@dataclass(frozen=True)
class ModelChoice:
    """A checkpoint, or a method on a backbone without any training of ours."""

    checkpoint: str | None = None  # may contain "{fold}"
    backbone: str | None = None
    weights: str | None = None  # of the backbone: a file or the name of torchvision weights; None is random
    method: str = "biopt"

    def __post_init__(self) -> None:
        if (self.checkpoint is None) == (self.backbone is None):
            raise ValueError("give either a checkpoint or a backbone")
        if self.weights is not None and self.backbone is None:
            raise ValueError("weights go with a backbone; a checkpoint brings its own")
        if self.method not in METHODS:
            raise ValueError(f"method: {self.method!r} is unknown, expected one of {', '.join(METHODS)}")

    def build(self, fold: int | None) -> tuple[PrototypeModel | VPI, dict[str, Any], list[str]]:
        """The model in eval mode; what it is: its arguments, and files by name and checksum; and the `photo_hashes` of
        its training, where the checkpoint has them."""
        hashes: list[str] = []
        if self.checkpoint is not None:
            path = self.checkpoint.replace(FOLD, str(fold))
            model, checkpoint = load_model(path)
            hashes = checkpoint.photo_hashes or []
            about = {**model.config, "checkpoint": _file(path), "iterations": checkpoint.iteration}
        else:
            assert self.backbone is not None
            torch.manual_seed(0)  # of random weights
            model = METHODS[self.method](self.backbone, self.weights)
            about = {**model.config, "training": "none"}
            if self.weights is not None:
                about["weights"] = _file(self.weights)
        return model.eval(), about, hashes


def parse_folds(text: str, dataset: str, classes: Sequence[str] | None = None) -> list[int | None]:
    """Folds from "1", "0,2" or "all"; [None] for a data set without folds, or for classes in place of a fold.

    Raises:
        ValueError: an unknown data set, or what is no fold of it.
    """
    count = source_kind(dataset).folds
    if text == "all" and (count == 0 or classes is not None):
        return [None]
    if classes is not None:
        raise ValueError("fold: classes stand in place of a fold, so give one of the two")
    if text == "all":
        return list(range(count))
    parts = [part.strip() for part in text.split(",")]
    folds = [int(part) for part in parts if part.isdecimal()]
    if len(folds) < len(parts) or len(set(folds)) < len(folds) or not all(fold < count for fold in folds):
        expected = f'different numbers of 0..{count - 1}, or "all"' if count else f'"all": {dataset} has no folds'
        raise ValueError(f"fold: expected {expected}, got {text!r}")
    return list(folds)


def run_evaluation(
    out_dir: str | os.PathLike[str],
    choice: ModelChoice,
    dataset: str,
    root: str | os.PathLike[str],
    folds: Sequence[int | None],
    protocol: EvaluationProtocol,
    *,
    classes: Sequence[str] | None = None,
    year: int | None = None,
    prepared: str | os.PathLike[str] | None = None,
    device: torch.device | str = "cpu",
    num_workers: int = 0,
    cache_bytes: int = DEFAULT_CACHE_BYTES,
    console: Console | None = None,
) -> EvaluationReport:
    """Scores a model and writes the result.

    Args:
        out_dir: gets ``evaluation.json``, ``.csv``, ``.md`` and, where matplotlib is installed, ``class_iou.png`` and
            ``examples.png``. Each file appears whole or not at all.
        choice: the model; a checkpoint for several folds needs "{fold}" in its name, since each fold has its own.
        dataset: one of `SOURCES`.
        root: the data set's folder.
        folds: which, or [None] for a data set without folds.
        protocol: how to score.
        classes: some by name, of all folds together: ``folds`` is [None] then.
        year: of COCO.
        prepared: where `fewseg prepare` wrote, if not into ``root``.
        device: where to run.
        num_workers: processes that read images.
        cache_bytes: see `Evaluator`.
        console: shows the bar and the tables; None shows nothing.

    Raises:
        ValueError: what does not fit together; the message names it. Nothing is written then.
        FileNotFoundError: no such checkpoint, weights or data.
    """
    if choice.checkpoint is not None and FOLD not in choice.checkpoint and len(folds) > 1:
        raise ValueError(
            f"{choice.checkpoint} was trained for one fold and has seen the classes of the others: give the fold, or "
            f'one checkpoint per fold with "{FOLD}" in its name'
        )
    if choice.checkpoint is not None and FOLD in choice.checkpoint and None in folds:
        raise ValueError(f'{choice.checkpoint}: "{FOLD}" stands for a fold\'s number, and no fold was chosen')
    where = None if prepared is None else Path(prepared)
    sources = [open_source(dataset, Path(root), fold, classes=classes, year=year, prepared=where) for fold in folds]
    # Drawn here too, so that too few images are an error before hours of work and not after.
    episodes = [len(protocol.draw(source, protocol.seeds[0])) for source in sources]
    models = [choice.build(fold) for fold in folds]
    shared = {
        name for source, (*_, hashes) in zip(sources, models, strict=True) for name in seen_photos(source, hashes)
    }
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    remove_leftovers(out)

    results: list[FoldScores] = []
    total = len(protocol.seeds) * sum(episodes)
    done, encoded, start = 0, 0, time.perf_counter()
    with progress_bar(console, "episodes") as progress:

        def advance(episode: int, _: int) -> None:
            progress(done + episode, total)

        for fold, source, count, (model, *_) in zip(folds, sources, episodes, models, strict=True):
            evaluator = Evaluator(
                model.to(device), source, protocol, device=device, num_workers=num_workers, cache_bytes=cache_bytes
            )
            seeds = []
            for seed in protocol.seeds:
                seeds.append(evaluator.run(seed, advance))
                done += count
            encoded += evaluator.images_encoded
            results.append(FoldScores(fold, seeds, source.description))
    seconds = time.perf_counter() - start

    about = dict(models[0][1])
    if choice.checkpoint is not None:
        about["checkpoint"] = ", ".join(model_about["checkpoint"] for _, model_about, _ in models)
    report = EvaluationReport(
        dataset=dataset,
        num_folds=source_kind(dataset).folds if classes is None else 0,
        published=classes is None and year in (None, 2014),
        model=about,
        protocol=protocol,
        folds=results,
        shared_photos=sorted(shared),
        environment={
            "device": torch.cuda.get_device_name(device) if str(device).startswith("cuda") else "CPU",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "workers": num_workers,
            "cache_bytes": cache_bytes,
            "seconds": round(seconds, 1),
            "images_per_second": round(total * (protocol.ways * protocol.shots + 1) / seconds, 1),
            "images_encoded": encoded,
        },
    )
    _write(out, report)
    if console is not None:
        print_report(console, report)
    try:
        _draw(out, report, sources[0], models[0][0], device)
    except ImportError as error:
        # The scores took hours, and are written.
        if console is not None:
            console.print(f"No class_iou.png, no examples.png: {error}", markup=False, highlight=False)
    if console is not None:
        console.print(f"Report, charts and examples: {out}", markup=False, highlight=False)
    return report


def _write(out: Path, report: EvaluationReport) -> None:
    texts = {
        "json": json.dumps(as_json(report), indent=2, allow_nan=False) + "\n",
        "csv": as_csv(report),
        "md": as_markdown(report),
    }
    for suffix, text in texts.items():
        write_text(out / f"evaluation.{suffix}", text)


def _draw(
    out: Path, report: EvaluationReport, source: ImageSource, model: nn.Module, device: torch.device | str
) -> None:
    """Needs matplotlib."""
    protocol = report.protocol
    spreads = {name: s for name, s in report.class_spreads("original").items() if s.mean == s.mean}
    save_figure(
        out / "class_iou.png",
        draw_class_scores(
            {name: spread.mean for name, spread in spreads.items()},
            {name: spread.std for name, spread in spreads.items()},
            f"{report.title}, original size",
            str(protocol),
        ),
    )
    episodes = protocol.draw(source, protocol.seeds[0], PairTransform(protocol.input_size))
    rows = example_rows(episodes, {report.model["name"]: model}, EXAMPLES, device)
    save_figure(out / "examples.png", draw_grid(rows))


def _file(path: str) -> str:
    """A file's name and checksum: folders belong to the machine, not to the result. Other names as they are."""
    if not Path(path).is_file():
        return path
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return f"{Path(path).name} (sha256 {digest.hexdigest()[:16]})"
