"""Fits heads: the alpha of each, and the calibration and held-out correlation of each of its targets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unibrain_rt.errors import InputError
from unibrain_rt.export.subjects.ridge.basis import Basis, Floats
from unibrain_rt.export.subjects.ridge.held_out import Folds, HeldOut
from unibrain_rt.export.subjects.ridge.journal import Journal, Report
from unibrain_rt.export.subjects.ridge.reduced import Reduced, reduce_solution
from unibrain_rt.export.subjects.ridge.solution import Solution, target_blocks
from unibrain_rt.export.subjects.ridge.targets import Targets

Calibration = Literal["variance", "none"]

ALPHAS = tuple(float(f"{10**exponent:.3g}") for exponent in np.arange(1.0, 6.01, 0.5))
#: Limits of a calibration. A target that would need more than twenty times its predictions is one of which
#: the voxels say next to nothing: it stays nearer to its mean instead of being noise at full volume.
CALIBRATION_RANGE = (0.1, 20.0)

_SAMPLE = 2048  # targets of a head by which its alpha is chosen


@dataclass(frozen=True, eq=False)
class RidgeFit(Solution):
    """One head, fitted on all scans: its solution at the alpha that was chosen, and what calibrates it."""

    alphas: tuple[float, ...]
    alpha_scores: tuple[float, ...]
    """Mean held-out correlation at each of ``alphas``, over the sample of targets by which alpha is chosen."""
    target_mean: NDArray[np.float32]
    """(T,); also the bias, since z has mean 0."""
    calibration: NDArray[np.float32]
    """(T,)"""
    held_out_correlation: NDArray[np.float32]
    """(T,); NaN for constant targets."""

    @property
    def bias(self) -> NDArray[np.float32]:
        return self.target_mean

    @property
    def mean_correlation(self) -> float:
        """Held-out correlation, the mean over targets that vary; 0 where none does."""
        known = self.held_out_correlation[np.isfinite(self.held_out_correlation)]
        return float(known.mean(dtype=np.float64)) if known.size else 0.0

    def reduced(
        self, fidelity: float, journal: Journal | None = None, report: Report | None = None
    ) -> Reduced:
        """Factors for the weights; see `reduce_solution`."""
        return reduce_solution(self, fidelity, journal, report)


def fit_heads(
    voxels: ArrayLike,
    targets: Mapping[str, ArrayLike],
    alphas: Sequence[float] = ALPHAS,
    folds: int | None = None,
    seed: int = 0,
    *,
    calibration: Calibration | Mapping[str, Calibration] = "variance",
    groups: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    journal: Journal | None = None,
    report: Report | None = None,
) -> dict[str, RidgeFit]:
    """Fit every head of ``targets``, name -> (N, *shape), on betas (N, V); memory maps are read in blocks.

    Each head gets the alpha with the highest held-out Pearson correlation, the larger alpha of equals. It is the
    mean over the head's targets, or over 2,048 of them, spread evenly, where there are more. Correlation serves and
    not R², since the calibration settles each target's scale. Every scan is held out once, alone or with the scans
    of its stimulus, or in one of ``folds`` (`Folds.of`).

    The calibration of a target is the factor by which its predictions' departures from its mean are multiplied:

    - ``"variance"``: the spread of the true targets over that of the held-out predictions, within
      `CALIBRATION_RANGE`. Ridge predicts the conditional mean, whose variance is r² of the target's (r their
      correlation); a diffusion model takes such a shrunken latent or context for that of a grey, average
      stimulus. Full variance costs squared error, 2 (1 - r) instead of 1 - r², but no correlation, and is
      what the model was trained to read. Brain-Diffuser rescales to it with the statistics of the test set;
      here held-out training predictions alone decide, so that a scan decodes the same in any company.
    - ``"none"``: 1 throughout, the least squared error, for what is read off the predictions directly.

    ``weights`` (N,) tell how much each scan counts: with the numbers of repeats, a mean over three trials weighs
    three times a single one. Held-out predictions see scans like the training ones: where those are averages over
    repeats, single trials will predict with more noise. ``journal`` keeps what was done, block by block.

    Raises `InputError` if shapes do not match, values are not finite or options make no sense.
    """
    alphas = tuple(float(alpha) for alpha in alphas)
    if not alphas or not all(0.0 < alpha < math.inf for alpha in alphas):
        raise InputError(f"alphas {alphas}: give one or more finite numbers above 0")
    chosen = dict.fromkeys(targets, calibration) if isinstance(calibration, str) else calibration
    for name, choice in chosen.items():
        if choice not in ("variance", "none"):
            raise InputError(f"{name}: calibration '{choice}': choose variance or none")
    heads = {name: Targets(name, array) for name, array in targets.items()}
    journal, say = journal or Journal(), report or (lambda what: None)
    basis = Basis.factorise(voxels, weights, journal)
    for name, head in heads.items():
        if head.scans != basis.scans:
            raise InputError(f"{name}: {head.scans:,} targets for {basis.scans:,} scans: give one for each")
    say(f"factorised {basis.scans:,} scans of {basis.voxels:,} voxels")
    division = Folds.of(basis.scans, folds, seed, groups)
    held_out = {dtype: HeldOut(basis, division, dtype) for dtype in {head.dtype for head in heads.values()}}
    scores = {
        name: _alpha_scores(held_out[head.dtype], head, alphas, journal, say) for name, head in heads.items()
    }
    return {
        name: _fit_head(
            held_out[head.dtype], head, alphas, scores[name], chosen.get(name, "variance"), journal, say
        )
        for name, head in heads.items()
    }


def _alpha_scores(
    held_out: HeldOut, targets: Targets, alphas: tuple[float, ...], journal: Journal, say: Report
) -> tuple[float, ...]:
    """Mean held-out correlation of a head's sample at each alpha."""
    name = f"{targets.name}.alphas"
    kept = journal.find(name)
    if kept is not None:
        return tuple(kept["scores"].tolist())
    sample = [targets.block(part, held_out.basis, held_out.folds.order) for part in targets.sample(_SAMPLE)]
    y = np.concatenate([block.y for block in sample], axis=1)
    varies = np.concatenate([block.varies for block in sample])
    moments = held_out.scores.T @ y
    scores = []
    for alpha in alphas:
        correlation, _ = _agreement(y, held_out.centred(held_out.at(alpha).predict(y, moments)))
        scores.append(float(correlation[varies].mean()) if varies.any() else 0.0)
    journal.enter(name, scores=np.array(scores))
    say(f"{targets.name}: tried {len(alphas)} alphas on {len(varies):,} targets")
    return tuple(scores)


