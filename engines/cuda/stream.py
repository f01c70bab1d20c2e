"""Streams, events and captured graphs that are destroyed exactly once, a graph before its stream."""

from __future__ import annotations

import weakref
from collections.abc import Callable

from unibrain_rt.engines.cuda.runtime import Cuda, Handle


class Stream:
    """Work done in order, beside the work of other streams."""

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        self.handle: Handle = cuda.stream()
        _let_go(self, cuda, "cudaStreamDestroy", self.handle)

    def synchronize(self) -> None:
        """Wait until all work is done. Raises EngineError where some of it failed."""
        self.cuda.call("cudaStreamSynchronize", self.handle)

    def wait(self, event: Event) -> None:
        """Let later work wait for ``event``; the host does not."""
        self.cuda.wait(self.handle, event.handle)


class Event:
    """A point in a stream's work, which others can wait for; with ``timing``, the time it was reached."""

    def __init__(self, cuda: Cuda, *, timing: bool = False) -> None:
        self.cuda = cuda
        self.handle: Handle = cuda.event(timing)
        _let_go(self, cuda, "cudaEventDestroy", self.handle)

    def record(self, stream: Stream, *, inside_graph: bool = False) -> None:
        self.cuda.record(self.handle, stream.handle, inside_graph=inside_graph)

    def synchronize(self) -> None:
        """Wait for it. Raises EngineError where work before it failed."""
        self.cuda.call("cudaEventSynchronize", self.handle)

    def since(self, start: Event) -> float:
        """Milliseconds from ``start``."""
        return self.cuda.elapsed_ms(start.handle, self.handle)


class CapturedGraph:
    """What a stream was given to do, to be done again in one launch."""

    def __init__(self, stream: Stream, work: Callable[[], None], keeps: object) -> None:
        """Capture ``work``. ``keeps``: what it uses on the device, which lives as long as this.

        Raises:
            EngineError: it cannot be captured; nothing of it is left.
        """
        cuda = stream.cuda
        self._stream, self._keeps = stream, keeps
        graph = cuda.capture(stream.handle, work)
        handles = [("cudaGraphDestroy", graph)]
        weakref.finalize(self, _destroy, cuda, handles).atexit = False
        self.nodes = cuda.node_count(graph)
        """Kernels, copies and events in it."""
        self._executable = cuda.instantiate(graph)
        handles.append(("cudaGraphExecDestroy", self._executable))

    def launch(self) -> None:
        """Begin to do all of it again."""
        self._stream.cuda.call("cudaGraphLaunch", self._executable, self._stream.handle)


def _let_go(owner: object, cuda: Cuda, function: str, handle: Handle) -> None:
    """Destroy ``handle`` with its owner. At the end of the process the driver does it."""
    weakref.finalize(owner, cuda.release, function, handle).atexit = False


def _destroy(cuda: Cuda, handles: list[tuple[str, Handle]]) -> None:
    """The last made first."""
    for function, handle in reversed(handles):
        cuda.release(function, handle)
