"""Checkpoint files: a dictionary of plain values and tensors, so that loading one runs no code."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewseg_ext.files import write_atomically

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


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Deletes the unfinished temporary files of checkpoints that a killed process left in ``folder``."""
    for path in Path(folder).glob(".*.ckpt-*"):
        path.unlink(missing_ok=True)


def load_checkpoint(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Checkpoint:
    """Reads a checkpoint. Only tensors and plain values are accepted, so a file from elsewhere cannot run code.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a checkpoint of this package.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"checkpoint not found: {path}")
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises a different type for every way in which a file can be wrong
        raise ValueError(f"{path} is not a checkpoint of fewseg_ext, or is damaged") from error
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise ValueError(f"{path} is not a checkpoint of fewseg_ext (format {FORMAT})")
    try:
        return Checkpoint(**content)
    except TypeError as error:
        raise ValueError(f"{path} was written by another version of fewseg_ext") from error
