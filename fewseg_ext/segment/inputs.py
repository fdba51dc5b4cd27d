"""Photos and masks in whatever form a user has them: paths, Pillow images, arrays, tensors."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from fewseg_ext.data.photos import FOREGROUND_FROM, MASK_IGNORE, mask_numbers, read_image, read_mask

Photo = str | os.PathLike[str] | Image.Image | NDArray[Any] | Tensor
Mask = Photo

OBJECT = "object"
# More numbers than this in label maps without names: more likely the soft edges of a drawn mask.
MOST_UNNAMED = 20


def open_photo(photo: Photo, size: tuple[int, int] | None = None) -> Tensor:
    """Any photo as uint8 [3,h,w] in RGB, turned as its camera says (EXIF).

    Args:
        photo: a path; a Pillow image; an array [h,w,3], [h,w,4] or [h,w]; a tensor [3,h,w], [1,h,w] or [h,w]. Arrays
            and tensors are uint8, or floating in [0, 1].
        size: (width, height) of its mask, see :func:`fewseg_ext.data.photos.read_image`.

    Raises:
        FileNotFoundError, ValueError, TypeError: no such file; not an image; a shape or values that are no photo's.
    """
    if isinstance(photo, str | os.PathLike):
        return read_image(Path(photo), size)
    if isinstance(photo, Image.Image):
        turned = ImageOps.exif_transpose(photo)
        image = photo if size is not None and turned.size != size and photo.size == size else turned
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()
    if isinstance(photo, np.ndarray):
        # Without negative strides, which torch does not have.
        pixels = torch.from_numpy(np.ascontiguousarray(photo))
        pixels = pixels.permute(2, 0, 1) if pixels.dim() == 3 else pixels
    elif isinstance(photo, Tensor):
        pixels = photo.detach().cpu()
    else:
        raise TypeError(f"photo: expected a path, a Pillow image, an array or a tensor, got {type(photo).__name__}")
    if pixels.dim() == 2:
        pixels = pixels[None]
    if pixels.dim() != 3 or pixels.shape[0] not in (1, 3, 4) or 0 in pixels.shape:
        layout = "[3,h,w] or [h,w]" if isinstance(photo, Tensor) else "[h,w,3] or [h,w]"
        raise ValueError(f"photo: expected {layout}, got {list(photo.shape)}")
    if pixels.is_floating_point():
        if not (pixels.min() >= 0 and pixels.max() <= 1):
            raise ValueError("photo: floating pixels must lie in [0, 1]; divide by 255, and do not normalise")
        pixels = (pixels * 255).round().to(torch.uint8)
    elif pixels.dtype != torch.uint8:
        raise TypeError(f"photo: expected uint8, or floating in [0, 1], got {pixels.dtype}")
    return pixels[:3].expand(3, -1, -1).contiguous()


def photo_key(photo: Photo) -> tuple[Any, ...]:
    """Equal for the same photo: of a file its path, time and length, of anything else its pixels' digest."""
    if isinstance(photo, str | os.PathLike):
        status = os.stat(photo)
        return (os.path.abspath(photo), status.st_mtime_ns, status.st_size)
    pixels = open_photo(photo)
    return (tuple(pixels.shape), hashlib.blake2b(pixels.numpy().tobytes(), digest_size=16).digest())


def photo_name(photo: Photo) -> str | None:
    """The path of a file."""
    return os.fspath(photo) if isinstance(photo, str | os.PathLike) else None


@dataclass(frozen=True)
class Labelled:
    """A support set: photos and what is in them."""

    images: list[Tensor]
    """uint8 [3,h,w] each."""
    masks: list[Tensor]
    """uint8 [h,w] each: 0 background, n = class n (1..N), 255 ignored."""
    class_names: list[str]
    """Of the classes 1..N."""
    values: list[int]
    """What the user's masks, and the results', call class n."""


def read_support(
    images: Sequence[Photo],
    masks: Sequence[Mask],
    labels: Sequence[str] | str | None = None,
    class_names: Sequence[str] | None = None,
) -> Labelled:
    """Photos with masks, checked and brought into one form; see :meth:`fewseg_ext.Segmenter.fit`."""
    if len(images) != len(masks):
        raise ValueError(f"fit: {len(images)} images, but {len(masks)} masks")
    if not images:
        raise ValueError("fit: no images")
    if labels is not None and class_names is not None:
        raise ValueError("fit: give labels (one name per binary mask) or class_names (of a label map's 1..N), not both")
    numbers = [_numbers(mask, index) for index, mask in enumerate(masks)]
    opened = []
    for index, (photo, mask) in enumerate(zip(images, numbers, strict=True)):
        size = (mask.shape[1], mask.shape[0])
        image = open_photo(photo, size)
        if image.shape[1:] != mask.shape:
            raise ValueError(
                f"images[{index}] is {image.shape[2]} x {image.shape[1]} pixels, but its mask is {size[0]} x {size[1]}"
            )
        opened.append(image)
    if labels is not None or (class_names is None and all(map(_is_binary, numbers))):
        maps, names, values = _binary(numbers, labels)
    else:
        maps, names, values = _label_maps(numbers, class_names)
    for index, labelled in enumerate(maps):
        if not ((labelled > 0) & (labelled != MASK_IGNORE)).any():
            raise ValueError(f"masks[{index}]{_named(masks[index])} has no foreground: nothing in it is labelled")
    return Labelled(opened, [torch.from_numpy(x) for x in maps], names, values)


