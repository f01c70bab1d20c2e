"""Factors in the types they are stored in, and what rounding costs.

int8 has one scale a column: of ``left`` a component's, of ``right`` a target's. Within each, values are of about one
size, because `Reduced` keeps the spread between components in ``left``: rounding to 127 steps costs a few ten-
thousandths of the predictions' variance, whatever a target's units are. float16 is twice the size, keeps more, and
takes numpy ten times as long to widen (`unibrain_rt.factors`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.errors import InputError
from unibrain_rt.export.subjects.ridge.reduced import Reduced

Storage = Literal["int8", "float16", "float32"]

#: Share of the variance that rounding takes at most, of factors like those of fits: the rank makes up for it.
ROUNDING = {"int8": 5e-4, "float16": 1e-4, "float32": 0.0}


class StoredFactors:
    """The factors of a head as they are stored, and the share of its predictions that rounding takes.

    ``z`` are z-scored voxels (M, V) of scans on which that is measured, ``units`` (T,) are what
    errors count by. Raises `InputError` where float16 cannot hold the values.
    """

    def __init__(
        self, name: str, reduced: Reduced, storage: Storage, z: NDArray[Any], units: NDArray[np.float32]
    ) -> None:
        self._name, self._reduced, self._storage = name, reduced, storage
        self._units = units
        # Halves hold what is near 1 best: there, both factors get their share of the components' spread.
        sizes = np.abs(reduced.left).max(axis=0, initial=0.0)
        self._balance = (
            np.ones(reduced.rank) if storage == "int8" else np.sqrt(np.where(sizes > 0, sizes, 1.0))
        )
        self.left, self.left_scale = self._narrow(reduced.left / self._balance)
        self._exact = np.asarray(z @ reduced.left, np.float32)
        self._rounded = z @ _widened(self.left, self.left_scale)
        self._total = self._lost = 0.0

    @property
    def rank(self) -> int:
        return self._reduced.rank

    def right(self) -> Iterator[tuple[slice, NDArray[Any], NDArray[np.float32] | None]]:
        """Blocks (r, B) of the other factor, each with its slice of the T targets and its scales (B,)."""
        for part, block in self._reduced.right():
            values, scale = self._narrow(self._balance[:, None] * block)
            units = self._units[part]
            wanted = self._exact @ block
            self._total += _energy(wanted * units)
            self._lost += _energy((wanted - self._rounded @ _widened(values, scale)) * units)
            yield part, values, scale

    @property
    def fidelity(self) -> float:
        """Share of the held-out predictions' variance that is kept; known once all of `right` was given."""
        return max(0.0, self._reduced.kept - (self._lost / self._total if self._total else 0.0))

    def _narrow(self, factor: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
        if self._storage == "int8":
            scale = (np.abs(factor).max(axis=0) / 127).astype(np.float32)
            scale[scale == 0.0] = 1.0
            return np.rint(factor / scale).astype(np.int8), scale
        with np.errstate(over="ignore"):
            narrow = factor.astype(self._storage)
        if not np.isfinite(narrow).all():
            problem = f"factors up to {np.abs(factor).max():.1g} do not fit in {self._storage}"
            raise InputError(f"{self._name}: {problem}: store float32")
        return narrow, None


def _widened(values: NDArray[Any], scale: NDArray[np.float32] | None) -> NDArray[np.float32]:
    wide = values.astype(np.float32)
    return wide if scale is None else wide * scale


def _energy(values: NDArray[Any]) -> float:
    return float(np.square(values).sum(dtype=np.float64))
