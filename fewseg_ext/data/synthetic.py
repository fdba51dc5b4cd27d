"""Generated classes of textured, deformed objects on cluttered backgrounds, in the folder layout of FSS-1000.

A class is a shape, a texture and two colours. Its pictures differ as photographs of one kind of thing do: the object is
turned, scaled and smoothly bent; its texture is shifted, turned and rescaled; its colours drift in hue, saturation and
brightness; every picture has a light of its own (strength, tint, a gradient), a background of several textured regions,
and objects of other classes, some in front of the object. The drift stands for the "appearance and scale variation of
support and query" that BiOpt is meant for; within one picture the object's look is uniform, so that the query itself
tells what the support cannot. (More drift than the default made BiOpt's gain no larger: the first, rough mask of the
query then is too often wrong.)

Everything is a function of the settings: every picture has its own random stream, so neither the number of threads nor
the order of work changes a byte.
"""

import colorsys
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fewseg_ext.data._drawing import SHAPES, TEXTURES, TURN, Array
from fewseg_ext.files import write_folder

# Part of the marker file, so that pictures of an older generator are drawn anew.
VERSION = 1
MARKER = "synthetic.json"
SPLITS = ("train", "unseen")

Color = tuple[float, float, float]  # hue, saturation, value, each in [0, 1]


@dataclass(frozen=True)
class SyntheticConfig:
    """What is generated. ``appearance_drift`` scales how far the pictures of one class differ in colour, texture and
    light: 0 makes them alike, 1 is the default. With ``rivals`` one of the other objects is as large as the one that is
    meant: without the support nobody could say which of the two it is."""

    seed: int = 0
    train_classes: int = 100
    unseen_classes: int = 20
    images_per_class: int = 10
    size: int = 128
    appearance_drift: float = 1.0
    rivals: bool = False

    def __post_init__(self) -> None:
        pairs = len(SHAPES) * len(TEXTURES)
        if self.train_classes < 1 or self.unseen_classes < 1:
            raise ValueError("SyntheticConfig: train_classes and unseen_classes must be at least 1")
        if self.train_classes + self.unseen_classes > pairs:
            raise ValueError(
                f"SyntheticConfig: {self.train_classes} + {self.unseen_classes} classes asked for, but there are only "
                f"{pairs} pairs of shape and texture"
            )
        if self.images_per_class < 1 or self.size < 32:
            raise ValueError("SyntheticConfig: images_per_class must be at least 1 and size at least 32")


@dataclass(frozen=True)
class ObjectClass:
    """What the pictures of a class share."""

    name: str
    shape: str
    trait: float
    texture: str
    frequency: float  # texture periods per object radius
    colors: tuple[Color, Color]


def make_classes(config: SyntheticConfig) -> dict[str, list[ObjectClass]]:
    """The classes of both splits; no pair of shape and texture occurs twice, so that unseen classes are unseen."""
    rng = np.random.default_rng([config.seed, 0])
    pairs = [(shape, texture) for shape in sorted(SHAPES) for texture in sorted(TEXTURES)]
    order = rng.permutation(len(pairs))
    classes = []
    for index in order[: config.train_classes + config.unseen_classes]:
        shape, texture = pairs[index]
        classes.append(
            ObjectClass(
                name=f"{texture}_{shape}",
                shape=shape,
                trait=float(rng.uniform()),
                texture=texture,
                frequency=float(rng.uniform(1.3, 2.6)),
                colors=_object_colors(rng),
            )
        )
    return {"train": classes[: config.train_classes], "unseen": classes[config.train_classes :]}


def _object_colors(rng: np.random.Generator) -> tuple[Color, Color]:
    """Two vivid colours of different hue and brightness."""
    hue = rng.uniform()
    other_hue = hue + rng.choice([-1, 1]) * rng.uniform(0.08, 0.5)
    bright = (hue, rng.uniform(0.45, 0.9), rng.uniform(0.8, 1.0))
    dark = (other_hue, rng.uniform(0.5, 0.95), rng.uniform(0.35, 0.65))
    return (bright, dark) if rng.uniform() < 0.5 else (dark, bright)


def _background_colors(scene_hue: float, vivid: bool, rng: np.random.Generator) -> tuple[Color, Color]:
    """Two related colours near the hue of the scene. Some scenes are as vivid as objects: colour alone is no clue."""
    hue, saturation = scene_hue + rng.normal(0, 0.05), rng.uniform(0.5, 0.9) if vivid else rng.uniform(0.1, 0.55)
    value, step = rng.uniform(0.4, 0.9), rng.choice([-1, 1]) * rng.uniform(0.15, 0.35)
    return (hue, saturation, value), (hue + rng.normal(0, 0.08), saturation + rng.normal(0, 0.1), value + step)


def _rgb(color: Color) -> Array:
    hue, saturation, value = color
    return np.array(colorsys.hsv_to_rgb(hue % 1, min(max(saturation, 0), 1), min(max(value, 0), 1)), np.float32)


