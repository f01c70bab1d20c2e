"""A load that no change of ours makes slower: how fast the machine is just now.

A shared machine's speed wanders by a tenth and more within minutes, with what runs beside it on the same caches, memory
and clock. A decode's time over this load's time beside it does so much less: blocks of ten seconds of the phantom's
decodes differed by 5 % (standard deviation), by 2 % over this load.
"""

from __future__ import annotations

import numpy as np

from unibrain_rt.benchmarks.bench.thread_clock import ThreadClock

_SIDE, _PRODUCTS = 64, 400
_COPY_NUMBERS, _COPIES = 2**19, 10
_PASS_NUMBERS, _PASSES = 2**15, 40
_SUM_NUMBERS, _SUMS = 2**21, 5
_COUNTS = 100_000


class Calibration:
    """Some 12 ms of what decodes consist of: matrix products in the cache, copies and sums beyond it, small passes,
    Python.

    All of it runs on the calling thread: the matrices are below what numpy's BLAS would share out.
    """

    def __init__(self, clock: ThreadClock) -> None:
        rng = np.random.default_rng(0)
        self._clock = clock
        self._matrix = rng.random((_SIDE, _SIDE), np.float32)
        self._source = rng.random(_COPY_NUMBERS)
        self._target = np.empty_like(self._source)
        self._few = rng.random(_PASS_NUMBERS, np.float32)
        self._out = np.empty_like(self._few)
        self._many = rng.random(_SUM_NUMBERS, np.float32)

    def __call__(self) -> float:
        """Run the load once; milliseconds, those without a core taken off."""
        begun = self._clock.now()
        for _ in range(_PRODUCTS):
            self._matrix @ self._matrix
        for _ in range(_COPIES):
            np.copyto(self._target, self._source)
        for _ in range(_PASSES):
            np.add(self._few, self._few, out=self._out)
            np.exp(self._few, out=self._out)
        for _ in range(_SUMS):
            self._many.sum()
        for _ in range(_COUNTS):
            pass
        return self._clock.now().undisturbed_since(begun)
