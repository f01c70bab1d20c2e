"""Simulated subjects: a written encoding model from pictures and scenes to noisy voxels in a mask.

Early visual voxels (V1v ... hV4) see the picture's features through a Gaussian receptive field, under a
compressive power law (Kay et al. 2013, compressive spatial summation). Voxels of the category regions and of
LO answer to the scene's kind, with cross-talk, and a little to its place, size, number, colour, background
and identity. Non-visual voxels answer to nothing. Noise follows from each voxel's noise ceiling.

Units: responses in % signal change; betas int16, 300 to the percent; places in shares of the picture's side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.export.phantom import noise, tuning
from unibrain_rt.export.phantom.cortex import EARLY, HIGH, Cortex, make_cortex
from unibrain_rt.export.phantom.early_vision import GRID, MAPS, SIDE, Floats, feature_maps, opponent
from unibrain_rt.export.phantom.pictures import layout, stimuli
from unibrain_rt.export.phantom.scenes import BACKGROUNDS, COLOURS, KINDS, LIGHTINGS, STYLES, Scene, scenes

BETA_SCALE = 300
_COLOUR_CENTRE = np.array((0.5, 0.2, -0.2), np.float32)  # luminance and opponents of a middling colour
_REFERENCE = 768  # training scenes over which means and variances are taken


@dataclass(frozen=True, eq=False)
class SubjectModel(Cortex):
    """One subject's brain: of its V voxels, E are early visual and H of category regions and LO."""

    name: str
    seed: int
    field: Floats  # (V, 3): receptive field's centre x, y and sigma
    maps: Floats  # (E, MAPS): weights of the feature maps
    kinds: Floats  # (H, kinds): answer to each kind
    colours: Floats  # (H, 3): log gain per unit of luminance, red-green, blue-yellow
    styles: Floats  # (H, STYLES): gain by identity
    backgrounds: Floats  # (H, backgrounds): answer to the background
    exponents: Floats  # (V,): power law
    growth: Floats  # (H, 2): exponents of size and number
    offset: Floats  # (V,): mean over the reference scenes of the drive, before ...
    slope: Floats  # (V,): ... this gain to % signal change (0 for non-visual)
    mean: Floats  # (V,): mean response, % signal change
    noise_ceiling: Floats  # (V,): var(signal) / (var(signal) + var(noise)) of a single trial
    noise_sd: Floats  # (V,): of a single trial, % signal change
    loadings: Floats  # (V, components): of the shared noise, rows of length 1


def _generator(*keys: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(keys)))


@lru_cache(maxsize=1)
def _reference() -> tuple[NDArray[np.uint8], tuple[Scene, ...], Floats]:
    """Pictures and scenes over which responses are standardised, and each feature map's mean over them."""
    shown = scenes("train", _REFERENCE, seed=0)
    pictures = stimuli(shown, SIDE)
    sums = [feature_maps(part).mean(axis=(0, 2)) for part in np.split(pictures, 6)]
    return pictures, tuple(shown), np.asarray(np.mean(sums, axis=0), np.float32)


def _early_drive(model: SubjectModel, images: NDArray[np.uint8]) -> Floats:
    """Drive (N, E) of the early visual voxels."""
    x0, y0, sigma = model.field[np.isin(model.region, EARLY)].T
    ticks = (np.arange(GRID, dtype=np.float32) + np.float32(0.5)) / np.float32(GRID)
    across = np.exp(-((ticks[:, None] - x0) ** 2) / (2 * sigma**2))
    down = np.exp(-((ticks[:, None] - y0) ** 2) / (2 * sigma**2))
    fields = (down[:, None, :] * across[None, :, :]).reshape(GRID * GRID, -1)
    fields /= fields.sum(axis=0)
    weights = model.maps / _reference()[2]
    drive = np.empty((len(images), len(x0)), np.float32)
    for start in range(0, len(images), 256):
        part = slice(start, start + 256)
        maps = feature_maps(images[part])
        total = np.zeros_like(drive[part])
        for k in range(MAPS):
            total += (maps[:, k] @ fields) * weights[:, k]
        drive[part] = total
    return drive


def _high_drive(model: SubjectModel, shown: Sequence[Scene]) -> Floats:
    """Drive (N, H) of the voxels of category regions and LO."""
    x0, y0, sigma = model.field[np.isin(model.region, HIGH)].T
    groups = [layout(scene) for scene in shown]
    centre = np.array([np.mean(spots, axis=0) for spots, _ in groups], np.float32)
    side = np.array([side for _, side in groups], np.float32)[:, None]
    number = np.array([scene.count for scene in shown], np.float32)[:, None]
    light = np.array([np.mean(LIGHTINGS[scene.lighting]) for scene in shown], np.float32)[:, None]
    paint = np.array([COLOURS[scene.colour] for scene in shown], np.float32) / 255.0
    kind = np.array([KINDS.index(scene.kind) for scene in shown])
    background = np.array([tuple(BACKGROUNDS).index(scene.background) for scene in shown])
    style = np.array([scene.style for scene in shown])

    distance = (centre[:, :1] - x0) ** 2 + (centre[:, 1:] - y0) ** 2
    near = 0.4 + 0.6 * np.exp(-distance / (2 * sigma**2))
    size = (side / 0.5) ** model.growth[:, 0] * number ** model.growth[:, 1]
    hue = np.exp((np.stack(opponent(paint), axis=1) - _COLOUR_CENTRE) @ model.colours.T)
    object_drive = model.kinds.T[kind] * near * size * hue * model.styles.T[style]
    drive: Floats = (object_drive + model.backgrounds.T[background]) * light**0.25
    return drive


