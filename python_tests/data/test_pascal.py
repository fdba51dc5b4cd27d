import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from fewseg_ext.data.episodes import EpisodeDataset
from fewseg_ext.data.pascal import CLASSES, FAMILIES, Pascal5i, PascalObject, fold_classes, load_index
from fewseg_ext.data.prepare import pascal5i as preparation
from fewseg_ext.data.prepare.pascal5i import family_entries, objects_of, prepare_pascal5i, read_published_lists
from fewseg_ext.data.prepare.report import checksum
from photo_files import SIDE, contents, two_boxes, write_json, write_mask, write_photo, write_voc

AEROPLANE, BICYCLE, BUS, CAT, TVMONITOR = (
    CLASSES.index(n) + 1 for n in ("aeroplane", "bicycle", "bus", "cat", "tvmonitor")
)


def small_boat():
    """A boat (label 4) on two of the pixels [1::32, 1::32] and 1,950 pixels, beside a bus."""
    labels = two_boxes(0, BUS, border=0)
    labels[:65, :30] = 4
    return labels


SETS = {
    "train": {"2007_000001": two_boxes(AEROPLANE, CAT), "2007_000002": two_boxes(BUS, BUS)},
    "val": {"2008_000001": two_boxes(AEROPLANE, TVMONITOR), "2008_000002": two_boxes(BICYCLE, AEROPLANE)},
    "sbd": {"2009_000001": two_boxes(CAT, BICYCLE), "2009_000002": small_boat()},
}


@pytest.fixture
def voc(tmp_path):
    write_voc(tmp_path, SETS)
    return tmp_path


def row(report, what):
    (found,) = [row for row in report.rows if row.what == what]
    return found


def test_folds_are_the_papers():
    assert fold_classes(0, "test") == ["aeroplane", "bicycle", "bird", "boat", "bottle"]
    assert fold_classes(3, "test") == ["pottedplant", "sheep", "sofa", "train", "tvmonitor"]
    for fold in range(4):
        assert sorted(fold_classes(fold, "test") + fold_classes(fold, "train")) == sorted(CLASSES)
    with pytest.raises(ValueError, match="fold must be 0, 1, 2 or 3, got 4"):
        fold_classes(4, "test")


def test_objects_are_counted_on_all_pixels_and_on_the_grid():
    labels = np.zeros((65, 65), np.uint8)
    labels[:34, :34] = 3
    labels[1, 1] = 255
    labels[64, 64] = 20
    # Rows and columns 1, 33 of the grid: (1, 33), (33, 1), (33, 33) are bird, (1, 1) is not.
    assert objects_of(labels) == ((3, 34 * 34 - 1, 3), (20, 1, 0))
    with pytest.raises(ValueError, match=r"labels \[21, 254\]"):
        objects_of(np.array([[0, 21], [254, 255]], np.uint8))


def test_how_large_an_object_must_be():
    shows = {name: family.shows for name, family in FAMILIES.items()}
    assert shows["P1"](PascalObject(4, pixels=1, grid=0))
    assert [shows["P2"](PascalObject(4, pixels=9999, grid=grid)) for grid in (2, 3)] == [False, True]
    assert [shows["P3"](PascalObject(4, pixels=pixels, grid=0)) for pixels in (2047, 2048)] == [False, True]


def test_families_take_their_photos_and_objects(voc):
    prepare_pascal5i(voc)
    images = load_index(voc / "fewseg_pascal5i" / "index.json")
    boat = "2009_000002__04"
    train = ["2007_000001__01", "2009_000001__02"]
    test = ["2008_000001__01", "2008_000002__01", "2008_000002__02"]
    assert family_entries(FAMILIES["P1"], images, "train", 0) == [*train, boat]
    assert family_entries(FAMILIES["P1"], images, "test", 0) == [*train, boat]
    assert family_entries(FAMILIES["P2"], images, "train", 0) == train
    assert family_entries(FAMILIES["P2"], images, "test", 0) == test
    assert family_entries(FAMILIES["P3"], images, "test", 0) == test
    with pytest.raises(ValueError, match=r"put SBD's train.txt into ROOT/sbd"):
        family_entries(FAMILIES["P3"], images, "train", 0)


