"""Everything of the package that reads a file, each with whole files of its kind, so that tests can break them."""

import base64
import io
import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

import fewseg_ext
from fewseg_ext.data.coco import COCO20i
from fewseg_ext.data.folder import foreground, open_folder
from fewseg_ext.data.pascal import Pascal5i
from fewseg_ext.data.photos import PhotoSource, check_photo, read_grey, read_image, read_mask
from fewseg_ext.data.prepare.coco20i import prepare_coco20i
from fewseg_ext.data.prepare.fss1000 import prepare_fss1000
from fewseg_ext.data.prepare.pascal5i import prepare_pascal5i, read_published_lists
from fewseg_ext.evaluation.command import ModelChoice
from fewseg_ext.models.backbones import build_backbone
from fewseg_ext.segment.command import Support, run_segment
from fewseg_ext.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from fewseg_ext.training.log import TrainingLog
from fewseg_ext.training.recipe import parse_arguments
from fewseg_ext.training.run import run_training
from fewseg_ext.web.limits import Limits, read_upload
from fewseg_ext.web.session import PNG_PREFIX, decode_mask
from photo_files import box, coco_json, two_boxes, write_json, write_photo, write_voc
from test_segmenter import photo_and_mask

SIZE = 32
# What the command tells in a line (`fewseg_ext.cli`); anything else would be a traceback.
PLAIN = (ValueError, OSError, ImportError)


@dataclass(frozen=True)
class Reader:
    """Files that belong together, the one of them that gets broken, and what reads it."""

    write: Callable[[Path], None]  # whole files into a folder
    target: str  # the one to break
    reads: tuple[Callable[[Path], Any], ...]  # each is given the folder; writes into folder/"out" alone
    # A damaged file is to be reported with the rest, not to end it.
    goes_on: bool = False
    # How values inside the file can be replaced: its content as dictionaries and lists, and back.
    load: Callable[[Path], Any] | None = None
    save: Callable[[Path, Any], None] | None = None
    slow: bool = False


def model(name: str = "BiOpt") -> Any:
    torch.manual_seed(0)
    return fewseg_ext.BiOpt("conv4", inner_steps=2) if name == "BiOpt" else fewseg_ext.VPI("conv4", None, 8, 8)


def fitted(segmenter: fewseg_ext.Segmenter) -> fewseg_ext.Segmenter:
    photo, mask = photo_and_mask()
    return segmenter.fit([photo], [mask])


def predict(segmenter: fewseg_ext.Segmenter) -> None:
    segmenter.predict(photo_and_mask(1)[0]).overlay()


def read_all(source: PhotoSource) -> None:
    for class_id in range(len(source.class_names)):
        for index in range(source.num_images(class_id)):
            source.read(class_id, index)


# --- photos and masks ------------------------------------------------------------------------------------------------


def _image(mode: str, **options: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        photo, mask = photo_and_mask(2, 40, 44)
        picture = Image.fromarray(photo) if mode not in ("L", "P", "1", "I;16") else Image.fromarray(mask).convert("L")
        if mode == "P":
            picture = picture.convert("P", palette=Image.Palette.ADAPTIVE)
        elif mode == "I;16":
            picture = Image.fromarray(mask.astype(np.uint16) * 300)
        else:
            picture = picture.convert(mode)
        picture.save(folder / "photo", **options)

    return write


def _decode_mask(folder: Path) -> None:
    content = (folder / "photo").read_bytes()
    decode_mask(PNG_PREFIX + base64.b64encode(content).decode(), (40, 44))


IMAGE_READS: tuple[Callable[[Path], Any], ...] = (
    lambda folder: read_image(folder / "photo"),
    lambda folder: read_mask(folder / "photo"),
    lambda folder: read_grey(folder / "photo"),
    lambda folder: foreground(folder / "photo"),
    lambda folder: check_photo(folder / "photo"),
    lambda folder: read_upload(folder / "photo", Limits()),
)
EXIF = Image.Exif()
EXIF[0x0112] = 6
IMAGES = {
    "jpeg": _image("RGB", format="JPEG", exif=EXIF),
    "progressive jpeg": _image("RGB", format="JPEG", progressive=True),
    "png": _image("RGB", format="PNG"),
    "png with alpha": _image("RGBA", format="PNG"),
    "palette": _image("P", format="PNG"),
    "grey": _image("L", format="PNG"),
    "one bit": _image("1", format="PNG"),
    "16 bits": _image("I;16", format="PNG"),
    "webp": _image("RGB", format="WEBP"),
    "bmp": _image("RGB", format="BMP"),
    "tiff": _image("RGB", format="TIFF"),
    "tiff lzw": _image("RGB", format="TIFF", compression="tiff_lzw"),
    "gif": _image("P", format="GIF"),
    "ppm": _image("RGB", format="PPM"),
    "tga": _image("RGB", format="TGA"),
}


def _support(folder: Path) -> None:
    photo, mask = photo_and_mask()
    Image.fromarray(photo).save(folder / "photo.jpg")
    Image.fromarray(mask).save(folder / "photo.png")


def _fit(folder: Path) -> None:
    fewseg_ext.Segmenter(model(), size=SIZE).fit(folder / "photo.jpg", folder / "photo.png")


def _class_folders(folder: Path) -> None:
    for name in ("apple", "pear"):
        for number in range(3):
            photo, mask = photo_and_mask(number)
            (folder / name).mkdir(exist_ok=True)
            Image.fromarray(photo).save(folder / name / f"{number}.jpg")
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / name / f"{number}.png")