def _paint(texture: str, x: Array, y: Array, phase: float, colors: tuple[Color, Color]) -> Array:
    """[h,w] coordinates in periods -> [h,w,3] colours."""
    weight = TEXTURES[texture](x, y, phase)[..., None]
    return (1 - weight) * _rgb(colors[0]) + weight * _rgb(colors[1])


def _bend(rng: np.random.Generator, strength: float) -> Callable[[Array, Array], tuple[Array, Array]]:
    """A smooth random deformation of the plane: two long waves per coordinate."""
    frequency = rng.uniform(0.6, 1.8, (4, 2)) * rng.choice([-1, 1], (4, 2))
    phase = rng.uniform(0, TURN, 4)

    def apply(u: Array, v: Array) -> tuple[Array, Array]:
        waves = [np.sin(a * u + b * v + p) for (a, b), p in zip(frequency, phase, strict=True)]
        return u + strength * (waves[0] + waves[1]), v + strength * (waves[2] + waves[3])

    return apply


def _drifted(colors: tuple[Color, Color], drift: float, rng: np.random.Generator) -> tuple[Color, Color]:
    """Both colours of an object moved together, as another specimen or another light would."""
    hue, saturation, value = rng.normal(0, 0.09 * drift), rng.normal(0, 0.17 * drift), rng.normal(0, 0.13 * drift)
    first, second = ((h + hue, s + saturation, max(v + value, 0.1)) for h, s, v in colors)
    return first, second


class _Canvas:
    """A square picture that objects are painted on, back to front."""

    def __init__(self, size: int) -> None:
        y, x = np.mgrid[0:size, 0:size].astype(np.float32)
        self.x, self.y = (x + 0.5) / size, (y + 0.5) / size  # pixel centres in [0, 1]
        self.size = size
        self.image: Array = np.zeros((size, size, 3), np.float32)

    def draw_background(self, rng: np.random.Generator) -> None:
        """A few regions with bent borders, each of its own texture, in colours that go with the scene."""
        x, y = _bend(rng, 0.08)(self.x * 3, self.y * 3)
        regions = int(rng.integers(2, 5))
        owner = np.argmin([np.hypot(x - a, y - b) for a, b in rng.uniform(0, 3, (regions, 2))], axis=0)
        scene_hue, vivid, textures = rng.uniform(), rng.uniform() < 0.4, sorted(TEXTURES)
        for region in range(regions):
            angle, frequency = rng.uniform(0, TURN), rng.uniform(0.8, 3.5)
            inside = owner == region
            u = frequency * (np.cos(angle) * x[inside] + np.sin(angle) * y[inside])
            v = frequency * (np.cos(angle) * y[inside] - np.sin(angle) * x[inside])
            texture, colors = textures[rng.integers(len(textures))], _background_colors(scene_hue, vivid, rng)
            self.image[inside] = _paint(texture, u, v, rng.uniform(), colors)

    def draw_object(
        self, kind: ObjectClass, centre: NDArray[np.float64], radius: float, drift: float, rng: np.random.Generator
    ) -> Array:
        """Paints one specimen with a soft shadow and returns its coverage [h,w] in [0, 1]."""
        angle, mirror = rng.normal(0, 0.6), rng.choice([-1, 1])
        aspect = np.exp(rng.normal(0, 0.12))
        bend = _bend(rng, 0.07)
        # Nothing of the object or its shadow lies outside this window.
        first, last = (np.clip((centre + side * 2 * radius) * self.size, 0, self.size).astype(int) for side in (-1, 1))
        window = np.s_[first[1] : last[1], first[0] : last[0]]
        x, y = (self.x[window] - centre[0]) / radius, (self.y[window] - centre[1]) / radius

        def level(x: Array, y: Array) -> tuple[Array, Array, Array]:
            u = mirror * aspect * (np.cos(angle) * x + np.sin(angle) * y)
            v = (np.cos(angle) * y - np.sin(angle) * x) / aspect
            u, v = bend(u.astype(np.float32), v.astype(np.float32))
            return SHAPES[kind.shape](u, v, kind.trait), u, v

        shadow, _, _ = level(x - 0.1, y - 0.13)
        self.image[window] *= 1 - 0.45 * np.clip(0.5 - shadow / 0.25, 0, 1)[..., None]

        inside, u, v = level(x, y)
        turn, frequency = rng.normal(0, 0.5 * drift), kind.frequency * np.exp(rng.normal(0, 0.3 * drift))
        texture_x = frequency * (np.cos(turn) * u + np.sin(turn) * v)
        texture_y = frequency * (np.cos(turn) * v - np.sin(turn) * u)
        paint = _paint(kind.texture, texture_x, texture_y, rng.uniform(), _drifted(kind.colors, drift, rng))
        # A rounded look: darker towards the edge, lighter towards the light at the upper left.
        paint *= (0.72 + 0.28 * np.clip(-inside / 0.22, 0, 1) - 0.05 * (x + y))[..., None]
        coverage = np.zeros_like(self.x)
        coverage[window] = np.clip(0.5 - inside * radius * self.size, 0, 1)
        self.image[window] += coverage[window][..., None] * (paint - self.image[window])
        return coverage

    def light(self, drift: float, rng: np.random.Generator) -> None:
        """The light of the whole picture: strength, tint, gradient; and the grain of a sensor."""
        gain = np.exp(0.1 + rng.normal(0, 0.15 * drift))
        tint = np.exp(rng.normal(0, 0.12 * drift, 3)).astype(np.float32)
        slope = rng.normal(0, 0.3 * drift, 2)
        gradient = 1 + slope[0] * (self.x - 0.5) + slope[1] * (self.y - 0.5)
        self.image = self.image * (gain * tint) * np.clip(gradient, 0.4, 1.6)[..., None]
        self.image += rng.normal(0, 0.02, self.image.shape).astype(np.float32)


