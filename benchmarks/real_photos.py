"""The prototype methods on real photos, without any training: what does each step of BiOpt change by itself?

Five classes of PASCAL VOC 2012 val (cat, cow, dog, horse, sheep), a MobileNetV2 with ImageNet weights, four rows:

    baseline      prototypes of the support only
    init          BiOpt's init module at omega = 1/2, no inner step
    InOpt-dagger  start P_s, target M', ten inner steps
    InOpt         BiOpt: start P0, target from P0, ten inner steps

Example:

    python benchmarks/real_photos.py --shots 1 --seeds 5 --sheet sheet.png

The data folder holds VOCdevkit/VOC2012 (JPEGImages, SegmentationClassAug, ImageSets/Segmentation/val.txt) and
weights/mobilenet_v2.safetensors, under torchvision's parameter names.
"""

import argparse
import json
import os
import platform
import random
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from fewseg_ext.files import write_text
from fewseg_ext.models import BiOpt, PrototypeBaseline, QueryState, SupportState, build_backbone
from fewseg_ext.models.biopt import PrototypeModel

ROOT = Path(__file__).resolve().parents[1]
CLASSES = {8: "cat", 10: "cow", 12: "dog", 13: "horse", 17: "sheep"}
SIZE = 321
IGNORE = 255
# OSLSM's limit for a small object, 2048 pixels of a usual 500 x 375 photo, at the size of this benchmark.
SMALLEST = 2048 * SIZE * SIZE / (500 * 375)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = 10


@dataclass(frozen=True)
class Episode:
    """One task: names of photos, the class as VOC numbers it."""

    label: int
    query: str
    supports: tuple[str, ...]


class Photos:
    """The val photos that show one of the classes, squashed to SIZE x SIZE; each goes through the backbone once."""

    def __init__(self, data: Path, device: str) -> None:
        self.root = data / "VOCdevkit" / "VOC2012"
        self.device = device
        self.backbone = build_backbone("mobilenet_v2", data / "weights" / "mobilenet_v2.safetensors").eval().to(device)
        names = (self.root / "ImageSets" / "Segmentation" / "val.txt").read_text().split()
        self.labels = {name: self._read_labels(name) for name in names}
        self.by_class = {
            label: [name for name in names if (self.labels[name] == label).sum() >= SMALLEST] for label in CLASSES
        }
        self._features: dict[str, Tensor] = {}

    def _read_labels(self, name: str) -> Tensor:
        image = Image.open(self.root / "SegmentationClassAug" / f"{name}.png")
        return torch.from_numpy(np.array(image.resize((SIZE, SIZE), Image.Resampling.NEAREST)))

    def photo(self, name: str) -> Image.Image:
        image = Image.open(self.root / "JPEGImages" / f"{name}.jpg").convert("RGB")
        return image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)

    def features(self, name: str) -> Tensor:
        """[C,H,W]."""
        if name not in self._features:
            pixels = torch.from_numpy(np.array(self.photo(name))).permute(2, 0, 1) / 255
            normal = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
            with torch.inference_mode():
                self._features[name] = self.backbone(normal[None].to(self.device))[0]
        return self._features[name]

    def episode_labels(self, name: str, label: int) -> Tensor:
        """The label map of a 1-way episode: 0 background, which other classes are too, 1 the class, 255 ignored."""
        labels = self.labels[name]
        return torch.where(labels == IGNORE, IGNORE, (labels == label).to(torch.uint8)).to(torch.uint8)


def draw_episodes(photos: Photos, seed: int, shots: int, per_class: int) -> list[Episode]:
    """Queries and supports of a seed, class by class: different photos within an episode, the first one the query."""
    generator = random.Random(seed)
    episodes = []
    for label, names in photos.by_class.items():
        for _ in range(per_class):
            query, *supports = generator.sample(names, shots + 1)
            episodes.append(Episode(label, query, tuple(supports)))
    return episodes


def build_rows(photos: Photos, resize: str) -> dict[str, PrototypeModel]:
    """The four methods around one backbone."""
    rows: dict[str, PrototypeModel] = {
        "baseline": PrototypeBaseline(photos.backbone, resize=resize),
        "init": BiOpt(photos.backbone, inner_steps=0, resize=resize),
        "InOpt-dagger": BiOpt(photos.backbone, init="support", resize=resize),
        "InOpt": BiOpt(photos.backbone, resize=resize),
    }
    return {name: model.eval().to(photos.device) for name, model in rows.items()}


