"""The code around torchvision's downloaders, with pretended ones: there is no network in the tests."""

import shutil
import urllib.error
from pathlib import Path

import pytest
import torchvision.datasets
import torchvision.datasets.utils

from fewseg_ext.data.pascal import Pascal5i
from fewseg_ext.data.prepare.coco20i import prepare_coco20i
from fewseg_ext.data.prepare.download import download_coco, download_sbd, download_voc
from fewseg_ext.data.prepare.pascal5i import prepare_pascal5i
from photo_files import coco_json, contents, two_boxes, write_json, write_voc

SETS = {"train": {"2007_000001": two_boxes(1, 2)}, "val": {"2008_000001": two_boxes(1, 3)}}


class PretendedVOC:
    calls = 0

    def __init__(self, root, year, image_set, download):
        type(self).calls += 1
        assert (year, download) == ("2012", True)
        write_voc(Path(root), SETS, masks="SegmentationClass")


class PretendedSBD:
    calls = 0

    def __init__(self, root, image_set, mode, download):
        type(self).calls += 1
        # train_noval is what torchvision cannot fetch.
        assert (image_set, mode, download) == ("train", "segmentation", True)
        for name in ("cls", "img", "inst"):
            # As torchvision's own, which moves folders: it fails where there are any.
            (Path(root) / name).mkdir()
        (Path(root) / "train.txt").write_text("2009_000001\n")
        (Path(root) / "val.txt").write_text("")
        if type(self).calls == 1:
            raise EOFError("Compressed file ended before the end-of-stream marker was reached")


def no_network(*arguments, **keywords):
    raise urllib.error.URLError("Name or service not known")


@pytest.fixture
def pretended(monkeypatch):
    PretendedVOC.calls = PretendedSBD.calls = 0
    monkeypatch.setattr(torchvision.datasets, "VOCSegmentation", PretendedVOC)
    monkeypatch.setattr(torchvision.datasets, "SBDataset", PretendedSBD)


def test_pascal_is_fetched_and_prepared(tmp_path, pretended):
    root = tmp_path / "new"
    with pytest.raises(ConnectionError, match=r"could not fetch sbd .*try again"):
        prepare_pascal5i(root, download=True)
    # The devkit is in place, of SBD nothing is.
    assert (root / "VOCdevkit" / "VOC2012" / "JPEGImages").is_dir()
    assert not (root / "sbd").exists()
    report = prepare_pascal5i(root, download=True)
    assert PretendedVOC.calls == 1
    assert PretendedSBD.calls == 2
    assert report.problems == []
    assert Pascal5i(root, classes=["aeroplane"]).num_images(0) == 1
    assert not (root / ".fewseg-download").exists()
    prepare_pascal5i(root, download=True)
    assert PretendedSBD.calls == 2


def test_sbd_is_not_fetched_beside_a_segmentation_class_aug(tmp_path, pretended):
    write_voc(tmp_path, SETS)
    prepare_pascal5i(tmp_path, download=True)
    assert PretendedVOC.calls == PretendedSBD.calls == 0


@pytest.mark.parametrize("fetch", [download_voc, download_sbd, lambda root: download_coco(root, 2014)])
def test_no_network_is_a_plain_error_that_leaves_nothing_half_done(tmp_path, monkeypatch, fetch):
    for module in (torchvision.datasets.voc, torchvision.datasets.sbd, torchvision.datasets.utils):
        monkeypatch.setattr(module, "download_and_extract_archive", no_network)
    with pytest.raises(ConnectionError, match=r"could not fetch .*Name or service not known.*docs/datasets.md"):
        fetch(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".fewseg-download"]


def test_coco_archives_are_put_where_they_belong(tmp_path, monkeypatch):
    fetched = []

    def pretended(url, folder):
        fetched.append(url)
        target = Path(folder) / ("annotations" if "annotations" in url else Path(url).stem)
        target.mkdir()
        for name in ("train", "val") if target.name == "annotations" else ():
            write_json(target / f"instances_{name}{url[-8:-4]}.json", coco_json([], []))

    monkeypatch.setattr(torchvision.datasets.utils, "download_and_extract_archive", pretended)
    report = prepare_coco20i(tmp_path, year=2017, download=True)
    assert fetched == [
        "http://images.cocodataset.org/zips/train2017.zip",
        "http://images.cocodataset.org/zips/val2017.zip",
        "http://images.cocodataset.org/annotations/annotations_trainval2017.zip",
    ]
    assert (report.out / "val2017.json").is_file()
    # The annotations of both years go into one folder.
    prepare_coco20i(tmp_path, year=2014, download=True)
    assert len(fetched) == 6
    expected = {f"instances_{name}{year}.json" for name in ("train", "val") for year in (2014, 2017)}
    assert set(contents(tmp_path / "annotations")) == expected
    shutil.rmtree(tmp_path / "val2014")
    prepare_coco20i(tmp_path, year=2014, download=True)
    assert fetched[6:] == ["http://images.cocodataset.org/zips/val2014.zip"]
