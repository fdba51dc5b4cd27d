"""Names and links that lead elsewhere: nothing outside the output folder is written or changed."""

import io
import os
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import torchvision.datasets.utils
from command_line import run_cli
from PIL import Image

from fewseg_ext.data.folder import open_folder
from fewseg_ext.data.prepare.coco20i import prepare_coco20i
from fewseg_ext.data.prepare.download import download_coco
from fewseg_ext.data.prepare.fss1000 import prepare_fss1000
from fewseg_ext.data.prepare.pascal5i import prepare_pascal5i
from fewseg_ext.files import TEMPORARY, make_folder, open_to_append, remove_leftovers, write_atomically, write_folder
from fewseg_ext.training.checkpoint import Checkpoint, save_checkpoint
from fewseg_ext.training.log import TrainingLog
from photo_files import box, coco_json, contents, two_boxes, write_json, write_photo, write_voc
from readers import READERS, model
from test_segmenter import photo_and_mask

# Markup of rich, formulas of matplotlib, text in no encoding, an escape sequence, a name as long as there can be.
STRANGE = ("[bold]", "[red]x", "$\\frac{1$ and $", "a\nb", "\x1b[31mred", os.fsdecode(b"\xff\xfe"), "x" * 240, "..x")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    network = model()
    return save_checkpoint(tmp_path / "model" / "biopt.ckpt", Checkpoint(network.config, network.state_dict()))


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder that nobody may touch."""
    (tmp_path / "outside" / "lists").mkdir(parents=True)
    (tmp_path / "outside" / "precious.txt").write_text("precious")
    return tmp_path / "outside"


def class_folders(root: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        for number in range(2):
            photo, mask = photo_and_mask(number)
            Image.fromarray(photo).save(root / name / f"{number}.jpg")
            Image.fromarray(mask.astype(np.uint8) * 255).save(root / name / f"{number}.png")
    return root


def test_strange_names_of_photos(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, name in enumerate(STRANGE):
        Image.fromarray(photo_and_mask(number)[0]).save(tmp_path / "photo.jpg")
        (tmp_path / "photo.jpg").rename(photos / f"{name}.jpg")
    support = class_folders(tmp_path / "support", ("a",)) / "a"
    before = contents(tmp_path)
    arguments = ["--support", f"{support / '0.jpg'}:{support / '0.png'}", "--query", photos, "--out", tmp_path / "out"]
    status, output, errors = run_cli(
        capsys, "segment", "--checkpoint", checkpoint, "--size", 32, *arguments, "--coco", "--labelme"
    )
    assert (status, errors) == (0, "")
    # One that begins with a point is hidden.
    assert f"{len(STRANGE) - 1} photos segmented" in output
    assert len(list((tmp_path / "out" / "labelme").iterdir())) == len(STRANGE) - 1
    assert {name: data for name, data in contents(tmp_path).items() if not name.startswith("out/")} == before


def test_strange_names_of_classes(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = class_folders(tmp_path / "photos", tuple(name for name in STRANGE if name != "..x"))
    before = contents(tmp_path)
    status, output, errors = run_cli(
        capsys,
        *("evaluate", checkpoint, "--dataset", "folder", "--root", root, "--size", 32, "--episodes", 4),
        *("--seeds", 1, "--out", tmp_path / "out"),
    )
    assert status == 0, errors
    assert "[bold]" in output
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *(f"evaluation.{suffix}" for suffix in ("json", "csv", "md")),
        "class_iou.png",
        "examples.png",
    }
    assert {name: data for name, data in contents(tmp_path).items() if not name.startswith("out/")} == before


def test_file_names_of_coco_do_not_lead_out(tmp_path: Path) -> None:
    write_photo(tmp_path / "outside" / "1.jpg")
    write_photo(tmp_path / "data" / "1.jpg")
    names = ["1.jpg", "../outside/1.jpg", "images/../../outside/1.jpg", "a\0b.jpg", "x" * 5000, "", ".."]
    images = [{"id": n, "file_name": name} for n, name in enumerate(names)]
    annotations = [{"image_id": n, "category_id": 1, "segmentation": [box(0, 0, 50, 50)]} for n in range(len(names))]
    path = write_json(tmp_path / "data" / "instances.json", coco_json(images, annotations))
    with pytest.warns(UserWarning, match=f"{len(names) - 1} left out"):
        source = open_folder(path, min_images=1)
    assert [photo.name for photo in source.photos[0]] == ["1.jpg"]
    assert sum("leads out of" in problem for problem in source.problems) >= 2

    write_json(tmp_path / "data" / "annotations" / "instances_val2014.json", coco_json(images, annotations))
    write_photo(tmp_path / "data" / "val2014" / "1.jpg")
    report = prepare_coco20i(tmp_path / "data")
    assert len(report.problems) == len(names) - 1
    assert not [path for path in report.out.rglob("*") if path.is_symlink()]


def test_names_of_photos_in_the_lists_of_voc(tmp_path: Path, outside: Path) -> None:
    write_voc(tmp_path / "data", {"val": {"2008_000001": two_boxes(1, 2)}})
    val = tmp_path / "data" / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation" / "val.txt"
    val.write_text(f"2008_000001\n../../../outside/precious\n{outside}/precious\n..\n")
    before = contents(outside)
    report = prepare_pascal5i(tmp_path / "data")
    assert len(report.problems) == 3
    assert contents(outside) == before


@pytest.mark.parametrize("dataset", ["pascal5i", "coco20i", "fss1000"])
@pytest.mark.parametrize("link", ["", "lists", "masks"])
def test_links_that_came_with_the_data(dataset: str, link: str, tmp_path: Path, outside: Path) -> None:
    """Whoever packed an archive may have put links where `fewseg prepare` writes."""
    root = tmp_path / "data"
    if dataset == "fss1000":
        class_folders(root, ("apple",))
    else:
        root.mkdir()
        READERS["prepare pascal5i, .mat" if dataset == "pascal5i" else "prepare coco20i, photo"].write(root)
    out = root / f"fewseg_{dataset}"
    if link:
        out.mkdir()
    (out / link).symlink_to(outside)
    before = contents(outside)
    prepare = {"pascal5i": prepare_pascal5i, "coco20i": prepare_coco20i, "fss1000": prepare_fss1000}[dataset]
    if link != "masks" or dataset == "pascal5i":
        with pytest.raises(ValueError, match="is a link out of"):
            prepare(root)
    else:
        prepare(root)
    assert contents(outside) == before


def test_links_in_place_of_the_files_that_are_written(tmp_path: Path, outside: Path) -> None:
    """They are replaced, not followed."""
    root = tmp_path / "data"
    root.mkdir()
    READERS["prepare pascal5i, .mat"].write(root)
    READERS["prepare coco20i, photo"].write(root)
    precious = outside / "precious.txt"
    for name in ("fewseg_coco20i", "fewseg_pascal5i/masks"):
        (root / name).mkdir(parents=True)
    for name in (
        *(f"fewseg_coco20i/{file}" for file in ("val2014.masks", ".val2014.masks.tmp", "val2014.json", "report.txt")),
        *(f"fewseg_pascal5i/{file}" for file in ("index.json", "masks/.2007_000009.png.tmp")),
    ):
        (root / name).symlink_to(precious)
    prepare_coco20i(root)
    prepare_pascal5i(root)
    assert precious.read_text() == "precious"
    assert contents(outside) == {"precious.txt": b"precious"}


def test_journals_are_not_written_through_links(
    tmp_path: Path, outside: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    support = class_folders(tmp_path / "support", ("a",)) / "a"
    out = tmp_path / "out"
    out.mkdir()
    arguments = [
        *("segment", "--checkpoint", checkpoint, "--size", 32, "--query", support, "--out", out),
        *("--support", f"{support / '0.jpg'}:{support / '0.png'}"),
    ]
    for name in ("masks", "progress.jsonl"):
        (out / name).symlink_to(outside / "precious.txt" if name != "masks" else outside)
        status, _, errors = run_cli(capsys, *arguments)
        assert status == 1
        assert len(errors.splitlines()) == 1
        assert "link" in errors
        (out / name).unlink()
    assert contents(outside) == {"precious.txt": b"precious"}
    (out / "log.jsonl").symlink_to(outside / "precious.txt")
    log = TrainingLog(out)
    log.write(1, loss=1.0)
    log.close()
    assert contents(outside) == {"precious.txt": b"precious"}
    os.mkfifo(out / "pipe")
    with pytest.raises(ValueError, match="no ordinary file"):
        open_to_append(out / "pipe")


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_members_of_a_downloaded_archive_stay_inside(
    kind: str, tmp_path: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchvision unpacks them; nothing of ours moves what they hold elsewhere."""
    archive = tmp_path / f"train2017.{kind}"
    names = ["train2017/1.jpg", "../../../outside/evil.txt", "train2017/../../../../outside/evil.txt"]
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as file:
            for name in [*names, f"{outside}/evil.txt"]:
                file.writestr(name, "evil")
    else:
        with tarfile.open(archive, "w") as file:
            for name in names[:1]:
                info = tarfile.TarInfo(name)
                info.size = 4
                file.addfile(info, io.BytesIO(b"evil"))

    def fetch(url: str, root: str) -> None:
        shutil.copy(archive, root)
        torchvision.datasets.utils.extract_archive(str(Path(root) / archive.name), root)

    before = contents(outside)
    monkeypatch.setattr(torchvision.datasets.utils, "download_and_extract_archive", fetch)
    with pytest.raises(ConnectionError, match="could not fetch val2017"):  # only one of the folders is in it
        download_coco(tmp_path / "data", 2017)
    assert (tmp_path / "data" / "train2017" / "1.jpg").read_bytes() == b"evil"
    assert contents(outside) == before


