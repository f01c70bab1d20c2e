"""Runs queued by the block, so that the device does not wait for the host after each."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from unibrain_rt.engines.graph_spec import Array
from unibrain_rt.engines.onnxruntime_cuda.cuda_session import CudaSession, Launch
from unibrain_rt.engines.onnxruntime_cuda.device_rows import DeviceRows, device_row
from unibrain_rt.engines.repetition import BLOCK, Repetition


class CudaRepetition(Repetition):
    """Every run writes ``output`` to its own row, which the next one reads; the host reads a block of rows at once.

    Runs are captured when it first runs: those of the first block, which start from ``initial``, and those of the
    others, which are the same block again.
    """

    def __init__(
        self,
        onnxruntime: Any,
        session: CudaSession,
        output: str,
        until: int,
        at_most: int,
        initial: Mapping[str, Array],
    ) -> None:
        """See `Repetition`. Raises EngineError, also where the device is out of memory."""
        super().__init__(session, output, until, at_most, initial)
        spec, name = session.graph.tensor(output), f"graph {session.graph.name}"
        self._cuda = session
        self._first = {
            key: device_row(onnxruntime, value, f"{name}, {key}") for key, value in self._initial.items()
        }
        nothing = np.zeros((BLOCK, *spec.sized(session.free)), spec.dtype)
        self._rows = DeviceRows(onnxruntime, nothing, f"{name}, {output}")
        self._blocks: list[list[Launch]] = []
        self._native: Any = None

    def _begin(self) -> None:
        session = self._cuda
        session.rewind()
        while not self._blocks or self._native is not session.native:
            session.settle()
            # Where a capture is refused, the session is loaded anew, and is bound once more.
            self._native = session.native
            # Capturing runs them: one block after the other, so that each finds what the one before it left.
            self._blocks = [self._block(0), self._block(BLOCK)]

    def _block(self, start: int) -> list[Launch]:
        """Launches of the runs from ``start`` on."""
        session, launches = self._cuda, []
        for place in range(start, min(start + BLOCK, self._at_most)):
            instead = {name: self._rows[row] for name, row in self._rows_of(place).items()}
            if place == 0:
                instead |= self._first
            work = partial(session.prepare, place % session.roles.turns, instead)
            launches.append(session.in_thread(work).result())
        return launches

    def _run_on(self, done: int) -> list[int]:
        launches = self._blocks[min(done // BLOCK, 1)][: self._at_most - done]
        self._cuda.in_thread(partial(self._cuda.launch, launches)).result()
        return [int(row.item()) for row in self._rows.read()[: len(launches)]]
