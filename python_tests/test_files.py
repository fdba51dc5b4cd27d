import os
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from fewseg_ext import files
from fewseg_ext.files import read_text, remove_unfinished, write_atomically, write_folder, write_text


def test_a_failing_write_keeps_the_old_file_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    path.write_text("old")

    def fail(file):
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["model.ckpt"]


def test_text_is_utf_8_but_for_names_that_are_not(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        path = write_text(tmp_path / "new" / "photos.txt", "h\u00fchn\n" + os.fsdecode(b"\xff.jpg"))
    finally:
        os.umask(before)
    assert path.read_bytes() == b"h\xc3\xbchn\n\xff.jpg"
    assert os.listdir(path.parent) == ["photos.txt"]
    assert path.stat().st_mode & 0o777 == 0o640


def test_what_is_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no ordinary file"):
        read_text(tmp_path)
    (tmp_path / "notes.txt").write_bytes(b"h\xfchn")
    with pytest.raises(ValueError, match=r"notes.txt is no text in UTF-8"):
        read_text(tmp_path / "notes.txt")


class InterruptedAt:
    """Raises KeyboardInterrupt at the n-th bytecode that runs in files.py, as a signal's handler may."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self, frame: FrameType, event: str, argument: Any) -> "InterruptedAt | None":
        if frame.f_code.co_filename != files.__file__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self


@pytest.mark.parametrize("folder", [False, True])
def test_an_interruption_at_any_bytecode_leaves_the_old_or_the_new_and_nothing_else(
    tmp_path: Path, folder: bool
) -> None:
    target = tmp_path / "target"
    content = target / "photo.png" if folder else target

    def write(data: bytes) -> None:
        if folder:
            write_folder(target, lambda new: (new / "photo.png").write_bytes(data))
        else:
            write_atomically(target, lambda file: file.write(data))

    def interrupted(number: int) -> bool:
        sys.settrace(InterruptedAt(number))
        try:
            write(b"new")
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(None)
        return False

    for number in range(1, 10_000):
        write(b"old")
        came = interrupted(number)
        remove_unfinished()
        assert os.listdir(tmp_path) == ["target"], number
        assert content.read_bytes() in ((b"old", b"new") if came else (b"new",)), number
        if not came:
            break
    assert number > 100