@torch.no_grad()
def segment(photos: Photos, rows: dict[str, PrototypeModel], episodes: Sequence[Episode]) -> dict[str, Tensor]:
    """Every row's labels [B,SIZE,SIZE] for some episodes of as many shots."""
    features = torch.stack([torch.stack([photos.features(name) for name in e.supports]) for e in episodes])
    masks = torch.stack([torch.stack([photos.episode_labels(name, e.label) for name in e.supports]) for e in episodes])
    query = QueryState(torch.stack([photos.features(e.query) for e in episodes]), (SIZE, SIZE))
    # The rows share the backbone and the pooling, so they share the state.
    state: SupportState = rows["baseline"].pool_support(features[:, None], masks[:, None].to(photos.device))
    predicted = {}
    for name, model in rows.items():
        logits = model.predict(state, query).logits
        # argmax over two planes, which PyTorch does ten times slower.
        predicted[name] = (logits[:, 1] > logits[:, 0]).cpu()
    return predicted


class Score:
    """Intersection and union per class, summed over the episodes and divided once; ignored pixels are in neither."""

    def __init__(self) -> None:
        self.intersection = dict.fromkeys(CLASSES, 0)
        self.union = dict.fromkeys(CLASSES, 0)

    def add(self, label: int, predicted: Tensor, truth: Tensor) -> None:
        found, there, valid = predicted == 1, truth == 1, truth != IGNORE
        self.intersection[label] += int((found & there & valid).sum())
        self.union[label] += int(((found | there) & valid).sum())

    def per_class(self) -> dict[str, float]:
        """IoU in percent."""
        return {name: 100 * self.intersection[c] / max(self.union[c], 1) for c, name in CLASSES.items()}


def score_seed(
    photos: Photos, rows: dict[str, PrototypeModel], episodes: Sequence[Episode], done: Callable[[int], object]
) -> dict[str, dict[str, float]]:
    """IoU in percent by row and class; ``done`` hears how many episodes were finished."""
    scores = {name: Score() for name in rows}
    for start in range(0, len(episodes), BATCH):
        batch = episodes[start : start + BATCH]
        for name, predicted in segment(photos, rows, batch).items():
            for episode, labels in zip(batch, predicted, strict=True):
                scores[name].add(episode.label, labels, photos.episode_labels(episode.query, episode.label))
        done(len(batch))
    return {name: score.per_class() for name, score in scores.items()}


def summarize(seeds: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, Any]]:
    """By row: the mIoU of every seed, their mean and standard deviation, and the mean per class."""
    summary = {}
    for row in seeds[0]:
        mious = [statistics.fmean(seed[row].values()) for seed in seeds]
        summary[row] = {
            "miou": statistics.fmean(mious),
            "std": statistics.stdev(mious) if len(mious) > 1 else 0.0,
            "miou_per_seed": mious,
            "iou_per_class": {name: statistics.fmean(seed[row][name] for seed in seeds) for name in CLASSES.values()},
        }
    return summary


