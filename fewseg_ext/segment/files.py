"""A fitted segmenter as a folder: two safetensors files and a JSON file."""

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fewseg_ext.files import write_folder
from fewseg_ext.models.biopt import SupportState
from fewseg_ext.models.registry import build_model
from fewseg_ext.models.vpi import GaussianState
from fewseg_ext.segmenter import Fitted, Segmenter

FORMAT = 1
SETTINGS, WEIGHTS, SUPPORT = "segmenter.json", "model.safetensors", "support.safetensors"


def save_segmenter(segmenter: Segmenter, folder: str | os.PathLike[str]) -> None:
    """See :meth:`fewseg_ext.Segmenter.save`."""
    fitted, folder = segmenter.fitted, Path(folder)
    if segmenter.model.config["backbone"] is None:
        raise ValueError("save: the model's backbone was a module without a name and could not be built again")
    if folder.exists() and not (folder / SETTINGS).is_file():
        raise FileExistsError(f"{folder} exists and is not a saved segmenter; choose another folder")
    settings = {
        "format": FORMAT,
        "model": segmenter.model.config,
        "size": segmenter.size,
        "class_names": fitted.class_names,
        "values": fitted.values,
    }

    def write(new: Path) -> None:
        weights = {name: value.contiguous() for name, value in segmenter.model.state_dict().items()}
        save_file(weights, new / WEIGHTS)
        save_file({name: value.contiguous() for name, value in vars(fitted.state).items()}, new / SUPPORT)
        (new / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")

    write_folder(folder, write)


def load_segmenter(folder: str | os.PathLike[str], device: torch.device | str) -> Segmenter:
    """See :meth:`fewseg_ext.Segmenter.load`."""
    folder = Path(folder)
    if not (folder / SETTINGS).is_file():
        raise FileNotFoundError(f"no saved segmenter in {folder}: {SETTINGS} is missing")
    try:
        settings = json.loads((folder / SETTINGS).read_text())
        if settings["format"] != FORMAT:
            raise ValueError(f"format {settings['format']}, expected {FORMAT}")
        model = build_model(settings["model"])
        model.load_state_dict(load_file(folder / WEIGHTS))
        segmenter = Segmenter(model, device, settings["size"])
        tensors = {name: value.to(segmenter.device) for name, value in load_file(folder / SUPPORT).items()}
        state = SupportState(**tensors) if "prototypes" in tensors else GaussianState(**tensors)
        segmenter._fitted = Fitted(state, settings["class_names"], settings["values"])
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{folder} is not a saved segmenter, or is damaged: {error}") from error
    return segmenter
