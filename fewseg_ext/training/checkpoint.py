"""Checkpoint files: a dictionary of plain values and tensors, so that loading one runs no code."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewseg_ext.files import write_atomically
from fewseg_ext.models.biopt import PrototypeModel
from fewseg_ext.models.registry import restore_model
from fewseg_ext.models.vpi import VPI
from fewseg_ext.torch_files import load_torch

FORMAT = 1


@dataclass
class Checkpoint:
    """What a checkpoint file holds."""

    model: dict[str, Any]  # the model's `config`: what it takes to build it again
    weights: dict[str, Tensor]
    optimizer: dict[str, Any] = field(default_factory=dict)
    iteration: int = 0
    history: list[float] = field(default_factory=list)  # the loss of every iteration
    training: dict[str, Any] = field(default_factory=dict)  # the fields of the TrainingConfig
    seconds: float = 0.0  # spent so far
    scaler: dict[str, Any] = field(default_factory=dict)  # of float16's gradients
    random_states: list[dict[str, Tensor]] = field(default_factory=list)  # of torch, by process: "cpu", "cuda"
    scores: list[dict[str, float]] = field(default_factory=list)  # of every validation: "iteration", "miou", "fb_iou"
    recipe: dict[str, Any] = field(default_factory=dict)  # of `fewseg train`, resolved
    photo_hashes: list[str] | None = None  # of all photos of the base classes; None where nobody made them


def save_checkpoint(path: str | os.PathLike[str], checkpoint: Checkpoint) -> Path:
    """Writes a checkpoint atomically.

    Raises:
        OSError: it could not be written, because the disk is full for example; what was at ``path`` is still there.
    """
    content = {"format": FORMAT, **vars(checkpoint)}
    try:
        return write_atomically(path, lambda file: torch.save(content, file))
    except (OSError, RuntimeError) as error:  # torch turns some failures of the file into RuntimeErrors of its own
        if isinstance(error, RuntimeError) and not isinstance(error.__context__, OSError):
            raise
        cause = error if isinstance(error, OSError) else error.__context__
        assert isinstance(cause, OSError)
        kept = "; the one before it is intact" if Path(path).exists() else ""
        raise OSError(f"the checkpoint {path} could not be written: {cause.strerror or cause}{kept}") from error


def load_checkpoint(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Checkpoint:
    """Reads a checkpoint. Only tensors and plain values are accepted, so a file from elsewhere cannot run code.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a checkpoint of this package.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"checkpoint not found: {path}")
    try:
        content = load_torch(path, device)
    except ValueError as error:
        raise ValueError(f"{path} is not a checkpoint of fewseg_ext, or is damaged") from error
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise ValueError(f"{path} is not a checkpoint of fewseg_ext (format {FORMAT})")
    try:
        checkpoint = Checkpoint(**content)
    except TypeError as error:
        raise ValueError(f"{path} was written by another version of fewseg_ext") from error
    wrong = [name for name, fits in _FIELDS.items() if not fits(getattr(checkpoint, name))]
    if wrong:
        raise ValueError(f"{path} is not a checkpoint of fewseg_ext, or is damaged: {wrong[0]!r} is of another kind")
    return checkpoint


def load_model(path: str | os.PathLike[str]) -> tuple[PrototypeModel | VPI, Checkpoint]:
    """The model of a checkpoint, and the rest of it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a checkpoint of this package, or holds no model.
    """
    checkpoint = load_checkpoint(path)
    try:
        return restore_model(checkpoint.model, checkpoint.weights), checkpoint
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _dictionary(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _list_of(*types: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(isinstance(item, types) for item in value)


# What the fields of a file have to be; anything may stand in one that somebody else wrote.
_FIELDS: dict[str, Callable[[Any], bool]] = {
    "model": _dictionary,
    "weights": lambda value: _dictionary(value) and all(isinstance(item, Tensor) for item in value.values()),
    "optimizer": lambda value: isinstance(value, dict),
    "iteration": lambda value: type(value) is int and value >= 0,
    "history": _list_of(int, float),
    "training": _dictionary,
    "seconds": lambda value: isinstance(value, int | float) and value >= 0,
    "scaler": _dictionary,
    "random_states": _list_of(dict),
    "scores": lambda value: _list_of(dict)(value) and all({"iteration", "miou"} <= set(score) for score in value),
    "recipe": _dictionary,
    "photo_hashes": lambda value: value is None or _list_of(str)(value),
}