def test_p3_trains_on_voc_train_and_sbd_train(voc):
    (voc / "sbd").mkdir()
    (voc / "sbd" / "train.txt").write_text("2009_000001\n2008_000001\n")
    prepare_pascal5i(voc)
    source = Pascal5i(voc, classes=["cat", "bus"], split="train", family="P3")
    assert [source.image_id(0, i) for i in range(source.num_images(0))] == ["2007_000001", "2009_000001"]
    assert [source.image_id(1, i) for i in range(source.num_images(1))] == ["2007_000002"]


def test_labels_are_translated(voc):
    prepare_pascal5i(voc)
    source = Pascal5i(voc, fold=0)
    assert source.class_names == fold_classes(0, "test")
    assert [source.num_images(c) for c in range(5)] == [2, 1, 0, 0, 0]
    image, labels = source.read(0, 0)
    assert image.dtype == torch.uint8
    assert labels.dtype == torch.int16
    assert image.shape == (3, SIDE, SIDE)
    # Aeroplane, the border, and a tvmonitor, which is of another fold.
    assert labels[0, [0, 40, 50, 95]].tolist() == [1, -1, 0, 0]
    assert source.read(1, 0)[1][0, [0, 40, 50, 95]].tolist() == [2, -1, 0, 1]


@pytest.mark.parametrize(("held_out", "label"), [("background", 0), ("ignore", -1)])
def test_held_out_classes_in_training_photos(voc, held_out, label):
    prepare_pascal5i(voc)
    source = Pascal5i(voc, fold=0, split="train", held_out=held_out)
    cat = source.class_names.index("cat")
    assert source.num_images(cat) == 2
    # 2007_000001: an aeroplane, which fold 0 tests, and a cat.
    assert source.read(cat, 0)[1][0, [0, 50, 95]].tolist() == [label, 0, cat + 1]


def test_photos_with_held_out_classes_can_be_excluded(voc):
    prepare_pascal5i(voc)
    source = Pascal5i(voc, fold=0, split="train", held_out="exclude")
    assert {source.image_id(c, i) for c in range(15) for i in range(source.num_images(c))} == {"2007_000002"}


def test_the_description_says_what_was_chosen(voc):
    prepare_pascal5i(voc)
    assert Pascal5i(voc, fold=0).description == "PASCAL-5i fold 0 test, lists P2, 2 photos of 5 classes"
    train = Pascal5i(voc, fold=0, split="train", held_out="ignore")
    assert train.description.startswith("PASCAL-5i fold 0 train, lists P2, held-out classes: ignore, ")


def test_episodes_can_be_drawn(voc):
    prepare_pascal5i(voc)
    episode = EpisodeDataset(Pascal5i(voc, classes=["aeroplane"]), episodes=1)[0]
    assert sorted(episode["query_masks"].unique().tolist()) == [0, 1, 255]


def test_sbd_masks_are_converted_once_and_read_alike(tmp_path, monkeypatch):
    write_voc(tmp_path / "png", SETS)
    devkit = write_voc(tmp_path / "mat", {name: SETS[name] for name in ("train", "val")}, masks="SegmentationClass")
    sbd = tmp_path / "mat" / "sbd"
    (sbd / "cls").mkdir(parents=True)
    for number, (name, labels) in enumerate(SETS["sbd"].items()):
        write_photo(devkit / "JPEGImages" / f"{name}.jpg", seed=number)
        savemat(sbd / "cls" / f"{name}.mat", {"GTcls": {"Segmentation": labels, "CategoriesPresent": [1]}})
    # A photo of VOC's own keeps VOC's mask.
    savemat(sbd / "cls" / "2007_000001.mat", {"GTcls": {"Segmentation": two_boxes(9, 9), "CategoriesPresent": [1]}})
    (sbd / "cls" / "2009_000003.mat").write_bytes(b"MATLAB 5.0 MAT-file, cut off")
    for root in (tmp_path / "png", tmp_path / "mat"):
        report = prepare_pascal5i(root)
    assert report.notes[0] == "masks: 2 from SBD, 4 from SegmentationClass"
    assert [problem.split(" ")[0] for problem in report.problems] == [str(sbd / "cls" / "2009_000003.mat")]

    png, mat = (Pascal5i(tmp_path / name, fold=3, split="train") for name in ("png", "mat"))
    assert png.class_names == mat.class_names
    assert [png.num_images(c) for c in range(15)] == [mat.num_images(c) for c in range(15)]
    for class_id in range(15):
        for index in range(png.num_images(class_id)):
            assert torch.equal(png.read(class_id, index)[1], mat.read(class_id, index)[1])

    before = {path: path.stat().st_mtime_ns for path in report.out.glob("masks/*.png")}
    assert len(before) == 2
    prepare_pascal5i(tmp_path / "mat")
    assert before == {path: path.stat().st_mtime_ns for path in report.out.glob("masks/*.png")}
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(ImportError, match=r"pip install 'fewseg-ext\[data\]'"):
        prepare_pascal5i(tmp_path / "mat")


