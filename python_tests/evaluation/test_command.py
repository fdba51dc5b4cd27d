"""`fewseg evaluate`: what it writes, and what it refuses."""

import csv
import hashlib
import io
import json
import sys

import pytest
import torch
from PIL import Image
from rich.console import Console

from fewseg_ext.data.episodes import EpisodeDataset
from fewseg_ext.data.fss1000 import FSS1000
from fewseg_ext.data.overlap import photo_hashes
from fewseg_ext.data.prepare.coco20i import prepare_coco20i
from fewseg_ext.data.prepare.pascal5i import prepare_pascal5i
from fewseg_ext.data.sources import SOURCES, SourceKind, open_source
from fewseg_ext.data.synthetic import SyntheticConfig, generate_synthetic
from fewseg_ext.data.transforms import PairTransform
from fewseg_ext.evaluation.command import METHODS, ModelChoice, parse_folds, run_evaluation
from fewseg_ext.evaluation.evaluate import evaluate
from fewseg_ext.evaluation.protocol import EvaluationProtocol
from fewseg_ext.models.biopt import PrototypeBaseline
from fewseg_ext.training.checkpoint import Checkpoint, save_checkpoint
from photo_files import box, coco_json, two_boxes, write_json, write_photo, write_voc

PROTOCOL = EvaluationProtocol(episodes=6, seeds=(0, 1), input_size=32, square_size=32)
CONV4 = ModelChoice(backbone="conv4", method="baseline")
FILES = {"evaluation.json", "evaluation.csv", "evaluation.md", "class_iou.png", "examples.png"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    config = SyntheticConfig(train_classes=2, unseen_classes=3, images_per_class=4, size=40)
    return generate_synthetic(tmp_path_factory.mktemp("photos") / "data", config) / "unseen"


@pytest.fixture
def two_folds(monkeypatch):
    monkeypatch.setitem(SOURCES, "folded", SourceKind(lambda root, fold: FSS1000(root), folds=2))


def test_writes_everything_and_workers_change_nothing(photos, tmp_path):
    contents = []
    for workers, cache_bytes in ((0, 2**30), (2, 0)):
        out = tmp_path / str(workers)
        run_evaluation(out, CONV4, "fss1000", photos, [None], PROTOCOL, num_workers=workers, cache_bytes=cache_bytes)
        assert {path.name for path in out.iterdir()} == FILES
        for name in ("class_iou.png", "examples.png"):
            assert min(Image.open(out / name).size) > 150
        contents.append(json.loads((out / "evaluation.json").read_text()))
        assert contents[-1]["environment"].pop("workers") == workers
        assert contents[-1].pop("environment")["images_per_second"] > 0
    assert contents[0] == contents[1]
    assert (tmp_path / "0" / "evaluation.csv").read_text() == (tmp_path / "2" / "evaluation.csv").read_text()
    assert str(photos) not in json.dumps(contents)


def test_without_matplotlib_the_scores_are_written_all_the_same(photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    console = Console(file=io.StringIO(), width=200)
    run_evaluation(tmp_path / "out", CONV4, "fss1000", photos, [None], PROTOCOL, console=console)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {name for name in FILES if "png" not in name}
    said = "No class_iou.png, no examples.png: pictures need matplotlib: pip install matplotlib"
    assert said in console.file.getvalue()


def test_a_checkpoint_scores_like_its_model(photos, tmp_path):
    torch.manual_seed(3)
    model = PrototypeBaseline("conv4")
    save_checkpoint(tmp_path / "model.ckpt", Checkpoint(model.config, model.state_dict(), iteration=5))
    report = run_evaluation(
        tmp_path / "out", ModelChoice(str(tmp_path / "model.ckpt")), "fss1000", photos, [None], PROTOCOL
    )
    dataset = EpisodeDataset(FSS1000(photos), PROTOCOL.episodes, seed=1, transform=PairTransform(32))
    assert report.folds[0].seeds[1]["square"].miou == evaluate(model, dataset).miou
    assert report.model["iterations"] == 5
    assert report.model["checkpoint"].startswith("model.ckpt (sha256 ")


def test_photos_of_the_training_are_a_warning(photos, tmp_path):
    model = PrototypeBaseline("conv4")
    first = FSS1000(photos).class_names[0]
    hashes = photo_hashes(open_source("folder", photos, classes=[first]))
    assert len(hashes) == 4
    save_checkpoint(tmp_path / "m.ckpt", Checkpoint(model.config, model.state_dict(), photo_hashes=hashes))
    report = run_evaluation(
        tmp_path / "out", ModelChoice(str(tmp_path / "m.ckpt")), "fss1000", photos, [None], PROTOCOL
    )
    assert list(report.shared_photos) == [f"{first}/{path.name}" for path in sorted((photos / first).glob("*.jpg"))]
    assert "4 of the scored photos were in the training too" in (tmp_path / "out" / "evaluation.md").read_text()


def test_every_fold_takes_its_own_checkpoint(photos, tmp_path, two_folds):
    for fold in range(2):
        torch.manual_seed(fold)
        model = PrototypeBaseline("conv4")
        save_checkpoint(tmp_path / f"fold{fold}.ckpt", Checkpoint(model.config, model.state_dict()))
    choice = ModelChoice(str(tmp_path / "fold{fold}.ckpt"))
    report = run_evaluation(tmp_path / "out", choice, "folded", photos, [0, 1], PROTOCOL)
    first, second = (fold.spread("original", "miou").mean for fold in report.folds)
    assert first != second
    alone = run_evaluation(tmp_path / "out", choice, "folded", photos, [1], PROTOCOL)
    assert alone.folds[0].spread("original", "miou").mean == second
    assert alone.mean("original", "miou") is None
    with pytest.raises(ValueError, match="trained for one fold"):
        run_evaluation(tmp_path / "new", ModelChoice(str(tmp_path / "fold0.ckpt")), "folded", photos, [0, 1], PROTOCOL)
    with pytest.raises(ValueError, match="stands for a fold's number, and no fold was chosen"):
        run_evaluation(tmp_path / "new", choice, "fss1000", photos, [None], PROTOCOL)
    assert not (tmp_path / "new").exists()


def test_weights_of_a_backbone_are_told_by_name_and_checksum(tmp_path, monkeypatch):
    torch.save(PrototypeBaseline("conv4").backbone.state_dict(), tmp_path / "conv4.pth")
    about = ModelChoice(backbone="conv4", weights=str(tmp_path / "conv4.pth")).build(None)[1]
    digest = hashlib.sha256((tmp_path / "conv4.pth").read_bytes()).hexdigest()
    assert about["weights"] == f"conv4.pth (sha256 {digest[:16]})"
    # A name of torchvision's, which would be fetched.
    monkeypatch.setitem(METHODS, "baseline", lambda backbone, weights: PrototypeBaseline(backbone))
    choice = ModelChoice(backbone="conv4", weights="IMAGENET1K_V1", method="baseline")
    assert choice.build(None)[1]["weights"] == "IMAGENET1K_V1"


def test_every_image_once(photos, tmp_path):
    protocol = EvaluationProtocol(episodes=None, seeds=(0,), input_size=32, square_size=None)
    run_evaluation(tmp_path, CONV4, "fss1000", photos, [None], protocol)
    content = json.loads((tmp_path / "evaluation.json").read_text())
    assert content["environment"]["images_encoded"] == 3 * 4
    assert content["shared_photos"] == []
    assert set(content["scores"]) == {"original"}
    rows = list(csv.DictReader((tmp_path / "evaluation.csv").read_text().splitlines()))
    assert all("every image the query once" in row["protocol"] for row in rows)


def test_too_few_images_are_an_error_before_anything_is_written(photos, tmp_path):
    protocol = EvaluationProtocol(shots=4)
    with pytest.raises(ValueError, match="4-shot episodes need 5 images"):
        run_evaluation(tmp_path / "out", CONV4, "fss1000", photos, [None], protocol)
    with pytest.raises(FileNotFoundError, match="checkpoint not found"):
        run_evaluation(tmp_path / "out", ModelChoice("none.ckpt"), "fss1000", photos, [None], PROTOCOL)
    assert not (tmp_path / "out").exists()


def test_folds_are_read(two_folds):
    assert parse_folds("all", "fss1000") == [None]
    assert parse_folds("all", "folded") == [0, 1]
    assert parse_folds("1, 0", "folded") == [1, 0]
    for text in ("2", "0,0", "-1", "x", ""):
        with pytest.raises(ValueError, match="fold: expected"):
            parse_folds(text, "folded")
    with pytest.raises(ValueError, match="no folds"):
        parse_folds("0", "fss1000")
    with pytest.raises(ValueError, match="'imagenet' is unknown, expected one of pascal5i-p1, "):
        parse_folds("all", "imagenet")


def test_classes_stand_in_place_of_a_fold(photos, tmp_path):
    assert parse_folds("all", "pascal5i-p2", ["cat"]) == [None]
    with pytest.raises(ValueError, match="in place of a fold"):
        parse_folds("1", "pascal5i-p2", ["cat"])
    with pytest.raises(ValueError, match="in place of a fold"):
        open_source("pascal5i-p2", photos, 1, classes=["cat"])
    whole = open_source("fss1000", photos)
    names = [whole.class_names[2], whole.class_names[0]]
    part = open_source("fss1000", photos, classes=names)
    assert part.class_names == names
    assert (part.image_id(0, 1), part.image_id(1, 1)) == (whole.image_id(2, 1), whole.image_id(0, 1))
    for new, old in ((0, 2), (1, 0)):
        assert torch.equal(part.read_labels(new, 1) == new + 1, whole.read_labels(old, 1) == old + 1)
    report = run_evaluation(tmp_path / "out", CONV4, "fss1000", photos, [None], PROTOCOL, classes=names)
    assert list(report.class_spreads("original")) == names
    assert report.protocol_line.startswith(f"{part.description}; 6 episodes")
    assert "not the official test classes" in part.description


def test_pascal_and_coco_are_opened_by_name(tmp_path):
    write_voc(tmp_path, {"val": {"2008_000001": two_boxes(1, 8)}, "train": {"2008_000002": two_boxes(1, 8)}})
    prepare_pascal5i(tmp_path, tmp_path / "out")
    for family, photo in (("p1", "2008_000002"), ("p2", "2008_000001"), ("p3", "2008_000001")):
        by_fold = open_source(f"pascal5i-{family}", tmp_path, 1, prepared=tmp_path / "out")
        assert by_fold.image_id(by_fold.class_names.index("cat"), 0) == photo
        assert f"lists {family.upper()}" in by_fold.description
    by_class = open_source("pascal5i-p2", tmp_path, classes=["aeroplane", "cat"], prepared=tmp_path / "out")
    assert [by_class.num_images(class_id) for class_id in range(2)] == [1, 1]
    pytest.importorskip("pycocotools")
    objects = [{"image_id": 1, "category_id": 1, "segmentation": [box(0, 0, 96, 96)]}]
    for year in (2014, 2017):
        write_photo(tmp_path / f"val{year}" / "1.jpg")
        content = coco_json([{"id": 1, "file_name": "1.jpg"}], objects)
        write_json(tmp_path / "annotations" / f"instances_val{year}.json", content)
        prepare_coco20i(tmp_path, year=year)
    for variant in "ab":
        assert f"split-{variant.upper()} fold 0 test, val2014" in open_source(f"coco20i-{variant}", tmp_path, 0).title
    assert "val2017" in open_source("coco20i-a", tmp_path, 0, year=2017).title


@pytest.mark.parametrize("options", [{"year": 2014}, {"prepared": "out"}, {"classes": ["none"]}, {"classes": []}])
def test_what_a_data_set_does_not_have_is_refused(photos, options):
    with pytest.raises(ValueError, match=f"^{next(iter(options))}: "):
        open_source("fss1000", photos, **options)


def test_a_source_is_opened_by_name(photos, two_folds):
    assert open_source("fss1000", photos).class_names == FSS1000(photos).class_names
    for dataset, fold in (("folded", 2), ("folded", None), ("fss1000", 0)):
        with pytest.raises(ValueError, match="fold"):
            open_source(dataset, photos, fold)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"checkpoint": "a.ckpt", "backbone": "conv4"},
        {"checkpoint": "a.ckpt", "weights": "w.pth"},
        {"backbone": "conv4", "method": "best"},
    ],
)
def test_a_model_is_a_checkpoint_or_a_backbone(options):
    with pytest.raises(ValueError, match=r"either a checkpoint or a backbone|weights go with|method"):
        ModelChoice(**options)
