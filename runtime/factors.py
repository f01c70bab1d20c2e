"""Products with a head's matrices as they are stored: small types, mapped from a file, widened in cache.

A matrix (K, M) is float32, float16, or int8 with one float32 scale a column. It is never whole in float32:
panels of its columns are widened a tile at a time into a buffer that stays in the processor's cache, and each
tile is multiplied at once. Threads share the panels. numpy widens int8 some ten times faster than float16, for
which it has no instruction on most processors, so int8 is what large heads are stored in.

Every scan's product is added up in the same order, whatever its company and however many threads there are:
panels and tiles depend on the matrix alone, and within a tile, a product with one row of `_STRIP` columns is
too small for a BLAS to divide among threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.engines.host import usable_cores

Float = NDArray[np.float32]

_PANEL = 8192  # columns that one thread takes at a time
_TILE_BYTES = 2 << 20  # of a buffer in float32: it stays in cache, and calls are few
_STRIP = 32  # columns of one product with at most
_ROWS = 256  # rows: 8,192 weights, below the 9,216 from which OpenBLAS divides them among threads


@dataclass(frozen=True, eq=False)
class Factor:
    """A stored matrix: ``values`` (K, M) of int8, float16 or float32, times ``scale`` (M,) where there is one."""

    values: NDArray[Any]
    scale: Float | None = None

    @property
    def size_bytes(self) -> int:
        """What it takes on disk."""
        return self.values.nbytes + (0 if self.scale is None else self.scale.nbytes)


def products(rows: Sequence[Float], factors: Sequence[Factor]) -> list[Float]:
    """``rows @ factor`` (N, M) float32 for each pair of rows (N, K) and a factor (K, M), panel by panel."""
    results = [
        np.zeros((len(each), factor.values.shape[1]), np.float32)
        for each, factor in zip(rows, factors, strict=True)
    ]
    tasks = [
        (each, factor, result, start, min(start + _PANEL, factor.values.shape[1]))
        for each, factor, result in zip(rows, factors, results, strict=True)
        for start in range(0, factor.values.shape[1], _PANEL)
    ]
    if len(tasks) < 2 or usable_cores() < 2:
        for task in tasks:
            _multiply(*task)
    else:
        for _ in _pool().map(lambda task: _multiply(*task), tasks):
            pass
    return results


@np.errstate(all="ignore")  # a thread's own setting; callers look at what came out
def _multiply(rows: Float, factor: Factor, result: Float, start: int, stop: int) -> None:
    """``result[:, start:stop] = rows @ factor[:, start:stop]``."""
    strips = -(-(stop - start) // _STRIP)
    width = strips * _STRIP
    tile = max(1, min(_ROWS, _TILE_BYTES // (4 * width)))
    buffer = np.zeros((tile, width), np.float32)
    by_strip = buffer.reshape(tile, strips, _STRIP).swapaxes(0, 1)
    part, totals = np.empty((strips, _STRIP), np.float32), np.zeros((len(rows), width), np.float32)
    for first in range(0, len(factor.values), tile):
        last = min(first + tile, len(factor.values))
        np.copyto(buffer[: last - first, : stop - start], factor.values[first:last, start:stop])
        for row, total in zip(rows, totals, strict=True):
            np.matmul(row[first:last], by_strip[:, : last - first], out=part)
            total += part.reshape(-1)
    result[:, start:stop] = totals[:, : stop - start]
    if factor.scale is not None:
        result[:, start:stop] *= factor.scale[start:stop]


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(usable_cores(), "factors")
