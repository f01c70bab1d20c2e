"""A head of reduced rank: it predicts along the few directions in which predictions of scans differ most.

Let P (N, T) be the predictions of the training scans, calibrated and in units of each target's deviation, so that every
target counts the same, and C what takes targets to these units. The directions are the leading eigenvectors V of P.T P
(reduced-rank regression), and the factors are ``left = W C V`` and ``right = V.T C⁻¹``. They depend on the targets Y by
``Y C² Y.T`` alone, so that any root Q of it serves, ``Q Q.T = Y C² Y.T``: Y C itself where there are fewer targets than
scans, else the Cholesky factor of this Gram matrix, which is summed over blocks. In the components of `basis`, whose
scores have the lengths s::

    A = (s² + alpha)⁻¹ scores.T Q,   s A = E √λ V_Q.T       the model, and its predictions (R, q) as a singular value
    left = axes s⁻¹ E √λ,   right = λ^-½ E.T s (s² + alpha)⁻¹ scores.T Y                               decomposition

Training predictions do not tell how much a rank keeps, since the directions were chosen for them. So a model of four
fifths of the scans is reduced, and the rank is chosen by what it keeps of that model's predictions of the other scans.
The ranks of a subject's heads are settled together (`ranks`). The factors of a smaller rank are the first columns of
those of a larger one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.linalg.blas import dsyrk, ssyrk
from scipy.linalg.lapack import dpstrf, spstrf

from unibrain_rt.errors import InputError
from unibrain_rt.export.subjects.ridge.basis import eigen
from unibrain_rt.export.subjects.ridge.journal import Journal, Report
from unibrain_rt.export.subjects.ridge.solution import Solution


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


def reduce_solution(
    solution: Solution,
    fidelity: float,
    journal: Journal | None = None,
    report: Report | None = None,
) -> Reduced:
    """The smallest rank whose held-out predictions keep the share ``fidelity`` of their variance, calibrated.

    Raises `InputError` for a share that makes no sense.
    """
    check_fidelity(fidelity)
    journal, say = journal or Journal(), report or (lambda what: None)
    name = f"{solution.targets.name}.reduced"
    kept = journal.find(name)
    if kept is None or kept["asked"] != fidelity:
        root = target_root(solution, journal, say)
        shares = held_out_shares(solution, root)
        lengths, width = np.sqrt(solution.basis.squares), solution.targets.count
        shrinkage = (lengths / (solution.basis.squares + solution.alpha)).astype(root.dtype)
        scores = _scores(solution)
        squares, vectors = _leading(shrinkage[:, None] * (scores.T @ root))
        rank = min(int(np.searchsorted(shares, fidelity)) + 1, max(1, len(squares)))
        vectors, squares = _filled(vectors[:, :rank], 0.0), _filled(squares[:rank], 1.0)
        right_of = ((vectors * shrinkage[:, None]).T @ scores.T) * np.sqrt(width / squares)[:, None]
        left = solution.basis.axes @ (vectors * np.sqrt(squares / width) / lengths[:, None])
        kept = {
            "asked": np.array(fidelity),
            "left": left.astype(solution.targets.dtype),
            "right_of": right_of.astype(solution.targets.dtype),
            "shares": _of_length(shares, rank),
        }
        journal.enter(name, **kept)
        say(f"{solution.targets.name}: rank {rank:,} keeps {kept['shares'][-1]:.4f} of held-out predictions")
    return Reduced(kept["left"], kept["right_of"], solution.blocks, kept["shares"])


def check_fidelity(fidelity: float) -> None:
    """Raise `InputError` for a share of the variance that makes no sense."""
    if not 0.0 < fidelity <= 1.0:
        raise InputError(f"fidelity {fidelity}: give a share above 0 and up to 1")


def held_out_shares(solution: Solution, root: NDArray[Any]) -> NDArray[np.float64]:
    """Shares that ranks 1, 2, ... keep of what a model of four fifths of the scans predicts for the others."""
    folds = solution.held_out.folds
    tested = np.zeros(len(root), bool)
    for number, fold in enumerate(folds):
        tested[fold] = number % min(5, folds.count) == 0
    scores = _scores(solution)
    # Products of all scans' scores are known: they are orthogonal.
    own = -scores[tested].T @ scores[tested]
    own[np.diag_indices_from(own)] += solution.basis.squares + solution.alpha * float(np.mean(~tested))
    factor = cho_factor(own, overwrite_a=True, check_finite=False)
    model = cho_solve(factor, scores[~tested].T @ root[~tested], overwrite_b=True, check_finite=False)
    fitted, unseen = scores[~tested] @ model, scores[tested] @ model
    total = float(np.einsum("ij,ij->", unseen, unseen, dtype=np.float64))
    squares, vectors = _leading(fitted)
    if total <= 0.0 or not len(squares):
        return np.ones(0)
    coordinates = unseen @ (fitted.T @ vectors) / np.sqrt(squares)
    return np.cumsum(np.square(coordinates).sum(axis=0, dtype=np.float64)) / total


def _scores(solution: Solution) -> NDArray[Any]:
    """(N, R), in the order and the type of the targets' blocks."""
    return solution.basis.scores[solution.held_out.folds.order].astype(solution.targets.dtype)


