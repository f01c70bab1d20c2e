"""How good reconstructions are, as the field measures it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]


def two_way_identification(features: NDArray[np.number], references: NDArray[np.number]) -> Float:
    """Share of other stimuli whose features correlate less with a reconstruction than its own stimulus' do.

    Exhaustive over all pairs; chance is 0.5.

    Args:
        features: of the reconstructions, (N, …); flattened.
        references: of the stimuli, in the same order, (N, …).

    Returns:
        (N,): per reconstruction, the share of the N − 1 others that it beats; ties count half.
    """
    correlations = _standardised(features) @ _standardised(references).T
    own = np.diag(correlations)[:, None]
    others = ~np.eye(len(own), dtype=bool)
    wins = np.where(correlations < own, 1.0, np.where(correlations == own, 0.5, 0.0))
    return (wins * others).sum(axis=1) / (len(own) - 1)


def pixel_correlation(images: NDArray[np.uint8], references: NDArray[np.uint8]) -> Float:
    """PixCorr, (N,): Pearson correlation of all RGB values of each pair. Images (N, H, W, 3) of one size."""
    return (_standardised(images) * _standardised(references)).sum(axis=1)


def _standardised(values: NDArray) -> Float:  # type: ignore[type-arg]
    rows = np.asarray(values, np.float64).reshape(len(values), -1)
    rows = rows - rows.mean(axis=1, keepdims=True)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
