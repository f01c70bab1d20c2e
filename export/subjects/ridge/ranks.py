"""How many components each head gets: the fewest bytes for what all heads keep on average, or the most for so many.

A component of a wide head takes more bytes than one of a narrow head, and keeps about as much of its head's
predictions. So the components of all heads are taken in the order of what each keeps a byte, until enough is kept. Of
four heads, none can lose more than four times what they lose on average.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

Shares = NDArray[np.float64]


def share_out(
    shares: Mapping[str, Shares],
    bytes_each: Mapping[str, int],
    fidelity: float,
    max_bytes: int | None = None,
) -> dict[str, int]:
    """Ranks, at least 1 each.

    Args:
        shares: of each head, what ranks 1, 2, ... keep of its predictions' variance.
        bytes_each: what a component of each head takes.
        fidelity: what the heads are to keep on average; where they cannot, they get every component.
        max_bytes: what all components may take together.
    """
    names = list(shares)
    slopes = {name: _slopes(shares[name]) for name in names}
    worth = np.concatenate([slopes[name] / bytes_each[name] for name in names])
    head = np.repeat(np.arange(len(names)), [len(slopes[name]) for name in names])
    order = np.argsort(-worth, kind="stable")
    kept = np.cumsum(np.concatenate(list(slopes.values()))[order]) / len(names)
    taken = int(np.searchsorted(kept, fidelity - 1e-12)) + 1
    if max_bytes is not None:
        sizes = np.cumsum(np.array([bytes_each[name] for name in names])[head[order]])
        taken = min(taken, int(np.searchsorted(sizes, max_bytes, side="right")))
    counts = np.bincount(head[order[:taken]], minlength=len(names))
    return {name: max(1, int(count)) for name, count in zip(names, counts, strict=True)}


def _slopes(shares: Shares) -> Shares:
    """What each component adds, smoothed to fall: slopes of the least concave curve above the shares.

    Of unseen scans, a component may by chance add less than a later one, or take some away.
    """
    added = np.diff(np.maximum.accumulate(shares), prepend=0.0)
    return np.asarray(isotonic_regression(added, increasing=False).x)
