"""Broken and hostile files, made from a seed: damage to whole ones, values of the wrong type, and bombs."""

import copy
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

# Beginnings of files that are something else than their name says.
MAGIC = (
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff\xe0\x00\x10JFIF",
    b"GIF89a",
    b"BM",
    b"II*\x00",
    b"RIFF\x00\x00\x00\x00WEBP",
    b"PK\x03\x04",
    b"\x80\x02}q",
    b"%!PS-Adobe-3.0 EPSF-3.0\n",
    b"MATLAB 5.0 MAT-file",
    b"\x1f\x8b",
    b"\xff\xfe",
    b"\x00" * 16,
)
# What a field may hold in place of what belongs there.
WRONG: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    2**31,
    2**63,
    10**30,
    1.5,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "x" * 5000,
    "../../outside",
    "/outside",
    "a\0b",
    "\ud800",
    "[/b]$\\frac$",
    [],
    [[]],
    [None],
    {},
    {"": None},
    [[[[[[0]]]]]],
)


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """The content, broken in one to three ways."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        place = int(rng.integers(0, max(len(data), 1)))
        length = int(rng.integers(1, 40))
        kind = int(rng.integers(0, 9))
        if kind == 0:  # cut off
            del data[place:]
        elif kind == 1:  # another magic
            magic = MAGIC[rng.integers(len(MAGIC))]
            data[: len(magic)] = magic
        elif kind == 2:  # bits that flipped
            for index in rng.integers(0, max(len(data), 1), rng.integers(1, 12)):
                if data:
                    data[index] ^= 1 << int(rng.integers(8))
        elif kind == 3:  # a sector of something else
            data[place : place + length] = rng.bytes(length)
        elif kind == 4:  # the largest numbers, where a size may stand
            data[place : place + 4] = b"\xff\xff\xff\x7f"
        elif kind == 5:
            data[place : place + length] = bytes(length)
        elif kind == 6:  # something missing
            del data[place : place + length]
        elif kind == 7:  # something twice
            data[place:place] = data[place : place + length]
        else:  # in the beginning, where headers are
            place = int(rng.integers(0, min(len(data), 64) + 1))
            data[place : place + 4] = rng.bytes(4)
    return bytes(data)


def wrong_inside(content: Any, rng: np.random.Generator) -> Any:
    """A copy of nested dictionaries and lists in which one to three values are missing, swapped or of another type."""
    content = copy.deepcopy(content)
    for _ in range(rng.integers(1, 4)):
        places = list(_places(content))
        if not places:
            return content
        holder, key = places[rng.integers(len(places))]
        kind = int(rng.integers(0, 8))
        if kind == 0:
            del holder[key]
        elif kind == 1:  # another of its values
            other, other_key = places[rng.integers(len(places))]
            holder[key] = copy.deepcopy(other[other_key])
        elif kind == 2 and isinstance(holder, dict):
            holder[f"more{key}"] = holder[key]
        elif kind == 3 and isinstance(holder, list):
            holder.append(holder[key])
        elif kind == 4 and isinstance(holder[key], int | float):
            holder[key] = holder[key] * int(rng.choice([-1, 0, 2, 1000, 10**9]))
        else:
            holder[key] = copy.deepcopy(WRONG[rng.integers(len(WRONG))])
    return content


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    """Every place that holds a value, as container and key."""
    # Of long lists the first ones: they are all alike.
    items = list(content.items()) if isinstance(content, dict) else list(enumerate(content))[:6]
    for key, value in items:
        yield content, key
        if isinstance(value, dict | list):
            yield from _places(value)


def png(width: int, height: int, content: bytes, depth: int = 8, color: int = 2) -> bytes:
    """A PNG that says it has width x height pixels, whatever its content is."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(content)) + chunk(b"IEND", b"")


def image_bombs() -> dict[str, bytes]:
    """Small files that say they are large."""
    return {
        "60000 x 60000.png": png(60000, 60000, bytes(10_000)),
        "12000 x 12000.png": png(12000, 12000, bytes(10_000)),
        "2147483647 x 2147483647.png": png(2**31 - 1, 2**31 - 1, bytes(100)),
        "1 x 2147483647.png": png(1, 2**31 - 1, bytes(100)),
        "60000 x 60000.bmp": b"BM"
        + struct.pack("<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, 60000, 60000, 1, 24, 0, 0, 0, 0, 0, 0),
        "65535 x 65535.gif": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + bytes(6) + b",",
        "65500 x 65500.jpg": b"\xff\xd8\xff\xc0\x00\x11\x08\xff\xdc\xff\xdc\x03\x01\x22\x00\x02\x11\x01\x03\x11\x01",
    }


def deep_json(depth: int = 100_000) -> str:
    """Lists within lists."""
    return "[" * depth + "]" * depth


def json_bombs() -> dict[str, str]:
    """Nested deeply, or of numbers that are too long."""
    return {
        "deep lists": deep_json(),
        "deep objects": '{"images":' * 50_000 + "1" + "}" * 50_000,
        "deep inside": '{"images": [], "categories": [], "annotations": ' + deep_json(50_000) + "}",
        "long number": '{"version": ' + "9" * 100_000 + "}",
    }


def yaml_bombs() -> dict[str, str]:
    """Nested deeply, or growing by aliases."""
    laughs = ["a0: &a0 {x: 1}"] + [f"a{n}: &a{n} {{p: *a{n - 1}, q: *a{n - 1}, r: *a{n - 1}}}" for n in range(1, 40)]
    lists = ["data:", "  root: &l0 [x, x]"] + [
        f"  k{n}: &l{n} [*l{n - 1}, *l{n - 1}, *l{n - 1}, *l{n - 1}]" for n in range(1, 40)
    ]
    merged = ["a0: &a0 {x: 1}"] + [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 20)]
    return {
        "laughs": "\n".join(laughs),
        "lists": "\n".join(lists),
        "merges": "\n".join(merged),
        "itself": "model: &m {inner_steps: *m}",
        "itself in a list": "use: &u [*u]",
        "deep": "[" * 20_000 + "]" * 20_000,
        "deep mapping": "{a: " * 5_000 + "1" + "}" * 5_000,
        "long number": f"training: {{iterations: {'9' * 50_000}}}",
        "date": "training: {seed: 2001-99-99}",
    }


def zip_bomb(content: bytes, member: str = "/data/0", size: int = 600_000_000) -> bytes:
    """A file of torch whose tensor is ``size`` zeros in a few hundred kilobytes; torch itself never compresses."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as whole, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in whole.namelist():
            if not name.endswith(member):
                bomb.writestr(name, whole.read(name))
                continue
            with bomb.open(name, "w", force_zip64=True) as file:
                for _ in range(size // 10**6):
                    file.write(bytes(10**6))
    return buffer.getvalue()


def safetensors_file(header: dict[str, Any] | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """What a hostile program could write: any header, and any length said of it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


class RunsCode:
    """A pickle of this makes a folder when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        import os

        return os.mkdir, (self.path,)
