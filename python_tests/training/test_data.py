"""What a training sees: held-out classes."""

from pathlib import Path

import pytest
import torch

from fewseg_ext.data.overlap import photo_hashes
from fewseg_ext.data.photos import PhotoSource
from fewseg_ext.training.data import DataConfig, hold_out, open_base_classes
from tiny import write_photos


class Stripes(PhotoSource):
    """Every image shows all six classes, one row each, and an ignored and a background row."""

    def __init__(self):
        super().__init__("abcdef", [[Path("0"), Path("1")]] * 6)

    def image_id(self, class_id, index):
        return f"{class_id}/{index}"

    def read(self, class_id, index):
        labels = torch.tensor([-1, 0, 1, 2, 3, 4, 5, 6], dtype=torch.int16)[:, None].expand(8, 4)
        return torch.full((3, 8, 4), 10 * class_id + index, dtype=torch.uint8), labels


def test_held_out_classes_are_ignored_in_training_and_others_are_background_in_validation():
    train, validation = hold_out(Stripes(), 2)
    assert (train.class_names, validation.class_names) == (["a", "c", "d", "f"], ["b", "e"])
    image, labels = train.read(1, 1)
    assert labels[:, 0].tolist() == [-1, 0, 1, -1, 2, 3, -1, 4]
    assert image.unique().tolist() == [21]
    image, labels = validation.read(1, 0)
    assert labels[:, 0].tolist() == [-1, 0, 0, 1, 0, 0, 2, 0]
    assert (validation.image_id(1, 0), image.unique().tolist()) == ("4/0", [40])


def test_without_held_out_classes_the_source_is_used_as_it_is():
    source = Stripes()
    assert hold_out(source, 0) == (source, None)
    with pytest.raises(ValueError, match=r"6 of 6 classes leave none to train on"):
        hold_out(source, 6)


def test_classes_that_are_not_trained_on_are_gone_with_their_photos(tmp_path):
    root = str(write_photos(tmp_path / "photos"))
    whole = open_base_classes(DataConfig(name="folder", root=root))
    source = open_base_classes(DataConfig(name="folder", root=root, without=("class1", "class3")))
    assert source.class_names == ["class0", "class2"]
    # Photos that were left out may be scored: a checkpoint must not count them as seen.
    assert set(photo_hashes(source)) < set(photo_hashes(whole))
    assert len(photo_hashes(source)) == 6
    with pytest.raises(
        ValueError, match=r"data.without: dog not in the data, which has class0, class1, class2, class3"
    ):
        open_base_classes(DataConfig(name="folder", root=root, without=("dog",)))
