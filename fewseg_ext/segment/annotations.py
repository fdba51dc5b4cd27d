"""Masks as annotation files: COCO JSON with run-length codes, and LabelMe JSON."""

import base64
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fewseg_ext.data.coco import mask_tools

# The first version of LabelMe whose files hold masks beside polygons.
LABELME_VERSION = "5.2.0"


@dataclass(frozen=True)
class Annotated:
    """A photo and its mask."""

    photo: Path
    mask: NDArray[np.uint8]  # [h,w]
    confidence: float


def coco_json(photos: Iterable[Annotated], class_names: Sequence[str], values: Sequence[int]) -> dict[str, Any]:
    """Every class of every photo as one annotation, in the form of COCO's results and ground truth alike.

    ``file_name`` is the photo's absolute path; category n is class n of ``class_names``.
    """
    tools = mask_tools()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, photo in enumerate(photos, start=1):
        height, width = photo.mask.shape
        images.append({"id": image_id, "file_name": str(photo.photo), "height": height, "width": width})
        for category, value in enumerate(values, start=1):
            there = photo.mask == value
            if not there.any():
                continue
            rle = tools.encode(np.asfortranarray(there.astype(np.uint8)))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category,
                    "segmentation": {"size": [height, width], "counts": rle["counts"].decode("ascii")},
                    "area": int(there.sum()),
                    "bbox": [float(x) for x in tools.toBbox(rle)],
                    "iscrowd": 0,
                    "score": round(photo.confidence, 4),
                }
            )
    categories = [{"id": index, "name": name} for index, name in enumerate(class_names, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def labelme_json(photo: Annotated, folder: Path, class_names: Sequence[str], values: Sequence[int]) -> dict[str, Any]:
    """One photo's masks for LabelMe 5.2 or later: shapes of type "mask", which keep holes and single pixels.

    Args:
        photo: what to write.
        folder: where the file will lie; LabelMe finds the photo relative to it.
        class_names, values: of the classes.
    """
    height, width = photo.mask.shape
    shapes: list[dict[str, Any]] = []
    for name, value in zip(class_names, values, strict=True):
        there = photo.mask == value
        if not there.any():
            continue
        rows, columns = np.flatnonzero(there.any(1)), np.flatnonzero(there.any(0))
        top, bottom, left, right = (int(x) for x in (rows[0], rows[-1], columns[0], columns[-1]))
        buffer = io.BytesIO()
        Image.fromarray(there[top : bottom + 1, left : right + 1].astype(np.uint8)).save(buffer, format="PNG")
        shapes.append(
            {
                "label": name,
                # The box of the mask, both corners inside.
                "points": [[left, top], [right, bottom]],
                "group_id": None,
                "description": "",
                "shape_type": "mask",
                "flags": {},
                "mask": base64.b64encode(buffer.getvalue()).decode("ascii"),
            }
        )
    return {
        "version": LABELME_VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": Path(os.path.relpath(photo.photo, folder)).as_posix(),
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }
