import os
from pathlib import Path

import pytest

from fewseg_ext.files import write_atomically, write_text


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
    path = write_text(tmp_path / "new" / "photos.txt", "h\u00fchn\n" + os.fsdecode(b"\xff.jpg"))
    assert path.read_bytes() == b"h\xc3\xbchn\n\xff.jpg"
    assert os.listdir(path.parent) == ["photos.txt"]
    assert path.stat().st_mode & 0o777 == 0o644
