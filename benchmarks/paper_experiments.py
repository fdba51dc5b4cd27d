"""Both papers' experiments on real photos, small enough for two cores.

    python benchmarks/paper_experiments.py --data FOLDER          about two hours on two cores
    python benchmarks/paper_experiments.py --draw                 charts and tables again, from the committed JSON

MobileNetV2 with ImageNet weights, images of 201 x 201, trained on class folders without the animals, scored on five
animals of PASCAL VOC 2012 val. Trainings are those of the recipes ablation-* (`fewseg train`), three seeds each. FOLDER
holds fss_like/ (class folders), VOCdevkit/ and weights/mobilenet_v2.safetensors.

Stopped and started again, it goes on: whatever is finished is kept in the work folder. The settings were chosen by the
score on held-out base classes (--search makes those trainings too, which the settings in the recipes came from).
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from paper import biopt, charts, uncertainty, vpi
from paper.lab import Effort, Lab, real_lab, settings_of
from paper.search import search
from paper.sheet import draw_sheet
from rich.console import Console

from measure import environment, write_json

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "paper_experiments"


def run(lab: Lab, searched: bool = False) -> dict[str, Any]:
    """All experiments, as the JSON that everything is drawn from."""
    result: dict[str, Any] = {"environment": environment(), "command": "python benchmarks/paper_experiments.py"}
    if searched:
        result["search"] = search(lab)
    result["biopt"] = biopt.run(lab)
    result["vpi"] = vpi.run(lab)
    result["uncertainty"] = uncertainty.run(lab)
    result["trainings"] = len(lab.effort.seeds)
    result["protocol"] = protocol_line(lab)
    result["settings"] = {
        name: settings_of(lab.recipe(f"ablation-{name}")) for name in (*biopt.VARIANTS, *vpi.VARIANTS)
    }
    result["seconds"] = lab.seconds()
    return result


def protocol_line(lab: Lab) -> str:
    train, validation = lab.training_photos()
    seeds = lab.effort.seeds
    return (
        f"{lab.backbone}, trained on {len(train.class_names)} classes, the checkpoint chosen on "
        f"{len(validation.class_names)} others ({', '.join(validation.class_names)}); scored on "
        f"{', '.join(lab.test.class_names)} of {lab.test.title}; mean and standard "
        f"deviation over {len(seeds)} trainings, each with a seed of its own for its {lab.effort.episodes} episodes; "
        f"{str(lab.protocol(seeds[0], 1)).partition('; ')[2].replace('1-way 1-shot', '1-way')}"
    )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("FEWSEG_REAL_DATA") or ROOT.parent / "shared" / "data"
    parser.add_argument("--data", type=Path, default=default, help="folder of photos and weights")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "paper_experiments", help="what was made is kept")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON and the charts")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of every model (default 3)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--search", action="store_true", help="also the trainings that the settings were chosen by")
    parser.add_argument("--draw", action="store_true", help="draw the charts from the JSON, and nothing else")
    return parser.parse_args(arguments)


def main() -> int:
    options, console = parse(), Console()
    path = options.results / "results.json"
    if not options.draw:
        try:
            effort = Effort(seeds=tuple(range(options.seeds)))
            lab = real_lab(options.data, options.work, effort, console, options.jobs)
        except FileNotFoundError as error:
            console.print(f"no data: {error} is not there; pass --data FOLDER", markup=False, highlight=False)
            return 1
        result = run(lab, options.search)
        if not options.search and path.is_file():
            result["search"] = json.loads(path.read_text()).get("search", [])
        write_json(path, result)
        draw_sheet(lab, options.results / "sheet.png")
    charts.draw_all(json.loads(path.read_text()), options.results)
    console.print(f"Results and charts: {options.results}. Now: python benchmarks/docs_tables.py", markup=False)
    return 0


if __name__ == "__main__":
    torch.manual_seed(0)
    sys.exit(main())
