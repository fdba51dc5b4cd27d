"""What a training sees: data sets by name, held-out classes, augmented episodes."""

from pathlib import Path

import pytest
import torch

from fewseg_ext.data.overlap import photo_hashes
from fewseg_ext.data.pascal import fold_classes
from fewseg_ext.data.photos import PhotoSource
from fewseg_ext.data.prepare.coco20i import prepare_coco20i
from fewseg_ext.data.prepare.pascal5i import prepare_pascal5i
from fewseg_ext.data.synthetic import SyntheticConfig
from fewseg_ext.training import data
from fewseg_ext.training.data import DataConfig, hold_out, open_base_classes, training_episodes
from photo_files import box, coco_json, two_boxes, write_json, write_photo, write_voc
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


def test_every_data_set_gives_its_base_classes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_voc(tmp_path, {"train": {"2007_000001": two_boxes(1, 8)}, "val": {"2008_000001": two_boxes(1, 8)}})
    prepare_pascal5i(tmp_path)
    source = open_base_classes(DataConfig("pascal5i", ".", fold=0, family="P1", held_out="ignore"))
    assert source.class_names == fold_classes(0, "train")
    assert "fold 0 train, lists P1, held-out classes: ignore" in source.description

    pytest.importorskip("pycocotools")
    write_photo(tmp_path / "train2017" / "1.jpg")
    objects = [{"image_id": 1, "category_id": 2, "segmentation": [box(0, 0, 96, 96)]}]
    content = coco_json([{"id": 1, "file_name": "1.jpg"}], objects)
    write_json(tmp_path / "annotations" / "instances_train2017.json", content)
    prepare_coco20i(tmp_path, year=2017)
    source = open_base_classes(DataConfig("coco20i", ".", fold=0, variant="B", year=2017, held_out="exclude"))
    assert source.title == "COCO-20i split-B fold 0 train, train2017, held-out classes: exclude"
    assert len(source.class_names) == 60

    (write_photos(tmp_path / "fss", classes=1) / "class0").rename(tmp_path / "fss" / "abacus")
    with pytest.warns(UserWarning, match="has 1 of the 760 trainval classes"):
        assert open_base_classes(DataConfig("fss1000", "fss")).class_names == ["abacus"]
    with pytest.raises(ValueError, match="has none of the 520 train classes"):
        open_base_classes(DataConfig("fss1000", "fss", split="train"))

    small = SyntheticConfig(train_classes=2, unseen_classes=1, images_per_class=2, size=32)
    monkeypatch.setattr(data, "SyntheticConfig", lambda: small)
    assert len(open_base_classes(DataConfig("generated")).class_names) == 2
    assert (tmp_path / "runs" / "generated" / "unseen").is_dir()
    with pytest.raises(ValueError, match=r"data.validation_classes: expected 0 or more, got -1"):
        DataConfig("generated", validation_classes=-1)


def test_how_supports_and_queries_are_augmented(tmp_path):
    source = open_base_classes(DataConfig("folder", str(write_photos(tmp_path))))
    drawn = {}
    for name in ("resize", "biopt", "vpi"):
        episodes = training_episodes(source, DataConfig("folder", ".", size=24, augmentation=name), seed=0)
        drawn[name] = episodes[0]
        assert drawn[name]["support_images"].shape == (1, 1, 3, 24, 24)
        assert drawn[name]["query_images"].shape == (3, 24, 24)
    # BiOpt's augments the supports alone, VPI's everything.
    same = {
        name: [torch.equal(drawn[name][part], drawn["resize"][part]) for part in ("support_images", "query_images")]
        for name in ("biopt", "vpi")
    }
    assert same == {"biopt": [False, True], "vpi": [False, False]}
