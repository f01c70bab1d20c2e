"""Pictures show the scene: its thing, its colour and its place, at any resolution."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from unibrain_rt.export.phantom.pictures import layout, render, stimuli
from unibrain_rt.export.phantom.scenes import COLOURS, KINDS, Scene


def test_the_same_scenes_give_the_same_pictures(sampled: list[Scene]) -> None:
    few = sampled[:12]
    pictures = stimuli(few)
    assert pictures.shape == (12, 64, 64, 3)
    assert pictures.dtype == np.uint8
    np.testing.assert_array_equal(pictures, stimuli(few))
    np.testing.assert_array_equal(pictures[7], render(few[7]))
    assert stimuli([], 32).shape == (0, 32, 32, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_are_antialiased(kind: str, plain: Scene) -> None:
    picture = render(replace(plain, kind=kind, tilt=3.0))
    # Flat shapes without antialiasing would leave little more than the backdrop's 64 rows of colours.
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 200


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_do_not_depend_on_resolution(kind: str, sampled: list[Scene]) -> None:
    for scene in islice((scene for scene in sampled if scene.kind == kind), 3):
        small = render(scene, 64).astype(float)
        large = render(scene, 192).reshape(64, 3, 64, 3, 3).mean(axis=(1, 3))
        assert np.abs(small - large).mean() < 3.0
        # Pillow rounds to whole pixels of the canvas, a quarter of the picture's: outlines differ by that.
        assert np.corrcoef(small.ravel(), large.ravel())[0, 1] > 0.98


@pytest.mark.parametrize("kind", KINDS)
def test_the_colour_is_seen(kind: str, plain: Scene) -> None:
    for colour, rgb in COLOURS.items():
        picture = render(replace(plain, kind=kind, colour=colour)).astype(float)
        assert (np.abs(picture - rgb).max(axis=2) < 40).mean() > 0.03


def test_the_thing_is_where_the_caption_says(plain: Scene) -> None:
    def weight(position: str) -> tuple[float, float]:
        picture = render(replace(plain, kind="ball", size="small", position=position)).astype(float)
        rows, columns = np.nonzero((picture[..., 0] - picture[..., 1]) > 120)
        return float(columns.mean()) / 64, float(rows.mean()) / 64

    assert weight("left")[0] < 0.35 < 0.65 < weight("right")[0]
    assert weight("top")[1] < 0.35 < 0.65 < weight("bottom")[1]
    assert weight("middle")[0] == pytest.approx(0.5, abs=0.03)


def test_light_falls_from_its_side(plain: Scene) -> None:
    def balance(lighting: str) -> float:
        picture = render(replace(plain, kind="ball", lighting=lighting)).astype(float)
        return float(picture[:, :16].mean() / picture[:, -16:].mean())

    assert balance("right") < 0.8 < balance("bright") < 1.25 < balance("left")


def test_the_middle_of_every_thing_is_in_the_picture(sampled: list[Scene]) -> None:
    for scene in sampled[:500]:
        spots, side = layout(scene)
        assert len(spots) == scene.count
        assert side > 0.15
        assert all(0.05 < x < 0.95 and 0.05 < y < 0.95 for x, y in spots)