def _raw(model: SubjectModel, images: NDArray[np.uint8], shown: Sequence[Scene]) -> Floats:
    """Drives (N, V) after the power law; 0 for non-visual voxels."""
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
        raise ValueError(f"pictures must be uint8 (N, side, side, 3), not {images.dtype} {images.shape}")
    if len(images) != len(shown):
        raise ValueError(f"{len(images)} pictures but {len(shown)} scenes")
    raw = np.zeros((len(images), model.voxels), np.float32)
    if len(images):
        raw[:, np.isin(model.region, EARLY)] = _early_drive(model, images)
        raw[:, np.isin(model.region, HIGH)] = _high_drive(model, shown)
    compressed: Floats = raw**model.exponents
    return compressed


def responses(model: SubjectModel, images: NDArray[np.uint8], shown: Sequence[Scene]) -> Floats:
    """Noise-free responses, float32 (N, V) in % signal change, to pictures (N, S, S, 3) of these scenes."""
    answer: Floats = (_raw(model, images, shown) - model.offset) * model.slope + model.mean
    return answer


def betas(
    model: SubjectModel, images: NDArray[np.uint8], shown: Sequence[Scene], repeats: int = 3, seed: int = 0
) -> NDArray[np.int16]:
    """Single trials with noise, int16 (N, repeats, V): 300 to the % signal change, as NSD stores them."""
    signal = responses(model, images, shown)
    rng = _generator(model.seed, seed, 2)
    trials = np.empty((len(signal), repeats, model.voxels), np.int16)
    for i, answer in enumerate(signal):
        trials[i] = single_trials(model, np.broadcast_to(answer, (repeats, model.voxels)), rng)
    return trials


def single_trials(model: SubjectModel, signal: Floats, rng: np.random.Generator) -> NDArray[np.int16]:
    """One trial with noise, int16 as NSD stores it, of each noise-free response (N, V)."""
    error = noise.trial_noise(rng, model.loadings, len(signal)) * model.noise_sd
    scaled = np.rint((signal + error) * BETA_SCALE)
    return np.clip(scaled, -32768, 32767).astype(np.int16)


def make_subject(name: str, seed: int, voxels: int = 1200, quality: float = 1.0) -> SubjectModel:
    """A subject's brain from a seed. `quality` scales the noise ceilings; at least 200 voxels."""
    if voxels < 200:
        raise ValueError(f"a subject needs at least 200 voxels, not {voxels}")
    rng = _generator(seed, 1)
    cortex = make_cortex(voxels)
    early, high = (cortex.region[np.isin(cortex.region, names)] for names in (EARLY, HIGH))
    visual = cortex.region != ""
    # What is drawn from the one generator, in this order, is the subject: another order is another brain.
    field = tuning.receptive_fields(rng, cortex)
    backgrounds = tuning.background_tuning(rng, high)
    colours = tuning.colour_tuning(rng, high)
    shared = noise.loadings(rng, cortex.places)
    ceiling = noise.ceilings(rng, cortex.region, quality)
    noise_sd = rng.lognormal(np.log(1.6), 0.3, voxels)  # alike in all regions: the signal is weak or strong
    mean = np.where(visual, 0.8 + 0.6 * rng.standard_normal(voxels), 0.1 * rng.standard_normal(voxels))
    maps = tuning.map_weights(rng, early, field[np.isin(cortex.region, EARLY)])
    kinds = tuning.kind_tuning(rng, high)
    styles = np.maximum(1.0 + 0.07 * rng.standard_normal((len(high), STYLES)), 0.5)
    growth = np.maximum(rng.normal((0.4, 0.25), 0.15, (len(high), 2)), 0.0)

    blank = np.zeros(voxels, np.float32)
    model = SubjectModel(
        **vars(cortex),
        name=name,
        seed=seed,
        field=field,
        maps=maps,
        kinds=kinds,
        colours=colours,
        styles=styles.astype(np.float32),
        backgrounds=backgrounds,
        exponents=tuning.exponents(cortex.region),
        growth=growth.astype(np.float32),
        offset=blank,
        slope=blank,
        mean=mean.astype(np.float32),
        noise_ceiling=ceiling,
        noise_sd=noise_sd.astype(np.float32),
        loadings=shared,
    )
    pictures, shown, _ = _reference()
    raw = _raw(model, pictures, shown).astype(np.float64)
    spread = raw.std(axis=0)
    amplitude = noise_sd * np.sqrt(ceiling / (1.0 - ceiling))  # standard deviation of the signal over scenes
    slope = np.where(visual, amplitude / np.where(visual, spread, 1.0), 0.0)
    return replace(model, offset=raw.mean(axis=0).astype(np.float32), slope=slope.astype(np.float32))
