"""Photos that two sources share: a score on photos that the model was trained on is no score."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from rich.console import Console

from fewseg_ext.data.episodes import ImageSource
from fewseg_ext.data.photos import PhotoSource, in_threads


def shared_photos(train_source: ImageSource, test_source: ImageSource) -> list[str]:
    """The photos of ``test_source`` that are in ``train_source`` too, under whatever name.

    Files are compared byte by byte through their hashes, and only where the sizes agree, so that most are never read;
    sources without files are compared by their decoded pixels. A photo that was cropped, resized or compressed anew is
    not recognised.

    Returns:
        The names (`image_id`) in the test source, sorted, each once.
    """
    if isinstance(train_source, PhotoSource) and isinstance(test_source, PhotoSource):
        return _shared_files(train_source, test_source)
    train = set(_pixel_hashes(train_source).values())
    return sorted(name for name, digest in _pixel_hashes(test_source).items() if digest in train)


def photo_hashes(source: ImageSource, console: Console | None = None) -> list[str]:
    """What a checkpoint keeps of its training photos under "photo_hashes": 8 bytes of a hash in hexadecimal each.

    Of a `PhotoSource` the files' bytes are hashed, of others the decoded pixels; sorted, each once. A console shows a
    bar: all files are read. Size and a part of each would be read sooner, but two pictures with the same margins, as
    uncompressed files, would pass for one.
    """
    return sorted({digest for _, digest in _short_hashes(source, console)})


def seen_photos(source: ImageSource, hashes: Iterable[str]) -> list[str]:
    """The photos of ``source``, by name and sorted, that are among the `photo_hashes` of a training."""
    known = set(hashes)
    if not known:
        return []
    return sorted({name for name, digest in _short_hashes(source) if digest in known})


def _short_hashes(source: ImageSource, console: Console | None = None) -> Iterator[tuple[str, str]]:
    """The name and the hash of every photo."""
    hashes: Iterable[tuple[str, bytes]]
    if isinstance(source, PhotoSource):
        names = _names(source)
        digests = in_threads(_file_hash, list(names), "hashing the photos", console)
        hashes = zip(names.values(), digests, strict=True)
    else:
        hashes = _pixel_hashes(source).items()
    for name, digest in hashes:
        yield name, digest[:8].hex()


def _names(source: PhotoSource) -> dict[Path, str]:
    """What every photo is called, by where it lies."""
    return {
        path: source.image_id(class_id, index)
        for class_id, photos in enumerate(source.photos)
        for index, path in enumerate(photos)
    }


def _shared_files(train_source: PhotoSource, test_source: PhotoSource) -> list[str]:
    train: dict[int, list[Path]] = defaultdict(list)
    for path in {path for photos in train_source.photos for path in photos}:
        train[path.stat().st_size].append(path)
    shared = set()
    for path, name in _names(test_source).items():
        candidates = train.get(path.stat().st_size, [])
        if path in candidates or (candidates and _file_hash(path) in {_file_hash(other) for other in candidates}):
            shared.add(name)
    return sorted(shared)


def _file_hash(path: Path) -> bytes:
    status = path.stat()
    return _hash_of_version(path, status.st_size, status.st_mtime_ns)


@cache
def _hash_of_version(path: Path, size: int, modified: int) -> bytes:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).digest()


def _pixel_hashes(source: ImageSource) -> dict[str, bytes]:
    """Hash by name; a photo that several classes show is read once."""
    hashes: dict[str, bytes] = {}
    for class_id in range(len(source.class_names)):
        for index in range(source.num_images(class_id)):
            name = source.image_id(class_id, index)
            if name not in hashes:
                image, _ = source.read(class_id, index)
                digest = hashlib.blake2b(str(tuple(image.shape)).encode(), digest_size=16)
                digest.update(image.contiguous().numpy().tobytes())
                hashes[name] = digest.digest()
    return hashes
