"""Images per second of the evaluator: 0, 1 and 2 workers; without a cache, with an empty one, with a full one.

An episode's images count every time they are used: (shots + 1) per episode. Five animals of PASCAL VOC 2012 val, as
`fewseg prepare pascal5i` lists them for the family P3, BiOpt on MobileNetV2 at 417 x 417, 1-shot.

Example:

    python benchmarks/evaluation_speed.py --root data --results benchmarks/results
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from real_photos import CLASSES, cpu_name
from rich.console import Console
from rich.table import Table

from fewseg_ext.data.pascal import Pascal5i
from fewseg_ext.evaluation.evaluator import DEFAULT_CACHE_BYTES, Evaluator
from fewseg_ext.evaluation.protocol import EvaluationProtocol
from fewseg_ext.files import write_text
from fewseg_ext.models import BiOpt

COLUMNS = ("workers", "no cache", "cache, empty at first", "cache, full")
# With everything in the cache an episode takes milliseconds.
REPEATS = 5


def images_per_second(run: Callable[[], object], images: int) -> float:
    start = time.perf_counter()
    run()
    return round(images / (time.perf_counter() - start), 1)


def measure(source: Pascal5i, device: str, episodes: int, workers: int) -> dict[str, float]:
    # Random weights take as long as trained ones.
    model = BiOpt("mobilenet_v2").to(device)
    protocol = EvaluationProtocol(episodes=episodes, seeds=(0,))
    warm_up = EvaluationProtocol(episodes=3, seeds=(1,))
    Evaluator(model, source, warm_up, device=device, num_workers=workers).run(1)

    def evaluator(cache_bytes: int) -> Evaluator:
        return Evaluator(model, source, protocol, device=device, num_workers=workers, cache_bytes=cache_bytes)

    without, kept = evaluator(0), evaluator(DEFAULT_CACHE_BYTES)
    speeds = (
        images_per_second(lambda: without.run(0), 2 * episodes),
        images_per_second(lambda: kept.run(0), 2 * episodes),
        images_per_second(lambda: [kept.run(0) for _ in range(REPEATS)], 2 * episodes * REPEATS),
    )
    return dict(zip(COLUMNS, (workers, *speeds), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="what `fewseg prepare pascal5i` prepared")
    parser.add_argument("--prepared", type=Path, help="where it wrote, if not into ROOT")
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--results", type=Path, help="folder for evaluation_speed.json")
    options = parser.parse_args()
    source = Pascal5i(options.root, family="P3", classes=list(CLASSES.values()), prepared=options.prepared)
    rows = [measure(source, options.device, options.episodes, workers) for workers in (0, 1, 2)]
    table = Table(*COLUMNS, title="images per second")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)
    if options.results is not None:
        content = {
            "what": "images per second, BiOpt on MobileNetV2, 417 x 417, 1-shot, scored at the original size and 417",
            "episodes": options.episodes,
            "rows": rows,
            "device": torch.cuda.get_device_name() if options.device.startswith("cuda") else cpu_name(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        write_text(options.results / "evaluation_speed.json", json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
