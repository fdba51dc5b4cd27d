"""Files that appear whole or not at all, folders that nothing leads out of, and texts that may be damaged."""

import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TextIO

# Not named after the file: a name may be as long as the file system allows.
TEMPORARY = ".fewseg-tmp-"


# What this process has begun and not finished. A name is in here before there is anything of that name, so that an
# interruption at any moment leaves nothing that `remove_unfinished` does not find.
_unfinished: set[Path] = set()


@contextmanager
def temporary_path(folder: Path) -> Iterator[Path]:
    """A path in ``folder`` where nothing is yet; what is put there, a file or a folder, is deleted at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{TEMPORARY}{secrets.token_hex(8)}"
    _unfinished.add(path)
    try:
        yield path
    finally:
        _remove(path)
        _unfinished.discard(path)


def _remove(path: Path) -> None:
    with suppress(OSError):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def remove_unfinished() -> None:
    """What this process had begun to write when it was interrupted, even while it tidied up."""
    while _unfinished:
        _remove(_unfinished.pop())


def write_atomically(path: str | os.PathLike[str], write: Callable[[IO[bytes]], Any]) -> Path:
    """Calls ``write(file)`` with a binary file beside ``path``, and renames it to ``path`` once it is on the disk.

    Whoever reads ``path``, even after a crash, finds the old content or the new one, never a part. Folders that are
    missing are made. A link at ``path`` is replaced, not followed.
    """
    path = Path(path)
    # "x" follows no link either.
    with temporary_path(path.parent) as temporary, open(temporary, "xb") as file:
        _lock(file.fileno())
        write(file)
        file.flush()
        os.fsync(file.fileno())
        os.replace(temporary, path)
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
    with temporary_path(folder.parent) as staging:
        staging.mkdir()
        descriptor = os.open(staging, os.O_RDONLY)
        try:
            _lock(descriptor)
            new = staging / "new"
            new.mkdir()
            write(new)
            if folder.exists():
                folder.rename(staging / "old")
            new.rename(folder)
        finally:
            if (staging / "old").exists() and not folder.exists():
                (staging / "old").rename(folder)
            os.close(descriptor)
    return folder


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Deletes what killed processes had not finished in ``folder`` or below; what running ones write stays."""
    for path in list(Path(folder).rglob(f"{TEMPORARY}*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            continue
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            finally:
                os.close(descriptor)


def _lock(descriptor: int) -> None:
    """Says that somebody is writing, as long as this process lives; some network file systems cannot."""
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def make_folder(folder: Path, within: Path) -> Path:
    """Makes a folder below another one.

    Raises:
        ValueError: a link on the way leads elsewhere, where nothing may be written.
    """
    real = Path(os.path.realpath(folder))
    if not real.is_relative_to(os.path.realpath(within)):
        raise ValueError(f"{folder} is a link out of {within}, to {real}: nothing is written there")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def open_to_append(path: Path) -> TextIO:
    """A text file that grows line by line.

    Raises:
        ValueError: it is a link, which may lead anywhere, or no file.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise ValueError(f"{path} is a link or no ordinary file: nothing is written there")
    return open(path, "a", encoding="utf-8", buffering=1)


def read_text(path: Path) -> str:
    """A text in UTF-8.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no ordinary file, which might never end, or no such text. The message names it.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no ordinary file")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}") from error


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or nested so deeply that nobody meant it. The message names it.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON, or is damaged: {error}") from error
