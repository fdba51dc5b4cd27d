"""What a training writes down while it runs: log.jsonl, and TensorBoard's files on request."""

import json
from pathlib import Path
from typing import Any

from fewseg_ext.files import make_folder, open_to_append, write_text


class TrainingLog:
    """One JSON object per line in ``log.jsonl``, in order of iteration.

    Args:
        folder: of the run.
        iteration: the last one that counts; what a killed training wrote after its last checkpoint is removed.
        tensorboard: also write TensorBoard's files, into ``folder/tensorboard``.

    Raises:
        ImportError: TensorBoard is asked for and missing.
    """

    def __init__(self, folder: Path, iteration: int = 0, tensorboard: bool = False) -> None:
        self._board: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ImportError("run.tensorboard needs TensorBoard: pip install tensorboard") from error
            self._board = SummaryWriter(make_folder(folder / "tensorboard", within=folder), purge_step=iteration + 1)
        path = folder / "log.jsonl"
        kept = [line for line in _text(path).splitlines() if _iteration(line) <= iteration] if path.is_file() else []
        write_text(path, "".join(f"{line}\n" for line in kept))
        self._file = open_to_append(path)  # for the whole training

    def write(self, iteration: int, **values: float) -> None:
        """Numbers of one iteration."""
        self._file.write(json.dumps({"iteration": iteration, **values}) + "\n")
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, iteration)

    def close(self) -> None:
        """Writes what is still in memory."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _iteration(line: str) -> float:
    try:
        return int(json.loads(line)["iteration"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        # The last line of a process that was killed while writing it.
        return float("inf")