def _label_masks(folder: Path) -> None:
    for number in range(3):
        photo, mask = photo_and_mask(number)
        for name in ("images", "masks"):
            (folder / name).mkdir(exist_ok=True)
        Image.fromarray(photo).save(folder / "images" / f"{number}.jpg")
        Image.fromarray(mask.astype(np.uint8) * (1 + number % 2)).save(folder / "masks" / f"{number}.png")
    (folder / "classes.txt").write_text("apple\npear\n")


# --- COCO, PASCAL, FSS-1000 ------------------------------------------------------------------------------------------


def _instances() -> dict[str, Any]:
    images = [{"id": n, "file_name": f"COCO_val2014_{n:012d}.jpg"} for n in range(1, 4)]
    runs = [100, 2200, 96 * 96 - 2300]
    shapes = [
        [box(0, 0, 60, 60), box(60, 60, 90, 90)],
        {"size": [96, 96], "counts": runs},
        {"size": [96, 96], "counts": "T3`t0hK0Q3"},
        [[10.5, 10.5, 80.25, 12, 40, 90]],
    ]
    annotations = [
        {
            "image_id": 1 + n % 3,
            "category_id": 1 + n % 2,
            "segmentation": shapes[n % 4],
            "area": 9,
            "bbox": [0, 0, 9, 9],
        }
        for n in range(8)
    ]
    return coco_json(images, annotations)


def _coco(folder: Path) -> None:
    write_json(folder / "annotations" / "instances_val2014.json", _instances())
    for number in range(1, 4):
        write_photo(folder / "val2014" / f"COCO_val2014_{number:012d}.jpg", seed=number)


def _prepared_coco(folder: Path) -> None:
    _coco(folder)
    prepare_coco20i(folder)


def _read_coco(folder: Path) -> None:
    for fold in range(4):
        read_all(COCO20i(folder, fold))


def _prepare_coco(folder: Path) -> None:
    prepare_coco20i(folder, folder / "out")
    # Classes 1 and 2 are both of fold 0.
    read_all(COCO20i(folder, 0, prepared=folder / "out"))


def _voc(folder: Path) -> None:
    sets = {
        "train": {"2007_000001": two_boxes(1, 2), "2007_000002": two_boxes(6, 2)},
        "val": {"2008_000001": two_boxes(1, 3)},
    }
    write_voc(folder, sets)


def _prepared_voc(folder: Path) -> None:
    _voc(folder)
    prepare_pascal5i(folder)


def _sbd(folder: Path) -> None:
    _voc(folder)
    (folder / "sbd" / "cls").mkdir(parents=True)
    (folder / "sbd" / "train.txt").write_text("2007_000009\n")
    write_photo(folder / "VOCdevkit" / "VOC2012" / "JPEGImages" / "2007_000009.jpg")
    content = {"GTcls": {"Segmentation": two_boxes(4, 5), "Boundaries": np.zeros((2, 2)), "CategoriesPresent": [4, 5]}}
    scipy.io.savemat(folder / "sbd" / "cls" / "2007_000009.mat", content, do_compression=True)


def _published(folder: Path) -> None:
    (folder / "lists").mkdir()
    (folder / "lists" / "fold0.txt").write_text("2007_000033__01\n2007_000039__20\n")


# --- models ----------------------------------------------------------------------------------------------------------


