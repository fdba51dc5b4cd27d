"""Broken, bogus and malicious files: refused in a line, without running away, and without a trace anywhere else."""

import base64
import json
import os
import pickle
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import fewseg_ext
from corpus import RunsCode, deep_json, image_bombs, json_bombs, safetensors_file, yaml_bombs, zip_bomb
from fewseg_ext.data.coco import decode_rle, load_coco, mask_tools
from fewseg_ext.data.folder import LabelMasks, open_folder
from fewseg_ext.data.pascal import load_index
from fewseg_ext.data.photos import check_photo, read_image, read_mask
from fewseg_ext.data.prepare.coco20i import prepare_coco20i
from fewseg_ext.data.prepare.pascal5i import prepare_pascal5i
from fewseg_ext.files import read_json
from fewseg_ext.models.backbones import build_backbone, read_weights
from fewseg_ext.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from fewseg_ext.training.recipe import UsageError, compose
from fewseg_ext.web.limits import Limits, read_upload
from fewseg_ext.web.session import PNG_PREFIX, decode_mask
from fuzz import fuzz
from photo_files import SIDE, box, coco_json, write_json, write_photo
from readers import READERS, model

QUICK = [name for name, reader in READERS.items() if not reader.slow]


@pytest.mark.parametrize("name", QUICK)
def test_a_few_broken_files_of_every_kind(name: str, tmp_path: Path) -> None:
    assert fuzz(name, tmp_path / "fuzz", 0, 3) == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_hundreds_of_broken_files_of_every_kind(name: str, tmp_path: Path) -> None:
    """In a process of its own, which a crash would end."""
    count = int(os.environ.get("FEWSEG_FUZZ", "25" if READERS[name].slow else "150"))
    folders = [str(Path(__file__).parents[1] / part) for part in ("", "training", "hostile")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(folders)}
    command = [sys.executable, str(Path(__file__).with_name("fuzz.py")), str(tmp_path), "1", str(count), name]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=1800)
    current = tmp_path / "current"
    assert done.returncode == 0, (current.read_text() if current.exists() else "", done.stderr[-2000:])
    assert json.loads(done.stdout) == {}


# --- bombs ------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_pictures_that_say_they_are_huge(tmp_path: Path) -> None:
    for name, content in image_bombs().items():
        path = tmp_path / name
        path.write_bytes(content)
        for read in (read_image, read_mask):
            with pytest.raises(ValueError, match="cannot be read"):
                read(path)
        assert "cannot be read" in str(check_photo(path))
        with pytest.raises(ValueError, match=r"megapixels|not an image|cannot be read|refuses"):
            read_upload(path, Limits())
        with pytest.raises(ValueError, match="could not be read"):
            decode_mask(PNG_PREFIX + base64.b64encode(content).decode(), (60000, 60000))


def test_json_without_end(tmp_path: Path) -> None:
    path = tmp_path / "instances.json"
    for text in json_bombs().values():
        path.write_text(text)
        for read in (read_json, load_coco, load_index):
            with pytest.raises(ValueError, match=r"instances\.json"):
                read(path)
    path.write_text("{}")
    (tmp_path / "segmenter.json").write_text(deep_json())
    with pytest.raises(ValueError, match="not a saved segmenter, or is damaged"):
        fewseg_ext.Segmenter.load(tmp_path)


@pytest.mark.parametrize("name", yaml_bombs())
def test_yaml_that_grows(name: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml_bombs()[name])
    with pytest.raises(UsageError, match=r"recipe\.yaml"):
        compose(str(path))


@pytest.mark.parametrize("kind", ["checkpoint", "weights"])
def test_a_checkpoint_that_unpacks_to_hundreds_of_megabytes(kind: str, tmp_path: Path) -> None:
    network = model()
    path = tmp_path / "bomb.pth"
    if kind == "checkpoint":
        save_checkpoint(path, Checkpoint(network.config, network.state_dict()))
    else:
        torch.save(network.backbone.state_dict(), path)
    size = 50_000_000
    path.write_bytes(zip_bomb(path.read_bytes(), size=size))
    assert path.stat().st_size < size / 20
    with pytest.raises(ValueError, match="damaged"):
        load_checkpoint(path) if kind == "checkpoint" else read_weights(path)


def test_sizes_in_a_checkpoint_are_believed_once_the_weights_have_them(tmp_path: Path) -> None:
    """Built as it says, the decoder of this one would take a terabyte."""
    network = model("VPI")
    path = tmp_path / "huge.ckpt"
    save_checkpoint(path, Checkpoint({**network.config, "width": 2**17, "latent_dim": 2**17}, network.state_dict()))
    with pytest.raises(ValueError, match="of another shape"):
        fewseg_ext.Segmenter.from_checkpoint(path)
    for changed in ({"num_samples": 10**9}, {"name": "Trojan"}, {"backbone": 5}, {"colour": "red"}, {"width": "64"}):
        save_checkpoint(path, Checkpoint({**network.config, **changed}, network.state_dict()))
        with pytest.raises(ValueError, match=r"huge.ckpt: "):
            fewseg_ext.Segmenter.from_checkpoint(path)


