"""Exact predictions of scans by the models that were fitted without them, from one factorisation.

A model that is fitted without the scans F takes the mean of the other scans' targets for its intercept. That mean is
low where the targets of F are high, so that with it even useless voxels look anticorrelated. Held-out predictions are
therefore given without the intercepts: by how much each departs from its own model's mean. Statistics are then taken
over the scans of all folds together.

Means and deviations of voxels stay those of all scans. The penalty a scan stays the same as well, as in glmnet: a model
without a share 1/K of the scans has the penalty alpha (1 - 1/K). With alpha itself, models of fewer scans would shrink
more, and the calibration learnt from them would be too large.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray
from scipy.linalg import cho_factor, cho_solve

from unibrain_rt.errors import InputError
from unibrain_rt.export.subjects.ridge.basis import Basis, Floats

_SMALLEST_PIVOT = 1e-5  # square root of the least share of a scan that its fit may leave unexplained


@dataclass(frozen=True, eq=False)
class Folds:
    """A division of N scans: fold k is ``order[bounds[k]:bounds[k + 1]]``.

    With ``order`` [3, 0, 1, 2] and ``bounds`` (0, 1, 4), fold 0 is scan 3, and fold 1 is scans 0, 1 and 2.
    """

    order: NDArray[np.intp]
    bounds: tuple[int, ...]

    @classmethod
    def of(
        cls, scans: int, folds: int | None = None, seed: int = 0, groups: ArrayLike | None = None
    ) -> Folds:
        """Leave one stimulus out at a time, or a share 1/``folds`` of the stimuli, shuffled by ``seed``.

        ``groups`` (N,) name each scan's stimulus, for trials that are not averaged. Scans of one stimulus stay in one
        fold: tested on a stimulus that it was trained on, a model looks better than it is. By default every scan has a
        stimulus of its own. Raises `InputError` if there are not folds enough, or one leaves fewer than two scans.
        """
        labels = np.arange(scans) if groups is None else np.asarray(groups)
        if labels.shape != (scans,):
            raise InputError(f"groups have shape {labels.shape}: give one label for each of {scans:,} scans")
        names, member = np.unique(labels, return_inverse=True)
        member = member.reshape(-1)
        if len(names) == scans and folds is None:
            return cls(np.arange(scans), tuple(range(scans + 1)))
        if not 2 <= (folds or len(names)) <= len(names):
            problem = f"{folds or len(names)} folds of {scans:,} scans of {len(names):,} stimuli"
            raise InputError(f"{problem}: choose 2 or more folds, and no more than stimuli")
        if folds is not None:
            fold_of = np.empty(len(names), np.intp)
            for place, part in enumerate(
                np.array_split(np.random.default_rng(seed).permutation(len(names)), folds)
            ):
                fold_of[part] = place
            member = fold_of[member]
        sizes = np.bincount(member)
        if scans - sizes.max() < 2:
            raise InputError(
                f"a fold leaves {scans - sizes.max()} scan to fit: choose folds of about one size"
            )
        return cls(np.argsort(member, kind="stable"), (0, *np.cumsum(sizes).tolist()))

    @property
    def count(self) -> int:
        return len(self.bounds) - 1

    @property
    def single(self) -> bool:
        """Whether every fold is one scan."""
        return self.count == len(self.order)

    def __iter__(self) -> Iterator[slice]:
        """Each fold's rows in fold order."""
        return (slice(*pair) for pair in zip(self.bounds, self.bounds[1:], strict=False))


class HeldOut:
    """Held-out predictions of a basis' scans, in fold order, rows multiplied by the roots of the scans' weights.

    Products with targets are computed in ``dtype``, all else in float64.
    """

    def __init__(self, basis: Basis, folds: Folds, dtype: DTypeLike = np.float64) -> None:
        self.basis, self.folds, self.dtype = basis, folds, np.dtype(dtype)
        self._scores = basis.scores if folds.single else basis.scores[folds.order]
        self.scores: NDArray[Any] = np.asarray(self._scores, dtype)
        self.intercept = basis.intercept[folds.order]

    def at(self, alpha: float) -> LeftOut:
        """The folds' models at one alpha. Raises `InputError` for one so small that scans are fitted exactly."""
        shrinkage = 1.0 / (self.basis.squares + alpha * (1.0 - 1.0 / self.folds.count))
        factors: list[Floats] = []
        for fold in self.folds:
            scores, intercept = self._scores[fold], self.intercept[fold]
            left_over = np.eye(len(scores)) - np.outer(intercept, intercept) - (scores * shrinkage) @ scores.T
            try:
                factor = cho_factor(left_over, lower=True, overwrite_a=True, check_finite=False)[0]
            except np.linalg.LinAlgError:
                factor = np.zeros((1, 1))
            if np.diag(factor).min() < _SMALLEST_PIVOT:
                raise InputError(f"alpha {alpha:g} is too small, it lets every scan be fitted: raise it")
            factors.append(factor)
        return LeftOut(self, shrinkage, factors)

    def operator(self, alpha: float) -> NDArray[Any]:
        """(N, N): its product with centred targets (N, B) is their held-out predictions, without models' means."""
        left_out = self.at(alpha)
        matrix = -(self._scores * left_out.shrinkage) @ self._scores.T
        matrix[np.diag_indices_from(matrix)] += 1.0
        matrix = -left_out.residuals(matrix)
        matrix[np.diag_indices_from(matrix)] += 1.0
        for fold in self.folds:
            own = self.intercept[fold]
            matrix[fold, fold] += np.outer(own, own) / (1.0 - own @ own)
        return np.asarray(matrix, self.dtype)

    def centred(self, values: NDArray[Any]) -> NDArray[Any]:
        """Values (N, B), their weighted mean removed."""
        intercept = self.intercept.astype(values.dtype)
        return values - np.outer(intercept, intercept @ values)


@dataclass(frozen=True, eq=False)
class LeftOut:
    """The models of all folds at one alpha."""

    held_out: HeldOut
    shrinkage: Floats  # (R,): 1 / (s² + alpha (1 - 1/K))
    factors: list[Floats]  # Cholesky factors of 1 - H_FF

    def residuals(self, fitted: NDArray[Any]) -> NDArray[Any]:
        """Targets less held-out predictions (N, B), from targets less fitted values, which are overwritten."""
        if self.held_out.folds.single:
            fitted /= np.square(np.concatenate(self.factors)).astype(fitted.dtype)
            return fitted
        for fold, factor in zip(self.held_out.folds, self.factors, strict=True):
            fitted[fold] = cho_solve((factor, True), fitted[fold], check_finite=False)
        return fitted

    def predict(self, targets: NDArray[Any], moments: NDArray[Any]) -> NDArray[Any]:
        """The product of `HeldOut.operator` and centred targets (N, B); ``moments`` are ``scores.T @ targets``.

        For few targets this is quicker than making the operator.
        """
        held_out = self.held_out
        shrunken = self.shrinkage[:, None].astype(targets.dtype) * moments
        predictions = targets - self.residuals(targets - held_out.scores @ shrunken)
        for fold in held_out.folds if not held_out.folds.single else ():
            own = held_out.intercept[fold].astype(targets.dtype)
            predictions[fold] += np.outer(own, own @ targets[fold]) / (1.0 - own @ own)
        if held_out.folds.single:
            own = np.square(held_out.intercept)
            predictions += (own / (1.0 - own)).astype(targets.dtype)[:, None] * targets
        return predictions
