"""What the browser fetches of a session: pictures, and the archive of masks."""

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fewseg_ext.segment.annotations import Annotated, coco_json
from fewseg_ext.segment.result import COLORS, draw_overlay
from fewseg_ext.web.session import Session, SessionPhoto

# From certain to undecided: dark blue over red to light yellow, brighter all the way.
HEAT = np.array([(10, 10, 40), (120, 28, 109), (237, 105, 37), (252, 255, 164)], np.float32)


def draw(session: Session, photo: SessionPhoto, kind: str) -> tuple[bytes, str]:
    """A picture and its media type.

    Args:
        session: of the photo.
        photo: what is drawn.
        kind: "photo", "overlay", "uncertainty", or "mask1", "mask2", ...: one class as the canvas takes it, opaque in
            its colour on nothing.

    Raises:
        KeyError: no such picture.
    """
    if kind == "photo":
        return _encoded(Image.fromarray(photo.pixels), "JPEG")
    if kind == "overlay" and photo.shown is not None:
        values = range(1, len(session.class_names) + 1)
        return _encoded(draw_overlay(photo.pixels, photo.shown, values), "JPEG")
    if kind == "uncertainty" and photo.uncertainty is not None:
        return _encoded(Image.fromarray(_heat(photo.uncertainty)), "JPEG")
    if kind.startswith("mask") and kind[4:].isdecimal() and len(kind) <= len("mask254") and photo.shown is not None:
        value = int(kind[4:])
        picture = np.zeros((*photo.shown.shape, 4), np.uint8)
        picture[photo.shown == value] = (*COLORS[(value - 1) % len(COLORS)], 255)
        return _encoded(Image.fromarray(picture), "PNG")
    raise KeyError(kind)


def archive(session: Session) -> bytes:
    """A zip of ``masks/<photo>.png`` and ``annotations.json`` in COCO's form, labelled photos included.

    Masks have the size of the photo's file; their numbers are the category ids, their palette is the page's colours.
    """
    buffer = io.BytesIO()
    palette = [0, 0, 0, *(channel for color in COLORS for channel in color)]
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for annotated in _annotated(session):
            mask = Image.fromarray(annotated.mask).convert("P")
            mask.putpalette(palette)
            content = io.BytesIO()
            mask.save(content, format="PNG")
            file.writestr(f"masks/{annotated.photo.stem}.png", content.getvalue())
        values = range(1, len(session.class_names) + 1)
        content_json = coco_json(_annotated(session), session.class_names, values)
        file.writestr("annotations.json", json.dumps(content_json) + "\n")
    return buffer.getvalue()


def _annotated(session: Session) -> Iterator[Annotated]:
    """At the photos' own size, one at a time: a mask of 50 megapixels takes 50 MB."""
    for photo in session.photos.values():
        if photo.shown is not None:
            mask = Image.fromarray(photo.shown).resize(photo.size, Image.Resampling.NEAREST)
            yield Annotated(Path(PurePath(photo.name).name), np.array(mask), photo.confidence)


def _heat(share: NDArray[np.float32]) -> NDArray[np.uint8]:
    places = np.linspace(0, 1, len(HEAT))
    return np.stack([np.interp(share, places, HEAT[:, channel]) for channel in range(3)], axis=-1).astype(np.uint8)


def _encoded(image: Image.Image, kind: str) -> tuple[bytes, str]:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, quality=88) if kind == "JPEG" else image.save(buffer, format=kind)
    return buffer.getvalue(), Image.MIME[kind]
