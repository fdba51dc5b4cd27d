"""What one tab of a browser has: its photos, their labels, its segmenter and the results."""

import base64
import io
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fewseg_ext.models.biopt import BiOpt
from fewseg_ext.segment.result import COLORS
from fewseg_ext.segmenter import Segmenter
from fewseg_ext.web.limits import Limits, Upload, read_upload

LONGEST_NAME = 60
PNG_PREFIX = "data:image/png;base64,"


@dataclass
class SessionPhoto:
    """A photo, what the user said of it and what the model says."""

    number: int
    name: str  # of the file; no two photos have the same without suffix
    pixels: NDArray[np.uint8]  # [h,w,3], shrunk
    size: tuple[int, int]  # (width, height) of the file
    labels: NDArray[np.uint8] | None = None  # [h,w]: 0 background, n = class n
    mask: NDArray[np.uint8] | None = None  # [h,w], the same numbers, of the model
    uncertainty: NDArray[np.float32] | None = None  # [h,w], 0 certain to 1 undecided
    confidence: float = 1.0

    @property
    def shown(self) -> NDArray[np.uint8] | None:
        """The labels where there are some, else the model's mask."""
        return self.mask if self.labels is None else self.labels


class Session:
    """Photos in, masks out. Methods may be called from several threads.

    Attributes:
        key: names the session in addresses; nobody else can guess it.
        photos: by number, in the order in which they came.
        class_names: of the classes 1, 2, ...; each is labelled in at least one photo.
        used: counts the events, so that it can be told whether the user is still there.
        version: grows with every change of a mask, so that no browser shows an old picture.

    Args:
        segmenter: of this session alone; sessions may share its model.
        limits: what is accepted.
    """

    def __init__(self, segmenter: Segmenter, limits: Limits) -> None:
        self.key = secrets.token_urlsafe(16)
        self.limits = limits
        self.photos: dict[int, SessionPhoto] = {}
        self.class_names: list[str] = []
        self.used = 0
        self.version = 0
        self._segmenter = segmenter
        # The slider must find the features of every photo.
        segmenter.kept_photos = limits.photos
        self._last_number = 0
        self._lock = threading.RLock()

    @property
    def inner_steps(self) -> int | None:
        """The model's own number; None for a model without an inner loop."""
        model = self._segmenter.model
        return model.inner_steps if isinstance(model, BiOpt) else None

    def add_file(self, path: Path, name: str) -> SessionPhoto:
        """Read a photo.

        Raises:
            ValueError: no room for another photo; see :func:`fewseg_ext.web.limits.read_upload`. The message begins
                with the file's name.
        """
        try:
            self._check_room()
            return self.add(read_upload(path, self.limits), name)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error

    def add(self, upload: Upload, name: str) -> SessionPhoto:
        """Take a photo that was read."""
        with self._lock:
            self._check_room()
            self._last_number += 1
            photo = SessionPhoto(self._last_number, self._unique(name), upload.pixels, upload.size)
            self.photos[photo.number] = photo
            return photo

    def label(self, number: int, class_name: str, mask: NDArray[np.bool_]) -> None:
        """Say where a class is in a photo, and fit the segmenter to all that was said.

        The other classes stay as they were labelled, or as the model found them: a corrected result becomes a label.

        Args:
            number: of the photo.
            class_name: a new one, or one that is there already, whose mask in this photo is replaced.
            mask: [h,w] of the photo as it is shown.

        Raises:
            ValueError: no name, too many classes, nothing marked, or what ``Segmenter.fit`` does not take. Nothing
                changes then.
        """
        name = " ".join(class_name.split())
        with self._lock:
            photo = self._photo(number)
            names = self.class_names if name in self.class_names else [*self.class_names, name]
            if not 0 < len(name) <= LONGEST_NAME:
                raise ValueError(f"The class needs a name of 1 to {LONGEST_NAME} letters.")
            if len(names) > len(COLORS):
                raise ValueError(f"There are {len(COLORS)} classes already, and no more colours.")
            if mask.shape != photo.pixels.shape[:2]:
                raise ValueError("The mask has another size than the photo: choose the photo again.")
            if not mask.any():
                raise ValueError(f"Nothing is marked in {photo.name}: paint the object, or draw a box around it.")
            labels = np.zeros_like(mask, np.uint8) if photo.shown is None else photo.shown.copy()
            value = names.index(name) + 1
            labels[labels == value] = 0
            labels[mask] = value
            self._fit(names, {**self._labels(), number: labels})

    def unlabel(self, number: int) -> None:
        """Forget what was said of a photo; the segmenter keeps to the other labelled ones."""
        with self._lock:
            if self._photo(number).labels is not None:
                labels = self._labels()
                del labels[number]
                self._fit(self.class_names, labels)

    def segment(self, steps: int | None = None) -> Iterator[int]:
        """Segment every photo that is not labelled, and say after each how many are done.

        Args:
            steps: inner steps instead of the model's own. For photos that were segmented before only the inner loop
                runs again.
        """
        waiting = [photo for photo in self.photos.values() if photo.labels is None]
        for done, photo in enumerate(waiting, start=1):
            with self._lock:
                # Meanwhile the user may have labelled it, or forgotten every label.
                if photo.labels is None and self.class_names:
                    result = self._segmenter.predict(photo.pixels, steps)
                    undecided = np.log(len(self.class_names) + 1)
                    photo.mask, photo.confidence = result.mask, result.confidence
                    photo.uncertainty = (result.uncertainty / undecided).clip(0, 1).astype(np.float32)
                    self.version += 1
            yield done

    @property
    def unlabelled(self) -> int:
        """How many photos ``segment`` goes through."""
        return sum(photo.labels is None for photo in self.photos.values())

    def _labels(self) -> dict[int, NDArray[np.uint8]]:
        return {number: photo.labels for number, photo in self.photos.items() if photo.labels is not None}

    def _fit(self, names: list[str], labels: dict[int, NDArray[np.uint8]]) -> None:
        """Fit to the labels, then take them over; classes of which no pixel is left are dropped."""
        left = sorted({int(value) for mask in labels.values() for value in np.unique(mask)} - {0})
        renumber = np.zeros(len(COLORS) + 1, np.uint8)
        renumber[left] = np.arange(1, len(left) + 1)
        names = [names[value - 1] for value in left]
        labels = {number: renumber[mask] for number, mask in labels.items()}
        if labels:
            images = [self.photos[number].pixels for number in labels]
            self._segmenter.fit(images, list(labels.values()), class_names=names)
        self.class_names = names
        for photo in self.photos.values():
            photo.labels = labels.get(photo.number)
            # Of another support, perhaps with other numbers.
            photo.mask, photo.uncertainty, photo.confidence = None, None, 1.0
        self.version += 1

    def _photo(self, number: int) -> SessionPhoto:
        if number not in self.photos:
            raise ValueError("Choose a photo first.")
        return self.photos[number]

    def _check_room(self) -> None:
        if len(self.photos) >= self.limits.photos:
            raise ValueError(f"no room, the limit is {self.limits.photos} photos")

    def _unique(self, name: str) -> str:
        """The file's name without folders, another where its stem is taken."""
        path = PurePath(name.replace("\\", "/").replace("\0", "")).name.strip() or "photo"
        stem, suffix = PurePath(path).stem[:LONGEST_NAME], PurePath(path).suffix[:8]
        taken = {PurePath(photo.name).stem.lower() for photo in self.photos.values()}
        unique, count = stem, 1
        while unique.lower() in taken:
            count += 1
            unique = f"{stem}-{count}"
        return unique + suffix


