"""A fitted segmenter as a folder: two safetensors files and a JSON file."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fewseg_ext.data.photos import MASK_IGNORE
from fewseg_ext.files import read_json, write_folder
from fewseg_ext.models.biopt import PrototypeModel, SupportState
from fewseg_ext.models.registry import restore_model
from fewseg_ext.models.vpi import VPI, GaussianState
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
        settings = read_json(folder / SETTINGS)
        if settings["format"] != FORMAT:
            raise ValueError(f"another format than {FORMAT}")
        names, values, size = settings["class_names"], settings["values"], settings["size"]
        _check_classes(names, values)
        if type(size) is not int:
            raise ValueError("its size is no whole number")
        model = restore_model(settings["model"], load_file(folder / WEIGHTS))
        segmenter = Segmenter(model, device, size)
        tensors = {name: value.to(segmenter.device) for name, value in load_file(folder / SUPPORT).items()}
        state = SupportState(**tensors) if isinstance(model, PrototypeModel) else GaussianState(**tensors)
        _check_state(state, model, len(names))
        segmenter._fitted = Fitted(state, names, values)
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{folder} is not a saved segmenter, or is damaged: {reason}") from error
    return segmenter


def _check_classes(names: Any, values: Any) -> None:
    if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        raise ValueError("its class names are no list of texts")
    numbers = isinstance(values, list) and all(type(value) is int and 0 < value < MASK_IGNORE for value in values)
    if not numbers or len(set(values)) != len(names):
        raise ValueError(f"its values are not a number of 1 to {MASK_IGNORE - 1} for each class")


def _check_state(state: SupportState | GaussianState, model: PrototypeModel | VPI, ways: int) -> None:
    for name, value in vars(state).items():
        if isinstance(model, PrototypeModel):
            fits = tuple(value.shape) == (1, ways + 1, model.channels)
        else:
            fits = value.dim() == 4 and value.shape[:2] == (1, ways) and value.shape[3] == model.config["latent_dim"]
        if not fits or not value.is_floating_point() or not value.isfinite().all():
            raise ValueError(f"its {name} do not belong to the model")