def test_safetensors_headers(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    tensor = {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]}
    for content in (
        safetensors_file({}, length=2**62),
        safetensors_file(b"{" * 100_000),
        safetensors_file({"a": tensor}, bytes(8)),
        safetensors_file({"a": {**tensor, "shape": [2], "data_offsets": [0, 2**50]}}, bytes(8)),
        safetensors_file({"a": {**tensor, "shape": [-2]}}, bytes(8)),
        b"",
        pickle.dumps({"a": 1}),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read: it is damaged"):
            build_backbone("conv4", path)


# --- what would run ---------------------------------------------------------------------------------------------------


def test_no_code_of_a_file_runs(tmp_path: Path) -> None:
    """Pickles in every file of torch that is read, and in the formats of old versions."""
    made = tmp_path / "made by a pickle"
    network = model()
    path = tmp_path / "model.ckpt"
    content = {"format": 1, **vars(Checkpoint(network.config, network.state_dict()))}
    contents = [content | {"history": [RunsCode(made)]}, RunsCode(made), {"blocks.0.0.weight": RunsCode(made)}]
    for content in contents:
        for options in ({}, {"_use_new_zipfile_serialization": False}):
            torch.save(content, path, **options)
            with pytest.raises(ValueError, match="damaged"):
                load_checkpoint(path)
            with pytest.raises(ValueError, match="damaged"):
                read_weights(path)
    path.write_bytes(pickle.dumps(RunsCode(made)))
    for read in (load_checkpoint, read_weights):
        with pytest.raises(ValueError, match="damaged"):
            read(path)
    assert not made.exists()
    torch.load(path := _saved(tmp_path / "proof.pth", RunsCode(made)), weights_only=False)
    assert made.exists(), f"{path} would have shown it"


def _saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def test_postscript_is_not_handed_to_ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    pretended = tmp_path / "bin" / "gs"
    pretended.write_text(f"#!/bin/sh\ntouch '{tmp_path / 'ran'}'\n")
    pretended.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    photo = tmp_path / "photo.jpg"
    photo.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n")
    for read in (read_image, read_mask):
        with pytest.raises(ValueError, match="PostScript is a program"):
            read(photo)
    with pytest.raises(ValueError, match="PostScript is a program"):
        read_upload(photo, Limits())
    assert not (tmp_path / "ran").exists()
    # The pretended one draws nothing.
    with suppress(OSError), Image.open(photo) as file:
        file.load()
    assert (tmp_path / "ran").exists(), "Pillow would have started it"


# --- COCO's masks, which pycocotools decodes in C ---------------------------------------------------------------------


def test_run_length_codes_are_those_of_pycocotools() -> None:
    tools, rng = mask_tools(), np.random.default_rng(0)
    for _ in range(50):
        height, width = (int(n) for n in rng.integers(1, 70, 2))
        mask = np.asfortranarray(rng.random((height, width)) < rng.choice([0, 0.02, 0.5, 0.98, 1])).astype(np.uint8)
        counts = tools.encode(mask)["counts"]
        np.testing.assert_array_equal(decode_rle(counts, height, width), mask)
        np.testing.assert_array_equal(decode_rle(counts.decode(), height, width), mask)


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [SIDE, SIDE], "counts": [0] * 200_000 + [SIDE * SIDE]},  # more runs than pixels
        {"size": [SIDE, SIDE], "counts": "0" * 200_000},
        {"size": [SIDE, SIDE], "counts": "0" * 40_000 + "P" * 40_000},
        {"size": [SIDE, SIDE], "counts": [-5, SIDE * SIDE + 5]},
        {"size": [SIDE, SIDE], "counts": [10**30]},
        {"size": [SIDE, SIDE], "counts": "o" * 100},
        {"size": [SIDE, SIDE], "counts": ""},
        {"size": [SIDE, SIDE], "counts": None},
        [[0, 0, 1e9, 0, 1e9, 1e9]],  # as long as all memory
        [[0, 0, 1e300, 0, float("nan"), float("inf")]],
        [[0, 0, SIDE, SIDE] * 100_000],
        [["a", "b", "c", "d", "e", "f"]],
        [[10**400] * 6],
        ["123456"],
        {"size": None, "counts": [1]},
        5,
    ],
    ids=range(16),
)
def test_masks_that_pycocotools_would_run_away_with(segmentation: object, tmp_path: Path) -> None:
    """Some of these write beyond pycocotools' memory or take all there is: in a process of its own."""
    annotations = [
        {"image_id": 1, "category_id": 1, "segmentation": shape} for shape in ([box(0, 0, 50, 50)], segmentation)
    ]
    images = [{"id": 1, "file_name": "1.jpg"}]
    path = write_json(tmp_path / "instances.json", coco_json(images, annotations))
    write_photo(tmp_path / "1.jpg")
    with pytest.warns(UserWarning, match="annotation 2"):
        source = open_folder(path, min_images=1)
    assert len(source.problems) == 1
    assert source.read(0, 0)[1].sum() == 2500


