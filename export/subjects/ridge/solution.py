"""A head's solution at one alpha: not its weights, but what makes weights of targets, block by block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.export.subjects.ridge.basis import Basis, Floats, blocks
from unibrain_rt.export.subjects.ridge.held_out import HeldOut
from unibrain_rt.export.subjects.ridge.targets import Targets

_BLOCK_BYTES = 128 << 20  # of targets at a time


@dataclass(frozen=True, eq=False)
class Solution:
    """``z @ weights`` predicts by how much T targets depart from their means; ``z`` are z-scored voxels."""

    basis: Basis
    held_out: HeldOut
    targets: Targets
    alpha: float
    units: NDArray[np.float32]
    """(T,): an error of a target counts multiplied by this: its calibration over its standard deviation."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one scan's prediction, for example (4, 64, 64) of ``image_latent``."""
        return self.targets.shape

    def blocks(self, begin: int = 0) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Targets (N, B) as they were fitted, in fold order, each block with its slice of the T targets.

        ``begin`` leaves out the blocks before: with 1,000 targets a block, ``blocks(2000)`` begins with the third.
        """
        for part in target_blocks(self.targets):
            if part.start >= begin:
                yield part, self.targets.block(part, self.basis, self.held_out.folds.order).y

    def weights(self) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Weights (V, B) of one block of targets after the other, each with its slice of the T targets."""
        of_targets = self.coefficients(self.basis.axes)
        for part, y in self.blocks():
            yield part, of_targets @ y

    def coefficients(self, rows: Floats) -> NDArray[Any]:
        """(M, N): by how much each training scan's target counts in a prediction for each row.

        ``rows`` (M, R) are z-scored scans in the basis' components: ``z @ axes``. With ``rows = axes``, the product
        with the targets is the weights.
        """
        shrunken = rows / (self.basis.squares + self.alpha)
        return np.asarray(shrunken @ self.basis.scores[self.held_out.folds.order].T, self.targets.dtype)

    def some_z(self, most: int) -> NDArray[Any]:
        """z-scored voxels (M, V) of at most ``most`` training scans, spread evenly."""
        rows = spread_evenly(self.basis.scans, most)
        return (self.basis.scores[rows] / self.basis.root_weights[rows, None]) @ self.basis.axes.T


def target_blocks(targets: Targets) -> Iterator[slice]:
    """Slices that cover a head's T targets, of one size in memory."""
    return blocks(targets.count, targets.dtype.itemsize * targets.scans, _BLOCK_BYTES)


def spread_evenly(count: int, most: int) -> NDArray[np.int64]:
    """At most ``most`` of the numbers below ``count``, spread evenly: 0, 4 and 9 are three of ten."""
    return np.unique(np.linspace(0, count - 1, most).astype(np.int64))
