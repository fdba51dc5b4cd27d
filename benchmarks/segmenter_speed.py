"""How long a fitted `Segmenter` takes to answer, from file to mask: a 480 x 640 photo, MobileNetV2.

Example:

    python benchmarks/segmenter_speed.py --results benchmarks/results
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from real_photos import cpu_name

import fewseg_ext
from fewseg_ext.files import write_text

PHOTO = (640, 480)  # width, height


def median_seconds(function: Callable[[int], object], repeats: int) -> float:
    seconds = []
    for index in range(repeats):
        start = time.perf_counter()
        function(index)
        seconds.append(time.perf_counter() - start)
    return round(statistics.median(seconds), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--size", type=int, default=417)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--results", type=Path, help="folder for segmenter_speed.json")
    options = parser.parse_args()
    # Random weights take as long as trained ones.
    segmenter = fewseg_ext.Segmenter.from_pretrained_backbone(options.backbone, None, options.device, options.size)
    generator = np.random.default_rng(0)
    mask = np.zeros(PHOTO[::-1], bool)
    mask[100:300, 200:400] = True
    with tempfile.TemporaryDirectory() as folder:
        photos = [Path(folder, f"{index}.jpg") for index in range(options.repeats + 2)]
        for path in photos:
            coarse = Image.fromarray(generator.integers(0, 256, (48, 64, 3), np.uint8))
            coarse.resize(PHOTO, Image.Resampling.BICUBIC).save(path)
        segmenter.fit([photos[0]], [mask]).predict(photos[0])  # the first call of everything takes longer
        fit = median_seconds(lambda _: segmenter.fit([photos[0]], [mask]), 3)
        result = {
            "what": "median seconds, one 480 x 640 JPEG from file to mask, probabilities and uncertainty",
            "backbone": options.backbone,
            "size": options.size,
            "fit_one_photo": fit,
            "new_photo": median_seconds(lambda index: segmenter.predict(photos[index + 1]), options.repeats),
            "same_photo_other_steps": median_seconds(
                lambda index: segmenter.predict(photos[options.repeats], steps=index), options.repeats
            ),
            "repeats": options.repeats,
            "device": torch.cuda.get_device_name() if options.device.startswith("cuda") else cpu_name(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
    text = json.dumps(result, indent=2) + "\n"
    print(text, end="")
    if options.results is not None:
        write_text(options.results / "segmenter_speed.json", text)


if __name__ == "__main__":
    main()
