"""Means with bootstrap intervals: of items, of groups of items, and of paired differences."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

COVERAGE = 0.95
RESAMPLES = 2000
_BLOCK = 2**22  # numbers drawn at a time


@dataclass(frozen=True)
class Interval:
    """The mean of ``n`` items, and the limits between which 95 % of the resampled means lie."""

    mean: float
    low: float
    high: float
    n: int

    def text(self, digits: int = 3) -> str:
        """``0.923 [0.911, 0.934]``."""
        # Adding 0 takes the sign from what rounds to a negative nothing.
        mean, low, high = (round(value, digits) + 0.0 for value in (self.mean, self.low, self.high))
        return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"

    def record(self) -> dict[str, float | int]:
        """For JSON, rounded to six digits behind the point."""
        return {
            "mean": round(self.mean, 6),
            "low": round(self.low, 6),
            "high": round(self.high, 6),
            "n": self.n,
        }


def interval(
    values: ArrayLike,
    *,
    groups: Sequence[Hashable] | NDArray[Any] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Mean of ``values`` with its percentile bootstrap interval (Efron 1979).

    Args:
        values: (N,), finite.
        groups: (N,), the label of each value's group, such as its subject or its stimulus: whole groups are then
            drawn, because values of one group say less than as many independent ones. ``n`` stays N.
        resamples: how many means are drawn.
        seed: of the draws (Philox): equal arguments give equal intervals.

    Raises:
        ValueError: no values, some that are not finite, or groups of another length.
    """
    items = _checked(values)
    if groups is None:
        sums, counts = items, np.ones(len(items))
    else:
        if len(groups) != len(items):
            raise ValueError(f"{len(items)} values, but {len(groups)} group labels")
        place: dict[Hashable, int] = {}
        member = np.array([place.setdefault(_label(label), len(place)) for label in groups])
        sums = np.asarray(np.bincount(member, items), np.float64)
        counts = np.asarray(np.bincount(member), np.float64)
    rng = np.random.Generator(np.random.Philox(key=[seed, 1]))
    means = np.empty(resamples)
    step = max(1, _BLOCK // len(sums))
    for start in range(0, resamples, step):
        drawn = rng.integers(len(sums), size=(min(step, resamples - start), len(sums)))
        means[start : start + len(drawn)] = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, ((1 - COVERAGE) / 2, (1 + COVERAGE) / 2))
    return Interval(float(items.mean()), float(low), float(high), len(items))


def difference(
    a: ArrayLike,
    b: ArrayLike,
    *,
    groups: Sequence[Hashable] | NDArray[Any] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Mean of ``a - b``, item by item: a paired bootstrap. An interval without 0 tells the two apart.

    Arguments and errors are those of `interval`; ``a`` and ``b`` are of the same items in the same order.
    """
    first, second = _checked(a), _checked(b)
    if len(first) != len(second):
        raise ValueError(f"pairs are needed, but there are {len(first)} and {len(second)} values")
    return interval(first - second, groups=groups, resamples=resamples, seed=seed)


def _checked(values: ArrayLike) -> NDArray[np.float64]:
    items = np.asarray(values, np.float64)
    if items.ndim != 1 or not len(items):
        raise ValueError(f"values must be (N,) with N of at least 1, not of shape {items.shape}")
    if not np.isfinite(items).all():
        raise ValueError(f"{int((~np.isfinite(items)).sum())} of {len(items)} values are not finite")
    return items


def _label(label: Hashable) -> Hashable:
    """NumPy's scalars as Python's, so that labels of a list and of an array mean the same groups."""
    return label.item() if isinstance(label, np.generic) else label