def test_what_cannot_be_used_is_listed_and_the_rest_kept(voc):
    devkit = voc / "VOCdevkit" / "VOC2012"
    photos, masks = devkit / "JPEGImages", devkit / "SegmentationClassAug"
    names = [f"2010_{number:06d}" for number in range(9)]
    for name in names:
        write_photo(photos / f"{name}.jpg", seed=9)
        write_mask(masks / f"{name}.png", two_boxes(CAT, CAT))
    (photos / f"{names[0]}.jpg").unlink()
    whole = (photos / f"{names[1]}.jpg").read_bytes()
    (photos / f"{names[1]}.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / f"{names[2]}.jpg").write_text("not a photo")
    (masks / f"{names[3]}.png").write_bytes((masks / f"{names[3]}.png").read_bytes()[:60])
    write_mask(masks / f"{names[4]}.png", two_boxes(CAT, CAT)[:, :50])
    write_mask(masks / f"{names[5]}.png", two_boxes(99, CAT))
    write_mask(masks / f"{names[6]}.png", two_boxes(0, 0))
    Image.fromarray(two_boxes(CAT, CAT).astype(np.uint16)).save(masks / f"{names[7]}.png")
    (masks / "notes.txt").touch()
    with (devkit / "ImageSets" / "Segmentation" / "val.txt").open("a") as file:
        file.write("2011_000001\n")

    report = prepare_pascal5i(voc)
    reasons = ["missing", "cannot be read", "not an image", "cannot be read", "but its mask is 50 x 96"]
    reasons += ["labels [99]", "none of the 20 classes", "expected 8 bits per pixel", "2011_000001: no mask"]
    assert len(report.problems) == len(reasons)
    for problem, reason in zip(report.problems, reasons, strict=True):
        assert reason in problem
    assert (report.out / "problems.txt").read_text().splitlines() == report.problems
    assert any("1 of the 3 photos named in val.txt, or their masks" in line for line in report.missing)
    source = Pascal5i(voc, classes=["cat"], split="train")
    assert [source.image_id(0, i) for i in range(source.num_images(0))] == ["2007_000001", "2009_000001", names[8]]


def test_the_table_says_what_was_expected_and_found(voc):
    report = prepare_pascal5i(voc)
    test = row(report, "photos with masks: test")
    assert (test.expected, test.found, test.reason) == (1449, 2, "partial data")
    assert test.checksum == checksum(["2008_000002", "2008_000001"])
    p2 = row(report, "P2 test fold 0: entries")
    assert (p2.expected, p2.found) == (346, 3)
    assert (report.out / "lists/P2/test/fold0.txt").read_text().splitlines() == [
        "2008_000001__01",
        "2008_000002__01",
        "2008_000002__02",
    ]
    assert not report.complete
    missing = "\n".join(report.missing)
    assert "1,447 of the 1,449 names of" in missing
    assert "10,578 of the 10,582 training photos" in missing
    assert "VOCtrainval_11-May-2012.tar" in missing
    shown = (report.out / "report.txt").read_text()
    assert "-1,447" in shown
    assert "WARNING: partial" in shown


def test_complete_data_meets_all_that_is_known_of_it(tmp_path, monkeypatch):
    """With the numbers of a small data set in place of VOC's."""
    labels = (np.arange(SIDE * SIDE).reshape(SIDE, SIDE) % len(CLASSES) + 1).astype(np.uint8)
    sets = {"train": (2007, 2), "val": (2008, 6), "sbd": (2009, 2)}
    write_voc(tmp_path, {s: {f"{year}_{n:06d}": labels for n in range(count)} for s, (year, count) in sets.items()})
    (tmp_path / "sbd").mkdir()
    (tmp_path / "sbd" / "train.txt").write_text("2009_000001\n")
    known = {"TRAIN": 2, "VAL": 6, "TRAINAUG": 4, "P3_TRAIN": 3}
    for name, number in known.items():
        monkeypatch.setattr(preparation, name, number)

    def rows():
        return {row.what: row for row in prepare_pascal5i(tmp_path).rows}

    first = rows()
    lists = [("P2", "test", fold) for fold in range(4)] + [("P2", "train", 0)]
    found = {key: first["{} {} fold {}: entries".format(*key)] for key in lists}
    monkeypatch.setattr(preparation, "PUBLISHED_ENTRIES", {key: row.found for key, row in found.items()})
    monkeypatch.setattr(preparation, "PUBLISHED_CHECKSUMS", {key: row.checksum for key, row in found.items()})
    monkeypatch.setattr(preparation, "PUBLISHED_VAL", first["photos with masks: test"].checksum)
    monkeypatch.setattr(preparation, "PUBLISHED_P3_TRAIN", first["P3 train: photos"].checksum)
    monkeypatch.setattr(preparation, "P2_TRAIN_PHOTOS", first["P2 train: photos"].found)
    monkeypatch.setattr(preparation, "P2_TRAIN_ENTRIES", first["P2 train: entries of all folds"].found)
    report = prepare_pascal5i(tmp_path)
    assert report.missing == report.problems == []
    assert report.complete
    assert not any("too few" in note for note in report.notes)
    assert "complete: everything known of the data was met" in (report.out / "report.txt").read_text()

    # Another copy of the training masks; and masks of another kind.
    what = "P2 train: entries of all folds"
    for more, reason, complete in ((60, "copies of the training masks", True), (61, "other masks than", False)):
        monkeypatch.setattr(preparation, "P2_TRAIN_ENTRIES", first[what].found + more)
        assert rows()[what].reason.startswith(reason)
        assert prepare_pascal5i(tmp_path).complete == complete
    monkeypatch.setattr(preparation, "PUBLISHED_VAL", checksum(["2008_999999"]))
    assert rows()["photos with masks: test"].reason == "other entries than the published list"


def test_published_lists_are_compared_on_the_photos_that_are_here(voc, tmp_path):
    lists = tmp_path / "published"
    (lists / "val").mkdir(parents=True)
    # One entry is right, one photo is not here, one entry is of a class that the photo does not show.
    (lists / "val" / "fold0.txt").write_text("2008_000001__01\n2008_999999__01\n2008_000002__03\n")
    (lists / "trn.txt").write_text("2007_000001__01\n2009_000001__02\n2007_999999__01\n")
    (lists / "p3.txt").write_text("JPEGImages/2009_000001.jpg SegmentationClassAug/2009_000001.png\n")
    report = prepare_pascal5i(voc, lists=lists)
    compared = row(report, "P2 test: published entries of photos here")
    assert (compared.expected, compared.found) == (2, 3)
    compared = row(report, "P2 train: published entries of photos here")
    assert (compared.expected, compared.found, compared.reason) == (2, 2, "equal, entry by entry")
    assert report.differences == [
        "P2 test: 2008_000002__03 published only",
        "P2 test: 2008_000002__01 regenerated only",
        "P2 test: 2008_000002__02 regenerated only",
    ]
    assert Pascal5i(voc, classes=["bicycle"], split="train", family="P3").num_images(0) == 1
    # A list of test photos alone does not tell which are P3's training photos.
    (lists / "p3.txt").write_text("JPEGImages/2008_000001.jpg SegmentationClassAug/2008_000001.png\n")
    prepare_pascal5i(voc, lists=lists)
    with pytest.raises(ValueError, match=r"put SBD's train.txt into ROOT/sbd"):
        Pascal5i(voc, classes=["bicycle"], split="train", family="P3")
    with pytest.raises(ValueError, match="no list with lines such as"):
        read_published_lists(voc / "VOCdevkit")


def test_runs_repeat_byte_for_byte_and_an_interrupted_one_leaves_no_index(voc, tmp_path, monkeypatch):
    report = prepare_pascal5i(voc, tmp_path / "first")
    first = contents(report.out)
    # The report names the folder it lies in.
    prepare_pascal5i(voc, report.out)
    assert contents(report.out) == first

    check_photo = preparation.check_photo

    def interrupted(path, size):
        if path.stem == "2008_000002":
            raise KeyboardInterrupt
        return check_photo(path, size)

    monkeypatch.setattr(preparation, "check_photo", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare_pascal5i(voc, report.out)
    with pytest.raises(FileNotFoundError, match="run `fewseg prepare pascal5i ROOT`"):
        Pascal5i(voc, fold=0, prepared=report.out)
    monkeypatch.undo()
    prepare_pascal5i(voc, report.out)
    assert contents(report.out) == first


def test_missing_inputs_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no VOC 2012 devkit in .*VOCtrainval_11-May-2012.tar"):
        prepare_pascal5i(tmp_path)
    write_voc(tmp_path, {"train": SETS["train"]})
    with pytest.raises(FileNotFoundError, match=r"val.txt not found"):
        prepare_pascal5i(tmp_path)
    with pytest.raises(FileNotFoundError, match="published lists not found"):
        prepare_pascal5i(tmp_path, lists=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give either fold or classes"),
        ({"fold": 0, "family": "P4"}, "family must be one of P1, P2, P3"),
        ({"fold": 0, "split": "val"}, "split must be"),
        ({"fold": 0, "held_out": "drop"}, "held_out must be"),
        ({"classes": ["tiger"]}, "not classes of VOC: tiger"),
        ({"classes": ["cat", "cat"]}, "classes names one twice"),
        ({"classes": ["sheep"]}, "no test photo of sheep"),
    ],
)
def test_wrong_arguments_are_refused(voc, arguments, message):
    prepare_pascal5i(voc)
    with pytest.raises(ValueError, match=message):
        Pascal5i(voc, **arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 9}, "another version"),
        ({"images": [["../2008", "val", None, "a.png", [[1, 3000, 3]]]]}, "the photo '../2008'"),
    ],
)
def test_an_index_of_somebody_else_is_refused(voc, change, message):
    path = prepare_pascal5i(voc).out / "index.json"
    write_json(path, {**json.loads(path.read_text()), **change})
    with pytest.raises(ValueError, match=rf"index.json is damaged .*\({message}\): run `fewseg prepare pascal5i"):
        Pascal5i(voc, fold=0)


