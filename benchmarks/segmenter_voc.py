"""`Segmenter` on real photos: label one or five photos of an animal, segment all others of that animal.

Five animals of PASCAL VOC 2012 val, as `fewseg prepare pascal5i` lists them for the family P3: photos with at least
2,048 pixels of the class. For every seed and class the
labelled photos are drawn at random, and every other photo of the class is segmented, at its own size. IoU of a class:
intersection and union summed over its photos; pixels labelled 255 are left out.

Example:

    python benchmarks/segmenter_voc.py --root data --weights mobilenet_v2.safetensors --shots 1 5
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from real_photos import CLASSES, IGNORE, cpu_name
from rich.console import Console
from rich.progress import Progress

import fewseg_ext
from fewseg_ext.data.pascal import Pascal5i
from fewseg_ext.files import write_text

NAMES = list(CLASSES.values())


def label_map(photos: Pascal5i, class_id: int, index: int) -> np.ndarray:
    """0 background and other classes, 1 the class, 255 ignored."""
    labels = photos.read_labels(class_id, index).numpy()
    return np.where(labels < 0, IGNORE, labels == class_id + 1).astype(np.uint8)


def score_class(
    segmenter: fewseg_ext.Segmenter, photos: Pascal5i, class_id: int, shots: int, seed: int
) -> tuple[float, list[float], list[float]]:
    """IoU in percent, seconds of every photo that was encoded, and of every one whose features were kept."""
    paths = photos.photos[class_id]
    # A string seed is hashed in full; the first numbers of Random(3) and Random(4) are nearly the same.
    supports = random.Random(f"{seed}/{class_id}").sample(range(len(paths)), shots)
    segmenter.fit([paths[i] for i in supports], [label_map(photos, class_id, i) for i in supports])
    intersection = union = 0
    encoded, kept = [], []
    for i, path in enumerate(paths):
        if i in supports:
            continue
        before, start = len(segmenter._kept), time.perf_counter()
        found = segmenter.predict(path).mask == 1
        (encoded if len(segmenter._kept) > before else kept).append(time.perf_counter() - start)
        truth = label_map(photos, class_id, i)
        there, valid = truth == 1, truth != IGNORE
        intersection += int((found & there & valid).sum())
        union += int(((found | there) & valid).sum())
    return 100 * intersection / max(union, 1), encoded, kept


def measure(
    segmenter: fewseg_ext.Segmenter, photos: Pascal5i, shots: int, options: argparse.Namespace, console: Console
) -> dict[str, Any]:
    scores: dict[str, list[float]] = {name: [] for name in NAMES}
    encoded: list[float] = []
    kept: list[float] = []
    with Progress(console=console) as progress:
        bar = progress.add_task("classes", total=options.seeds * len(NAMES))
        for seed in range(options.seeds):
            for class_id, name in enumerate(NAMES):
                iou, new, again = score_class(segmenter, photos, class_id, shots, seed)
                scores[name].append(iou)
                encoded += new
                kept += again
                progress.advance(bar)
    mious = [statistics.fmean(scores[name][seed] for name in NAMES) for seed in range(options.seeds)]
    return {
        "shots": shots,
        "miou_per_seed": mious,
        "iou_per_class": scores,
        "photos": {name: len(paths) for name, paths in zip(NAMES, photos.photos, strict=True)},
        "seconds_per_photo": statistics.median(encoded) if encoded else None,
        "seconds_with_kept_features": statistics.median(kept) if kept else None,
        "backbone": options.backbone,
        "size": options.size,
        "device": torch.cuda.get_device_name() if options.device.startswith("cuda") else cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def markdown(results: Sequence[dict[str, Any]]) -> str:
    def of(values: Sequence[float]) -> str:
        if len(values) == 1:
            return f"{values[0]:.1f}"
        return f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f}"

    first, count = results[0], len(results[0]["miou_per_seed"])
    drawn = (
        f"mean and standard deviation over {count} draws of the labelled photos"
        if count > 1
        else "one draw of the photos"
    )
    photos = ", ".join(f"{number} {name}" for name, number in first["photos"].items())
    shots = " ".join(str(result["shots"]) for result in results)
    command = f"--shots {shots} --seeds {count} --size {first['size']} --backbone {first['backbone']} --weights FILE"
    lines = [
        "# Segment your own photos: a few labelled photos of each animal, all others segmented",
        "",
        f"`python benchmarks/segmenter_voc.py --root DATA {command}`",
        "",
        f"IoU in percent, {drawn}; no training, "
        f"{first['backbone']} with ImageNet weights, BiOpt's init module and inner loop.",
        "",
        f"| labelled photos | mIoU | {' | '.join(NAMES)} |",
        f"| ---: | ---: | {' | '.join('---:' for _ in NAMES)} |",
    ]
    for result in results:
        per_class = " | ".join(of(result["iou_per_class"][name]) for name in NAMES)
        lines.append(f"| {result['shots']} | {of(result['miou_per_seed'])} | {per_class} |")
    kept = [r["seconds_with_kept_features"] for r in results if r["seconds_with_kept_features"] is not None]
    lines += [
        "",
        f"Median seconds per photo from file to mask at its own size: {first['seconds_per_photo']:.2f}"
        + (f"; for a photo whose features were kept {statistics.fmean(kept):.3f}" if kept else "")
        + f". {first['device']}, {first['threads']} threads, torch {first['torch']}.",
        "",
        f"Photos of PASCAL VOC 2012 val with at least 2,048 pixels of the class: {photos}. Intersection and union are "
        "summed over all but the labelled ones; 255 is left out.",
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="what `fewseg prepare pascal5i` prepared")
    parser.add_argument("--prepared", type=Path, help="where it wrote, if not into ROOT")
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--weights", default="IMAGENET1K_V1", help="a file, or a name of torchvision's")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", type=int, default=417)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--results", type=Path, help="folder for the JSON and the table")
    options = parser.parse_args()
    photos = Pascal5i(options.root, family="P3", classes=NAMES, prepared=options.prepared)
    segmenter = fewseg_ext.Segmenter.from_pretrained_backbone(
        options.backbone, options.weights, options.device, options.size
    )
    # The backbone sees every photo once, whatever the number of seeds and shots.
    segmenter.kept_photos = sum(map(len, photos.photos))
    results = [measure(segmenter, photos, shots, options, Console(stderr=True)) for shots in options.shots]
    Console().print(markdown(results), markup=False, highlight=False)
    if options.results is not None:
        write_text(options.results / "segmenter_voc.json", json.dumps(results, indent=2) + "\n")
        write_text(options.results / "segmenter_voc.md", markdown(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
