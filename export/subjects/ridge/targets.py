"""A head's targets as they stream from memory or disk, a block at a time."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unibrain_rt.errors import InputError
from unibrain_rt.export.subjects.ridge.basis import Basis

_CONSTANT = 1e-6  # of the mean: float32 cannot tell smaller spreads from none
_RUNS = 64  # of neighbours, which make up a sample


@dataclass(frozen=True, eq=False)
class Block:
    """Some of a head's targets, as fits take them."""

    y: NDArray[Any]  # (N, B): centred, in fold order, rows multiplied by the roots of the weights
    mean: NDArray[np.float64]  # (B,)
    varies: NDArray[np.bool_]  # (B,): y of others is 0


class Targets:
    """Targets (N, *shape) of one head; memory maps stay on disk. Raises `InputError` for what is no such array.

    Products are computed in float64 where targets are float64, otherwise in float32.
    """

    def __init__(self, name: str, array: ArrayLike) -> None:
        given = np.asanyarray(array)
        if given.ndim < 2 or 0 in given.shape or given.dtype.kind != "f":
            raise InputError(
                f"{name}: targets are {given.dtype} {given.shape}: give floating point (scans, ...)"
            )
        self.name, self.shape = name, given.shape[1:]
        self._flat = given.reshape(len(given), -1)
        self.dtype = np.dtype(np.float64 if given.dtype.itemsize > 4 else np.float32)
        self.scans, self.count = self._flat.shape

    def block(self, part: slice, basis: Basis, order: NDArray[np.intp]) -> Block:
        """The targets of a slice. Raises `InputError` if they are not finite."""
        y = np.array(self._flat[:, part], self.dtype)[order]
        release(self._flat)
        if not np.isfinite(y).all():
            raise InputError(
                f"{self.name}: targets have values that are not finite: encode the stimuli again"
            )
        root = basis.root_weights[order]
        mean = np.square(root) @ y / np.square(root).sum()
        y -= mean.astype(self.dtype)
        spread = np.sqrt(np.einsum("ij,ij->j", y, y, dtype=np.float64) / len(y))
        varies = spread > _CONSTANT * np.abs(mean)
        y[:, ~varies] = 0.0
        y *= root[:, None].astype(self.dtype)
        return Block(y, mean, varies)

    def sample(self, most: int) -> Sequence[slice]:
        """Slices that hold at most ``most`` targets together: all, or 64 runs of neighbours, spread evenly."""
        if self.count <= most:
            return (slice(0, self.count),)
        width = most // _RUNS
        starts = np.linspace(0, self.count - width, _RUNS).astype(int)
        return tuple(slice(start, start + width) for start in starts.tolist())


def release(array: Any) -> None:
    """Give back the memory that pages of a mapped file take, so that it does not grow with what was read."""
    mapped = getattr(array, "_mmap", None)
    if mapped is not None and array.mode != "c":
        mapped.madvise(mmap.MADV_DONTNEED)