def draw_picture(
    kind: ObjectClass, others: list[ObjectClass], config: SyntheticConfig, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One picture of a class.

    Args:
        kind: the class that the mask shows.
        others: the classes whose objects may stand around it.
        config: size and drift.
        rng: the picture's own random stream.

    Returns:
        The image, uint8 [size, size, 3] in RGB, and the mask, uint8 [size, size], 255 on the object's visible part.
    """
    while True:
        canvas = _Canvas(config.size)
        canvas.draw_background(rng)
        distractors = int(rng.integers(1, 3)) if others else 0
        position = int(rng.integers(max(distractors - 1, 0), distractors + 1))  # at most one object in front
        mask = full = np.zeros_like(canvas.x)
        for index in range(distractors + 1):
            if index == position:
                centre, radius = rng.uniform(0.28, 0.72, 2), rng.uniform(0.2, 0.36)
                mask = full = canvas.draw_object(kind, centre, radius, config.appearance_drift, rng)
            else:
                other = others[rng.integers(len(others))]
                rival = config.rivals and index == (position + 1) % (distractors + 1)
                centre, radius = rng.uniform(0.05, 0.95, 2), rng.uniform(0.1, 0.2)
                if rival:
                    centre, radius = rng.uniform(0.28, 0.72, 2), rng.uniform(0.2, 0.36)
                mask = mask * (1 - canvas.draw_object(other, centre, radius, config.appearance_drift, rng))
        canvas.light(config.appearance_drift, rng)
        # Too small or mostly hidden: nobody could say what the picture shows.
        if mask.mean() >= 0.03 and mask.sum() >= 0.6 * full.sum():
            break
    image = (np.clip(canvas.image, 0, 1) * 255).round().astype(np.uint8)
    return image, np.where(mask >= 0.5, 255, 0).astype(np.uint8)


def generate_synthetic(
    root: str | os.PathLike[str],
    config: SyntheticConfig | None = None,
    *,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Writes ``root/train`` and ``root/unseen``, each ``<class>/{1..n}.jpg`` with masks ``{1..n}.png`` (0 and 255).

    The folder appears whole or not at all: it is written under another name and renamed. A folder that this function
    wrote with the same settings is kept as it is; one with other settings is replaced.

    Args:
        root: the folder to make.
        config: what to generate; None means the defaults.
        threads: how many threads draw; the result does not depend on it.
        progress: called as ``progress(pictures_done, pictures_in_total)``.

    Returns:
        ``root`` as a Path.

    Raises:
        FileExistsError: ``root`` exists and is not something this function wrote.
    """
    config = config or SyntheticConfig()
    root = Path(root)
    settings = json.dumps({"version": VERSION, **asdict(config)}, indent=2, sort_keys=True) + "\n"
    if root.exists():
        marker = root / MARKER
        if not marker.is_file():
            raise FileExistsError(f"{root} exists and was not generated by fewseg_ext; choose another folder")
        if marker.read_text() == settings:
            return root

    def write(new: Path) -> None:
        _write_pictures(new, config, threads, progress)
        (new / MARKER).write_text(settings)

    return write_folder(root, write)


def _write_pictures(
    root: Path, config: SyntheticConfig, threads: int | None, progress: Callable[[int, int], None] | None
) -> None:
    tasks: list[tuple[Path, ObjectClass, list[ObjectClass], list[int]]] = []
    for split, (name, classes) in enumerate(make_classes(config).items()):
        for index, kind in enumerate(classes):
            folder = root / name / kind.name
            folder.mkdir(parents=True)
            others = [other for other in classes if other is not kind]
            for number in range(1, config.images_per_class + 1):
                tasks.append((folder / str(number), kind, others, [config.seed, 1 + split, index, number]))

    def write(task: tuple[Path, ObjectClass, list[ObjectClass], list[int]]) -> None:
        stem, kind, others, stream = task
        image, mask = draw_picture(kind, others, config, np.random.default_rng(stream))
        Image.fromarray(image).save(stem.with_suffix(".jpg"), quality=92)
        Image.fromarray(mask).save(stem.with_suffix(".png"))

    # numpy and the encoders release the interpreter lock, so threads are enough.
    with ThreadPoolExecutor(max_workers=threads or os.cpu_count()) as pool:
        for done, _ in enumerate(pool.map(write, tasks), start=1):
            if progress is not None:
                progress(done, len(tasks))
