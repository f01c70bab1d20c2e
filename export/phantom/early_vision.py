"""What early vision finds in a picture: Gabor energy, luminance, opponent colour, and junctions, as maps."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float32]

SIDE = 64  # pictures are looked at in this size
GRID = 32  # and their features are mapped on this many rows and columns
FREQUENCIES = (3.0, 7.0, 14.0)  # cycles a picture
ORIENTATIONS = (0.0, 45.0, 90.0, 135.0)  # direction of the modulation, degrees
#: Number of maps: energies, then bright, dark, red, green, blue, yellow, and two kinds of junction.
MAPS = len(FREQUENCIES) * len(ORIENTATIONS) + 8


def _looked_at(images: NDArray[np.uint8]) -> Floats:
    """Pictures (N, S, S, 3) as (N, 64, 64, 3) in [0, 1]."""
    if images.shape[1:3] != (SIDE, SIDE):
        images = np.stack(
            [np.asarray(Image.fromarray(i).resize((SIDE, SIDE), Image.Resampling.BOX)) for i in images]
        )
    return images.astype(np.float32) / np.float32(255.0)


def opponent(rgb: Floats) -> tuple[Floats, Floats, Floats]:
    """Luminance, red against green, blue against yellow; rgb in [0, 1] along the last axis."""
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    luminance = np.float32(0.30) * red + np.float32(0.59) * green + np.float32(0.11) * blue
    return luminance, red - green, blue - np.float32(0.5) * (red + green)


def feature_maps(images: NDArray[np.uint8]) -> Floats:
    """Feature maps (N, MAPS, GRID * GRID), none negative.

    Gabor energy is the modulus of a one-sided band of the spectrum. Moving the band to frequency zero before
    going back leaves that modulus as it is, so that a transform half as wide is enough.
    """
    pictures = _looked_at(images)
    count = len(pictures)
    luminance, red_green, blue_yellow = opponent(pictures)
    ramp = np.clip(np.minimum(np.arange(SIDE) + 0.5, SIDE - 0.5 - np.arange(SIDE)) / 4.0, 0.0, 1.0)
    # The picture fades to grey: no edge where its sides meet.
    window = np.outer(ramp, ramp).astype(np.float32)
    spectrum = np.fft.fft2((luminance - luminance.mean(axis=(1, 2), keepdims=True)) * window)
    maps = np.empty((count, MAPS, GRID, GRID), np.float32)
    offsets = np.fft.fftfreq(GRID, 1.0 / GRID)
    index = 0
    for frequency in FREQUENCIES:
        for orientation in ORIENTATIONS:
            fx = frequency * np.cos(np.radians(orientation))
            fy = frequency * np.sin(np.radians(orientation))
            u, v = offsets + round(fx), offsets + round(fy)
            distance = (u[None, :] - fx) ** 2 + (v[:, None] - fy) ** 2
            band = np.exp(-distance / (2.0 * (0.35 * frequency) ** 2)).astype(np.float32)
            rows, columns = v.astype(int) % SIDE, u.astype(int) % SIDE
            maps[:, index] = np.abs(np.fft.ifft2(spectrum[:, rows[:, None], columns[None, :]] * band))
            index += 1
    for channel, middle in ((luminance, 0.5), (red_green, 0.0), (blue_yellow, 0.0)):
        pooled = channel.reshape(count, GRID, 2, GRID, 2).mean(axis=(2, 4)) - np.float32(middle)
        for sign in (1.0, -1.0):
            maps[:, index] = np.maximum(np.float32(sign) * pooled, 0.0)
            index += 1
    # Junctions and bends at the middle frequency: two directions at one place.
    first = len(ORIENTATIONS)
    maps[:, index] = np.sqrt(maps[:, first] * maps[:, first + 2])
    maps[:, index + 1] = np.sqrt(maps[:, first + 1] * maps[:, first + 3])
    return maps.reshape(count, MAPS, GRID * GRID)
