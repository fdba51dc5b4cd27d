"""A training that takes seconds: tiny photos, a tiny model, the command that trains it."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from PIL import Image

from fewseg_ext.data.episodes import EpisodeDataset
from fewseg_ext.data.folder import open_folder
from fewseg_ext.models.vpi import VPI
from fewseg_ext.training.validation import validate

LAUNCH = (sys.executable, "-c", "from fewseg_ext.cli import main; main()", "train")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def write_photos(root: Path, classes: int = 4, images: int = 3) -> Path:
    """Class folders of 32 x 32 photos with a bright square."""
    for c in range(classes):
        (root / f"class{c}").mkdir(parents=True)
        for i in range(images):
            square = (4 + 2 * i, 6 + c, 20 + 2 * i, 24 + c)
            photo = Image.new("RGB", (32, 32), (40, 30 * i, 90))
            photo.paste((220, 60 * c, 40), square)
            photo.save(root / f"class{c}" / f"{i}.jpg")
            mask = Image.new("L", (32, 32))
            mask.paste(255, square)
            mask.save(root / f"class{c}" / f"{i}.png")
    return root


def options(method: str, root: Path, iterations: int, *more: str) -> list[str]:
    """Of `fewseg train`."""
    recipe = f"laptop/{method}"
    small = ["--model.latent_dim", "8", "--model.width", "8"] if method == "vpi" else ["--model.inner_steps", "2"]
    settings = {
        "data.name": "folder",
        "data.root": str(root),
        "data.size": "32",
        "data.validation_classes": "1",
        "training.batch_size": "2",
        "training.iterations": str(iterations),
        "run.save_every": "3",
        "run.validate_every": "5",
        "run.validation_episodes": "2",
        "run.log_every": "1",
    }
    given = [text for name, value in settings.items() for text in (f"--{name}", value)]
    return ["--config", recipe, *given, *small, *more]


def scores_of_vpi(photos: Path) -> dict[str, float]:
    """Of an untrained model on an odd number of episodes."""
    torch.manual_seed(0)
    model = VPI("conv4", latent_dim=8, width=8)
    return validate(model, EpisodeDataset(open_folder(photos), 7), torch.device("cpu"))


def scores_in_a_process(rank: int, folder: Path) -> None:
    """`scores_of_vpi` as one of two processes; the result goes to ``folder/scores<rank>.pt``."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save(scores_of_vpi(folder / "photos"), folder / f"scores{rank}.pt")
    dist.destroy_process_group()
