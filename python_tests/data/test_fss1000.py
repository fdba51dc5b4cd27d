import numpy as np
import pytest
import torch
from PIL import Image

from fewseg_ext.data.fss1000 import FSS1000, split_classes
from fewseg_ext.data.prepare import fss1000 as preparation
from fewseg_ext.data.prepare.fss1000 import prepare_fss1000
from fewseg_ext.data.sources import open_source


def write(folder, name, mask_value=255, size=(6, 4), mask_size=None):
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 100, 50)).save(folder / f"{name}.jpg")
    if mask_value is not None:
        Image.new("L", mask_size or size, mask_value).save(folder / f"{name}.png")


def test_reads_images_and_labels(tmp_path):
    write(tmp_path / "apple", "1", mask_value=0)
    write(tmp_path / "banana", "1", mask_value=255)
    data = FSS1000(tmp_path)
    assert data.class_names == ["apple", "banana"]
    image, labels = data.read(1, 0)
    assert image.dtype == torch.uint8
    assert image.shape == (3, 4, 6)
    assert (image.float() - torch.tensor([200.0, 100.0, 50.0]).view(3, 1, 1)).abs().max() < 8
    assert labels.dtype == torch.int16
    assert (labels == 2).all()
    assert (data.read(0, 0)[1] == 0).all()


def test_foreground_begins_at_128(tmp_path):
    (tmp_path / "apple").mkdir()
    Image.new("RGB", (4, 1)).save(tmp_path / "apple" / "1.jpg")
    Image.fromarray(np.array([[0, 127, 128, 255]], np.uint8)).save(tmp_path / "apple" / "1.png")
    assert FSS1000(tmp_path).read(0, 0)[1].tolist() == [[0, 0, 1, 1]]


def test_a_thousand_classes_do_not_collide_with_the_ignore_label(tmp_path):
    for number in range(260):
        write(tmp_path / f"{number:03d}", "1", size=(2, 2))
    assert (FSS1000(tmp_path).read(254, 0)[1] == 255).all()
    assert (FSS1000(tmp_path).read(259, 0)[1] == 260).all()


def test_images_are_in_order_of_their_numbers(tmp_path):
    for name in ("10", "2", "1"):
        write(tmp_path / "apple", name)
    assert [path.name for path in FSS1000(tmp_path).files["apple"]] == ["1.jpg", "2.jpg", "10.jpg"]


def test_folders_without_images_and_loose_files_are_skipped(tmp_path):
    write(tmp_path / "apple", "1")
    (tmp_path / "notes").mkdir()
    (tmp_path / "readme.txt").write_text("hello")
    assert FSS1000(tmp_path).class_names == ["apple"]


def test_the_cache_answers_like_the_disk_and_does_not_read_twice(tmp_path):
    write(tmp_path / "apple", "1")
    plain, cached = FSS1000(tmp_path), FSS1000(tmp_path, cache=True)
    first = cached.read(0, 0)
    (tmp_path / "apple" / "1.png").unlink()
    second = cached.read(0, 0)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    with pytest.raises(FileNotFoundError):
        plain.read(0, 0)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"FSS-1000 folder not found: .*nowhere"):
        FSS1000(tmp_path / "nowhere")


def test_a_folder_without_classes_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no class folder with images and masks"):
        FSS1000(tmp_path)


def test_an_image_without_mask_is_named(tmp_path):
    write(tmp_path / "apple", "1")
    write(tmp_path / "apple", "2", mask_value=None)
    with pytest.raises(ValueError, match=r"apple/2.jpg: no mask, expected 2.png beside it"):
        FSS1000(tmp_path)


def test_a_mask_of_another_size_is_named(tmp_path):
    write(tmp_path / "apple", "1", size=(6, 4), mask_size=(4, 6))
    with pytest.raises(ValueError, match=r"apple/1.jpg: 6 x 4 pixels, but its mask is 4 x 6"):
        FSS1000(tmp_path)