def contact_sheet(photos: Photos, rows: dict[str, PrototypeModel], episodes: Sequence[Episode], path: Path) -> None:
    """One line per episode: first support and its mask, query and truth, the rows' predictions with their IoU."""
    predicted = segment(photos, rows, episodes)
    side, gap, title = 240, 6, 18
    columns = ["support", "query + truth", *rows]
    sheet = Image.new("RGB", (len(columns) * (side + gap) + gap, len(episodes) * (side + gap + title) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for line, episode in enumerate(episodes):
        support = episode.supports[0]
        truth = photos.episode_labels(episode.query, episode.label)
        cells = [
            (f"{CLASSES[episode.label]}: {columns[0]}", support, photos.episode_labels(support, episode.label)),
            (columns[1], episode.query, truth),
        ]
        for name in rows:
            score = Score()
            score.add(episode.label, predicted[name][line], truth)
            cells.append(
                (f"{name} {score.per_class()[CLASSES[episode.label]]:.0f}", episode.query, predicted[name][line])
            )
        for column, (text, photo, labels) in enumerate(cells):
            x, y = gap + column * (side + gap), gap + line * (side + gap + title)
            draw.text((x, y), text, fill="black")
            sheet.paste(_overlay(photos.photo(photo), labels).resize((side, side)), (x, y + title - 4))
    sheet.save(path)


def _overlay(photo: Image.Image, labels: Tensor) -> Image.Image:
    """The object as it is, the rest grey and dark, ignored pixels yellow."""
    pixels = np.array(photo).astype(np.float32)
    grey = np.repeat(pixels.mean(2, keepdims=True), 3, axis=2) * 0.4
    shown = np.where((labels == 1).numpy()[..., None], pixels, grey)
    shown[(labels == IGNORE).numpy()] = (255, 220, 0)
    return Image.fromarray(shown.astype(np.uint8))


def cpu_name() -> str:
    """The processor's name, from the system where it says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def protocol_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything that a number depends on."""
    return {
        "data": "PASCAL VOC 2012 val, classes " + ", ".join(CLASSES.values()),
        "backbone": "MobileNetV2, ImageNet weights, output stride 8, 320 channels, no training",
        "shots": arguments.shots,
        "episodes": f"{arguments.episodes} per class and seed",
        "seeds": list(range(arguments.seeds)),
        "resolution": f"images and masks squashed to {SIZE} x {SIZE}, scored there",
        "ignore": "255 removed from intersection and union",
        "iou": "summed per class over a seed's episodes, divided once; mIoU = mean over classes; std over seeds",
        "small objects": f"photos with fewer than {SMALLEST:.0f} pixels of the class at {SIZE} left out",
        "pooling": f'resize="{arguments.resize}"',
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if arguments.device.startswith("cuda") else cpu_name(),
        "threads": torch.get_num_threads(),
        "date": date.today().isoformat(),
    }


def markdown(protocol: dict[str, Any], summary: dict[str, dict[str, Any]]) -> str:
    names = list(CLASSES.values())
    lines = [
        f"# Untrained prototypes on real photos, {protocol['shots']}-shot",
        "",
        "IoU in percent. `python benchmarks/real_photos.py --help` says what the rows are.",
        "",
        f"| row | mIoU | std | {' | '.join(names)} |",
        f"| --- | ---: | ---: | {' | '.join('---:' for _ in names)} |",
    ]
    for row, result in summary.items():
        per_class = " | ".join(f"{result['iou_per_class'][name]:.1f}" for name in names)
        lines.append(f"| {row} | {result['miou']:.2f} | {result['std']:.2f} | {per_class} |")
    lines += ["", "Protocol:", "", *(f"- {key}: {value}" for key, value in protocol.items()), ""]
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("FEWSEG_REAL_DATA") or ROOT.parent / "shared" / "data"
    parser.add_argument(
        "--data", type=Path, default=default, help="data folder (FEWSEG_REAL_DATA, else ../shared/data)"
    )
    parser.add_argument("--shots", type=int, default=1, help="support photos per episode (default 1)")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0, 1, ... (default 5)")
    parser.add_argument("--episodes", type=int, default=100, help="episodes per class and seed (default 100)")
    parser.add_argument("--resize", choices=["features", "masks"], default="features", help="the models' option")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument(
        "--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder for JSON, Markdown"
    )
    parser.add_argument("--no-results", action="store_true", help="print only")
    parser.add_argument("--sheet", type=Path, metavar="FILE.png", help="contact sheet of one episode per class")
    options = parser.parse_args(arguments)
    for name in ("shots", "seeds", "episodes"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}: expected 1 or more, got {getattr(options, name)}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options, console, errors = parse(arguments), Console(), Console(stderr=True)
    try:
        photos = Photos(options.data, options.device)
    except FileNotFoundError as error:
        errors.print(f"no data: {error}. Pass --data FOLDER or set FEWSEG_REAL_DATA", markup=False, highlight=False)
        return 1
    rows = build_rows(photos, options.resize)
    results = []
    with Progress(console=errors) as progress:
        bar = progress.add_task("episodes", total=options.seeds * options.episodes * len(CLASSES))
        for seed in range(options.seeds):
            episodes = draw_episodes(photos, seed, options.shots, options.episodes)
            results.append(score_seed(photos, rows, episodes, lambda count: progress.advance(bar, count)))
    protocol, summary = protocol_of(options), summarize(results)

    table = Table("row", "mIoU", "std", *CLASSES.values(), title=f"{options.shots}-shot, IoU in percent")
    for row, result in summary.items():
        values = [result["miou"], result["std"], *result["iou_per_class"].values()]
        table.add_row(row, *(f"{value:.2f}" for value in values))
    console.print(table)
    console.print("; ".join(f"{key}: {value}" for key, value in protocol.items()), highlight=False, markup=False)
    if not options.no_results:
        stem = f"real_photos_{options.shots}shot"
        text = json.dumps({"protocol": protocol, "rows": summary}, indent=2) + "\n"
        write_text(options.results / f"{stem}.json", text)
        write_text(options.results / f"{stem}.md", markdown(protocol, summary))
    if options.sheet is not None:
        one_each = draw_episodes(photos, 0, options.shots, 1)
        contact_sheet(photos, rows, one_each, options.sheet)
    return 0


if __name__ == "__main__":
    sys.exit(main())