def _checkpoint(name: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        network = model(name)
        optimizer = torch.optim.AdamW(network.parameters()).state_dict()
        content = Checkpoint(network.config, network.state_dict(), optimizer, 3, [1.0, 0.5, 0.25], photo_hashes=["00"])
        save_checkpoint(folder / "model.ckpt", content)

    return write


def _load_torch(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def _from_checkpoint(folder: Path) -> None:
    predict(fitted(fewseg_ext.Segmenter.from_checkpoint(folder / "model.ckpt", size=SIZE)))


def _saved_segmenter(folder: Path) -> None:
    fitted(fewseg_ext.Segmenter(model(), size=SIZE)).save(folder / "saved")


def _load_segmenter(folder: Path) -> None:
    predict(fewseg_ext.Segmenter.load(folder / "saved"))


def _weights(suffix: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        state = build_backbone("conv4").state_dict()
        if suffix == ".pth":
            torch.save(state, folder / "conv4.pth")
        else:
            save_file(state, folder / "conv4.safetensors")

    return write


RECIPE = """
use: [laptop/small]
method: BiOpt
model: {backbone: conv4, inner_steps: 2}
data: {name: folder, root: photos, size: 32, validation_classes: 0}
training: {iterations: 2, batch_size: 2, lr: 0.001, decay_at: [1], schedule: step}
run: {save_every: 2}
beside: {5shot: {training: {batch_size: 1}}}
"""
TRAIN = (
    "--config laptop/biopt --model.inner_steps 1 --data.name folder --data.size 32 --data.validation_classes 1 "
    "--training.batch_size 1 --training.iterations 1 --run.validate_every 1 --run.validation_episodes 1"
)


def _training(folder: Path) -> None:
    _class_folders(folder / "photos" if (folder / "photos").mkdir() is None else folder)
    _train(folder)


def _train(folder: Path) -> None:
    recipe, _, _ = parse_arguments([*TRAIN.split(), "--data.root", str(folder / "photos")])
    run_training(recipe, folder / "out")


def _segmented(folder: Path) -> None:
    _support(folder)
    _segment(folder)


def _segment(folder: Path) -> None:
    segmenter = fewseg_ext.Segmenter(model(), size=SIZE)
    support = Support(folder / "photo.jpg", folder / "photo.png")
    run_segment(folder / "out", segmenter, [support], [folder / "photo.jpg"], labelme=True)


def _log(folder: Path) -> None:
    log = TrainingLog(folder / "out" if (folder / "out").mkdir(exist_ok=True) is None else folder)
    for iteration in range(1, 4):
        log.write(iteration, loss=1.0)
    log.close()


def _json(path: Path) -> Any:
    return json.loads(path.read_text())


def _save_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


def _save_yaml(path: Path, content: Any) -> None:
    path.write_text(yaml.safe_dump(content))


READERS: dict[str, Reader] = {
    **{name: Reader(write, "photo", IMAGE_READS) for name, write in IMAGES.items()},
    "mask of the page": Reader(IMAGES["png with alpha"], "photo", (_decode_mask,)),
    "support photo": Reader(_support, "photo.jpg", (_fit,)),
    "support mask": Reader(_support, "photo.png", (_fit,)),
    "class folders, photo": Reader(
        _class_folders, "apple/1.jpg", (lambda folder: read_all(open_folder(folder)),), goes_on=True
    ),
    "class folders, mask": Reader(
        _class_folders, "apple/1.png", (lambda folder: read_all(open_folder(folder)),), goes_on=True
    ),
    "label masks": Reader(_label_masks, "masks/0.png", (lambda folder: read_all(open_folder(folder, min_images=1)),)),
    "names of classes": Reader(
        _label_masks, "classes.txt", (lambda folder: read_all(open_folder(folder, min_images=1)),)
    ),
    "instances": Reader(
        _coco,
        "annotations/instances_val2014.json",
        (lambda folder: read_all(open_folder(folder / "annotations" / "instances_val2014.json", min_images=1)),),
        load=_json,
        save=_save_json,
    ),
    "prepare coco20i, instances": Reader(
        _coco, "annotations/instances_val2014.json", (_prepare_coco,), load=_json, save=_save_json, slow=True
    ),
    "prepare coco20i, photo": Reader(
        _coco, "val2014/COCO_val2014_000000000001.jpg", (_prepare_coco,), goes_on=True, slow=True
    ),
    "coco20i, index": Reader(_prepared_coco, "fewseg_coco20i/val2014.json", (_read_coco,), load=_json, save=_save_json),
    "coco20i, masks": Reader(_prepared_coco, "fewseg_coco20i/val2014.masks", (_read_coco,)),
    "prepare pascal5i, mask": Reader(
        _voc,
        "VOCdevkit/VOC2012/SegmentationClassAug/2007_000001.png",
        (lambda folder: prepare_pascal5i(folder, folder / "out"),),
        goes_on=True,
        slow=True,
    ),
    "prepare pascal5i, .mat": Reader(
        _sbd,
        "sbd/cls/2007_000009.mat",
        (lambda folder: prepare_pascal5i(folder, folder / "out"),),
        goes_on=True,
        slow=True,
    ),
    "prepare pascal5i, names": Reader(
        _voc,
        "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt",
        (lambda folder: prepare_pascal5i(folder, folder / "out"),),
        slow=True,
    ),
    "pascal5i, index": Reader(
        _prepared_voc,
        "fewseg_pascal5i/index.json",
        (lambda folder: read_all(Pascal5i(folder, 0)), lambda folder: read_all(Pascal5i(folder, 0, "train"))),
        load=_json,
        save=_save_json,
    ),
    "published lists": Reader(_published, "lists/fold0.txt", (lambda folder: read_published_lists(folder / "lists"),)),
    "prepare fss1000": Reader(
        _class_folders,
        "apple/1.jpg",
        (lambda folder: prepare_fss1000(folder, folder / "out"),),
        goes_on=True,
        slow=True,
    ),
    **{
        f"checkpoint of {name}": Reader(
            _checkpoint(name),
            "model.ckpt",
            (
                lambda folder: load_checkpoint(folder / "model.ckpt"),
                _from_checkpoint,
                lambda folder: ModelChoice(str(folder / "model.ckpt")).build(None),
            ),
            load=_load_torch,
            save=lambda path, content: torch.save(content, path),
        )
        for name in ("BiOpt", "VPI")
    },
    "saved segmenter, settings": Reader(
        _saved_segmenter, "saved/segmenter.json", (_load_segmenter,), load=_json, save=_save_json
    ),
    "saved segmenter, model": Reader(
        _saved_segmenter, "saved/model.safetensors", (_load_segmenter,), load=load_file, save=None
    ),
    "saved segmenter, support": Reader(_saved_segmenter, "saved/support.safetensors", (_load_segmenter,)),
    "weights, .pth": Reader(
        _weights(".pth"),
        "conv4.pth",
        (lambda folder: build_backbone("conv4", folder / "conv4.pth"),),
        load=_load_torch,
        save=lambda path, content: torch.save(content, path),
    ),
    "weights, .safetensors": Reader(
        _weights(".safetensors"),
        "conv4.safetensors",
        (lambda folder: build_backbone("conv4", folder / "conv4.safetensors"),),
    ),
    "recipe": Reader(
        lambda folder: (folder / "recipe.yaml").write_text(RECIPE) and None,
        "recipe.yaml",
        (lambda folder: parse_arguments(["--config", str(folder / "recipe.yaml")]),),
        load=lambda path: yaml.safe_load(path.read_text()),
        save=_save_yaml,
    ),
    "training to go on with": Reader(
        _training,
        "out/last.ckpt",
        (_train,),
        load=_load_torch,
        save=lambda path, content: torch.save(content, path),
        slow=True,
    ),
    "journal of segment": Reader(_segmented, "out/progress.jsonl", (_segment,), goes_on=True),
    "log of a training": Reader(_log, "out/log.jsonl", (_log,), goes_on=True),
}


def problem_of(reader: Reader, folder: Path) -> str | None:
    """What is wrong with the way in which a file is refused, or None."""
    for read in reader.reads:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read(folder)
        except PLAIN as error:
            text = str(error)
            if reader.goes_on:
                return f"ended with {type(error).__name__}: {text[:300]}"
            if not text.strip() or len(text) > 1200:
                return f"a message of {len(text)} characters: {text[:300]!r}"
        except Exception as error:
            return f"{type(error).__name__}: {str(error)[:300]!r}"
    return None


def copy_of(whole: Path, folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder, symlinks=True)
    return folder


def loaded(reader: Reader, path: Path) -> Any:
    """The content of a whole file."""
    assert reader.load is not None
    return reader.load(path)


def torch_bytes(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()
