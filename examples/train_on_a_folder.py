"""Train on a folder of your own photos, then score the model on classes that it has never seen.

    python examples/train_on_a_folder.py photos/train photos/unseen --out runs/mine

Both have a folder per class: ``photos/train/apple/1.jpg`` with its mask ``photos/train/apple/1.png`` (docs/datasets.md
has the other layouts). Run again after an interruption, it goes on where it was. The first half is what ``fewseg train
--config laptop/biopt --data.name folder --data.root photos/train`` does.
"""

import argparse
from pathlib import Path

from rich.console import Console

from fewseg_ext.data.episodes import EpisodeDataset
from fewseg_ext.data.folder import open_folder
from fewseg_ext.data.transforms import PairTransform
from fewseg_ext.evaluation.evaluate import evaluate
from fewseg_ext.training.recipe import parse_arguments
from fewseg_ext.training.run import run_training


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path, help="classes to train on")
    parser.add_argument("unseen", type=Path, help="other classes, to score the model on")
    parser.add_argument("--out", type=Path, default=Path("runs/mine"))
    parser.add_argument("--iterations", type=int, default=500)
    parser.add_argument("--episodes", type=int, default=100, help="of the unseen classes")
    parser.add_argument("--size", type=int, default=128, help="photos are squashed to a square of so many pixels")
    options = parser.parse_args(arguments)

    # A recipe and what is changed of it, as on the command line. No class is held out to choose a checkpoint by, since
    # the unseen classes must not choose it either.
    recipe, out, device = parse_arguments(
        [
            *("--config", "laptop/biopt", "--out", str(options.out)),
            *("--data.name", "folder", "--data.root", str(options.train), "--data.size", str(options.size)),
            *("--data.validation_classes", "0", "--training.iterations", str(options.iterations)),
        ]
    )
    trainer = run_training(recipe, out, device=device, console=Console())

    episodes = EpisodeDataset(open_folder(options.unseen), options.episodes, transform=PairTransform(options.size))
    scores = evaluate(trainer.model.eval(), episodes)
    for name, iou in scores.class_iou.items():
        print(f"{name:>20}  IoU {iou:5.1f} %")
    print(f"{'mean':>20}  IoU {scores.miou:5.1f} %   ({scores.protocol})")


if __name__ == "__main__":
    main()