def _leading(rows: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Squared singular values of (R, q), falling, and the vectors of length R that belong to them."""
    if len(rows) <= rows.shape[1]:
        return eigen(np.asfortranarray(rows @ rows.T))
    squares, vectors = eigen(np.asfortranarray(rows.T @ rows))
    return squares, (rows @ vectors) / np.sqrt(squares)


def _of_length(shares: NDArray[np.float64], rank: int) -> NDArray[np.float64]:
    """The shares of ranks up to ``rank``. Where fewer are known, the last is repeated; where none is, all are 1."""
    last = shares[-1] if len(shares) else 1.0
    return np.concatenate([shares[:rank], np.full(max(0, rank - len(shares)), last)])


def _filled(values: NDArray[Any], filling: float) -> NDArray[Any]:
    """The values of all components or, for a head that always predicts its mean, of one with this filling."""
    return values if values.shape[-1] else np.full((*values.shape[:-1], 1), filling, values.dtype)


def target_root(solution: Solution, journal: Journal, say: Report) -> NDArray[Any]:
    """Q (N, q) with ``Q Q.T = Y C² Y.T``, Y the targets in the blocks' order and C their units."""
    if solution.targets.count < solution.targets.scans:
        units = solution.units.astype(solution.targets.dtype)
        return np.concatenate([y * units[part] for part, y in solution.blocks()], axis=1)
    gram = target_gram(solution, journal, say)
    # With pivots: there may be fewer directions than scans, and centred targets have one less at least.
    pstrf, largest = (dpstrf if gram.dtype == np.float64 else spstrf), float(np.diag(gram).max())
    errors = len(gram) if gram.dtype == np.float64 else np.sqrt(len(gram))
    factor, pivots, rank, _ = pstrf(
        gram, tol=largest * errors * np.finfo(gram.dtype).eps, lower=1, overwrite_a=1
    )
    root = np.zeros((len(gram), max(1, rank)), gram.dtype)
    root[pivots - 1, :rank] = np.tril(factor)[:, :rank]
    return root


def target_gram(solution: Solution, journal: Journal, say: Report) -> NDArray[Any]:
    """``Y C² Y.T`` (N, N), its lower triangle, summed over blocks of targets Y in units C."""
    name = f"{solution.targets.name}.gram"
    scans, dtype = solution.targets.scans, solution.targets.dtype
    kept = journal.find(name) or {"gram": np.zeros((scans, scans), dtype, order="F"), "done": np.array(0)}
    gram, done = np.asfortranarray(kept["gram"]), int(kept["done"])
    syrk = dsyrk if dtype == np.float64 else ssyrk
    for part, y in solution.blocks(done):
        calibrated = y * solution.units[part].astype(dtype)
        gram = syrk(1.0, calibrated.T, 1.0, gram, trans=1, lower=1, overwrite_c=1)
        if journal.due:
            journal.enter(name, gram=gram, done=part.stop)
        say(f"{solution.targets.name}: compared {part.stop:,} of {solution.targets.count:,} targets")
    return gram
