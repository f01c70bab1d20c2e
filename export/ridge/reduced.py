"""A head of reduced rank: its predictions through the few directions in which those of unseen scans differ.

With P the predictions of the training scans (N, T), calibrated and in units of each target's deviation, C, so that
every target counts the same, the directions are the leading eigenvectors ``V = P.T E λ^-½`` of P.T P (reduced-rank
regression), found from the eigenvectors E, λ of the smaller ``P P.T = F K F.T``, where F makes fitted values of
targets and K is the Gram matrix ``Y C² Y.T`` of the targets (N, N), summed over blocks. The factors are
``left = W C V`` and ``right = V.T C⁻¹``.

How much a rank keeps, training predictions do not tell: the directions were chosen for them. So a model of four fifths
of the scans is reduced, and what each rank keeps of its predictions of the others is what the rank is chosen by. Which
ranks the heads of a subject get is settled for all together (`ranks`); a smaller rank is the first columns of a larger.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.linalg.blas import dsyrk, ssyrk

from unibrain_rt.errors import InputError
from unibrain_rt.export.ridge.basis import eigen
from unibrain_rt.export.ridge.journal import Journal, Report

if TYPE_CHECKING:
    from unibrain_rt.export.ridge.fit import RidgeFit


@dataclass(frozen=True, eq=False)
class Reduced:
    """Factors of one head: ``left`` (V, r), and ``right`` (r, T) a block at a time; what says most comes first."""

    left: NDArray[Any]
    right_of: NDArray[Any]  # (r, N): right is its product with what `columns` gives
    columns: Callable[[], Iterator[tuple[slice, NDArray[Any]]]]  # (N, B) with their places
    shares: NDArray[np.float64]  # (r,): of the held-out predictions' variance, kept by ranks 1, 2, ...

    @property
    def rank(self) -> int:
        return self.left.shape[1]

    @property
    def kept(self) -> float:
        """Share of the held-out predictions' variance."""
        return float(self.shares[-1])

    def cut(self, rank: int) -> Reduced:
        """The same with at most this rank."""
        return Reduced(self.left[:, :rank], self.right_of[:rank], self.columns, self.shares[:rank])

    def right(self) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Blocks (r, B) with their places; rows of calibrated units have length √T."""
        for part, columns in self.columns():
            yield part, self.right_of @ columns


def reduce_fit(
    fit: RidgeFit,
    fidelity: float,
    journal: Journal | None = None,
    report: Report | None = None,
) -> Reduced:
    """The smallest rank whose held-out predictions keep the share ``fidelity`` of their variance, calibrated.

    Raises `InputError` for a share that makes no sense.
    """
    check_fidelity(fidelity)
    journal, say = journal or Journal(), report or (lambda what: None)
    name = f"{fit.targets.name}.reduced"
    kept = journal.find(name)
    if kept is None or kept["asked"] != fidelity:
        gram = target_gram(fit, journal, say)
        fitted = fit.coefficients(fit.basis.scores[fit.held_out.folds.order])
        shares = held_out_shares(fit, gram)
        squares, vectors = eigen(np.asfortranarray(fitted @ (gram @ fitted.T)))
        rank = min(int(np.searchsorted(shares, fidelity)) + 1, max(1, len(squares)))
        vectors, squares = _filled(vectors[:, :rank]), _filled(squares[:rank])
        right_of = (vectors / np.sqrt(squares)).T @ fitted * np.sqrt(fit.targets.count)
        left = fit.coefficients(fit.basis.axes) @ (gram @ right_of.T) / fit.targets.count
        kept = {
            "asked": np.array(fidelity),
            "left": left.astype(fit.targets.dtype),
            "right_of": right_of.astype(fit.targets.dtype),
            "shares": _of_length(shares, rank),
        }
        journal.enter(name, **kept)
        say(f"{fit.targets.name}: rank {rank:,} keeps {kept['shares'][-1]:.4f} of held-out predictions")
    return Reduced(kept["left"], kept["right_of"], fit.blocks, kept["shares"])


def check_fidelity(fidelity: float) -> None:
    """Raise `InputError` for a share of the variance that makes no sense."""
    if not 0.0 < fidelity <= 1.0:
        raise InputError(f"fidelity {fidelity}: give a share above 0 and up to 1")


def held_out_shares(fit: RidgeFit, gram: NDArray[Any]) -> NDArray[np.float64]:
    """What ranks 1, 2, ... of a model of four fifths of the scans keep of its predictions of the others."""
    folds = fit.held_out.folds
    tested = np.zeros(len(gram), bool)
    for number, fold in enumerate(folds):
        tested[fold] = number % min(5, folds.count) == 0
    scores = fit.basis.scores[folds.order]
    kernel = scores @ scores[~tested].T
    own = kernel[~tested]
    own[np.diag_indices_from(own)] += fit.alpha * len(own) / len(gram)
    factor = cho_factor(own, overwrite_a=True, check_finite=False)
    models = np.asarray(cho_solve(factor, kernel.T, check_finite=False).T, fit.targets.dtype)
    fitted, unseen, gram = models[~tested], models[tested], gram[np.ix_(~tested, ~tested)]
    with_gram = gram @ unseen.T
    total = float(np.einsum("ij,ji->", unseen, with_gram, dtype=np.float64))
    squares, vectors = eigen(np.asfortranarray(fitted @ (gram @ fitted.T)))
    if total <= 0.0 or not len(squares):
        return np.ones(0)
    coordinates = (vectors / np.sqrt(squares)).T @ (fitted @ with_gram)
    return np.cumsum(np.square(coordinates).sum(axis=1, dtype=np.float64)) / total


def _of_length(shares: NDArray[np.float64], rank: int) -> NDArray[np.float64]:
    """Up to ``rank``, also where four fifths of the scans do not reach it; 1 where there is nothing to keep."""
    last = shares[-1] if len(shares) else 1.0
    return np.concatenate([shares[:rank], np.full(max(0, rank - len(shares)), last)])


def _filled(values: NDArray[Any]) -> NDArray[Any]:
    """At least one component: of a head that predicts nothing, one that is nothing."""
    return values if values.shape[-1] else np.ones((*values.shape[:-1], 1), values.dtype)


def target_gram(fit: RidgeFit, journal: Journal, say: Report) -> NDArray[Any]:
    """``Y C² Y.T`` (N, N), summed over blocks of targets Y in units C."""
    name = f"{fit.targets.name}.gram"
    scans, dtype = fit.targets.scans, fit.targets.dtype
    kept = journal.find(name) or {"gram": np.zeros((scans, scans), dtype, order="F"), "done": np.array(0)}
    gram, done = kept["gram"], int(kept["done"])
    syrk = dsyrk if dtype == np.float64 else ssyrk
    for part, y in fit.blocks(done):
        calibrated = y * fit.units[part].astype(dtype)
        gram = syrk(1.0, calibrated.T, 1.0, gram, trans=1, lower=1, overwrite_c=1)
        if journal.due:
            journal.enter(name, gram=gram, done=part.stop)
        say(f"{fit.targets.name}: compared {part.stop:,} of {fit.targets.count:,} targets")
    lower = np.tril(gram, -1)
    return lower + lower.T + np.diag(np.diag(gram))