def test_the_published_split_has_1000_classes():
    parts = [split_classes(split) for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [520, 240, 240]
    assert len(set().union(*parts)) == 1000
    assert split_classes("trainval") == sorted(parts[0] + parts[1])
    with pytest.raises(ValueError, match="split must be one of train, val, test, trainval, got 'unseen'"):
        split_classes("unseen")


def test_a_split_takes_its_classes_and_tells_which_are_missing(tmp_path):
    for name in ("abacus", "bus", "my_own"):
        write(tmp_path / name, "1")
    with pytest.warns(UserWarning, match="has 1 of the 240 test classes"):
        assert FSS1000(tmp_path, split="test").class_names == ["bus"]
    with pytest.warns(UserWarning, match="has 1 of the 760 trainval classes"):
        assert FSS1000(tmp_path, split="trainval").class_names == ["abacus"]
    with pytest.raises(ValueError, match="has none of the 520 train classes"):
        FSS1000(tmp_path, split="train")


def test_prepare_counts_and_lists_what_is_there(tmp_path):
    root = tmp_path / "fewshot_data"
    for number in range(1, 11):
        write(root / "abacus", str(number), size=(224, 224))
    for name in ("1", "2", "3", "4"):
        write(root / "bus", name)
    write(root / "my_own", "1")
    (root / "bus" / "1.jpg").write_bytes((root / "bus" / "1.jpg").read_bytes()[:300])
    (root / "bus" / "2.png").unlink()
    write(root / "bus", "3", mask_value=127)

    report = prepare_fss1000(tmp_path)
    rows = {row.what: (row.expected, row.found) for row in report.rows}
    assert rows["val: classes"] == (240, 1)
    assert rows["val: usable photos"] == (2400, 10)
    assert rows["test: usable photos"] == (2400, 1)
    assert rows["train: classes"] == (520, 0)
    assert rows["classes that FSS-1000 does not have"] == (0, 1)
    assert (report.out / "lists" / "test.txt").read_text() == "bus/4.jpg\n"
    for problem, reason in zip(report.problems, ["1.jpg cannot be read", "2.jpg: no mask", "is empty"], strict=True):
        assert reason in problem
    assert report.notes[0].endswith("bus 1, my_own 1")
    assert report.notes[1].startswith("2 photos are not 224 x 224")
    missing = (report.out / "missing_classes.txt").read_text().split()
    assert len(missing) == 998
    assert any("239 of the 240 test classes" in line and "HKUSTCVLAB" in line for line in report.missing)
    assert not report.complete


def test_complete_data_meets_all_that_is_known_of_it(tmp_path, monkeypatch, recwarn):
    """One small photo for each class in place of ten large ones."""
    monkeypatch.setattr(preparation, "IMAGES_PER_CLASS", 1)
    monkeypatch.setattr(preparation, "SIDE", 8)
    for split in ("trainval", "test"):
        for name in split_classes(split):
            write(tmp_path / name, "1", size=(8, 8))
    report = prepare_fss1000(tmp_path)
    assert report.complete
    assert report.missing == report.problems == report.notes == []
    source = open_source("fss1000", tmp_path)
    assert source.class_names == split_classes("test")
    assert "official" not in source.title
    assert not recwarn.list


def test_prepare_without_data_says_where_it_comes_from(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no class folder .*HKUSTCVLAB/FSS-1000"):
        prepare_fss1000(tmp_path)
    with pytest.raises(ConnectionError, match="--download cannot"):
        prepare_fss1000(tmp_path, download=True)


@pytest.mark.real_data
def test_the_split_is_the_published_one(real_data):
    for split, name in (("train", "trn"), ("val", "val"), ("test", "test")):
        published = (real_data / "lists" / f"fss1000_{name}_classes.txt").read_text().split("\n")
        assert split_classes(split) == sorted(line.strip() for line in published if line.strip())
