"""The noise of single trials: how much a voxel has, and how much of it is common to many voxels.

A voxel's noise ceiling is the share of its variance that the stimulus explains. It is drawn here from
distributions like those of the Natural Scenes Dataset (NSD) and knows of no decoding.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.export.phantom.cortex import EARLY, HIGH
from unibrain_rt.export.phantom.early_vision import Floats

#: Region -> mean and spread of the noise ceiling of three averaged trials, and its upper limit, as in NSD
#: (median near 0.3 over nsdgeneral, the best early visual voxels at 0.6 to 0.7).
_CEILINGS: dict[str, tuple[float, float, float]] = {
    **dict.fromkeys(EARLY, (0.40, 0.17, 0.72)),
    "hV4": (0.37, 0.15, 0.65),
    **dict.fromkeys(HIGH, (0.36, 0.15, 0.65)),
}
_COMPONENTS = 6  # of the noise that voxels share
_SHARED = 0.3  # share of a voxel's noise variance that comes from them


def ceilings(rng: np.random.Generator, region: NDArray[np.str_], quality: float) -> Floats:
    """Single-trial noise ceilings (V,); a beta distribution for the average of three, turned back to one."""
    three = np.zeros(len(region))
    for name, (middle, spread, top) in _CEILINGS.items():
        members = region == name
        strength = middle * (1.0 - middle) / spread**2 - 1.0
        drawn = rng.beta(middle * strength, (1.0 - middle) * strength, members.sum())
        three[members] = np.clip(drawn * quality, 0.01, top)
    return np.asarray(three / (3.0 - 2.0 * three), np.float32)


def loadings(rng: np.random.Generator, places: NDArray[np.int64]) -> Floats:
    """Loadings (V, components) of the shared noise on voxels at these places (V, 3), rows of length 1."""
    rows = rng.standard_normal((len(places), _COMPONENTS))
    centred = (places - places.mean(axis=0)) / places.std(axis=0)
    rows[:, 0] = 1.5 + 0.3 * rows[:, 0]  # the whole brain together
    rows[:, 1:4] = 0.9 * centred + 0.3 * rows[:, 1:4]  # slow gradients through the head
    rows[:, 4:] *= 0.6
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32)


def trial_noise(rng: np.random.Generator, loadings: Floats, trials: int) -> Floats:
    """Noise (trials, V) of variance 1: independent between trials, shared in part between voxels."""
    alone, common = np.float32(np.sqrt(1.0 - _SHARED)), np.float32(np.sqrt(_SHARED))
    noise = alone * rng.standard_normal((trials, len(loadings)), np.float32)
    noise += common * (rng.standard_normal((trials, loadings.shape[1]), np.float32) @ loadings.T)
    return noise
