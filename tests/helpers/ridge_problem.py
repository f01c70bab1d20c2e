"""Small ridge problems, and their solution from the normal equations."""

from __future__ import annotations

from typing import Any

import numpy as np

from unibrain_rt.export.subjects.ridge import RidgeFit, fit_heads

Array = np.ndarray[Any, np.dtype[np.float64]]

ALPHAS = (0.1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5)


def problem(scans: int, voxels: int, targets: int, seed: int = 0, noise: float = 2.0) -> tuple[Array, Array]:
    """Voxels and targets that share a few latents, in units of their own, under noise."""
    world = np.random.default_rng(99)
    maps = [world.normal(size=(8, width)) * np.arange(1, 9)[:, None] ** -0.7 for width in (voxels, targets)]
    units = [(world.normal(size=width), world.uniform(0.2, 3, width)) for width in (voxels, targets)]
    rng = np.random.default_rng(seed)
    latents = rng.normal(size=(scans, 8))
    betas, wanted = (
        mean + unit * (latents @ weights + noise * rng.normal(size=(scans, weights.shape[1])))
        for weights, (mean, unit) in zip(maps, units, strict=True)
    )
    return betas, wanted


def z_scored(voxels: Array) -> Array:
    return (voxels - voxels.mean(axis=0)) / voxels.std(axis=0, ddof=1)


def solved(z: Array, targets: Array, alpha: float) -> tuple[Array, Array]:
    """Weights and intercept from the normal equations, intercept not penalised."""
    centred = z - z.mean(axis=0)
    gram = centred.T @ centred + alpha * np.eye(z.shape[1])
    weight = np.linalg.solve(gram, centred.T @ (targets - targets.mean(axis=0)))
    return weight, targets.mean(axis=0) - z.mean(axis=0) @ weight


def relative(found: Any, expected: Any) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def fit_ridge(voxels: Any, targets: Any, *options: Any, **named: Any) -> RidgeFit:
    """`fit_heads` for one head: voxels (N, V), targets (N, *shape)."""
    return fit_heads(voxels, {"head": targets}, *options, **named)["head"]


def weight_of(fit: RidgeFit) -> Array:
    """All of a head's weights (V, T), as decodes use them: float32."""
    return np.concatenate([block for _, block in fit.weights()], axis=1).astype(np.float32)


def predicted(fit: RidgeFit, voxels: Any) -> Array:
    """Calibrated predictions (M, *shape) of betas (M, V), without making weights."""
    of_targets = fit.coefficients(fit.basis.z(voxels) @ fit.basis.axes)
    departures = np.concatenate([of_targets @ y for _, y in fit.blocks()], axis=1)
    return (fit.target_mean + fit.calibration * departures).reshape(-1, *fit.shape)
