"""Ridge regression from voxels to latents: one factorisation for every head, target, alpha and fold.

With z the z-scored voxels of N training scans (ddof 1) and Y the centred targets, a head minimises
``|Y - z W|² + alpha |W|²``. The eigenvectors of the smaller Gram matrix, ``z.T z`` or ``z z.T``, give
``z = scores axes.T`` with orthogonal scores of squared lengths s² and orthonormal axes, and from there every
solution is ``W = axes (s² + alpha)⁻¹ scores.T Y``.

The same basis gives exact cross-validation. With the intercept, fitted values are H Y, where
``H = 1/N + scores (s² + alpha)⁻¹ scores.T``; refitting without the scans F of a fold leaves them residuals
of ``(1 - H_FF)⁻¹ (Y - H Y)_F``, the block form of the leave-one-out identity (Hastie, Tibshirani, Friedman,
The Elements of Statistical Learning, section 7.10). Voxel means and deviations stay those of all scans, and
so does the penalty a scan: with K folds, alpha (1 - 1/K) on the scans that are left (as glmnet does). At the
same alpha, models of fewer scans shrink more, and the calibration learnt from them would be too large.

Held-out statistics are taken within folds (each fold's own mean removed) and pooled: every fold's model has
an intercept of its own, which runs against the fold's mean and makes useless predictions look anticorrelated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import cho_factor, cho_solve

from unibrain_rt.errors import InputError

Floats = NDArray[np.float64]
Calibration = Literal["variance", "none"]

ALPHAS = tuple(float(f"{10**exponent:.3g}") for exponent in np.arange(1.0, 6.01, 0.5))
FOLDS = 10
#: Limits of a calibration. A target that would need more than twenty times its predictions is one of which
#: the voxels say next to nothing: it stays nearer to its mean instead of being noise at full volume.
CALIBRATION_RANGE = (0.1, 20.0)

_BLOCK_BYTES = 32 << 20  # of targets at a time in float64
_SMALLEST_PIVOT = 1e-5  # root of the share of a scan that its own fit leaves over
_CONSTANT = 1e-6  # of the mean: float32 cannot tell smaller spreads from none


@dataclass(frozen=True, eq=False)
class Basis:
    """Voxels (N, V) of the training scans, factorised: ``z = scores @ axes.T``, R components."""

    voxel_mean: Floats  # (V,)
    voxel_std: Floats  # (V,): 0 for constant voxels, whose z is 0
    axes: Floats  # (V, R), orthonormal
    scores: Floats  # (N, R), orthogonal
    squares: Floats  # (R,): squared lengths of the scores, eigenvalues of the Gram matrix, falling

    @classmethod
    def of(cls, voxels: ArrayLike) -> Basis:
        """Factorise betas (N, V). Raises `InputError` if they are not finite, too few or all constant."""
        betas = np.array(voxels, np.float64)
        if betas.ndim != 2 or len(betas) < 4 or betas.shape[1] < 1:
            raise InputError(
                f"training betas have shape {betas.shape}: give (scans, voxels), 4 scans or more"
            )
        if not np.isfinite(betas).all():
            raise InputError("training betas have values that are not finite: mend or leave out those scans")
        mean, std = betas.mean(axis=0), betas.std(axis=0, ddof=1)
        std[std <= _CONSTANT * np.abs(mean)] = 0.0
        betas -= mean
        betas /= np.where(std > 0.0, std, 1.0)
        betas[:, std == 0.0] = 0.0
        scans, count = betas.shape
        if not std.any():
            raise InputError("every voxel is constant over the training scans: check how they were read")
        if count <= scans:
            squares, vectors = _eigen(betas.T @ betas)
            vectors[std == 0.0] = 0.0  # exactly, and not just nearly
            return cls(mean, std, vectors, betas @ vectors, squares)
        squares, vectors = _eigen(betas @ betas.T)
        lengths = np.sqrt(squares)
        return cls(mean, std, betas.T @ vectors / lengths, vectors * lengths, squares)

    @property
    def scans(self) -> int:
        return len(self.scores)

    @property
    def voxels(self) -> int:
        return len(self.axes)

    @property
    def root(self) -> Floats:
        """(R, V), with the Gram matrix of z: lengths and angles of ``root @ W`` are those of ``z @ W``."""
        return np.sqrt(self.squares)[:, None] * self.axes.T

    def z(self, voxels: ArrayLike) -> Floats:
        """z-scored voxels (M, V) of other scans."""
        varies = self.voxel_std > 0.0
        z = (np.asarray(voxels, np.float64) - self.voxel_mean) / np.where(varies, self.voxel_std, 1.0)
        return np.where(varies, z, 0.0)


@dataclass(frozen=True, eq=False)
class Folds:
    """A division of N scans: fold k is ``order[bounds[k]:bounds[k + 1]]``."""

    order: NDArray[np.intp]
    bounds: tuple[int, ...]

    @classmethod
    def of(cls, scans: int, folds: int, seed: int, groups: ArrayLike | None = None) -> Folds:
        """Shuffle ``scans`` into ``folds`` of about one size; scans of one group stay together.

        Groups (N,) are the stimuli where trials are not averaged: a stimulus that is trained on and tested on
        makes everything look better than it is. Raises `InputError` if that makes a fold of fewer than two.
        """
        labels = np.arange(scans) if groups is None else np.asarray(groups)
        if labels.shape != (scans,):
            raise InputError(f"groups have shape {labels.shape}: give one label for each of {scans:,} scans")
        names, member = np.unique(labels, return_inverse=True)
        if not 2 <= folds <= len(names) or 2 * folds > scans:
            problem = f"{folds} folds of {scans:,} scans of {len(names):,} stimuli"
            raise InputError(f"{problem}: choose 2 or more folds, each of two scans or more")
        parts = np.array_split(np.random.default_rng(seed).permutation(len(names)), folds)
        fold_of = np.empty(len(names), np.intp)
        for place, part in enumerate(parts):
            fold_of[part] = place
        fold = fold_of[member.reshape(-1)]
        sizes = np.bincount(fold, minlength=folds)
        if sizes.min() < 2:
            raise InputError(f"a fold of {sizes.min()} scan: choose fewer than {folds} folds")
        return cls(np.argsort(fold, kind="stable"), (0, *np.cumsum(sizes).tolist()))

    def __iter__(self) -> Iterator[slice]:
        """Each fold's rows in fold order."""
        return (slice(*pair) for pair in zip(self.bounds, self.bounds[1:], strict=False))

    def centred(self, values: Floats) -> Floats:
        """``values`` (N, B) in fold order, each fold's mean removed."""
        return np.concatenate([values[fold] - values[fold].mean(axis=0) for fold in self])


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What predicts every scan from the other folds at one alpha; rows are scans in fold order."""

    folds: Folds
    alpha: float
    scores: Floats  # (N, R)
    shrinkage: Floats  # (R,): 1 / (s² + alpha (1 - 1/K))
    factors: tuple[tuple[Floats, bool], ...]  # Cholesky factors of 1 - H_FF

    @classmethod
    def of(cls, basis: Basis, folds: Folds, alphas: Sequence[float]) -> list[HeldOut]:
        """One for each alpha. Raises `InputError` for an alpha so small that scans are fitted exactly."""
        scores = basis.scores[folds.order]
        found = []
        for alpha in alphas:
            shrinkage = 1.0 / (basis.squares + alpha * (1.0 - 1.0 / (len(folds.bounds) - 1)))
            factors = []
            for fold in folds:
                left_over = np.eye(fold.stop - fold.start) - 1.0 / len(scores)
                left_over -= (scores[fold] * shrinkage) @ scores[fold].T
                try:
                    factor = cho_factor(left_over, lower=True, overwrite_a=True, check_finite=False)
                except np.linalg.LinAlgError:
                    factor = None
                if factor is None or np.diag(factor[0]).min() < _SMALLEST_PIVOT:
                    raise InputError(f"alpha {alpha:g} is too small, it lets every scan be fitted: raise it")
                factors.append(factor)
            found.append(cls(folds, alpha, scores, shrinkage, tuple(factors)))
        return found

    def predict(self, targets: Floats, moments: Floats) -> Floats:
        """Held-out predictions (N, B) of centred targets (N, B); ``moments`` is ``scores.T @ targets``."""
        residuals = targets - self.scores @ (self.shrinkage[:, None] * moments)
        for fold, factor in zip(self.folds, self.factors, strict=True):
            residuals[fold] = cho_solve(factor, residuals[fold], check_finite=False)
        return targets - residuals


@dataclass(frozen=True, eq=False)
class RidgeFit:
    """One head, fitted on all scans: ``z @ weight + bias``; T targets of the given shape."""

    basis: Basis
    shape: tuple[int, ...]
    alpha: float
    alphas: tuple[float, ...]
    alpha_scores: tuple[float, ...]  # mean held-out correlation at each of alphas
    weight: NDArray[np.float32]  # (V, T)
    target_mean: NDArray[np.float32]  # (T,); also the bias, since z has mean 0
    calibration: NDArray[np.float32]  # (T,)
    held_out_correlation: NDArray[np.float32]  # (T,); NaN for constant targets

    @property
    def bias(self) -> NDArray[np.float32]:
        return self.target_mean

    @property
    def mean_correlation(self) -> float:
        """Held-out correlation, mean over the targets that vary; 0 where none does."""
        known = self.held_out_correlation[np.isfinite(self.held_out_correlation)]
        return float(known.mean(dtype=np.float64)) if known.size else 0.0

    def predict(self, voxels: ArrayLike) -> Floats:
        """Calibrated predictions (M, *shape) of betas (M, V)."""
        change = self.calibration * (self.basis.z(voxels) @ self.weight)
        return (self.target_mean + change).reshape(-1, *self.shape)


def fit_ridge(
    voxels: ArrayLike,
    targets: ArrayLike,
    alphas: Sequence[float] = ALPHAS,
    folds: int = FOLDS,
    seed: int = 0,
    *,
    calibration: Calibration = "variance",
    groups: ArrayLike | None = None,
) -> RidgeFit:
    """`fit_heads` for one head: voxels (N, V), targets (N, *shape)."""
    heads = {"head": targets}
    return fit_heads(voxels, heads, alphas, folds, seed, calibration=calibration, groups=groups)["head"]


def fit_heads(
    voxels: ArrayLike,
    targets: Mapping[str, ArrayLike],
    alphas: Sequence[float] = ALPHAS,
    folds: int = FOLDS,
    seed: int = 0,
    *,
    calibration: Calibration | Mapping[str, Calibration] = "variance",
    groups: ArrayLike | None = None,
) -> dict[str, RidgeFit]:
    """Fit every head of ``targets``, name -> (N, *shape), on betas (N, V); memory maps are read in blocks.

    Each head gets the alpha with the highest held-out Pearson correlation, the mean over its targets (the
    larger one of equals). Correlation and not R², since the calibration settles each target's scale.

    Calibration, a factor a target on what departs from the target's mean:

    - ``"variance"``: the spread of the true targets over that of the held-out predictions, within
      `CALIBRATION_RANGE`. Ridge predicts the conditional mean, whose variance is r² of the target's (r their
      correlation); a diffusion model takes such a shrunken latent or context for that of a grey, average
      stimulus. Full variance costs squared error, 2 (1 - r) instead of 1 - r², but no correlation, and is
      what the model was trained to read. Brain-Diffuser rescales to it with the statistics of the test set;
      here held-out training predictions alone decide, so that a scan decodes the same in any company.
    - ``"none"``: 1 throughout, the least squared error, for what is read off the predictions directly.

    ``groups`` (N,) keeps scans of one stimulus in one fold (`Folds.of`). Held-out predictions see scans like
    the training ones: where those are averages over repeats, single trials will predict with more noise.

    Raises `InputError` if shapes do not match, values are not finite or options make no sense.
    """
    alphas = tuple(float(alpha) for alpha in alphas)
    if not alphas or not all(0.0 < alpha < math.inf for alpha in alphas):
        raise InputError(f"alphas {alphas}: give one or more finite numbers above 0")
    flat = {name: _flat(name, array) for name, array in targets.items()}
    basis = Basis.of(voxels)
    for name, (array, _) in flat.items():
        if len(array) != basis.scans:
            raise InputError(f"{name}: {len(array):,} targets for {basis.scans:,} scans: give one for each")
    division = Folds.of(basis.scans, folds, seed, groups)
    held_out = HeldOut.of(basis, division, alphas)
    chosen = dict.fromkeys(flat, calibration) if isinstance(calibration, str) else calibration
    return {
        name: _fit_head(name, basis, array, shape, held_out, chosen.get(name, "variance"))
        for name, (array, shape) in flat.items()
    }


def factorise(
    weight: ArrayLike,
    z: ArrayLike,
    fidelity: float = 0.999,
    max_rank: int | None = None,
    target_scale: ArrayLike | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Reduced-rank ``left`` (V, r) and ``right`` (r, T) with ``z @ left @ right`` close to ``z @ weight``.

    Best for predictions, not for weights: the singular vectors are those of ``z @ weight``, which weighs
    voxels by their covariance (reduced-rank regression). ``z`` is z-scored voxels (N, V) or anything with
    the same Gram matrix, like `Basis.root`. ``target_scale`` (T,) gives the units in which errors count: with
    the calibrations, the units of what is delivered. The rank is the smallest whose predictions keep the
    share ``fidelity`` of the variance, at most ``max_rank``. Factors are balanced (each component has one
    largest absolute value on both sides) for half precision, and their signs are fixed.
    """
    dense = np.asarray(weight, np.float64)
    if not 0.0 < fidelity <= 1.0 or (max_rank is not None and max_rank < 1):
        raise InputError(f"fidelity {fidelity}, rank {max_rank}: give a share up to 1, a rank of 1 or more")
    scale = np.ones(dense.shape[1]) if target_scale is None else np.asarray(target_scale, np.float64)
    scale = np.broadcast_to(scale, dense.shape[1:])
    if not (np.isfinite(scale).all() and (scale > 0.0).all()):
        raise ValueError("target_scale must be finite and above 0")
    predictions = (np.asarray(z, np.float64) @ dense) * scale
    if not predictions.any():
        return np.zeros((len(dense), 1), np.float32), np.zeros((1, dense.shape[1]), np.float32)
    if len(predictions) < dense.shape[1]:
        squares, vectors = _eigen(predictions @ predictions.T)
        vectors = predictions.T @ vectors / np.sqrt(squares)
    else:
        squares, vectors = _eigen(predictions.T @ predictions)
    kept = np.cumsum(squares) / squares.sum()
    rank = min(int(np.searchsorted(kept, fidelity)) + 1, len(squares), max_rank or len(squares))
    vectors = vectors[:, :rank]
    left, right = (dense * scale) @ vectors, vectors.T / scale
    sizes = np.abs(left).max(axis=0), np.abs(right).max(axis=1)
    balance = np.sqrt(sizes[1] / sizes[0])
    balance *= np.sign(left[np.abs(left).argmax(axis=0), np.arange(rank)])
    return (left * balance).astype(np.float32), (right / balance[:, None]).astype(np.float32)