# --- other ways to keep a reader busy ---------------------------------------------------------------------------------


def test_pipes_and_devices_are_not_waited_for(tmp_path: Path) -> None:
    for name in ("pipe.jpg", "pipe.json", "classes.txt"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "folder.jpg").mkdir()
    for name in ("pipe.jpg", "zero.jpg", "folder.jpg"):
        with pytest.raises(ValueError, match="no ordinary file"):
            read_image(tmp_path / name)
        assert "no ordinary file" in str(check_photo(tmp_path / name))
    with pytest.raises(ValueError, match="no ordinary file"):
        open_folder(tmp_path)


def test_many_names_do_not_take_time_squared(tmp_path: Path) -> None:
    """A hundred thousand, of which each was once compared with each."""
    names = [f"class {number}" for number in range(100_000)]
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    (tmp_path / "classes.txt").write_text("\n".join(names))
    write_photo(tmp_path / "images" / "1.jpg")
    Image.fromarray(np.ones((SIDE, SIDE), np.uint8)).save(tmp_path / "masks" / "1.png")
    assert LabelMasks(tmp_path, 1).class_names == ["class 0"]
    categories = [{"id": number, "name": name} for number, name in enumerate(names)]
    annotation = {"image_id": 1, "category_id": 7, "segmentation": [box(0, 0, 50, 50)]}
    images = [{"id": 1, "file_name": "1.jpg"}]
    path = write_json(tmp_path / "images" / "instances.json", coco_json(images, [annotation], categories))
    assert open_folder(path, min_images=1).class_names == ["class 7"]


def test_label_masks_of_noise_are_reported(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    rng = np.random.default_rng(0)
    for name, mask in (("1", np.ones((SIDE, SIDE), np.uint16)), ("2", rng.integers(0, 65536, (SIDE, SIDE), np.uint16))):
        write_photo(tmp_path / "images" / f"{name}.jpg")
        Image.fromarray(mask).save(tmp_path / "masks" / f"{name}.png")
    with pytest.warns(UserWarning, match=r"2\.png: label \d+; expected 0 background"):
        source = LabelMasks(tmp_path, 1)
    assert source.class_names == ["1"]
    # A class without a name is called by its number, which may be another one's name.
    (tmp_path / "classes.txt").write_text("2\n")
    Image.fromarray(np.full((SIDE, SIDE), 2, np.uint8)).save(tmp_path / "masks" / "2.png")
    with pytest.raises(ValueError, match="by the number of another"):
        LabelMasks(tmp_path, 1)


def test_a_category_that_coco_does_not_have_is_left_out(tmp_path: Path) -> None:
    images = [{"id": 1, "file_name": "1.jpg"}]
    annotations = [{"image_id": 1, "category_id": c, "segmentation": [box(0, 0, 50, 50)]} for c in (1, 12)]
    write_json(tmp_path / "annotations" / "instances_val2014.json", coco_json(images, annotations))
    write_photo(tmp_path / "val2014" / "1.jpg")
    report = prepare_coco20i(tmp_path)
    assert "val2014: photo 1: 12 is no category of COCO" in report.problems


def test_a_mat_file_that_would_unpack_to_gigabytes_is_left_alone(tmp_path: Path) -> None:
    READERS["prepare pascal5i, .mat"].write(tmp_path)
    mat = tmp_path / "sbd" / "cls" / "2007_000009.mat"
    mat.write_bytes(mat.read_bytes() + bytes(1_000_000))
    report = prepare_pascal5i(tmp_path)
    assert any("2007_000009.mat cannot be read: no file of at most" in problem for problem in report.problems)


def test_a_saved_segmenter_whose_parts_do_not_belong_together(tmp_path: Path) -> None:
    READERS["saved segmenter, settings"].write(tmp_path)
    folder = tmp_path / "saved"
    settings = json.loads((folder / "segmenter.json").read_text())
    for changed in (
        {"size": 10**9},
        {"size": "64"},
        {"class_names": "cat"},
        {"class_names": []},
        {"class_names": ["a", "b"]},
        {"values": [0]},
        {"values": [300]},
        {"model": []},
        {"model": {**settings["model"], "inner_steps": 10**12}},
        {"format": 10**9},
    ):
        (folder / "segmenter.json").write_text(json.dumps({**settings, **changed}))
        with pytest.raises(ValueError, match="not a saved segmenter, or is damaged"):
            fewseg_ext.Segmenter.load(folder)
    (folder / "segmenter.json").write_text(json.dumps(settings))
    for prototypes in (torch.zeros(1, 3, 64), torch.full((1, 2, 64), float("nan")), torch.zeros(1, 2, 64).long()):
        save_file({"prototypes": prototypes}, folder / "support.safetensors")
        with pytest.raises(ValueError, match="do not belong to the model"):
            fewseg_ext.Segmenter.load(folder)
