import shutil

import torch

from fewseg_ext.data import overlap
from fewseg_ext.data.fss1000 import FSS1000
from fewseg_ext.data.overlap import photo_hashes, seen_photos, shared_photos
from photo_files import write_mask, write_photo


def write(root, **photos):
    for name, seed in photos.items():
        write_photo(root / "apple" / f"{name}.jpg", size=(8, 8), seed=seed)
        write_mask(root / "apple" / f"{name}.png", torch.full((8, 8), 255))
    return FSS1000(root)


class Images:
    """A source without files."""

    def __init__(self, *seeds):
        self.class_names = ["one", "two"]
        self.seeds = seeds

    def num_images(self, class_id):
        return len(self.seeds)

    def image_id(self, class_id, index):
        return f"photo{self.seeds[index]}"

    def read(self, class_id, index):
        generator = torch.Generator().manual_seed(self.seeds[index])
        image = torch.randint(0, 256, (3, 4, 4), dtype=torch.uint8, generator=generator)
        return image, torch.zeros(4, 4, dtype=torch.int16)


def test_copies_are_found_under_other_names(tmp_path):
    train = write(tmp_path / "train", a=1, b=2)
    test = write(tmp_path / "test", x=3, y=2, z=1)
    assert shared_photos(train, test) == ["apple/y.jpg", "apple/z.jpg"]
    assert shared_photos(train, write(tmp_path / "other", a=7)) == []
    assert shared_photos(train, train) == ["apple/a.jpg", "apple/b.jpg"]


def test_a_photo_of_the_same_size_in_bytes_is_another(tmp_path):
    train, test = write(tmp_path / "train", a=1), write(tmp_path / "test", a=1)
    path = tmp_path / "test" / "apple" / "a.jpg"
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)
    assert path.stat().st_size == (tmp_path / "train" / "apple" / "a.jpg").stat().st_size
    assert shared_photos(train, test) == []


def test_only_photos_of_equal_size_are_hashed_and_each_once(tmp_path, monkeypatch):
    train = write(tmp_path / "train", a=1, b=2)
    shutil.copytree(tmp_path / "train", tmp_path / "test")
    test = write(tmp_path / "test", c=3)
    (tmp_path / "test" / "apple" / "c.jpg").write_bytes(b"a length of its own")
    read = []
    overlap._hash_of_version.cache_clear()
    monkeypatch.setattr("pathlib.Path.read_bytes", lambda self: read.append(self) or self.open("rb").read())
    for _ in range(2):
        assert shared_photos(train, test) == ["apple/a.jpg", "apple/b.jpg"]
    assert sorted(read) == sorted(tmp_path / f / "apple" / n for f in ("train", "test") for n in ("a.jpg", "b.jpg"))


def test_sources_without_files_are_compared_by_pixels(tmp_path):
    assert shared_photos(Images(1, 2, 3), Images(5, 3, 1)) == ["photo1", "photo3"]
    assert shared_photos(Images(1), write(tmp_path, a=1)) == []
    assert seen_photos(Images(5, 3, 1), photo_hashes(Images(1, 2, 3))) == ["photo1", "photo3"]
