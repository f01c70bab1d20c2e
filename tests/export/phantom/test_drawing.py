"""The pen turns with its thing, and every kind is drawn in the box that the layout counts on."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from unibrain_rt.export.phantom.drawing import ARTISTS, EXTENTS, Pen
from unibrain_rt.export.phantom.scenes import KINDS, STYLES

PAPER = (1, 2, 3)


def canvas(tilt: float = 0.0, mirrored: bool = False) -> tuple[Image.Image, Pen]:
    """200 x 200 pixels, and a pen whose unit box is the 100 x 100 in the middle."""
    image = Image.new("RGB", (200, 200), PAPER)
    return image, Pen(ImageDraw.Draw(image), (100.0, 100.0), 100.0, tilt, mirrored)


def test_the_pen_places_the_unit_box() -> None:
    corner = ((0.5, -0.25),)
    np.testing.assert_allclose(canvas()[1].place(corner), [(150.0, 75.0)])
    np.testing.assert_allclose(canvas(mirrored=True)[1].place(corner), [(50.0, 75.0)])
    np.testing.assert_allclose(canvas(tilt=90.0)[1].place(corner), [(125.0, 150.0)])  # clockwise


def test_a_shape_has_a_darker_edge() -> None:
    image, pen = canvas()
    pen.box(-0.4, -0.4, 0.4, 0.4, (200, 100, 40))
    assert image.getpixel((100, 100)) == (200, 100, 40)
    assert image.getpixel((60, 100)) == (90, 45, 18)
    assert image.getpixel((50, 100)) == PAPER


def test_every_kind_has_an_artist_and_an_extent() -> None:
    assert set(ARTISTS) == set(EXTENTS) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_things_fill_their_extent(kind: str) -> None:
    misfits = []
    for style in range(STYLES):
        image, pen = canvas()
        ARTISTS[kind](pen, (218, 30, 38), style)
        rows, columns = np.nonzero((np.asarray(image) != PAPER).any(axis=2))
        assert np.abs((columns.min() + columns.max()) / 2 - 100) < 10
        assert np.abs((rows.min() + rows.max()) / 2 - 100) < 10
        filled = np.array([np.ptp(columns), np.ptp(rows)]) / 100.0
        assert np.all(filled > np.array(EXTENTS[kind][1:]) - 0.12)
        misfits.append(np.abs(filled - EXTENTS[kind][1:]).max())
    assert min(misfits) < 0.12


@pytest.mark.parametrize("kind", KINDS)
def test_styles_differ(kind: str) -> None:
    drawn = set()
    for style in range(4):
        image, pen = canvas()
        ARTISTS[kind](pen, (218, 30, 38), style)
        drawn.add(image.tobytes())
    assert len(drawn) >= 2
