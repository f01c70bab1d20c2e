"""The things of the phantom's world, drawn with Pillow: a pen in the unit box of one thing, an artist a kind.

An artist is given the main colour and the style, which says which face, which word, which car.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ImageDraw

from unibrain_rt.export.phantom.scenes import Rgb

_BLACK: Rgb = (34, 32, 38)
_SKINS: tuple[Rgb, ...] = ((248, 214, 184), (236, 188, 150), (204, 148, 108), (150, 98, 66))
_HAIRS: tuple[Rgb, ...] = ((56, 38, 28), (30, 26, 30), (120, 78, 40), (96, 50, 30), (196, 156, 92))
_ANGLES = np.linspace(0.0, 2.0 * np.pi, 32, endpoint=False)
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)

#: Letters as strokes: points x y in eighths of a box, | between strokes.
_LETTERS = {
    "A": "08 40 88|15 75",
    "E": "80 00 08 88|04 64",
    "H": "00 08|80 88|04 84",
    "N": "08 00 88 80",
    "O": "20 60 82 86 68 28 06 02 20",
    "S": "81 60 20 02 14 74 86 68 28 07",
    "T": "00 80|40 48",
    "U": "00 06 28 68 86 80",
    "Y": "00 44 80|44 48",
}
_WORDS = ("SUN", "TEA", "YES", "HOT", "ONE", "NUT", "SEA", "TOY")


def _shade(colour: Rgb, factor: float) -> Rgb:
    """Darker below 1, lighter (towards white) above."""
    if factor <= 1.0:
        red, green, blue = (round(value * factor) for value in colour)
    else:
        red, green, blue = (round(value + (255 - value) * min(factor - 1.0, 1.0)) for value in colour)
    return red, green, blue


class Pen:
    """Draws in the unit box of one thing, (-0.5, -0.5) to (0.5, 0.5), wherever that lies on the canvas."""

    def __init__(
        self, draw: ImageDraw.ImageDraw, centre: tuple[float, float], side: float, tilt: float, mirrored: bool
    ) -> None:
        self.draw = draw
        self.side = side
        cos, sin = np.cos(np.radians(tilt)) * side, np.sin(np.radians(tilt)) * side
        flip = -1.0 if mirrored else 1.0
        self.turn = np.array([[cos * flip, sin * flip], [-sin, cos]])
        self.centre = np.array(centre)

    def place(self, points: Any) -> list[tuple[float, float]]:
        """Points of the unit box as pixels of the canvas."""
        placed = np.asarray(points, np.float64) @ self.turn + self.centre
        return [(x, y) for x, y in placed.tolist()]

    def shape(self, points: Any, fill: Rgb, edge: float = 0.03) -> None:
        """A closed shape with a darker edge, `edge` wide (0 for none)."""
        placed = self.place(points)
        self.draw.polygon(placed, fill=fill)
        if edge:
            width = max(2, round(edge * self.side))
            self.draw.line([*placed, placed[0], placed[1]], fill=_shade(fill, 0.45), width=width)

    def oval(self, x: float, y: float, rx: float, ry: float, fill: Rgb, edge: float = 0.03) -> None:
        self.shape(_CIRCLE * (rx, ry) + (x, y), fill, edge)

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: Rgb, edge: float = 0.03) -> None:
        self.shape(((x0, y0), (x1, y0), (x1, y1), (x0, y1)), fill, edge)

    def line(self, points: Any, fill: Rgb, width: float) -> None:
        """A stroke with round ends and corners."""
        placed = self.place(points)
        thick = max(1, round(width * self.side))
        self.draw.line(placed, fill=fill, width=thick)
        if thick > 3:
            r = thick / 2.0
            for x, y in placed:
                self.draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)


def _arc(x: float, y: float, rx: float, ry: float, start: float, stop: float) -> NDArray[np.float64]:
    """Points on an ellipse from one angle to another, in degrees clockwise from the right."""
    angles = np.radians(np.linspace(start, stop, 14))
    return np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], axis=1)


def _face(pen: Pen, colour: Rgb, style: int) -> None:
    skin, hair = _SKINS[style % 4], _HAIRS[style % 5]
    if style % 2:  # long hair
        pen.oval(0.0, 0.12, 0.42, 0.40, hair)
    pen.oval(-0.335, 0.12, 0.06, 0.09, skin)
    pen.oval(0.335, 0.12, 0.06, 0.09, skin)
    pen.oval(0.0, 0.10, 0.335, 0.40, skin)
    pen.shape(_arc(0.0, -0.12, 0.36, 0.40, 180, 360), colour)
    pen.box(-0.43, -0.17, 0.43, -0.06, _shade(colour, 0.84))
    for x in (-0.13, 0.13):
        pen.oval(x, 0.08, 0.075, 0.065, (252, 252, 252), 0.02)
        pen.oval(x, 0.085, 0.042, 0.05, _BLACK, 0.0)
    pen.line(((0.0, 0.12), (0.035, 0.21), (-0.02, 0.22)), _shade(skin, 0.6), 0.03)
    smile = 0.09 if style < 5 else 0.05
    pen.shape(_arc(0.0, 0.29, 0.15, smile, 0, 180), (176, 44, 52), 0.025)


def _word(pen: Pen, colour: Rgb, style: int) -> None:
    text = _WORDS[style % len(_WORDS)]
    strokes = [
        np.array([(int(xy[0]), int(xy[1])) for xy in stroke.split()]) / 8.0 * (0.235, 0.42)
        + (0.3525 * i - 0.47, -0.21)
        for i, letter in enumerate(text)
        for stroke in _LETTERS[letter].split("|")
    ]
    for stroke in strokes:
        pen.line(stroke, _shade(colour, 0.32), 0.135)
    for stroke in strokes:
        pen.line(stroke, colour, 0.085)


def _place(pen: Pen, colour: Rgb, style: int) -> None:
    roof = ((112, 66, 50), (84, 84, 96), (70, 56, 60), (130, 92, 60))[style % 4]
    pane = (252, 236, 150) if style >= 4 else (176, 220, 240)
    if style % 2:
        pen.box(0.20, -0.46, 0.32, -0.15, _shade(roof, 0.8))
    pen.box(-0.42, -0.10, 0.42, 0.46, colour)
    if style % 4 >= 2:
        pen.shape(((-0.52, -0.06), (-0.30, -0.42), (0.30, -0.42), (0.52, -0.06)), roof)
    else:
        pen.shape(((-0.53, -0.06), (0.0, -0.50), (0.53, -0.06)), roof)
    pen.box(-0.09, 0.14, 0.09, 0.46, _shade(roof, 0.7))
    for x in (-0.27, 0.27):
        pen.box(x - 0.10, 0.02, x + 0.10, 0.22, pane)
        pen.line(((x, 0.02), (x, 0.22)), _shade(pane, 0.5), 0.025)
        pen.line(((x - 0.10, 0.12), (x + 0.10, 0.12)), _shade(pane, 0.5), 0.025)


def _body(pen: Pen, colour: Rgb, style: int) -> None:
    skin, hair = _SKINS[style % 4], _HAIRS[style % 5]
    legs = ((58, 62, 84), (92, 84, 76), (44, 44, 48), (110, 104, 100))[style // 2]
    lift = (0.0, 0.10, 0.22, 0.34)[style % 4]  # how far the hands are from hanging down
    for side in (-1, 1):
        hand = (side * (0.20 + 0.5 * lift), 0.06 - 0.3 * lift)
        pen.line(((side * 0.05, 0.08), (side * 0.085, 0.45)), _shade(legs, 0.5), 0.115)
        pen.line(((side * 0.05, 0.08), (side * 0.085, 0.45)), legs, 0.085)
        pen.line(((side * 0.085, 0.47), (side * 0.125, 0.475)), _BLACK, 0.05)
        pen.line(((side * 0.11, -0.22), hand), _shade(colour, 0.45), 0.105)
        pen.line(((side * 0.11, -0.22), hand), colour, 0.075)
        pen.oval(hand[0] * 1.04, hand[1] + 0.02, 0.042, 0.042, skin, 0.015)
    if style % 2:
        pen.shape(((-0.13, -0.27), (0.13, -0.27), (0.20, 0.20), (-0.20, 0.20)), colour, 0.02)
    else:
        pen.shape(((-0.15, -0.27), (0.15, -0.27), (0.125, 0.11), (-0.125, 0.11)), colour, 0.02)
    pen.oval(0.0, -0.405, 0.088, 0.10, hair, 0.015)
    pen.oval(0.0, -0.38, 0.072, 0.085, skin, 0.0)


def _ball(pen: Pen, colour: Rgb, style: int) -> None:
    dark = _shade(colour, 0.42)
    pen.oval(0.0, 0.0, 0.46, 0.46, colour, 0.035)
    if style % 2:
        pen.line(((-0.44, 0.0), (0.44, 0.0)), dark, 0.03)
        pen.line(((0.0, -0.44), (0.0, 0.44)), dark, 0.03)
        pen.line(_arc(-0.60, 0.0, 0.38, 0.44, -48, 48), dark, 0.03)
        pen.line(_arc(0.60, 0.0, 0.38, 0.44, 132, 228), dark, 0.03)
    else:
        pale = (250, 250, 250) if colour[1] < 200 or colour[2] < 200 else (120, 130, 150)
        band = np.concatenate([_arc(0.0, -0.06, 0.45, 0.16, 12, 168), _arc(0.0, 0.10, 0.44, 0.17, 168, 12)])
        pen.shape(band, pale, 0.02)
    pen.oval(-0.17, -0.22, 0.10, 0.07, _shade(colour, 1.6), 0.0)


def _cup(pen: Pen, colour: Rgb, style: int) -> None:
    inside = ((88, 54, 36), (150, 96, 44), (236, 228, 214), (70, 48, 40))[style % 4]
    narrow = 0.22 + 0.09 * (style % 2)
    pen.line(_arc(0.30, 0.05, 0.16, 0.19, -95, 95), _shade(colour, 0.45), 0.13)
    pen.line(_arc(0.30, 0.05, 0.16, 0.19, -95, 95), _shade(colour, 0.9), 0.075)
    wall = np.concatenate([_arc(-0.08, 0.38, narrow, 0.08, 0, 180), [[-0.42, -0.30], [0.26, -0.30]]])
    pen.shape(wall, colour)
    pen.shape(((-0.33, -0.18), (-0.26, -0.16), (-0.20, 0.36), (-0.26, 0.34)), _shade(colour, 1.5), 0.0)
    pen.oval(-0.08, -0.30, 0.345, 0.105, _shade(colour, 1.3))
    pen.oval(-0.08, -0.29, 0.27, 0.065, inside, 0.0)


def _car(pen: Pen, colour: Rgb, style: int) -> None:
    glass = (190, 222, 238)
    if style % 4 == 3:  # a van
        back, roof, height, screen = -0.50, 0.22, -0.30, 0.38
    else:
        back, roof, height, screen = (-0.40, -0.44, -0.34)[style % 4], 0.12, -0.28, 0.30
    top, low, pillar = height + 0.06, -0.03, roof - 0.25
    rise = -0.48 if style % 4 == 3 else -0.24
    cabin = ((back, -0.02), (rise, height), (roof, height), (screen, -0.02))
    front = ((pillar + 0.06, low), (pillar + 0.06, top), (roof - 0.03, top), (screen - 0.09, low))
    rear = ((back + 0.09, low), (rise + 0.05, top), (pillar, top), (pillar, low))
    pen.shape(cabin, colour)
    for window in (front, rear):
        pen.shape(window, glass, 0.02)
    pen.shape(
        (
            (-0.53, 0.02),
            (-0.50, -0.05),
            (0.34, -0.05),
            (0.50, 0.00),
            (0.54, 0.07),
            (0.54, 0.19),
            (-0.53, 0.19),
        ),
        colour,
    )
    pen.oval(0.49, 0.055, 0.035, 0.035, (255, 240, 160), 0.015)
    for x in (-0.31, 0.31):
        pen.oval(x, 0.19, 0.125, 0.125, _BLACK, 0.0)
        pen.oval(x, 0.19, 0.06, 0.06, (200, 200, 206), 0.0)


def _tree(pen: Pen, colour: Rgb, style: int) -> None:
    pen.shape(((-0.06, 0.05), (0.06, 0.05), (0.09, 0.48), (-0.09, 0.48)), (112, 72, 42), 0.02)
    if style % 3 == 0:  # a fir
        for top, foot, half in ((0.06, 0.30, 0.36), (-0.20, 0.10, 0.30), (-0.49, -0.12, 0.23)):
            pen.shape(((0.0, top - 0.12), (half, foot), (-half, foot)), colour, 0.025)
        return
    rounds = (
        (-0.22, -0.02, 0.20),
        (0.22, -0.02, 0.20),
        (0.0, -0.26, 0.23),
        (-0.17, -0.20, 0.19),
        (0.18, -0.19, 0.19),
    )
    for x, y, r in rounds:
        pen.oval(x, y, r + 0.015, r + 0.015, _shade(colour, 0.45), 0.0)
    for x, y, r in (*rounds, (0.0, -0.05, 0.2)):
        pen.oval(x, y, r - 0.015, r - 0.015, colour, 0.0)
    for x, y in ((-0.18, -0.22), (0.10, -0.30), (0.02, -0.06), (0.24, -0.06), (-0.24, 0.0)):
        pen.oval(x, y, 0.06, 0.035, _shade(colour, 0.78 if style % 2 else 1.4), 0.0)


def _fish(pen: Pen, colour: Rgb, style: int) -> None:
    fin = _shade(colour, 0.75)
    tall = 0.23 + 0.02 * (style % 4)
    pen.shape(((-0.26, 0.0), (-0.53, -0.25), (-0.45, 0.0), (-0.53, 0.25)), fin)
    pen.shape(((-0.12, -tall + 0.05), (0.02, -tall - 0.12), (0.20, -tall + 0.07)), fin)
    pen.shape(((-0.02, tall - 0.05), (-0.06, tall + 0.10), (0.14, tall - 0.05)), fin)
    pen.oval(0.08, 0.0, 0.42, tall, colour)
    if style % 2:
        for x in (-0.14, 0.02):
            pen.line(_arc(x - 0.06, 0.0, 0.09, tall * 0.8, -75, 75), _shade(colour, 1.6), 0.05)
    pen.line(_arc(0.14, 0.0, 0.09, tall * 0.8, -70, 70), _shade(colour, 0.45), 0.03)
    pen.oval(0.34, -0.06, 0.062, 0.062, (252, 252, 252), 0.015)
    pen.oval(0.355, -0.06, 0.034, 0.034, _BLACK, 0.0)
    pen.line(((0.49, 0.05), (0.40, 0.08)), _shade(colour, 0.4), 0.025)


def _flower(pen: Pen, colour: Rgb, style: int) -> None:
    petals = (5, 6, 8, 7)[style % 4]
    heart = (120, 74, 36) if style % 2 or (colour[0] > 230 and colour[2] < 100) else (250, 206, 60)
    green = (60, 118, 52)
    pen.line(((0.0, -0.1), (0.03, 0.2), (0.0, 0.48)), green, 0.055)
    for side in (-1, 1):
        pen.shape(((0.01, 0.36), (side * 0.14, 0.20), (side * 0.30, 0.20), (side * 0.20, 0.34)), green, 0.02)
    long, wide = 0.165, (0.145, 0.125, 0.095, 0.11)[style % 4]
    for k in range(petals):
        angle = 2.0 * np.pi * (k + 0.25) / petals
        cos, sin = np.cos(angle), np.sin(angle)
        petal = (_CIRCLE * (long, wide) + (0.19, 0.0)) @ np.array([[cos, sin], [-sin, cos]]) + (0.0, -0.15)
        pen.shape(petal, colour, 0.025)
    pen.oval(0.0, -0.15, 0.11, 0.11, heart, 0.02)


# fmt: off
#: Kind -> who draws it.
ARTISTS: dict[str, Callable[[Pen, Rgb, int], None]] = {
    "face": _face, "word": _word, "place": _place, "body": _body, "ball": _ball,
    "cup": _cup, "car": _car, "tree": _tree, "fish": _fish, "flower": _flower,
}
#: Kind -> how much larger than the nominal side its unit box is, and the width and height it fills of it,
#: without what sticks out in some styles (raised arms, tall fins).
EXTENTS: dict[str, tuple[float, float, float]] = {
    "face": (1.0, 0.86, 1.0), "word": (1.3, 1.06, 0.56), "place": (1.0, 1.06, 0.96), "body": (1.3, 0.42, 1.0),
    "ball": (0.92, 0.92, 0.92), "cup": (1.0, 0.9, 0.9), "car": (1.2, 1.08, 0.62), "tree": (1.1, 0.84, 1.0),
    "fish": (1.12, 1.06, 0.66), "flower": (1.1, 0.7, 0.98),
}
# fmt: on
