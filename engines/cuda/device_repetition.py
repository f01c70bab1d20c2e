"""Blocks of runs, each one CUDA graph, so that the device does not wait for the host after each run."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from unibrain_rt.engines.cuda.device_memory import DeviceTable
from unibrain_rt.engines.cuda.device_session import DeviceSession
from unibrain_rt.engines.cuda.replay import Replay, Work
from unibrain_rt.engines.graph_spec import Array
from unibrain_rt.engines.repetition import BLOCK, Repetition

_Block = tuple[bool, int]
"""Whether it is the first, and how many runs it has."""


class DeviceRepetition(Repetition):
    """Every run writes ``output`` to its own row, which the next one reads; the host reads a block of rows at once."""

    def __init__(
        self,
        session: DeviceSession,
        output: str,
        until: int,
        at_most: int,
        initial: Mapping[str, Array],
        *,
        capture: bool = True,
    ) -> None:
        """See `Repetition`. Raises EngineError, also where the device is out of memory."""
        super().__init__(session, output, until, at_most, initial)
        memory, spec = session.memory, session.graph.tensor(output)
        self._device, self._capture = session, capture
        self._first = {name: DeviceTable(memory, value[None]) for name, value in self._initial.items()}
        self._rows = DeviceTable(memory, np.zeros((BLOCK, *spec.sized(session.free)), spec.dtype))
        self._replays: dict[_Block, Replay] = {}

    def _begin(self) -> None:
        self._device.rewind()

    def _run_on(self, done: int) -> list[int]:
        session = self._device
        block = (done == 0, min(BLOCK, self._at_most - done))
        if block not in self._replays:
            self._replays[block] = Replay(session.memory, session.memory.stream, capture=self._capture)
        session.memory.before(session.unwritten, session.written)
        self._replays[block].launch(self._work(block))
        session.advance(block[1])
        return [int(row.item()) for row in self._rows.read()[: block[1]]]

    def _work(self, block: _Block) -> Work:
        session, (_, runs) = self._device, block
        return Work(
            name=f"graph {session.graph.name}",
            enqueue=lambda _: self._enqueue(block),
            pieces=runs,
            marks=(),
            # The last row is what the first run of the next block reads.
            carried=[*session.carried(session.turn), self._rows.buffer],
            written=[*session.written, self._rows.buffer],
            keeps=(*session.buffers, session.resources(), self._first, self._rows),
        )

    def _enqueue(self, block: _Block) -> None:
        session, (first, runs) = self._device, block
        turn = session.turn
        for place in range(runs):
            instead = {name: self._rows.row(row) for name, row in self._rows_of(place).items()}
            if first and place == 0:
                instead |= {name: table.row(0) for name, table in self._first.items()}
            session.enqueue({**session.addresses(turn), **instead}, session.memory.stream)
            turn = session.roles.after(turn)