def _eigen(gram: Floats) -> tuple[Floats, Floats]:
    """Eigenvalues, falling, and eigenvectors of a Gram matrix, without those lost in rounding."""
    squares, vectors = np.linalg.eigh(gram)
    keep = squares > squares[-1] * len(gram) * np.finfo(np.float64).eps
    return squares[keep][::-1].copy(), np.ascontiguousarray(vectors[:, keep][:, ::-1])


def _flat(name: str, targets: ArrayLike) -> tuple[NDArray[Any], tuple[int, ...]]:
    """Targets as (N, T), unread if they are a memory map, and their shape without the batch."""
    array = np.asanyarray(targets)
    if array.ndim < 2 or 0 in array.shape or array.dtype.kind != "f":
        raise InputError(f"{name}: targets are {array.dtype} {array.shape}: give floating point (scans, ...)")
    return array.reshape(len(array), -1), array.shape[1:]


def _fit_head(
    name: str,
    basis: Basis,
    targets: NDArray[Any],
    shape: tuple[int, ...],
    held_out: Sequence[HeldOut],
    calibration: Calibration,
) -> RidgeFit:
    if calibration not in ("variance", "none"):
        raise InputError(f"{name}: calibration '{calibration}': choose variance or none")
    folds = held_out[0].folds
    scans, count = targets.shape
    step = max(1, _BLOCK_BYTES // (8 * scans))
    starts = range(0, count, step)

    def block(start: int) -> tuple[Floats, Floats, NDArray[np.bool_], Floats]:
        """Centred targets in fold order, their means, which of them vary, and their moments."""
        y = np.asarray(targets[:, start : start + step], np.float64)[folds.order]
        if not np.isfinite(y).all():
            raise InputError(f"{name}: targets have values that are not finite: encode the stimuli again")
        mean = y.mean(axis=0)
        y -= mean
        varies = y.std(axis=0) > _CONSTANT * np.abs(mean)
        y[:, ~varies] = 0.0
        return y, mean, varies, held_out[0].scores.T @ y

    totals, known = np.zeros(len(held_out)), 0
    for start in starts:
        y, _, varies, moments = block(start)
        within = folds.centred(y)
        for place, predictor in enumerate(held_out):
            found, _ = _agreement(folds, within, predictor.predict(y, moments))
            totals[place] += found[varies].sum()
        known += int(varies.sum())
    correlations = totals / max(known, 1)
    best = max(range(len(held_out)), key=lambda place: (correlations[place], held_out[place].alpha))

    alpha = held_out[best].alpha
    weight = np.empty((basis.voxels, count), np.float32)
    means, factors, correlation = (np.empty(count, np.float32) for _ in range(3))
    for start in starts:
        y, mean, varies, moments = block(start)
        part = slice(start, start + step)
        weight[:, part] = basis.axes @ (moments / (basis.squares + alpha)[:, None])
        means[part] = mean
        found, ratio = _agreement(folds, folds.centred(y), held_out[best].predict(y, moments))
        correlation[part] = np.where(varies, found, np.nan)
        factors[part] = np.clip(ratio, *CALIBRATION_RANGE) if calibration == "variance" else 1.0
    return RidgeFit(
        basis,
        shape,
        alpha,
        tuple(predictor.alpha for predictor in held_out),
        tuple(correlations.tolist()),
        weight,
        means,
        factors,
        correlation,
    )


def _agreement(folds: Folds, within: Floats, predictions: Floats) -> tuple[Floats, Floats]:
    """Correlation (B,) of predictions with targets, and the targets' spread over theirs, within folds.

    0 and 1 where either does not vary: there is nothing to correlate or to scale.
    """
    predicted = folds.centred(predictions)
    true_square = np.einsum("ij,ij->j", within, within)
    square = np.einsum("ij,ij->j", predicted, predicted)
    product = np.einsum("ij,ij->j", within, predicted)
    some = (true_square > 0.0) & (square > 0.0)
    safe = np.where(some, square, 1.0)
    correlation = np.where(some, product, 0.0) / np.sqrt(np.where(some, true_square, 1.0) * safe)
    return correlation, np.where(some, np.sqrt(true_square / safe), 1.0)
