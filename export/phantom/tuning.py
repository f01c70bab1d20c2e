"""What each voxel of a new subject is tuned to, drawn at random as its region allows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.export.phantom.cortex import HIGH, Cortex
from unibrain_rt.export.phantom.early_vision import FREQUENCIES, ORIENTATIONS, Floats
from unibrain_rt.export.phantom.scenes import BACKGROUNDS, KINDS

#: Area -> receptive field's sigma at the fovea and its growth with eccentricity; power-law exponent; shares
#: of orientation energy, luminance, colour and junctions in the drive.
_AREAS: dict[str, tuple[float, float, float, tuple[float, float, float, float]]] = {
    "V1": (0.030, 0.08, 0.70, (0.55, 0.20, 0.25, 0.00)),
    "V2": (0.040, 0.12, 0.60, (0.50, 0.15, 0.25, 0.10)),
    "V3": (0.055, 0.17, 0.55, (0.50, 0.15, 0.20, 0.15)),
    "hV": (0.080, 0.22, 0.50, (0.20, 0.10, 0.45, 0.25)),
}
#: Category region -> answer to each kind, in the order of KINDS. The preferred kind is 1; the rest is
#: cross-talk as localisers show it: bodies in face regions and the reverse, trees and cars in place regions.
_SELECTIVITY: dict[str, tuple[float, ...]] = {
    #          face  word  place body  ball  cup   car   tree  fish  flower
    "faces": (1.00, 0.14, 0.08, 0.36, 0.20, 0.14, 0.12, 0.10, 0.28, 0.18),
    "words": (0.26, 1.00, 0.20, 0.16, 0.12, 0.22, 0.24, 0.10, 0.14, 0.14),
    "places": (0.10, 0.12, 1.00, 0.14, 0.08, 0.14, 0.36, 0.34, 0.10, 0.16),
    "bodies": (0.36, 0.10, 0.08, 1.00, 0.12, 0.16, 0.14, 0.20, 0.34, 0.16),
}
#: Kind -> where it lies in the space over which LO is tuned: alive, made by hand, round, large in the world.
_KIND_SPACE = np.array(
    [
        (1.0, 0.1, 0.8, 0.4),  # face
        (0.0, 1.0, 0.2, 0.2),  # word
        (0.0, 0.9, 0.1, 1.0),  # place
        (1.0, 0.2, 0.2, 0.6),  # body
        (0.0, 0.8, 1.0, 0.1),  # ball
        (0.1, 1.0, 0.6, 0.0),  # cup
        (0.2, 1.0, 0.4, 0.8),  # car
        (0.6, 0.0, 0.4, 0.9),  # tree
        (0.9, 0.0, 0.5, 0.1),  # fish
        (0.6, 0.1, 0.9, 0.0),  # flower
    ]
)
#: Background -> how strongly a place voxel answers to it.
_OUTDOORS = {"wall": 0.0, "grass": 0.22, "beach": 0.22, "night": 0.14, "snow": 0.18, "sunset": 0.16}


def receptive_fields(rng: np.random.Generator, cortex: Cortex) -> Floats:
    """Receptive fields (V, 3). A hemisphere sees the opposite half, a ventral area its upper quarter."""
    count, region = cortex.voxels, cortex.region
    right = cortex.places[:, 0] >= cortex.shape[0] // 2
    eccentricity = 0.62 * rng.random(count) ** 0.62  # denser at the fovea, yet out to the corners
    turn = rng.uniform(-0.5, 0.5, count) * np.pi
    lower = np.sin(turn) > 0.0
    wrong = (np.char.endswith(region, "v") & lower) | (np.char.endswith(region, "d") & ~lower)
    turn = np.where(wrong, -turn, turn)
    x = 0.5 + np.where(right, -1.0, 1.0) * eccentricity * np.cos(turn)
    y = 0.5 + eccentricity * np.sin(turn)
    sigma = np.full(count, 0.35)
    for area, (fovea, slope, _, _) in _AREAS.items():
        members = np.char.startswith(region, area)
        sigma[members] = (fovea + slope * eccentricity[members]) * rng.lognormal(0.0, 0.15, members.sum())
    high = np.isin(region, HIGH)  # wide fields whose centres stay near the fovea
    x[high] = 0.5 + 0.45 * (x[high] - 0.5)
    y[high] = 0.5 + 0.45 * (y[high] - 0.5)
    sigma[high] = rng.uniform(0.16, 0.36, high.sum())
    return np.stack([x, y, sigma], axis=1).astype(np.float32)


def exponents(region: NDArray[np.str_]) -> Floats:
    """Exponents (V,) of the power law."""
    values = np.full(len(region), 0.8)
    for area, (_, _, exponent, _) in _AREAS.items():
        values[np.char.startswith(region, area)] = exponent
    return values.astype(np.float32)


def map_weights(rng: np.random.Generator, region: NDArray[np.str_], field: Floats) -> Floats:
    """Weights (E, MAPS) of the feature maps for early visual voxels."""
    count = len(region)
    shares = np.array([_AREAS[name[:2]][3] for name in region]) * rng.lognormal(0.0, 0.6, (count, 4))
    shares /= shares.sum(axis=1, keepdims=True)
    eccentricity = np.hypot(field[:, 0] - 0.5, field[:, 1] - 0.5)
    preferred = np.log(9.0) - 1.4 * eccentricity + 0.35 * rng.standard_normal(count)  # finer at the fovea
    fine = np.exp(-((np.log(FREQUENCIES)[None, :] - preferred[:, None]) ** 2) / (2 * 0.5**2))
    angle = rng.uniform(0.0, np.pi, count)
    lean = np.cos(2.0 * (np.radians(ORIENTATIONS)[None, :] - angle[:, None]))
    lean = np.exp(rng.uniform(0.6, 1.8, count)[:, None] * lean)
    energy = (fine[:, :, None] * lean[:, None, :]).reshape(count, -1)
    energy /= energy.sum(axis=1, keepdims=True)
    parts = [
        energy * shares[:, :1],
        rng.dirichlet((0.8, 0.8), count) * shares[:, 1:2],
        rng.dirichlet((0.6, 0.6, 0.6, 0.6), count) * shares[:, 2:3],
        rng.dirichlet((1.0, 1.0), count) * shares[:, 3:4],
    ]
    return np.concatenate(parts, axis=1).astype(np.float32)


def kind_tuning(rng: np.random.Generator, region: NDArray[np.str_]) -> Floats:
    """Answers (H, kinds): the region's profile, a little varied by voxel; LO anywhere in kind space."""
    wishes = rng.uniform(-0.1, 1.1, (len(region), _KIND_SPACE.shape[1]))
    width = rng.uniform(0.35, 0.7, len(region))
    distance = ((wishes[:, None, :] - _KIND_SPACE[None, :, :]) ** 2).sum(axis=2)
    tuning = 0.15 + np.exp(-distance / (2.0 * width[:, None] ** 2))
    for name, profile in _SELECTIVITY.items():
        members = np.flatnonzero(region == name)
        cross = np.array(profile) * rng.lognormal(0.0, 0.25, (len(members), len(KINDS)))
        cross += 0.06 * rng.random(cross.shape)
        own = int(np.argmax(profile))
        cross[:, own] = rng.lognormal(0.0, 0.1, len(members))
        tuning[members] = cross
    return np.asarray(tuning, np.float32)


def background_tuning(rng: np.random.Generator, region: NDArray[np.str_]) -> Floats:
    """Answers (H, backgrounds), strong in place regions; none is negative."""
    scenic = (region == "places").astype(np.float64)[:, None]
    outdoors = np.array([_OUTDOORS[name] for name in BACKGROUNDS])
    answers = scenic * outdoors + 0.05 * rng.standard_normal((len(region), len(outdoors))) + 0.08
    return np.asarray(np.maximum(answers, 0.0), np.float32)


def colour_tuning(rng: np.random.Generator, region: NDArray[np.str_]) -> Floats:
    """Log gains (H, 3) per unit of luminance, red against green, blue against yellow; largest in LO."""
    strength = np.where(region == "LO", 0.45, 0.25)[:, None]
    return np.asarray(strength * rng.standard_normal((len(region), 3)), np.float32)