def decode_mask(data_url: str, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """The mask of the page's canvas: a PNG as a ``data:`` address, marked where it is opaque.

    Args:
        data_url: what the browser sent; empty where nothing was loaded.
        shape: (h, w) that it must have.

    Raises:
        ValueError: not such a PNG, or of another size.
    """
    if not data_url:
        return np.zeros(shape, bool)
    try:
        if not data_url.startswith(PNG_PREFIX):
            raise ValueError("no PNG")
        content = io.BytesIO(base64.b64decode(data_url.removeprefix(PNG_PREFIX), validate=True))
        with Image.open(content, formats=("PNG",)) as file:
            if file.size != shape[::-1]:
                raise ValueError(f"size {file.size}")
            return np.array(file.convert("RGBA").getchannel("A")) > 127
    except Exception as error:  # Pillow raises a different type for every way in which a picture can be wrong
        raise ValueError("The mask could not be read: choose the photo again.") from error


class Sessions:
    """The sessions of all visitors; nobody gets at another's.

    Attributes:
        grace_seconds: how long the photos of a tab outlive its connection. A phone that shows its camera, and a laptop
            that sleeps, lose it too.

    Args:
        make: makes an empty one.
        limits: what each accepts.
        most: where there are more, the one that was used longest ago is dropped with its photos.
    """

    grace_seconds = 600.0

    def __init__(self, make: Callable[[], Session], limits: Limits, most: int = 32) -> None:
        self.limits = limits
        self._make = make
        self._most = most
        self._sessions: OrderedDict[tuple[str, str], Session] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, visitor: str, tab: str) -> Session:
        """The session of a tab, made where there is none."""
        with self._lock:
            session = self._sessions.get((visitor, tab)) or self._make()
            session.used += 1
            self._sessions[visitor, tab] = session
            self._sessions.move_to_end((visitor, tab))
            while len(self._sessions) > self._most:
                self._sessions.popitem(last=False)
            return session

    def find(self, visitor: str, key: str) -> Session | None:
        """The visitor's own session of that key, or None."""
        with self._lock:
            own = (session for (owner, _), session in self._sessions.items() if owner == visitor)
            return next((session for session in own if secrets.compare_digest(session.key, key)), None)

    def drop_unless_used(self, visitor: str, tab: str) -> None:
        """Forget a tab that lost its connection, if it is not used again in time."""
        with self._lock:
            session = self._sessions.get((visitor, tab))
        if session is None:
            return
        used = session.used

        def forget() -> None:
            if session.used == used:
                self.drop(visitor, tab)

        timer = threading.Timer(self.grace_seconds, forget)
        timer.daemon = True
        timer.start()

    def drop(self, visitor: str, tab: str) -> None:
        """Forget a tab and its photos."""
        with self._lock:
            self._sessions.pop((visitor, tab), None)

    def __len__(self) -> int:
        return len(self._sessions)
