"""Products with a head's matrices as they are stored: small types, mapped from a file, never whole in float32.

A matrix (K, M) is float32, float16, or int8 with one float32 scale a column. Two ways lead through it:

- int8, where ONNX Runtime is installed: rows are written with three digits of base 128, a scale a row, and every digit
  is multiplied in integers (`unibrain_rt.engines.integer_products`), at about the pace at which the matrix is read.
  Three digits are 21 bits of the row's largest value, as good as float32's 24 where sums are so long.
- else, panels of its columns are widened a tile at a time into a buffer that stays in the processor's cache, and
  each tile is multiplied at once. Threads share the panels. numpy widens int8 some ten times faster than float16, for
  which it has no instruction on most processors, so int8 is what large heads are stored in.

Every scan's product is the same, whatever its company and however many threads there are: integers are exact, and
panels and tiles depend on the matrix alone; within a tile, a product with one row of `_STRIP` columns is too small
for a BLAS to divide among threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.engines import integer_products
from unibrain_rt.engines.host import usable_cores

Float = NDArray[np.float32]

_PANEL = 8192  # columns that one thread takes at a time
_TILE_BYTES = 2 << 20  # of a buffer in float32: it stays in cache, and calls are few
_STRIP = 32  # columns of one product with at most
_ROWS = 256  # rows: 8,192 weights, below the 9,216 from which OpenBLAS divides them among threads
_DIGITS = 3  # of base 128, from -64 to 63
_LARGEST = 63 * (128**2 + 128 + 1)  # that such a number can be, either sign
_INTEGERS_FROM = 4 << 20  # bytes of a matrix: for a small one, loading ONNX Runtime does not pay
_SCANS = 16  # whose digits are multiplied at once: integers of the result are wide


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
    tasks = []
    for each, factor, result in zip(rows, factors, results, strict=True):
        if _in_integers(factor):
            for first in range(0, len(each), _SCANS):
                _multiply_integers(each[first : first + _SCANS], factor, result[first : first + _SCANS])
            continue
        columns = factor.values.shape[1]
        tasks += [
            (each, factor, result, start, min(start + _PANEL, columns)) for start in range(0, columns, _PANEL)
        ]
    if len(tasks) < 2 or usable_cores() < 2:
        for task in tasks:
            _multiply(*task)
    else:
        for _ in _pool().map(lambda task: _multiply(*task), tasks):
            pass
    return results


def _in_integers(factor: Factor) -> bool:
    values = factor.values
    return (
        values.dtype == np.int8
        and values.nbytes >= _INTEGERS_FROM
        and len(values) <= integer_products.MOST_ROWS
        and integer_products.available()
    )


@np.errstate(all="ignore")
def _multiply_integers(rows: Float, factor: Factor, result: Float) -> None:
    """``result = rows @ factor``; NaN for rows that are not finite."""
    peaks = np.abs(rows).max(axis=1).astype(np.float64)
    finite = np.isfinite(peaks)
    units = np.where(finite & (peaks > 0.0), peaks, 1.0) / _LARGEST
    whole = np.rint(np.where(finite[:, None], rows, 0.0) / units[:, None]).astype(np.int32)
    digits = np.empty((_DIGITS, *rows.shape), np.uint8)
    for digit in digits:
        whole += integer_products.ZERO
        digit[:] = whole & 127
        whole >>= 7
    by_digit = integer_products.multiply(digits.reshape(-1, rows.shape[1]), factor.values)
    total = np.zeros(result.shape)
    for products_of_digit in by_digit.reshape(_DIGITS, *result.shape)[::-1]:
        total *= 128.0
        total += products_of_digit
    total *= np.where(finite, units, np.nan)[:, None]
    if factor.scale is not None:
        total *= factor.scale
    result[:] = total


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
