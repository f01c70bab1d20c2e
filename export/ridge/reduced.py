"""A head of reduced rank: its predictions through the few directions in which those of unseen scans differ.

With P the held-out predictions (N, T) in the units in which errors count, times the calibrations C, the best
directions for unseen scans are the leading eigenvectors ``V = P.T E λ^-½`` of P.T P, found from the eigenvectors
E, λ of the smaller ``P P.T = L K L.T``, where L is `HeldOut.operator` and K the Gram matrix ``Y C² Y.T`` of the
targets (N, N), summed over blocks. The factors are then ``left = W C V`` (V, r) and ``right = V.T C⁻¹`` (r, T).
Since W C V V.T is what is kept of the weights whatever the scan, the share of P that V keeps is what held-out
predictions keep; training predictions have more noise of their own, in more directions, and would say less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.blas import dsyrk, ssyrk

from unibrain_rt.errors import InputError
from unibrain_rt.export.ridge.basis import eigen
from unibrain_rt.export.ridge.journal import Journal, Report

if TYPE_CHECKING:
    from unibrain_rt.export.ridge.fit import RidgeFit


@dataclass(frozen=True, eq=False)
class Reduced:
    """Factors of one head: ``left`` (V, r), and ``right`` (r, T) a block at a time."""

    left: NDArray[Any]
    right_of: NDArray[Any]  # (r, N): right is its product with what `columns` gives
    columns: Callable[[], Iterator[tuple[slice, NDArray[Any]]]]  # (N, B) with their places
    kept: float  # share of the held-out predictions' variance

    @property
    def rank(self) -> int:
        return self.left.shape[1]

    def right(self) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Blocks (r, B) with their places; rows of calibrated units have length √T."""
        for part, columns in self.columns():
            yield part, self.right_of @ columns


def reduce_fit(
    fit: RidgeFit,
    fidelity: float,
    max_rank: int | None = None,
    journal: Journal | None = None,
    report: Report | None = None,
) -> Reduced:
    """The smallest rank whose held-out predictions keep the share ``fidelity`` of their variance, calibrated.

    Raises `InputError` for a share or rank that makes no sense.
    """
    check_rank(fidelity, max_rank)
    journal, say = journal or Journal(), report or (lambda what: None)
    name = f"{fit.targets.name}.reduced"
    kept = journal.find(name)
    if kept is None:
        gram = target_gram(fit, journal, say)
        operator = fit.held_out.operator(fit.alpha)
        squares, vectors = eigen(np.asfortranarray(operator @ (gram @ operator.T)))
        total = float(squares.sum(dtype=np.float64))
        rank = rank_for(squares, total, fidelity, max_rank)
        right_of = (vectors[:, :rank] / np.sqrt(squares[:rank])).T @ operator
        right_of *= np.sqrt(fit.targets.count)
        shrunken = fit.coefficients(fit.basis.axes) @ (gram @ right_of.T)
        left = shrunken / fit.targets.count
        kept = {"left": left, "right_of": right_of, "kept": np.array(share(squares, total, rank))}
        kept |= {key: value.astype(fit.targets.dtype) for key, value in kept.items() if value.ndim}
        journal.enter(name, **kept)
        say(f"{fit.targets.name}: rank {rank:,} keeps {float(kept['kept']):.4f} of held-out predictions")
    return Reduced(kept["left"], kept["right_of"], fit.blocks, float(kept["kept"]))


def check_rank(fidelity: float, max_rank: int | None) -> None:
    """Raise `InputError` for a share of the variance or a rank that makes no sense."""
    if not 0.0 < fidelity <= 1.0 or (max_rank is not None and max_rank < 1):
        raise InputError(f"fidelity {fidelity}, rank {max_rank}: give a share up to 1, a rank of 1 or more")


def rank_for(squares: NDArray[Any], total: float, fidelity: float, max_rank: int | None) -> int:
    """The smallest number of eigenvalues, falling, that make up the share ``fidelity`` of their total."""
    shares = np.cumsum(squares, dtype=np.float64) / (total or 1.0)
    return min(int(np.searchsorted(shares, fidelity)) + 1, len(squares), max_rank or len(squares))


def share(squares: NDArray[Any], total: float, rank: int) -> float:
    return float(squares[:rank].sum(dtype=np.float64) / total) if total else 1.0


def target_gram(fit: RidgeFit, journal: Journal, say: Report) -> NDArray[Any]:
    """``Y C² Y.T`` (N, N), summed over blocks of targets Y times calibrations C."""
    name = f"{fit.targets.name}.gram"
    scans, dtype = fit.targets.scans, fit.targets.dtype
    kept = journal.find(name) or {"gram": np.zeros((scans, scans), dtype, order="F"), "done": np.array(0)}
    gram, done = kept["gram"], int(kept["done"])
    syrk = dsyrk if dtype == np.float64 else ssyrk
    for part, y in fit.blocks(done):
        calibrated = y * fit.calibration[part].astype(dtype)
        gram = syrk(1.0, calibrated.T, 1.0, gram, trans=1, lower=1, overwrite_c=1)
        if journal.due:
            journal.enter(name, gram=gram, done=part.stop)
        say(f"{fit.targets.name}: compared {part.stop:,} of {fit.targets.count:,} targets")
    lower = np.tril(gram, -1)
    return lower + lower.T + np.diag(np.diag(gram))
