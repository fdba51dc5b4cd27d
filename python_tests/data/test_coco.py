import builtins
import json

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_tools

from fewseg_ext.data.coco import CATEGORY_IDS, COCO20i, class_masks, decode_rle, fold_labels, load_coco, paint_labels
from fewseg_ext.data.prepare import coco20i as preparation
from fewseg_ext.data.prepare.coco20i import prepare_coco20i
from photo_files import SIDE, box, coco_json, contents, write_json, write_photo

PERSON, BICYCLE, CAR, STOP_SIGN = 1, 2, 3, 13  # stop sign is class 12: id 12 is not in use


def uncompressed(mask):
    """Run-length code as crowds have it in the JSON: lengths of runs of 0 and 1 in columns, a 0-run first."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *changes, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": runs if flat[0] == 0 else [0, *runs]}


def rectangle(x0, y0, x1, y1):
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[y0:y1, x0:x1] = 1
    return mask


ANNOTATIONS = [
    # A person in two pieces, whose second piece a car overlaps, and a crowd of persons.
    {"image_id": 7, "category_id": PERSON, "segmentation": [box(0, 0, 40, 60), box(60, 0, 90, 60)]},
    {"image_id": 7, "category_id": CAR, "segmentation": [box(70, 0, 96, 96)]},
    {"image_id": 7, "category_id": PERSON, "segmentation": uncompressed(rectangle(0, 70, 50, 96)), "iscrowd": 1},
    # Less than 2,048 pixels.
    {"image_id": 7, "category_id": BICYCLE, "segmentation": [box(42, 0, 58, 96)]},
    {"image_id": 9, "category_id": PERSON, "segmentation": [box(0, 0, 96, 30)]},
    {"image_id": 9, "category_id": STOP_SIGN, "segmentation": [box(0, 40, 96, 96)]},
]


@pytest.fixture
def coco(tmp_path):
    images = [{"id": number, "file_name": f"COCO_val2014_{number:012d}.jpg"} for number in (9, 7, 11)]
    for seed, image in enumerate(images):
        for photo_set in ("train2014", "val2014"):
            write_photo(tmp_path / photo_set / image["file_name"], seed=seed)
    for photo_set in ("train2014", "val2014"):
        write_json(tmp_path / "annotations" / f"instances_{photo_set}.json", coco_json(images, ANNOTATIONS))
    return tmp_path


def row(report, what):
    (found,) = [row for row in report.rows if row.what == what]
    return found


def test_folds_are_the_papers():
    assert fold_labels("A", 1, "test") == list(range(21, 41))
    assert fold_labels("B", 1, "test") == [2, 6, 10, *range(14, 79, 4)]
    for variant in "AB":
        tested = [label for fold in range(4) for label in fold_labels(variant, fold, "test")]
        assert sorted(tested) == list(range(1, 81))
        assert sorted(fold_labels(variant, 2, "train") + fold_labels(variant, 2, "test")) == list(range(1, 81))
    assert len(CATEGORY_IDS) == 80
    with pytest.raises(ValueError, match="variant must be 'A' or 'B', got 'C'"):
        fold_labels("C", 0, "test")


def test_a_class_is_the_union_of_all_polygons_and_codes(coco):
    prepare_coco20i(coco)
    source = COCO20i(coco, classes=["class1", "class3"])
    assert [source.image_id(0, i) for i in range(source.num_images(0))] == ["000000000007", "000000000009"]
    person = rectangle(0, 0, 40, 60) | rectangle(60, 0, 90, 60) | rectangle(0, 70, 50, 96)
    car = rectangle(70, 0, 96, 96)
    image, labels = source.read(0, 0)
    assert image.shape == (3, SIDE, SIDE)
    assert labels.dtype == torch.int16
    # The class that is asked for is whole, the other is what it leaves.
    assert np.array_equal(labels == 1, person)
    assert np.array_equal(labels == 2, car & ~person)
    labels = source.read(1, 0)[1]
    assert np.array_equal(labels == 2, car)
    assert np.array_equal(labels == 1, person & ~car)


def test_classes_below_2048_pixels_and_other_folds_do_not_count(coco):
    prepare_coco20i(coco)
    assert (96 - 0) * (58 - 42) < 2048
    # Fold 1 of split-B has the classes 2, 6, 10, ...: of the bicycle there is too little.
    with pytest.raises(ValueError, match="no photo of class2"):
        COCO20i(coco, fold=1, variant="B")
    source = COCO20i(coco, fold=0, variant="B")
    assert [source.num_images(c) for c in range(20)] == [2] + [0] * 19
    assert source.read(0, 1)[1].unique().tolist() == [0, 1]
    stop_sign = COCO20i(coco, classes=["class13"])
    assert stop_sign.num_images(0) == 1


@pytest.mark.parametrize(("held_out", "label"), [("background", 0), ("ignore", -1)])
def test_held_out_classes_in_training_photos(coco, held_out, label):
    prepare_coco20i(coco)
    source = COCO20i(coco, fold=0, split="train", variant="B", held_out=held_out)
    car = source.class_names.index("class3")
    labels = source.read(car, 0)[1]
    assert labels[5, [5, 45, 75]].tolist() == [label, source.class_names.index("class2") + 1, car + 1]


def test_photos_with_held_out_classes_can_be_excluded(coco):
    prepare_coco20i(coco)
    with pytest.raises(ValueError, match="no photo"):
        COCO20i(coco, fold=0, split="train", variant="B", held_out="exclude")


@pytest.mark.parametrize(
    ("counts", "message"),
    [([4.5, 4.5], "its runs are not whole numbers"), ("o" * 20 + "0", "its run-length code is damaged")],
)
def test_damaged_run_length_codes_are_refused(counts, message):
    with pytest.raises(ValueError, match=message):
        decode_rle(counts, 3, 3)


def test_wrong_arguments_are_refused(coco):
    with pytest.raises(ValueError, match="prepare coco20i: year must be 2014 or 2017, got 2015"):
        prepare_coco20i(coco, year=2015)
    prepare_coco20i(coco)
    with pytest.raises(ValueError, match="COCO20i: year must be 2014 or 2017, got 2015"):
        COCO20i(coco, fold=0, year=2015)
    with pytest.raises(ValueError, match="not classes of COCO: tiger; they are class1, "):
        COCO20i(coco, classes=["tiger"])


def test_published_counts_are_told_apart_from_partial_data(coco, monkeypatch):
    report = prepare_coco20i(coco)
    fold = row(report, "val2014 split-B fold 0: photos")
    assert (fold.expected, fold.found, fold.reason) == (26052, 2, "partial data")
    assert any("40,501 of the 40,504 photos" in line for line in report.missing)
    assert (report.out / "lists" / "val2014_B_fold0.txt").read_text() == "000000000007__01\n000000000009__01\n"
    # Complete data with a few photos more: the unions of this package, which the reason explains.
    monkeypatch.setattr(preparation, "OFFICIAL_PHOTOS", {"train2014": (3, 2), "val2014": (3, 2)})
    counts = {("val2014", "B", 0): 1, ("val2014", "B", 1): 0, ("val2014", "B", 2): 1}
    monkeypatch.setattr(preparation, "PUBLISHED_PHOTOS", counts)
    report = prepare_coco20i(coco)
    assert report.complete
    assert row(report, "val2014 split-B fold 0: photos").reason == preparation.UNION_REASON
    # Fewer is no such case.
    monkeypatch.setattr(preparation, "PUBLISHED_PHOTOS", {("val2014", "B", 0): 3})
    assert not prepare_coco20i(coco).complete


def test_what_cannot_be_used_is_listed_and_the_rest_kept(coco):
    images = [{"id": n, "file_name": f"{n}.jpg"} for n in range(1, 7)]
    images[3]["width"] = 50
    annotations = [{"image_id": n, "category_id": CAR, "segmentation": [box(0, 0, 96, 96)]} for n in range(1, 6)]
    bad = [
        {"image_id": 5, "category_id": PERSON, "segmentation": []},
        {"image_id": 5, "category_id": PERSON, "segmentation": [[1, 2, 3, 4]]},
        {"image_id": 5, "category_id": PERSON, "segmentation": uncompressed(np.ones((20, 30), np.uint8))},
        {"image_id": 5, "category_id": PERSON, "segmentation": uncompressed(np.zeros((SIDE, SIDE), np.uint8))},
        {"image_id": 5, "category_id": PERSON},
        {"image_id": 5, "category_id": PERSON, "segmentation": {"size": [SIDE, SIDE]}},
        {"image_id": 5, "category_id": PERSON, "segmentation": {"size": [SIDE, SIDE], "counts": [0, 10**6]}},
    ]
    write_json(coco / "annotations" / "instances_val2014.json", coco_json(images, annotations + bad))
    folder = coco / "val2014"
    for n in range(2, 7):
        write_photo(folder / f"{n}.jpg", seed=n)
    (folder / "2.jpg").write_bytes((folder / "2.jpg").read_bytes()[:-2000])
    (folder / "3.jpg").write_bytes(b"")

    report = prepare_coco20i(coco)
    reasons = [
        "1.jpg: missing",
        "2.jpg cannot be read",
        "3.jpg cannot be read",
        "4.jpg: 96 x 96 pixels, but its mask is 50 x 96",
        "annotation 6: its mask is empty",
        "annotation 7: its mask is empty",
        "annotation 8: its mask is 30 x 20, but its photo is 96 x 96",
        "annotation 9: its mask is empty",
        "annotation 10: no 'segmentation'",
        "annotation 11: no 'counts'",
        "annotation 12: its runs cover 1000000 pixels, but its photo has 9216",
    ]
    assert len(report.problems) == len(reasons)
    for problem, reason in zip(report.problems, reasons, strict=True):
        assert reason in problem
    assert any("1 photos of instances_val2014.json" in line for line in report.missing)
    source = COCO20i(coco, classes=["class3"])
    assert [source.image_id(0, i) for i in range(source.num_images(0))] == ["000000000005"]


def coco_text(images=(), categories=None):
    return json.dumps(coco_json(images, [], categories))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a COCO file of instances"),
        ("[]", "is not a COCO file of instances"),
        ('{"images": [], "annotations": []}', "it has no 'categories'"),
        ('{"images": [{"id": 1}], "annotations": [], "categories": []}', "an item of 'images' has no 'file_name'"),
        ('{"images": [], "annotations": [], "categories": [{"id": "a", "name": "b"}]}', "are not whole numbers"),
        ('{"images": [], "annotations": [], "categories": []}', "has 0 categories, not the 80"),
        ('{"images": {}, "annotations": [], "categories": []}', "'images' is not a list of objects"),
        (coco_text(images=[{"id": 1, "file_name": 5}]), "a 'file_name' is not a text"),
        (coco_text(images=[{"id": "a", "file_name": "a.jpg"}]), "the ids of its photos are not whole numbers"),
        (coco_text(categories=[{"id": i, "name": i} for i in CATEGORY_IDS]), "names of its categories are not texts"),
    ],
)
def test_a_file_that_is_not_coco_is_refused(coco, text, message):
    (coco / "annotations" / "instances_val2014.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        prepare_coco20i(coco)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "another version"),
        ({"class_names": ["class1"]}, "the names of the classes"),
        ({"images": [[7, "../7.jpg", 96, 96, [[1, 3000, 0, 9]]]]}, "the photo '../7.jpg'"),
    ],
)
def test_an_index_of_somebody_else_is_refused(coco, change, message):
    path = prepare_coco20i(coco).out / "val2014.json"
    write_json(path, {**json.loads(path.read_text()), **change})
    with pytest.raises(ValueError, match=rf"val2014.json is damaged .*\({message}\): run `fewseg prepare coco20i"):
        COCO20i(coco, fold=0)


def test_runs_repeat_byte_for_byte_and_an_interrupted_one_leaves_no_index(coco, monkeypatch):
    out = prepare_coco20i(coco).out
    first = contents(out)

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(preparation, "class_masks", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare_coco20i(coco)
    with pytest.raises(FileNotFoundError, match="run `fewseg prepare coco20i ROOT`"):
        COCO20i(coco, fold=0, split="train")
    monkeypatch.undo()
    prepare_coco20i(coco)
    assert contents(out) == first


def test_one_of_the_two_files_is_enough(coco):
    (coco / "annotations" / "instances_train2014.json").unlink()
    report = prepare_coco20i(coco)
    assert any("instances_train2014.json: http" in line for line in report.missing)
    assert COCO20i(coco, fold=0).num_images(0) == 2
    (coco / "annotations" / "instances_val2014.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither .*instances_train2014.json nor .*val2014.json found"):
        prepare_coco20i(coco)


def test_without_pycocotools_the_error_says_how_to_install_it(coco, monkeypatch):
    real_import = builtins.__import__

    def without(name, *arguments, **keywords):
        if name.startswith("pycocotools"):
            raise ImportError(name)
        return real_import(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'fewseg-ext\[data\]'"):
        prepare_coco20i(coco)


def test_the_first_label_lies_on_top():
    masks = [(1, rectangle(0, 0, 2, 1)), (2, rectangle(1, 0, 3, 1)), (3, rectangle(2, 0, 4, 1))]
    assert paint_labels((SIDE, SIDE), masks, first=1)[0, :5].tolist() == [1, 1, 3, 3, 0]
    assert paint_labels((SIDE, SIDE), masks, first=2)[0, :5].tolist() == [1, 2, 2, 3, 0]


@pytest.mark.real_data
@pytest.mark.parametrize("photo_set", ["train2017", "val2017"])
def test_masks_equal_those_of_pycocotools_on_real_annotations(real_data, tmp_path, photo_set):
    """Every class of every photo, polygons and crowds, against COCO.annToMask of each instance."""
    coco = load_coco(real_data / "coco" / "annotations" / f"instances_{photo_set}.json")
    compared = crowds = 0
    for image in coco.dataset["images"]:
        annotations = coco.imgToAnns[image["id"]]
        crowds += sum(annotation["iscrowd"] for annotation in annotations)
        unions, problems = class_masks(annotations, image["height"], image["width"])
        assert problems == []
        assert set(unions) == {annotation["category_id"] for annotation in annotations}
        for category, rle in unions.items():
            expected = np.zeros((image["height"], image["width"]), np.uint8)
            for annotation in annotations:
                if annotation["category_id"] == category:
                    expected |= coco.annToMask(annotation)
            assert np.array_equal(mask_tools.decode(rle), expected)
            compared += 1
    assert compared > 100
    assert crowds > 0


@pytest.mark.real_data
def test_real_photos_are_read_with_the_masks_that_were_prepared(real_data, tmp_path):
    report = prepare_coco20i(real_data / "coco", tmp_path, year=2017)
    assert report.problems == []
    annotations = load_coco(real_data / "coco" / "annotations" / "instances_val2017.json")
    source = COCO20i(real_data / "coco", fold=0, year=2017, prepared=tmp_path)
    assert sum(source.num_images(c) for c in range(20)) > 40
    person = annotations.getCatIds(catNms=["person"])
    for index in range(source.num_images(0)):
        image, labels = source.read(0, index)
        assert image.shape[1:] == labels.shape
        found = annotations.getAnnIds(imgIds=[int(source.image_id(0, index))], catIds=person)
        expected = np.maximum.reduce([annotations.annToMask(a) for a in annotations.loadAnns(found)])
        assert np.array_equal(labels == 1, expected)
