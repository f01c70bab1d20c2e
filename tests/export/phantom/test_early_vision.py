"""Feature maps: each answers to what it is named for."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from unibrain_rt.export.phantom.early_vision import (
    FREQUENCIES,
    GRID,
    MAPS,
    ORIENTATIONS,
    feature_maps,
    opponent,
)

ENERGIES = len(FREQUENCIES) * len(ORIENTATIONS)


def strength(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Mean of every map over one picture."""
    maps = feature_maps(picture[None])
    assert maps.shape == (1, MAPS, GRID * GRID)
    assert maps.dtype == np.float32
    assert maps.min() >= 0.0
    return np.asarray(maps.mean(axis=(0, 2)), np.float32)


def flat(red: int, green: int, blue: int) -> NDArray[np.uint8]:
    return np.full((64, 64, 3), (red, green, blue), np.uint8)


@pytest.mark.parametrize("frequency", FREQUENCIES)
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_grating_is_told_by_direction_and_frequency(frequency: float, orientation: float) -> None:
    y, x = (np.indices((64, 64)) + 0.5) / 64
    turn = np.radians(orientation)
    wave = np.cos(2 * np.pi * frequency * (x * np.cos(turn) + y * np.sin(turn)))
    grating = np.repeat(np.rint(128 + 100 * wave)[..., None], 3, axis=2).astype(np.uint8)
    best = int(np.argmax(strength(grating)[:ENERGIES]))
    assert best == FREQUENCIES.index(frequency) * len(ORIENTATIONS) + ORIENTATIONS.index(orientation)


@pytest.mark.parametrize(
    ("colour", "expected"),
    [
        ((255, 255, 255), {"bright"}),
        ((0, 0, 0), {"dark"}),
        ((255, 0, 0), {"dark", "red", "yellow"}),
        ((0, 255, 0), {"bright", "green", "yellow"}),
        ((0, 0, 255), {"dark", "blue"}),
    ],
)
def test_flat_colours_have_no_energy(colour: tuple[int, int, int], expected: set[str]) -> None:
    answer = strength(flat(*colour))
    np.testing.assert_allclose(answer[:ENERGIES], 0.0, atol=1e-6)
    names = ("bright", "dark", "red", "green", "blue", "yellow")
    found = {name for name, value in zip(names, answer[ENERGIES : ENERGIES + 6], strict=True) if value > 0.05}
    assert found == expected


def test_opponents_of_grey_are_nothing() -> None:
    luminance, red_green, blue_yellow = opponent(np.full((1, 3), 0.25, np.float32))
    np.testing.assert_allclose(luminance, 0.25, rtol=1e-6)
    np.testing.assert_allclose([red_green, blue_yellow], 0.0, atol=1e-7)


def test_larger_pictures_are_averaged_down() -> None:
    small = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    large = small.repeat(2, axis=0).repeat(2, axis=1)
    np.testing.assert_allclose(strength(large), strength(small), rtol=1e-5)
