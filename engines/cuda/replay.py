"""Work that is done again and again: launched piece by piece once, then captured, checked and replayed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from unibrain_rt.engines.cuda.device_memory import DeviceBuffer, DeviceMemory
from unibrain_rt.engines.cuda.stream import CapturedGraph, Event, Stream
from unibrain_rt.engines.engine_errors import EngineError
from unibrain_rt.engines.graph_spec import Array

_log = logging.getLogger(__name__)

_TOLERANCE = 0.01
"""Relative L2 distance of a replay from a run: kernels may add in another order, and no more than that."""


@dataclass(frozen=True)
class Work:
    """Something for the device to do.

    ``enqueue`` gives it to the stream, and is told whether the stream is being captured. ``pieces`` is the least
    number of kernels in it, ``marks`` are the events that it records. ``carried`` are buffers that it reads
    and overwrites, ``written`` all that it writes. ``keeps`` is what has to live as long as it may be replayed.
    """

    name: str
    enqueue: Callable[[bool], None]
    pieces: int
    marks: Sequence[Event]
    carried: Sequence[DeviceBuffer]
    written: Sequence[DeviceBuffer]
    keeps: object


class Replay:
    """How one piece of work is launched. It has to be the same every time, down to the addresses.

    The first launch is a plain one, which lets the back end load what it loads late. The second is captured, and its
    replay compared with a plain run: an engine on another device, for one, gives a graph without kernels, and what
    the last run left would be taken for results. If anything is wrong, all launches are plain ones from then on.
    """

    def __init__(self, memory: DeviceMemory, stream: Stream, *, capture: bool = True) -> None:
        """Without ``capture``, all launches are plain."""
        self._memory, self._stream, self._may_capture = memory, stream, capture
        self._launches = 0
        self._graph: CapturedGraph | None = None

    def launch(self, work: Work) -> None:
        """Begin the work. Only the second launch waits for its end.

        Raises:
            EngineError: the work itself fails, however it is launched.
        """
        self._launches += 1
        if self._graph is not None:
            self._graph.launch()
        elif self._may_capture and self._launches == 2:
            self._capture(work)
        else:
            work.enqueue(False)

    def _capture(self, work: Work) -> None:
        kept: list[DeviceBuffer] = []
        failure, replayed, graph = "", list[Array](), None
        try:
            kept = [self._copy(buffer) for buffer in work.carried]
            graph = CapturedGraph(self._stream, lambda: work.enqueue(True), work.keeps)
            if graph.nodes < work.pieces + len(work.marks):
                raise EngineError("kernels are missing from it; does the engine run on another device?")
            replayed = self._replayed(graph, work)
        except EngineError as error:
            failure = str(error)
            self._memory.cuda.clear_error()
        # What is left behind is a plain run's, whatever the graph did.
        for copy, buffer in zip(kept, work.carried, strict=False):
            self._move(copy, buffer)
        work.enqueue(False)
        if not failure and not _alike(replayed, self._read(work.written)):
            failure = "its results are not those of a run without it"
        if failure:
            _log.warning("%s: no CUDA graph, every kernel is launched by itself (%s)", work.name, failure)
        else:
            self._graph = graph

    def _replayed(self, graph: CapturedGraph, work: Work) -> list[Array]:
        """What a replay writes; the buffers are wiped first, so that an earlier run's are not taken for it."""
        carried = {buffer.address for buffer in work.carried}
        for buffer in work.written:
            if buffer.address not in carried:
                self._memory.cuda.fill(buffer.address, 0xFF, buffer.nbytes, self._stream.handle)
        graph.launch()
        results = self._read(work.written)
        for start, end in zip(work.marks, work.marks[1:], strict=False):
            end.since(start)  # the times of a replay are read after it, too
        return results

    def _read(self, buffers: Sequence[DeviceBuffer]) -> list[Array]:
        self._stream.synchronize()
        return [self._memory.read(buffer) for buffer in buffers]

    def _copy(self, buffer: DeviceBuffer) -> DeviceBuffer:
        copy = DeviceBuffer(self._memory.cuda, buffer.shape, buffer.dtype.name)
        self._move(buffer, copy)
        return copy

    def _move(self, source: DeviceBuffer, target: DeviceBuffer) -> None:
        cuda = self._memory.cuda
        cuda.copy(target.address, source.address, source.nbytes, "DeviceToDevice", self._stream.handle)


def _alike(left: Sequence[Array], right: Sequence[Array]) -> bool:
    return all(_close(a, b) for a, b in zip(left, right, strict=True))


def _close(a: Array, b: Array) -> bool:
    if a.dtype.kind != "f":
        return bool((a == b).all())
    wide, reference = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(reference)
    if not (np.isfinite(wide) == finite).all():
        return False
    distance = float(np.linalg.norm(wide[finite] - reference[finite]))
    return distance <= _TOLERANCE * float(np.linalg.norm(reference[finite]))