def _fit_head(
    held_out: HeldOut,
    targets: Targets,
    alphas: tuple[float, ...],
    scores: tuple[float, ...],
    calibration: Calibration,
    journal: Journal,
    say: Report,
) -> RidgeFit:
    """Calibration and held-out correlation of every target, at the head's alpha."""
    alpha = max(zip(scores, alphas, strict=True))[1]
    kept = journal.find(targets.name) or {
        **{
            key: np.empty(targets.count, np.float32)
            for key in ("mean", "calibration", "correlation", "units")
        },
        "done": np.array(0),
    }
    mean, factor, correlation, units = (kept[key] for key in ("mean", "calibration", "correlation", "units"))
    if (done := int(kept["done"])) < targets.count:
        operator = held_out.operator(alpha)
    for part in target_blocks(targets):
        if part.stop <= done:
            continue
        block = targets.block(part, held_out.basis, held_out.folds.order)
        agreement, ratio = _agreement(block.y, held_out.centred(operator @ block.y))
        mean[part] = block.mean
        correlation[part] = np.where(block.varies, agreement, np.nan)
        factor[part] = np.clip(ratio, *CALIBRATION_RANGE) if calibration == "variance" else 1.0
        spread = np.sqrt(np.einsum("ij,ij->j", block.y, block.y, dtype=np.float64) / targets.scans)
        units[part] = factor[part] / np.where(spread > 0.0, spread, 1.0)
        journal.enter(
            targets.name, mean=mean, calibration=factor, correlation=correlation, units=units, done=part.stop
        )
        say(f"{targets.name}: {part.stop:,} of {targets.count:,} targets")
    return RidgeFit(
        held_out.basis, held_out, targets, alpha, units, alphas, scores, mean, factor, correlation
    )


def _agreement(targets: NDArray[Any], predictions: NDArray[Any]) -> tuple[Floats, Floats]:
    """Correlation (B,) of centred predictions (N, B) with centred targets, and the targets' spread over theirs.

    0 and 1 where either does not vary: there is nothing to correlate or to scale.
    """
    true_square, square, product = (
        np.einsum("ij,ij->j", first, second, dtype=np.float64)
        for first, second in ((targets, targets), (predictions, predictions), (targets, predictions))
    )
    some = (true_square > 0.0) & (square > 0.0)
    safe = np.where(some, square, 1.0)
    correlation = np.where(some, product, 0.0) / np.sqrt(np.where(some, true_square, 1.0) * safe)
    return correlation, np.where(some, np.sqrt(true_square / safe), 1.0)
