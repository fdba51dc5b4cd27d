"""Shapes and textures as functions on arrays of coordinates: what `synthetic.py` draws its pictures with.

A shape maps coordinates (u, v), in which the object is about as large as the unit disc, and a trait in [0, 1], which
varies it from class to class, to a level that is negative inside and grows roughly like a distance. A texture maps
coordinates counted in periods, and a phase, to a mixing weight in [0, 1] between two colours.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
Shape = Callable[[Array, Array, float], Array]
Texture = Callable[[Array, Array, float], Array]

TURN = 2 * np.pi


def _ellipse(u: Array, v: Array, a: float, b: float) -> Array:
    return (np.hypot(u / a, v / b) - 1) * min(a, b)


def _box(u: Array, v: Array, a: float, b: float) -> Array:
    return np.maximum(np.abs(u) - a, np.abs(v) - b)


def _lobed(u: Array, v: Array, lobes: int, depth: float, hardness: float) -> Array:
    """A disc whose radius goes up and down ``lobes`` times; the hardness makes teeth of the waves."""
    wave = np.tanh(hardness * np.cos(lobes * np.arctan2(v, u))) / np.tanh(hardness)
    return np.hypot(u, v) - (1 - depth + depth * wave)


def _flower(u: Array, v: Array, trait: float) -> Array:
    return _lobed(u, v, 4 + round(3 * trait), 0.2, 0.5)


def _gear(u: Array, v: Array, trait: float) -> Array:
    return np.maximum(_lobed(u, v, 8 + round(3 * trait), 0.12, 4.0), 0.3 - np.hypot(u, v))


def _star(u: Array, v: Array, trait: float) -> Array:
    points, inner = 5 + round(2 * trait), 0.5
    sector = TURN / points
    angle = np.abs(np.mod(np.arctan2(v, u), sector) - sector / 2)  # 0 halfway between two tips, sector / 2 at a tip
    radius = np.hypot(u, v)
    x, y = radius * np.cos(angle), radius * np.sin(angle)
    # The edge runs from the notch at (inner, 0) to the tip at angle sector / 2.
    edge_x, edge_y = np.cos(sector / 2) - inner, np.sin(sector / 2)
    return ((x - inner) * edge_y - y * edge_x) / np.hypot(edge_x, edge_y)


def _polygon(u: Array, v: Array, trait: float) -> Array:
    sector = TURN / (3 + round(3 * trait))
    angle = np.mod(np.arctan2(v, u), sector) - sector / 2
    return np.hypot(u, v) * np.cos(angle) - np.cos(sector / 2) * 1.1


def _crescent(u: Array, v: Array, trait: float) -> Array:
    return np.maximum(np.hypot(u, v) - 1, 0.75 - np.hypot(u - 0.45 - 0.2 * trait, v))


def _ring(u: Array, v: Array, trait: float) -> Array:
    return np.abs(_ellipse(u, v, 0.8, 0.8 - 0.25 * trait)) - 0.24


def _cross(u: Array, v: Array, trait: float) -> Array:
    arm = 0.25 + 0.12 * trait
    return np.minimum(_box(u, v, 1.0, arm), _box(u, v, arm, 1.0))


def _heart(u: Array, v: Array, trait: float) -> Array:
    x, y = np.abs(u) - 0.45, v * (1.1 - 0.3 * trait) + 0.35
    # Two discs, and below them the wedge between their tangents through the tip.
    wedge = np.maximum(0.753 * x + 0.658 * y - 0.55, 0.658 * x - 0.753 * y)
    return np.minimum(np.hypot(x, y) - 0.55, wedge)


def _bone(u: Array, v: Array, trait: float) -> Array:
    x, y, knob = np.abs(u), np.abs(v), 0.26 + 0.08 * trait
    return np.minimum(np.hypot(x - 0.75, y - 0.22) - knob, _box(u, v, 0.75, 0.2))


def _leaf(u: Array, v: Array, trait: float) -> Array:
    offset = 0.35 + 0.25 * trait
    blade = np.hypot(u, np.abs(v) + offset) - np.hypot(1.0, offset)
    return np.minimum(blade, _box(u - 1.1, v, 0.25, 0.06))


def _fish(u: Array, v: Array, trait: float) -> Array:
    tail = np.maximum(np.abs(v) - (u - 0.35) * (0.7 + 0.3 * trait), u - 1.05)
    return np.minimum(_ellipse(u + 0.25, v, 0.8, 0.42 + 0.12 * trait), tail)


def _mushroom(u: Array, v: Array, trait: float) -> Array:
    cap = np.maximum(_ellipse(u, v - 0.05, 0.95, 0.85 - 0.2 * trait), v - 0.1)
    return np.minimum(cap, _box(u, v - 0.4, 0.2 + 0.15 * trait, 0.5))


def _worm(u: Array, v: Array, trait: float) -> Array:
    body = (np.abs(v - 0.42 * np.sin((2.5 + 1.5 * trait) * u)) - 0.3) * 0.75
    return np.maximum(body, np.abs(u) - 1.1)


def _cat(u: Array, v: Array, trait: float) -> Array:
    ear_u = np.abs(u) - 0.52
    ears = np.maximum.reduce([np.abs(ear_u) * 0.9 + (v + 1.05 + 0.2 * trait) * -0.42, v + 0.2])
    return np.minimum(_ellipse(u, v - 0.12, 0.85, 0.72), ears)


SHAPES: dict[str, Shape] = {
    "bone": _bone,
    "cat": _cat,
    "crescent": _crescent,
    "cross": _cross,
    "fish": _fish,
    "flower": _flower,
    "gear": _gear,
    "heart": _heart,
    "leaf": _leaf,
    "mushroom": _mushroom,
    "polygon": _polygon,
    "ring": _ring,
    "star": _star,
    "worm": _worm,
}


def _wave(x: Array) -> Array:
    """0..1 with period 1, spending most of its time near the ends, so that a texture has two clear colours."""
    return 0.5 + 0.5 * np.tanh(2.5 * np.sin(TURN * x)) / np.tanh(2.5)


def _striped(x: Array, y: Array, phase: float) -> Array:
    return _wave(x + phase)


def _wavy(x: Array, y: Array, phase: float) -> Array:
    return _wave(x + 0.35 * np.sin(TURN * 0.8 * y + phase) + phase)


def _zigzag(x: Array, y: Array, phase: float) -> Array:
    return _wave(x + np.abs(np.mod(y + phase, 1) - 0.5) * 1.4)


def _checked(x: Array, y: Array, phase: float) -> Array:
    return 0.5 + 0.5 * np.tanh(5 * np.sin(np.pi * (x + phase)) * np.sin(np.pi * (y - phase)))


def _spotted(x: Array, y: Array, phase: float) -> Array:
    cell_x, cell_y = np.mod(x + phase, 1) - 0.5, np.mod(y + 0.5 * np.floor(x + phase), 1) - 0.5
    return np.clip(3.5 - 10 * np.hypot(cell_x, cell_y), 0, 1)


def _ringed(x: Array, y: Array, phase: float) -> Array:
    return _wave(np.hypot(x, y) + phase)


def _plaid(x: Array, y: Array, phase: float) -> Array:
    return 0.5 * _wave(x + phase) + 0.5 * _wave(0.5 * y - phase)


def _scaled(x: Array, y: Array, phase: float) -> Array:
    row = np.floor(y)
    return np.clip(1.6 * np.hypot(np.mod(x + phase + 0.5 * row, 1) - 0.5, np.mod(y, 1)) - 0.2, 0, 1) ** 2


def _marbled(x: Array, y: Array, phase: float) -> Array:
    bent = x + 0.6 * np.sin(2.1 * y + 5 * phase) + 0.35 * np.sin(3.7 * x - 2.9 * y + 11 * phase)
    return 0.5 + 0.5 * np.sin(TURN * 0.7 * bent + 0.8 * np.sin(4.3 * y))


def _plain(x: Array, y: Array, phase: float) -> Array:
    return 0.25 + 0.25 * np.sin(1.3 * x + 0.9 * y + TURN * phase)


TEXTURES: dict[str, Texture] = {
    "checked": _checked,
    "marbled": _marbled,
    "plaid": _plaid,
    "plain": _plain,
    "ringed": _ringed,
    "scaled": _scaled,
    "spotted": _spotted,
    "striped": _striped,
    "wavy": _wavy,
    "zigzag": _zigzag,
}