def _binary(
    numbers: list[NDArray[Any]], labels: Sequence[str] | str | None
) -> tuple[list[NDArray[np.uint8]], list[str], list[int]]:
    if labels is None or isinstance(labels, str):
        labels = [labels or OBJECT] * len(numbers)
    if len(labels) != len(numbers):
        raise ValueError(f"labels: {len(labels)} names for {len(numbers)} masks")
    names = list(dict.fromkeys(labels))
    maps = []
    for mask, label in zip(numbers, labels, strict=True):
        others = sorted(set(np.unique(mask).tolist()) - {0, MASK_IGNORE})
        if len(others) == 1:
            there, ignored = mask == others[0], mask == MASK_IGNORE
        else:
            # 0 and 255, or grey values.
            there, ignored = mask >= FOREGROUND_FROM, np.zeros_like(mask, dtype=bool)
        maps.append(np.where(ignored, MASK_IGNORE, there * (names.index(label) + 1)).astype(np.uint8))
    return maps, names, list(range(1, len(names) + 1))


def _label_maps(
    numbers: list[NDArray[Any]], class_names: Sequence[str] | None
) -> tuple[list[NDArray[np.uint8]], list[str], list[int]]:
    found = sorted({int(value) for mask in numbers for value in np.unique(mask)} - {0, MASK_IGNORE})
    if found and (found[0] < 0 or found[-1] > MASK_IGNORE):
        wrong = found[0] if found[0] < 0 else found[-1]
        raise ValueError(f"masks: label {wrong}; expected 0 background, 1..254 a class, 255 ignored")
    if class_names is None:
        if len(found) > MOST_UNNAMED:
            raise ValueError(
                f"masks: {len(found)} different numbers in them, which looks like masks with soft edges: name the "
                "object (labels=...), and grey values from 128 are the object; or give class_names for label maps"
            )
        names, values = [str(value) for value in found], found
    else:
        names, values = list(class_names), list(range(1, len(class_names) + 1))
        if len(set(names)) < len(names):
            raise ValueError(f"class_names: a name is given twice in {names}")
        missing = [names[value - 1] for value in values if value not in found]
        if missing:
            raise ValueError(f"class_names: no pixel of any mask is labelled {missing[0]!r}")
        if found[-1:] > values[-1:]:
            raise ValueError(f"masks: label {found[-1]} has no name, {len(names)} class_names are given")
    table = np.zeros(MASK_IGNORE + 1, np.uint8)
    table[values] = np.arange(1, len(values) + 1)
    table[MASK_IGNORE] = MASK_IGNORE
    return [table[mask] for mask in numbers], names, values


def _is_binary(mask: NDArray[Any]) -> bool:
    """Only 0 and 1, or only 0 and 255."""
    return bool(np.isin(mask, (0, 1)).all() or np.isin(mask, (0, MASK_IGNORE)).all())


def _numbers(mask: Mask, index: int) -> NDArray[Any]:
    """The numbers in a mask, integers [h,w]."""
    where = f"masks[{index}]"
    if isinstance(mask, str | os.PathLike):
        return read_mask(Path(mask))
    if isinstance(mask, Image.Image):
        return mask_numbers(mask)
    if not isinstance(mask, np.ndarray | Tensor):
        raise TypeError(f"{where}: expected a path, a Pillow image, an array or a tensor, got {type(mask).__name__}")
    numbers = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else mask
    if numbers.ndim == 3 and numbers.shape[0] == 1:
        numbers = numbers[0]
    elif numbers.ndim == 3 and numbers.shape[2] in (1, 3, 4):
        # Colours: the largest channel, alpha aside, as for files.
        numbers = numbers[..., :3].max(2)
    if numbers.ndim != 2 or 0 in numbers.shape:
        raise ValueError(f"{where}: expected [h,w], got {list(mask.shape)}")
    if numbers.dtype == np.bool_:
        return numbers.astype(np.uint8)
    if np.issubdtype(numbers.dtype, np.floating):
        if ((numbers >= 0) & (numbers <= 1)).all():
            return (numbers >= 0.5).astype(np.uint8)
        if not (numbers == np.round(numbers)).all():
            raise ValueError(f"{where}: floating numbers must lie in [0, 1] or be whole")
    return numbers.astype(np.int32) if numbers.dtype != np.uint8 else numbers


def _named(mask: Mask) -> str:
    name = photo_name(mask)
    return "" if name is None else f" ({name})"
