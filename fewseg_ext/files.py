"""Files and folders that appear whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any


def write_atomically(path: str | os.PathLike[str], write: Callable[[IO[bytes]], Any]) -> Path:
    """Calls ``write(file)`` with a binary file beside ``path``, and renames it to ``path`` once it is on the disk.

    Whoever reads ``path``, even after a crash, finds the old content or the new one, never a part. Folders that are
    missing are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only their owner can read.
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """`write_atomically` of a text in UTF-8; a file name in it that is not UTF-8 is written as it is."""
    return write_atomically(path, lambda file: file.write(text.encode("utf-8", "surrogateescape")))


def write_folder(folder: str | os.PathLike[str], write: Callable[[Path], Any]) -> Path:
    """Calls ``write(new)`` with an empty folder beside ``folder``, and renames it to ``folder`` once it is filled.

    What is at ``folder`` is replaced; it stays as it is where ``write`` fails. A process that is killed in the instant
    between the two renames leaves nothing there, and both folders in a hidden one beside it.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        new = staging / "new"
        new.mkdir()
        write(new)
        if folder.exists():
            folder.rename(staging / "old")
        new.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder
