"""Files of `torch.save` from anywhere: no code in them runs, and they take no more memory than they have bytes."""

import os
import zipfile
from pathlib import Path
from typing import Any

import torch

# What a file may need beyond its own length: torch never compresses.
_MARGIN = 2**20


def load_torch(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Any:
    """`torch.load` of tensors and plain values alone.

    Raises:
        ValueError: the file is damaged, holds anything else, or unpacks to more than its own length.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                unpacked = sum(member.file_size for member in archive.infolist())
            if unpacked > Path(path).stat().st_size + _MARGIN:
                raise ValueError(f"it unpacks to {unpacked:,d} bytes, which torch never does")
        return torch.load(path, map_location=device, weights_only=True)
    except PermissionError:
        raise
    except Exception as error:  # torch raises a different type for every way in which a file can be wrong
        # torch's own text would advise to switch the safety off.
        raise ValueError("it is damaged, or holds more than tensors and plain values") from error
