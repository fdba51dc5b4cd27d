"""``fewseg segment``: files written, resuming, mistakes, annotation files read by their own libraries."""

import base64
import csv
import io
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import fewseg_ext
from fewseg_ext import cli
from fewseg_ext.data.synthetic import SyntheticConfig, make_classes
from fewseg_ext.segment import command
from fewseg_ext.segment.annotations import Annotated, coco_json, labelme_json
from fewseg_ext.segment.command import Support, find_photos, parse_support, run_segment
from fewseg_ext.training.checkpoint import Checkpoint, save_checkpoint
from photo_files import contents
from test_segmenter import photo_and_mask


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The help's example, in a folder with what `fewseg demo` leaves there."""
    text = next(command.epilog for command in cli.app.registered_commands if command.callback is cli.segment)
    arguments = shlex.split(text.split(": fewseg ", 1)[1])
    torch.manual_seed(0)
    model = fewseg_ext.BiOpt("conv4")
    save_checkpoint(tmp_path / "runs/demo/biopt.ckpt", Checkpoint(model.config, model.state_dict()))
    folder = Path(re.search(r"unseen/\w+", text)[0]).name
    assert folder in [kind.name for kind in make_classes(SyntheticConfig())["unseen"]]
    photos = tmp_path / "runs/demo/data/unseen" / folder
    photos.mkdir(parents=True)
    for number in range(1, 5):
        photo, mask = photo_and_mask(number, 40 + number, 50)
        Image.fromarray(photo).save(photos / f"{number}.jpg", quality=95)
        Image.fromarray(mask).save(photos / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    return arguments


def run(arguments: list[str]) -> tuple[int, str]:
    """Exit status and everything printed."""
    result = CliRunner().invoke(cli.app, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_the_example_of_the_help_writes_everything_below_out(example: list[str], tmp_path: Path) -> None:
    before = set(contents(tmp_path))
    status, output = run(example)
    assert status == 0, output
    written = set(contents(tmp_path)) - before
    assert written == {
        *(f"runs/segment/masks/{n}.png" for n in range(1, 5)),
        *(f"runs/segment/overlays/{n}.png" for n in range(1, 5)),
        *(f"runs/segment/{name}" for name in ("summary.csv", "contact_sheet.jpg", "progress.jsonl")),
    }
    with open("runs/segment/summary.csv") as file:
        rows = list(csv.DictReader(file))
    uncertainty = [float(row["uncertainty"]) for row in rows]
    assert len(rows) == 4
    assert uncertainty == sorted(uncertainty, reverse=True)
    for row in rows:
        mask = np.array(Image.open(f"runs/segment/masks/{row['name']}.png"))
        with Image.open(row["photo"]) as photo:
            assert mask.shape == photo.size[::-1]
        assert abs(100 * (mask > 0).mean() - float(row["area_percent"])) < 0.001


def test_goes_on_where_it_stopped(example: list[str]) -> None:
    out = Path("runs/segment")
    run(example)
    before = contents(out / "masks")
    # As if killed while the third photo was written: its line is cut off.
    lines = [line for line in (out / "progress.jsonl").read_text().splitlines() if line]
    (out / "progress.jsonl").write_text("\n".join([*lines[:2], lines[2][:40]]))
    times = {path.name: path.stat().st_mtime_ns for path in (out / "masks").iterdir()}
    status, output = run(example)
    assert status == 0
    assert "4 photos segmented (2 of them by an earlier run)" in output
    assert contents(out / "masks") == before
    again = {path.name: path.stat().st_mtime_ns for path in (out / "masks").iterdir()}
    assert sorted(name for name in times if times[name] == again[name]) == ["1.png", "2.png"]
    assert "(" not in run([*example, "--steps", "3"])[1].split("segmented")[1]


def test_a_bad_file_is_reported_and_the_rest_is_done(example: list[str]) -> None:
    folder = Path(example[example.index("--query") + 1])
    (folder / "2b.jpg").write_bytes((folder / "2.jpg").read_bytes()[:500])
    status, output = run(example)
    assert status == 1
    assert "2b.jpg cannot be read" in output.replace("\n", "")
    assert "4 photos segmented" in output
    assert len(list(Path("runs/segment/masks").iterdir())) == 4


def test_photos_that_are_gone_and_more_than_a_screen_shows(
    example: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    support = parse_support(example[example.index("--support") + 1])
    segmenter = fewseg_ext.Segmenter.from_checkpoint("runs/demo/biopt.ckpt", size=64)
    summary = run_segment("out", segmenter, [support], [Path("gone.jpg")])
    assert "No such file" in summary.failures["gone.jpg"]
    assert len(Path("out/summary.csv").read_text().splitlines()) == 1
    assert not Path("out/contact_sheet.jpg").exists()
    monkeypatch.setattr(command, "SHOWN_ROWS", 3)
    assert "and 1 more in summary.csv" in run(example)[1]


def test_mistakes_write_nothing(example: list[str]) -> None:
    place = example.index("--support") + 1
    for support, error in ((":", "expected IMG:MASK"), ("a.jpg:b.png", "a.jpg|b.png")):
        wrong = [*example[:place], support, *example[place + 1 :]]
        try:
            status, output = run(wrong)
            assert status == 2
            assert error in output
        except FileNotFoundError as problem:
            assert re.search(error, str(problem))
    assert run([*example, "--backbone", "conv4"])[0] == 2
    with pytest.raises(ValueError, match="give every one a class name"):
        run([*example, "--support", f"cat={example[place]}"])
    with pytest.raises(FileNotFoundError, match="query not found: nowhere"):
        run([*example, "nowhere"])
    assert not Path("runs/segment").exists()


def test_coco_json_is_read_by_pycocotools(example: list[str]) -> None:
    from pycocotools.coco import COCO

    assert run([*example, "--coco"])[0] == 0
    coco = COCO("runs/segment/annotations.json")
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == ["object"]
    assert len(coco.imgs) == 4
    for image in coco.imgs.values():
        mask = np.array(Image.open(f"runs/segment/masks/{Path(image['file_name']).stem}.png"))
        (annotation,) = coco.loadAnns(coco.getAnnIds(image["id"]))
        np.testing.assert_array_equal(coco.annToMask(annotation), mask)
        assert annotation["area"] == mask.sum()


def test_annotations_leave_out_a_class_that_is_not_in_the_photo() -> None:
    photo = Annotated(Path("a.jpg"), np.full((4, 4), 7, np.uint8), 0.9)
    content = coco_json([photo], ["cat", "dog"], [3, 7])
    assert [annotation["category_id"] for annotation in content["annotations"]] == [2]
    shapes = labelme_json(photo, Path("labelme"), ["cat", "dog"], [3, 7])["shapes"]
    assert [shape["label"] for shape in shapes] == ["dog"]


def labelme_masks(path: Path) -> list[tuple[str, list, np.ndarray]]:
    """Label, box and mask of every shape, as LabelMe's documentation of the format says."""
    shapes = json.loads(path.read_text())["shapes"]
    decoded = [np.array(Image.open(io.BytesIO(base64.b64decode(shape["mask"])))) for shape in shapes]
    return [(shape["label"], shape["points"], mask) for shape, mask in zip(shapes, decoded, strict=True)]


@pytest.mark.parametrize("reader", ["format", "labelme"])
def test_labelme_json_holds_the_masks(example: list[str], reader: str) -> None:
    if reader == "labelme":
        library = pytest.importorskip("labelme", exc_type=ImportError)
    assert run([*example, "--labelme"])[0] == 0
    for path in Path("runs/segment/labelme").iterdir():
        if reader == "labelme":
            # Reads the photo too, and compares its size with the file's.
            shapes = [(s["label"], s["points"], s["mask"]) for s in library.LabelFile(str(path)).shapes]
        else:
            content = json.loads(path.read_text())
            assert (path.parent / content["imagePath"]).is_file()
            shapes = labelme_masks(path)
        expected = np.array(Image.open(f"runs/segment/masks/{path.stem}.png"))
        mask = np.zeros_like(expected)
        for label, ((left, top), (right, bottom)), box in shapes:
            assert label == "object"
            mask[top : bottom + 1, left : right + 1][np.asarray(box) > 0] = 1
        np.testing.assert_array_equal(mask, expected)


def test_names_of_supports_with_colons_and_equal_signs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a:b.jpg", "m:1.png", "x=y.jpg", "a.jpg", "m.png"):
        Path(name).touch()
    assert parse_support("a:b.jpg:m:1.png") == Support(Path("a:b.jpg"), Path("m:1.png"))
    assert parse_support("x=y.jpg:m.png") == Support(Path("x=y.jpg"), Path("m.png"))
    assert parse_support("=none.jpg:m.png") == Support(Path("=none.jpg"), Path("m.png"))
    assert parse_support("cat=a.jpg:m.png") == Support(Path("a.jpg"), Path("m.png"), "cat")
    assert parse_support("cat=x=y.jpg:m.png") == Support(Path("x=y.jpg"), Path("m.png"), "cat")
    assert parse_support(r"C:\a.jpg:C:\m.png") == Support(Path(r"C:\a.jpg"), Path(r"C:\m.png"))
    for wrong in ("a.jpg", ":m.png", "a.jpg:", r"C:\a.jpg"):
        with pytest.raises(ValueError, match="expected IMG:MASK"):
            parse_support(wrong)


def test_photos_of_a_folder_without_masks_and_twins(tmp_path: Path) -> None:
    for name in ("1.jpg", "1.png", "2.png", "m.png", ".hidden.jpg", "notes.txt"):
        (tmp_path / name).touch()
    support = Support(tmp_path / "2.png", tmp_path / "m.png")
    found = find_photos([tmp_path, tmp_path / "1.jpg"], [support])
    assert [path.name for path in found] == ["1.jpg", "2.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no photos"):
        find_photos([tmp_path / "empty"])
