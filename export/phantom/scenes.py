"""The phantom's world: scenes of one kind of thing, in one colour, on a grid of independent factors.

The grid has 10 kinds x 8 colours x 5 positions x 3 sizes x 3 numbers x 6 backgrounds x 4 lightings = 86,400
cells, each in 8 styles (which face, which word, which car) and 2 facings: 1,382,400 distinct scenes before
the continuous jitter of place, scale, tilt, shade and horizon. `split` hashes the cell alone: train,
validation and test never share a scene, in whatever style and jitter.

Coordinates are shares of the picture's side, x to the right and y down: any resolution shows the same scene.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Rgb = tuple[int, int, int]
Split = Literal["train", "validation", "test"]

#: The four kinds that functional regions answer to, then the everyday objects.
KINDS = ("face", "word", "place", "body", "ball", "cup", "car", "tree", "fish", "flower")
COLOURS: dict[str, Rgb] = {
    "red": (218, 30, 38),
    "orange": (250, 132, 16),
    "yellow": (250, 218, 40),
    "green": (26, 150, 58),
    "blue": (34, 84, 222),
    "purple": (122, 44, 168),
    "pink": (255, 134, 194),
    "white": (246, 246, 246),
}
#: Name -> where the middle of the group would like to be; it yields as far as the picture's edge demands.
POSITIONS: dict[str, tuple[float, float]] = {
    "left": (0.24, 0.52),
    "middle": (0.5, 0.52),
    "right": (0.76, 0.52),
    "top": (0.5, 0.26),
    "bottom": (0.5, 0.76),
}
#: Name -> side of a single thing.
SIZES: dict[str, float] = {"small": 0.40, "medium": 0.55, "large": 0.72}
COUNTS = (1, 2, 3)
#: Name -> sky at the zenith and at the horizon, ground at the horizon and in front; height of the horizon.
BACKGROUNDS: dict[str, tuple[Rgb, Rgb, Rgb, Rgb, float]] = {
    "wall": ((196, 184, 164), (178, 166, 146), (132, 104, 82), (104, 80, 62), 0.78),
    "grass": ((140, 190, 232), (206, 228, 240), (142, 178, 98), (104, 146, 70), 0.56),
    "beach": ((150, 206, 232), (214, 236, 240), (236, 216, 168), (216, 190, 136), 0.60),
    "night": ((14, 18, 44), (36, 42, 84), (40, 46, 52), (22, 26, 32), 0.66),
    "snow": ((142, 158, 178), (178, 190, 204), (214, 222, 232), (190, 202, 218), 0.58),
    "sunset": ((92, 74, 128), (238, 168, 138), (84, 68, 76), (56, 46, 56), 0.64),
}
#: Name -> brightness at the left and at the right edge.
LIGHTINGS: dict[str, tuple[float, float]] = {
    "bright": (1.06, 1.06),
    "dim": (0.66, 0.66),
    "left": (1.12, 0.64),
    "right": (0.64, 1.12),
}
STYLES = 8
#: Factor of a scene's cell -> its values.
FACTORS: dict[str, tuple[Any, ...]] = {
    "kind": KINDS,
    "colour": tuple(COLOURS),
    "position": tuple(POSITIONS),
    "size": tuple(SIZES),
    "count": COUNTS,
    "background": tuple(BACKGROUNDS),
    "lighting": tuple(LIGHTINGS),
}


@dataclass(frozen=True)
class Scene:
    """One picture's content. The first seven fields, `FACTORS`, are its cell in the grid; the rest are nuisance."""

    kind: str
    colour: str
    position: str
    size: str
    count: int
    background: str
    lighting: str
    style: int = 0  # identity, 0 ... STYLES - 1
    mirrored: bool = False
    shift: tuple[float, float] = (0.0, 0.0)  # of the whole group, share of the side
    scale: float = 1.0
    tilt: float = 0.0  # degrees
    shade: float = 1.0  # brightness of the main colour
    horizon: float = 0.0  # shift of the horizon, share of the side

    @property
    def cell(self) -> tuple[str, ...]:
        """The factors as words: ("face", "red", "left", "small", "1", "wall", "dim")."""
        return tuple(str(getattr(self, factor)) for factor in FACTORS)


def sample_scene(rng: np.random.Generator) -> Scene:
    """A scene with every factor drawn evenly and independently."""

    def within(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    return Scene(
        **{factor: values[int(rng.integers(len(values)))] for factor, values in FACTORS.items()},
        style=int(rng.integers(STYLES)),
        mirrored=bool(rng.integers(2)),
        shift=(within(-0.04, 0.04), within(-0.04, 0.04)),
        scale=within(0.92, 1.06),
        tilt=within(-6.0, 6.0),
        shade=within(0.92, 1.04),
        horizon=within(-0.05, 0.05),
    )


def split(scene: Scene) -> Split:
    """The set that a scene's cell belongs to: about 90, 5 and 5 %, everywhere the same."""
    digest = hashlib.sha256("/".join(scene.cell).encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2.0**64
    return "train" if share < 0.90 else "validation" if share < 0.95 else "test"


def scenes(part: Split, count: int, seed: int) -> list[Scene]:
    """`count` scenes of one split, drawn by rejection from the generator that `seed` names."""
    if part not in ("train", "validation", "test"):
        raise ValueError(f"no split called {part!r}: use train, validation or test")
    rng = np.random.Generator(np.random.Philox(seed))
    drawn: list[Scene] = []
    while len(drawn) < count:
        scene = sample_scene(rng)
        if split(scene) == part:
            drawn.append(scene)
    return drawn
