"""Pictures of scenes: where the things stand, what lies behind them, and how the light falls."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from unibrain_rt.export.phantom.drawing import ARTISTS, EXTENTS, Pen
from unibrain_rt.export.phantom.scenes import (
    BACKGROUNDS,
    COLOURS,
    LIGHTINGS,
    POSITIONS,
    SIZES,
    STYLES,
    Rgb,
    Scene,
)

_SUPERSAMPLE = 4


def layout(scene: Scene) -> tuple[list[tuple[float, float]], float]:
    """Centres of the things and the side of each one's unit box, shares of the picture's side."""
    larger, wide, high = EXTENTS[scene.kind]
    side = SIZES[scene.size] * scene.scale * larger
    if scene.count == 1:
        spots = np.zeros((1, 2))
    elif wide < 0.5 * high:  # tall things stand in a row
        side *= (0.94, 0.86)[scene.count - 2]
        row = [(i - (scene.count - 1) / 2, 0.06 * (-1) ** i) for i in range(scene.count)]
        spots = np.array(row) * (wide * 1.02, 1)
    elif high < 0.6 * wide:  # flat things are stacked
        side *= (0.86, 0.74)[scene.count - 2]
        stack = [(0.05 * (-1) ** i, i - (scene.count - 1) / 2) for i in range(scene.count)]
        spots = np.array(stack) * (1, high * 1.1)
    elif scene.count == 2:
        side *= 0.70
        spots = np.array([(-0.5 * wide, -0.14), (0.5 * wide, 0.14)])
    else:
        side *= 0.62
        spots = np.array([(0.0, -0.5 * high), (-0.52 * wide, 0.46 * high), (0.52 * wide, 0.46 * high)])
    if scene.mirrored:
        spots = spots * (-1.0, 1.0)
    spots = spots * side
    half = np.abs(spots).max(axis=0) + 0.5 * side * np.array([wide, high])
    if half.max() > 0.49:  # a group that is larger than the picture shrinks to it
        shrink = 0.49 / half.max()
        spots, side, half = spots * shrink, side * shrink, half * shrink
    room = np.maximum(0.5 - half, 0.0) + 0.02  # a little may be cut off at the edge
    wish = np.array(POSITIONS[scene.position]) - 0.5
    centre = 0.5 + np.clip(wish + scene.shift, -room, room)
    return [(float(x), float(y)) for x, y in spots + centre], float(side)


def _backdrop(scene: Scene, side: int) -> Image.Image:
    """Sky and ground (or wall and floor), canvas pixels."""
    zenith, far, near, front, level = BACKGROUNDS[scene.background]
    level += scene.horizon
    y = (np.arange(side) + 0.5) / side
    ends = [np.array(colour, np.float64) for colour in (zenith, far, near, front)]
    up = np.clip(y / level, 0.0, 1.0)[:, None]
    down = np.clip((y - level) / (1.0 - level), 0.0, 1.0)[:, None]
    column = np.where(
        (y < level)[:, None], ends[0] + (ends[1] - ends[0]) * up, ends[2] + (ends[3] - ends[2]) * down
    )
    image = Image.fromarray(np.rint(column).astype(np.uint8)[:, None, :]).resize(
        (side, side), Image.Resampling.NEAREST
    )
    draw = ImageDraw.Draw(image)
    drift = 0.1 * (scene.style - 3.5) / 3.5 * (-1.0 if scene.mirrored else 1.0)

    def oval(x: float, y: float, rx: float, ry: float, fill: Rgb) -> None:
        x += drift
        draw.ellipse(((x - rx) * side, (y - ry) * side, (x + rx) * side, (y + ry) * side), fill=fill)

    def bar(top: float, bottom: float, fill: Rgb) -> None:
        draw.rectangle((0, top * side, side, bottom * side), fill=fill)

    if scene.background == "wall":
        bar(level - 0.035, level, (224, 216, 200))
    elif scene.background == "grass":
        for x, y0 in ((0.2, 0.13), (0.8, 0.2)):
            oval(x, y0, 0.12, 0.035, (240, 246, 250))
            oval(x + 0.03, y0 - 0.025, 0.06, 0.035, (240, 246, 250))
    elif scene.background == "beach":
        bar(level - 0.14, level, (84, 160, 190))
        bar(level - 0.012, level + 0.012, (236, 244, 244))
    elif scene.background == "night":
        oval(0.84, 0.13, 0.065, 0.065, (236, 232, 208))
        for k in range(14):
            r = 0.006 + 0.003 * (k % 3)
            oval((k * 0.618) % 1.1 - 0.05, 0.03 + (k * 0.377) % 0.55, r, r, (220, 222, 236))
    elif scene.background == "snow":
        for k in range(22):
            oval((k * 0.618) % 1.2 - 0.1, (k * 0.2963 + 0.05) % 1.0, 0.011, 0.011, (246, 248, 252))
    else:
        oval(0.5, level, 0.15, 0.15, (255, 216, 150))
        bar(level, 1.0, near)
    return image


def render(scene: Scene, size: int = 64) -> NDArray[np.uint8]:
    """The scene's picture, uint8 (size, size, 3), drawn four times as large and filtered down."""
    side = size * _SUPERSAMPLE
    image = _backdrop(scene, side)
    draw = ImageDraw.Draw(image)
    red, green, blue = (min(255, round(value * scene.shade)) for value in COLOURS[scene.colour])
    spots, box = layout(scene)
    for i, (x, y) in enumerate(spots):
        tilt = scene.tilt * (1.0, -0.8, 0.6)[i]
        pen = Pen(draw, (x * side, y * side), box * side, tilt, scene.mirrored and scene.kind != "word")
        ARTISTS[scene.kind](pen, (red, green, blue), (scene.style + 3 * i) % STYLES)
    small = np.asarray(image.resize((size, size), Image.Resampling.HAMMING), np.float32)
    left, right = LIGHTINGS[scene.lighting]
    across = np.linspace(left, right, size, dtype=np.float32)[None, :, None]
    lit: NDArray[np.uint8] = np.clip(np.rint(small * across), 0, 255).astype(np.uint8)
    return lit


def stimuli(scenes: Sequence[Scene], size: int = 64) -> NDArray[np.uint8]:
    """Pictures of many scenes, uint8 (N, size, size, 3)."""
    pictures = np.empty((len(scenes), size, size, 3), np.uint8)
    for i, scene in enumerate(scenes):
        pictures[i] = render(scene, size)
    return pictures