def test_a_mask_that_was_replaced_is_refused(voc):
    prepare_pascal5i(voc)
    source = Pascal5i(voc, fold=0)
    mask = voc / "VOCdevkit" / "VOC2012" / "SegmentationClassAug" / "2008_000001.png"
    Image.fromarray(np.full((SIDE, SIDE), 300, np.uint16)).save(mask)
    with pytest.raises(ValueError, match=r"2008_000001.png is not a mask of VOC: expected 8 bits per pixel"):
        source.read(0, 0)


@pytest.mark.real_data
def test_p2_equals_the_published_lists_on_real_photos(real_data, tmp_path):
    report = prepare_pascal5i(real_data / "VOCdevkit", tmp_path, lists=real_data / "lists")
    compared = row(report, "P2 test: published entries of photos here")
    assert compared.expected == compared.found == 567
    assert report.differences == report.problems == []
    # Against the files themselves, read here.
    images = load_index(tmp_path / "index.json")
    here = {image.name for image in images}
    assert len(here) == 445
    for fold in range(4):
        published = (real_data / "lists" / f"hsnet_val_fold{fold}_official.txt").read_text().split()
        expected = sorted(entry for entry in published if entry[:11] in here)
        assert family_entries(FAMILIES["P2"], images, "test", fold) == expected
        # The checksums in the code are those of the whole published lists.
        assert checksum(published) == preparation.PUBLISHED_CHECKSUMS["P2", "test", fold]
        assert len(published) == preparation.PUBLISHED_ENTRIES["P2", "test", fold]


@pytest.mark.real_data
def test_complete_classes_of_real_photos_can_be_read(real_data, tmp_path):
    prepare_pascal5i(real_data / "VOCdevkit", tmp_path)
    names = ["cat", "cow", "dog", "horse", "sheep"]
    source = Pascal5i(real_data / "VOCdevkit", classes=names, prepared=tmp_path)
    published = [
        entry
        for fold in range(4)
        for entry in (real_data / "lists" / f"hsnet_val_fold{fold}_official.txt").read_text().split()
    ]
    for class_id, name in enumerate(names):
        label = f"__{CLASSES.index(name) + 1:02d}"
        assert source.num_images(class_id) == sum(entry.endswith(label) for entry in published)
        image, labels = source.read(class_id, 0)
        assert image.shape[1:] == labels.shape
        assert (labels == class_id + 1).any()
        assert set(labels.unique().tolist()) <= set(range(-1, 6))
