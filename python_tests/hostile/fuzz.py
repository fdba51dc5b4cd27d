"""Breaks files over and over and reads them. Run as a program in a process of its own, which may crash:

    python fuzz.py FOLDER SEED COUNT READER...

prints for each reader a line of JSON with its problems, by what broke the file. What is being read when the process
dies or hangs is in FOLDER/current.
"""

import json
import resource
import signal
import sys
import time
import zlib
from pathlib import Path
from types import FrameType

import numpy as np

from corpus import damaged, wrong_inside
from photo_files import contents
from readers import READERS, Reader, copy_of, problem_of

# Of one file: whole ones take a hundredth.
SECONDS = 30
# All that a few kilobytes may make a process take.
GROWTH = 1_500_000_000


class Hangs(BaseException):
    """A file kept its reader busy for too long."""


def _hangs(number: int, frame: FrameType | None) -> None:
    raise Hangs


def broken(reader: Reader, whole: Path, seed: int, number: int) -> tuple[str, bytes | None, object]:
    """What is done to the target, as words, and its new bytes or its new content."""
    rng = np.random.default_rng([seed, number])
    path = whole / reader.target
    if reader.load is not None and reader.save is not None and rng.random() < 0.5:
        return "values", None, wrong_inside(reader.load(path), rng)
    return "bytes", damaged(path.read_bytes(), rng), None


def fuzz(name: str, folder: Path, seed: int, count: int) -> dict[str, str]:
    """Problems of one reader by the number of the mutation."""
    reader = READERS[name]
    whole = folder / "whole"
    if not whole.exists():
        whole.mkdir(parents=True)
        reader.write(whole)
    (folder / "outside.txt").write_text("not to be touched")
    problems: dict[str, str] = {}
    signal.signal(signal.SIGALRM, _hangs)
    # The readers' own memory first, so that what grows later is a file's doing.
    assert problem_of(reader, copy_of(whole, folder / "case")) is None
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count):
        key = f"{name}, {seed}/{number}"
        (folder.parent / "current").write_text(key)
        kind, data, content = broken(reader, whole, seed + zlib.crc32(name.encode()), number)
        case = copy_of(whole, folder / "case")
        target = case / reader.target
        if data is not None:
            target.write_bytes(data)
        else:
            try:
                assert reader.save is not None
                reader.save(target, content)
            except Exception:
                continue  # a value that the format cannot hold
        there = {path: data for path, data in contents(folder).items() if not path.startswith("case/out/")}
        signal.alarm(SECONDS)
        start = time.perf_counter()
        try:
            problem = problem_of(reader, case)
        except Hangs:
            problem = f"did not end in {SECONDS} seconds"
        finally:
            signal.alarm(0)
        if time.perf_counter() - start > SECONDS / 2 and problem is None:
            problem = f"took {time.perf_counter() - start:.0f} seconds"
        after = {path: data for path, data in contents(folder).items() if not path.startswith("case/out/")}
        if there != after:
            changed = sorted(path for path in {*there, *after} if there.get(path) != after.get(path))
            problem = f"changed {changed}; {problem}"
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if (peak - before) * 1024 > GROWTH:
            problem = f"took {(peak - before) // 1024} MiB; {problem}"
            before = peak
        if problem is not None:
            problems[f"{key} ({kind})"] = problem
    return problems


def main() -> None:
    folder, seed, count, *names = sys.argv[1:]
    for name in names:
        place = Path(folder) / "".join(c if c.isalnum() else "_" for c in name)
        print(json.dumps(fuzz(name, place, int(seed), int(count))), flush=True)


if __name__ == "__main__":
    main()
