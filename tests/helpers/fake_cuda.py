"""A stand-in for cuda-python's runtime bindings that behaves, and fails, the way CUDA does.

Device memory is host memory behind addresses that only this module understands. What a stream is given is done as late
as CUDA may do it: when somebody waits for it, so that a copy whose host memory was used again too early, or a wait that is
missing between streams, gives wrong numbers. A captured stream records instead. `trace` holds every call that
succeeded; `check` finds what was left behind or used wrongly.
"""

# ruff: noqa: N802, N815 - the names are CUDA's
from __future__ import annotations

import ctypes
import enum
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


class Error(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorInvalidResourceHandle = 400
    cudaErrorNotReady = 600
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901
    cudaErrorStreamCaptureUnmatched = 903
    cudaErrorStreamCaptureUnjoined = 904
    cudaErrorStreamCaptureIsolation = 905
    cudaErrorUnknown = 999


OK = Error.cudaSuccess
Kinds = enum.IntEnum(
    "Kinds", {"cudaMemcpyHostToDevice": 1, "cudaMemcpyDeviceToHost": 2, "cudaMemcpyDeviceToDevice": 3}
)
Modes = enum.IntEnum(
    "Modes",
    {
        "cudaStreamCaptureModeGlobal": 0,
        "cudaStreamCaptureModeThreadLocal": 1,
        "cudaStreamCaptureModeRelaxed": 2,
    },
)
EXTERNAL = 1
ALIGNMENT = 256


@dataclass
class Operation:
    """Something for a stream to do: ``kind`` and details for the trace, and what it does."""

    kind: str
    details: dict[str, Any]
    action: Callable[[], None]
    event: Event | None = None
    """The one that it records."""


@dataclass(eq=False)
class Stream:
    number: int
    pending: list[Operation] = field(default_factory=list)
    done: int = 0
    captured: list[Operation] | None = None
    broken: bool = False

    def __int__(self) -> int:
        return self.number

    @property
    def end(self) -> int:
        return self.done + len(self.pending)


@dataclass(eq=False)
class Event:
    timing: bool
    mark: tuple[Stream, int] | None = None
    """After how many operations of which stream it happens."""
    captured_by: Stream | None = None
    time: float | None = None


@dataclass(eq=False)
class Graph:
    nodes: list[Operation]
    stream: Stream


@dataclass(eq=False)
class Executable:
    graph: Graph


class FakeCuda:
    """``capability`` of the one device, its ``name``, its memory in bytes, and ways to go wrong:

    ``fail`` makes a call fail; ``deaf``: kernels do not reach a captured stream, as those of an engine on another device;
    ``stale``: a replay does nothing; ``lossy``: back ends are to change the numbers while ``replaying``; ``devices`` 0 and ``driver`` False: none is there.
    """

    cudaMemcpyKind = Kinds
    cudaStreamCaptureMode = Modes

    def __init__(self, capability: tuple[int, int] = (8, 9), memory: int = 8 << 30) -> None:
        self.capability, self.memory = capability, memory
        self.devices, self.driver = 1, True
        self.name = "Stand-in GPU"
        self.deaf = self.stale = self.lossy = self.replaying = False
        self.trace: list[tuple[str, dict[str, Any]]] = []
        self.faults: list[str] = []
        self._failures: dict[str, dict[int, Error]] = {}
        self._calls: dict[str, int] = {}
        self._blocks: dict[int, Bytes] = {}
        self._freed: set[int] = set()
        self._pinned: dict[int, Any] = {}
        self._next = 0x7F0000000000
        self._streams: list[Stream] = []
        self._events: list[Event] = []
        self._graphs: list[Graph] = []
        self._executables: list[Executable] = []
        self._last = OK
        self._sticky = OK
        self._clock = itertools.count(1)
        self._numbers = itertools.count(1)

    # --- For tests ------------------------------------------------------------------------------------------

    def fail(self, function: str, code: Error, at: int = 1) -> None:
        """The ``at``-th call of ``function`` from now on fails with ``code``."""
        self._failures.setdefault(function, {})[self._calls.get(function, 0) + at] = code

    def check(self) -> None:
        """Nothing was used wrongly, nothing is left."""
        assert not self.faults, self.faults
        left = {
            "device memory": len(self._blocks),
            "page-locked memory": len(self._pinned),
            "streams": len(self._streams),
            "events": len(self._events),
            "graphs": len(self._graphs),
            "executable graphs": len(self._executables),
        }
        assert not any(left.values()), f"left behind: {left}"
        assert self._last == OK, "an error was left for the next call"

    @property
    def used(self) -> int:
        """Bytes allocated on the device."""
        return sum(len(block) for block in self._blocks.values())

    def kinds(self) -> list[str]:
        """What was called or done, in order."""
        return [kind for kind, _ in self.trace]

    def array(self, address: int, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """The device's memory at an address, to compute on. For back ends, inside an operation alone."""
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        return self._at(address, size).view(dtype).reshape(shape)

    def captures(self, stream: int) -> bool:
        """Whether a stream is being captured."""
        return any(found.number == stream and found.captured is not None for found in self._streams)

    def kernel(self, stream: int, name: str, action: Callable[[], None], **details: Any) -> bool:
        """Give a kernel to a stream; False where CUDA refuses it."""
        found = next((stream_ for stream_ in self._streams if stream_.number == stream), None)
        if found is None or self._sticky != OK:
            return False
        if self.deaf and found.captured is not None:
            return True
        return self._give(found, "kernel", action, name=name, **details) == OK

    # --- What streams do ------------------------------------------------------------------------------------

    def _give(
        self,
        stream: Stream,
        kind: str,
        action: Callable[[], None],
        event: Event | None = None,
        **details: Any,
    ) -> Error:
        operation = Operation(kind, {"stream": stream.number, **details}, action, event)
        if stream.captured is not None:
            if stream.broken:
                return self._failed(Error.cudaErrorStreamCaptureInvalidated)
            stream.captured.append(operation)
            return OK
        stream.pending.append(operation)
        return OK

    def _do(self, operation: Operation) -> None:
        try:
            operation.action()
        except _IllegalAddressError as error:
            self._sticky = Error.cudaErrorIllegalAddress
            self.faults.append(f"{operation.kind}: {error}")
        self.trace.append((f"done:{operation.kind}", operation.details))

    def _drain(self, stream: Stream, until: int | None = None) -> None:
        target = stream.end if until is None else until
        while stream.done < target and stream.pending:
            operation = stream.pending.pop(0)
            stream.done += 1
            self._do(operation)

    def _failed(self, code: Error) -> Error:
        self._last = code
        return code

    def _entered(self, function: str, *, unsafe: bool = False, **details: Any) -> Error:
        """Whether a call fails at once. An unsafe one breaks every capture of this thread."""
        self._calls[function] = self._calls.get(function, 0) + 1
        injected = self._failures.get(function, {}).pop(self._calls[function], None)
        if not self.driver:
            return self._failed(Error.cudaErrorInsufficientDriver)
        if injected is not None:
            return self._failed(injected)
        if self._sticky != OK:
            return self._sticky
        if unsafe:
            capturing = [stream for stream in self._streams if stream.captured is not None]
            if capturing:
                for stream in capturing:
                    stream.broken = True
                return self._failed(Error.cudaErrorStreamCaptureUnsupported)
        self.trace.append((function, details))
        return OK

    # --- Errors and the device ------------------------------------------------------------------------------

    def cudaGetErrorName(self, code: Error) -> tuple[Error, bytes]:
        return OK, Error(code).name.encode()

    def cudaGetLastError(self) -> tuple[Error]:
        last, self._last = self._last, OK
        return (self._sticky if self._sticky != OK else last,)

    def cudaGetDeviceCount(self) -> tuple[Error, int]:
        code = self._entered("cudaGetDeviceCount")
        if code == OK and self.devices == 0:
            code = self._failed(Error.cudaErrorNoDevice)
        return code, self.devices

    def cudaGetDeviceProperties(self, device: int) -> tuple[Error, Any]:
        code = self._entered("cudaGetDeviceProperties")
        if code == OK and device >= self.devices:
            code = self._failed(Error.cudaErrorNoDevice)
        major, minor = self.capability
        return code, SimpleNamespace(
            name=self.name.encode() + b"\0\0", major=major, minor=minor, integrated=0
        )

    def cudaMemGetInfo(self) -> tuple[Error, int, int]:
        return self._entered("cudaMemGetInfo"), self.memory - self.used, self.memory

    # --- Memory ---------------------------------------------------------------------------------------------

    def cudaMalloc(self, size: int) -> tuple[Error, int]:
        code = self._entered("cudaMalloc", unsafe=True, size=size)
        if code == OK and self.used + size > self.memory:
            code = self._failed(Error.cudaErrorMemoryAllocation)
        if code != OK:
            return code, 0
        address = self._next
        # What was there before is not zero.
        self._blocks[address] = np.full(size, 0xAB, np.uint8)
        self._next += (size // ALIGNMENT + 2) * ALIGNMENT
        return code, address

    def cudaFree(self, address: int) -> tuple[Error]:
        code = self._entered("cudaFree", unsafe=True, address=address)
        if code != OK:
            return (code,)
        if address not in self._blocks:
            self.faults.append(
                "memory was freed twice" if address in self._freed else "freed what is no memory"
            )
            return (self._failed(Error.cudaErrorInvalidValue),)
        for stream in self._streams:  # waits for the device
            if stream.captured is None:
                self._drain(stream)
        del self._blocks[address]
        self._freed.add(address)
        return (OK,)

    def cudaMallocHost(self, size: int) -> tuple[Error, int]:
        code = self._entered("cudaMallocHost", unsafe=True, size=size)
        if code != OK:
            return code, 0
        block = (ctypes.c_uint8 * size)()
        self._pinned[ctypes.addressof(block)] = block
        return code, ctypes.addressof(block)

    def cudaFreeHost(self, address: int) -> tuple[Error]:
        code = self._entered("cudaFreeHost", unsafe=True)
        if code == OK and self._pinned.pop(address, None) is None:
            self.faults.append("page-locked memory was freed twice")
        return (code,)

    def cudaMemcpyAsync(
        self, target: int, source: int, size: int, kind: Kinds, stream: Stream
    ) -> tuple[Error]:
        code = self._entered("cudaMemcpyAsync", kind=kind.name.removeprefix("cudaMemcpy"), size=size)
        if code != OK:
            return (code,)

        def copy() -> None:
            to_host, from_host = kind == Kinds.cudaMemcpyDeviceToHost, kind == Kinds.cudaMemcpyHostToDevice
            data = self._host(source, size) if from_host else self._at(source, size)
            (self._host(target, size) if to_host else self._at(target, size))[:] = data

        return (self._give(stream, "copy", copy, direction=kind.name.removeprefix("cudaMemcpy"), size=size),)

    def cudaMemsetAsync(self, address: int, value: int, size: int, stream: Stream) -> tuple[Error]:
        code = self._entered("cudaMemsetAsync")
        if code == OK:
            code = self._give(stream, "fill", lambda: self._at(address, size).fill(value), address=address)
        return (code,)

    def _at(self, address: int, size: int) -> Bytes:
        for start, block in self._blocks.items():
            if start <= address and address + size <= start + len(block):
                return block[address - start : address - start + size]
        freed = " that was freed" if address in self._freed else ""
        raise _IllegalAddressError(f"{size} bytes at {address:#x} are not memory{freed}")

    def _host(self, address: int, size: int) -> Bytes:
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    # --- Streams and events ---------------------------------------------------------------------------------

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Error, Stream | None]:
        code = self._entered("cudaStreamCreateWithFlags", flags=flags)
        if code != OK:
            return code, None
        stream = Stream(next(self._numbers))
        self._streams.append(stream)
        return code, stream

    def cudaStreamDestroy(self, stream: Stream) -> tuple[Error]:
        code = self._entered("cudaStreamDestroy")
        if code == OK:
            if stream not in self._streams:
                self.faults.append("a stream was destroyed twice")
                return (self._failed(Error.cudaErrorInvalidResourceHandle),)
            if any(graph.stream is stream for graph in self._graphs):
                self.faults.append("a stream was destroyed before its graph")
            self._drain(stream)
            self._streams.remove(stream)
        return (code,)

    def cudaStreamSynchronize(self, stream: Stream) -> tuple[Error]:
        if stream.captured is not None:
            stream.broken = True
            return (self._failed(Error.cudaErrorStreamCaptureUnsupported),)
        code = self._entered("cudaStreamSynchronize", unsafe=True, stream=stream.number)
        if code == OK:
            self._drain(stream)
            code = self._sticky
        return (code,)

    def cudaStreamWaitEvent(self, stream: Stream, event: Event, flags: int) -> tuple[Error]:
        code = self._entered("cudaStreamWaitEvent", stream=stream.number)
        if code != OK:
            return (code,)
        if stream.captured is not None and event.captured_by is not stream:
            stream.broken = True
            return (self._failed(Error.cudaErrorStreamCaptureIsolation),)
        if event.mark is not None and stream.captured is None:
            other, place = event.mark
            code = self._give(stream, "wait", lambda: self._drain(other, place))
        return (code,)

    def cudaEventCreateWithFlags(self, flags: int) -> tuple[Error, Event | None]:
        code = self._entered("cudaEventCreateWithFlags")
        if code != OK:
            return code, None
        event = Event(timing=not flags & 2)
        self._events.append(event)
        return code, event

    def cudaEventDestroy(self, event: Event) -> tuple[Error]:
        code = self._entered("cudaEventDestroy")
        if code == OK:
            if event not in self._events:
                self.faults.append("an event was destroyed twice")
                return (self._failed(Error.cudaErrorInvalidResourceHandle),)
            self._events.remove(event)
        return (code,)

    def cudaEventRecord(self, event: Event, stream: Stream) -> tuple[Error]:
        code = self._entered("cudaEventRecord", stream=stream.number)
        if code != OK:
            return (code,)
        if stream.captured is not None:
            event.captured_by = stream
            return (OK,)
        return (self._record(event, stream),)

    def cudaEventRecordWithFlags(self, event: Event, stream: Stream, flags: int) -> tuple[Error]:
        code = self._entered("cudaEventRecordWithFlags", stream=stream.number)
        if code == OK and flags == EXTERNAL and stream.captured is None:
            code = self._failed(Error.cudaErrorInvalidValue)
        return (code if code != OK else self._record(event, stream),)

    def _record(self, event: Event, stream: Stream) -> Error:
        def happen() -> None:
            event.time = float(next(self._clock))
            event.captured_by = None

        code = self._give(stream, "event", happen, event)
        if stream.captured is None:
            event.mark, event.captured_by = (stream, stream.end), None
        return code

    def cudaEventSynchronize(self, event: Event) -> tuple[Error]:
        code = self._entered("cudaEventSynchronize", unsafe=True)
        if code == OK and event.mark is not None:
            self._drain(*event.mark)
            code = self._sticky
        return (code,)

    def cudaEventElapsedTime(self, start: Event, end: Event) -> tuple[Error, float]:
        code = self._entered("cudaEventElapsedTime")
        if code != OK:
            return code, 0.0
        if not (start.timing and end.timing) or start.time is None or end.time is None:
            return self._failed(Error.cudaErrorInvalidResourceHandle), 0.0
        return OK, end.time - start.time

    # --- Graphs ---------------------------------------------------------------------------------------------

    def cudaStreamBeginCapture(self, stream: Stream, mode: Modes) -> tuple[Error]:
        code = self._entered("cudaStreamBeginCapture", stream=stream.number, mode=mode.name)
        if code == OK:
            if stream.captured is not None:
                return (self._failed(Error.cudaErrorInvalidValue),)
            stream.captured, stream.broken = [], False
        return (code,)

    def cudaStreamEndCapture(self, stream: Stream) -> tuple[Error, Graph | None]:
        code = self._entered("cudaStreamEndCapture", stream=stream.number)
        if stream.captured is None:
            return self._failed(Error.cudaErrorStreamCaptureUnmatched), None
        nodes, broken = stream.captured, stream.broken
        stream.captured, stream.broken = None, False
        if broken:
            return self._failed(Error.cudaErrorStreamCaptureInvalidated), None
        if code != OK:
            return code, None
        graph = Graph(nodes, stream)
        self._graphs.append(graph)
        return OK, graph

    def cudaGraphGetNodes(self, graph: Graph, count: int = 0) -> tuple[Error, list[Any], int]:
        return self._entered("cudaGraphGetNodes"), [], len(graph.nodes)

    def cudaGraphInstantiate(self, graph: Graph, flags: int) -> tuple[Error, Executable | None]:
        code = self._entered("cudaGraphInstantiate", unsafe=True)
        if code != OK:
            return code, None
        executable = Executable(graph)
        self._executables.append(executable)
        return OK, executable

    def cudaGraphLaunch(self, executable: Executable, stream: Stream) -> tuple[Error]:
        code = self._entered("cudaGraphLaunch", stream=stream.number, nodes=len(executable.graph.nodes))
        if code != OK:
            return (code,)
        if executable not in self._executables:
            self.faults.append("a destroyed graph was launched")
            return (self._failed(Error.cudaErrorInvalidResourceHandle),)

        def replayed(operation: Operation) -> Callable[[], None]:
            def replay() -> None:
                self.replaying = True
                operation.action()
                self.replaying = False

            return replay

        for operation in executable.graph.nodes:
            if not self.stale or operation.event is not None:
                again = Operation(operation.kind, operation.details, replayed(operation), operation.event)
                stream.pending.append(again)
            if operation.event is not None:
                # Who waits for an event of a graph from now on waits for its place in this launch.
                operation.event.mark = (stream, stream.end)
        return (OK,)

    def cudaGraphExecDestroy(self, executable: Executable) -> tuple[Error]:
        code = self._entered("cudaGraphExecDestroy")
        if code == OK:
            if executable not in self._executables:
                self.faults.append("an executable graph was destroyed twice")
                return (self._failed(Error.cudaErrorInvalidResourceHandle),)
            self._executables.remove(executable)
        return (code,)

    def cudaGraphDestroy(self, graph: Graph) -> tuple[Error]:
        code = self._entered("cudaGraphDestroy")
        if code == OK:
            if any(executable.graph is graph for executable in self._executables):
                self.faults.append("a graph was destroyed before its executable form")
            if graph not in self._graphs:
                self.faults.append("a graph was destroyed twice")
                return (self._failed(Error.cudaErrorInvalidResourceHandle),)
            self._graphs.remove(graph)
        return (code,)


class _IllegalAddressError(Exception):
    """A kernel or a copy left the memory there is."""


def launches(fake: FakeCuda) -> Iterator[dict[str, Any]]:
    """Every graph launch in the trace."""
    return (details for kind, details in fake.trace if kind == "cudaGraphLaunch")