# --- the helpers of fewseg_ext.files ----------------------------------------------------------------------------------


def test_make_folder_follows_no_link_out(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "out" / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "out" / "inside").symlink_to(tmp_path / "out" / "real")
    for name in ("link", "link/below", "dangling", "../elsewhere"):
        with pytest.raises(ValueError, match="is a link out of"):
            make_folder(tmp_path / "out" / name, within=tmp_path / "out")
    assert make_folder(tmp_path / "out" / "a" / "b", within=tmp_path / "out").is_dir()
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "out"]
    assert os.listdir(tmp_path / "elsewhere") == []


def test_names_as_long_as_they_can_be(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 251 + ".png")
    write_atomically(path, lambda file: file.write(b"mask"))
    assert path.read_bytes() == b"mask"


def test_leftovers_go_and_what_is_being_written_stays(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / f"{TEMPORARY}dead").write_text("half")
    (tmp_path / f"{TEMPORARY}folder").mkdir()
    (tmp_path / f"{TEMPORARY}folder" / "half").write_text("half")
    (tmp_path / "precious").write_text("precious")
    (tmp_path / f"{TEMPORARY}link").symlink_to(tmp_path / "precious")
    os.mkfifo(tmp_path / f"{TEMPORARY}pipe")

    def fill(folder: Path) -> None:
        (folder / "new").write_text("new")
        remove_leftovers(tmp_path)
        assert (folder / "new").read_text() == "new"

    def write(file: IO[bytes]) -> None:
        file.write(b"whole")
        write_folder(tmp_path / "staged", fill)

    write_atomically(tmp_path / "file", write)
    assert (tmp_path / "file").read_bytes() == b"whole"
    assert (tmp_path / "precious").read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == [f"{TEMPORARY}link", f"{TEMPORARY}pipe", "file", "precious", "staged", "sub"]
    assert os.listdir(tmp_path / "sub") == []
