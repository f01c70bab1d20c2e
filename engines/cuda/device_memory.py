"""Buffers on the device, and the way to them from the host."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterable
from math import prod

import numpy as np

from unibrain_rt.engines.cuda.runtime import Cuda
from unibrain_rt.engines.cuda.stream import Event, Stream
from unibrain_rt.engines.graph_spec import Array, TensorSpec

ALIGNMENT = 256
"""Bytes: what the compilers' kernels expect of an address, and what the device's allocator gives."""
_STAGING_BYTES = 4 << 20


class DeviceBuffer:
    """Memory on the device for an array, freed once, with the last reference.

    ``readers`` and ``writers`` are the ends of programs under way that use it.
    """

    def __init__(self, cuda: Cuda, shape: tuple[int, ...], dtype: str) -> None:
        """Raises EngineError where the device's memory does not suffice."""
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.nbytes = prod(shape) * self.dtype.itemsize
        # An empty array has an address, too.
        self.address = cuda.malloc(max(self.nbytes, 1))
        self.readers: set[Event] = set()
        self.writers: set[Event] = set()
        self._finalizer = weakref.finalize(self, cuda.release, "cudaFree", self.address)
        self._finalizer.atexit = False


class DeviceTable:
    """Rows on the device, each at an address that a kernel takes."""

    def __init__(self, memory: DeviceMemory, rows: Array) -> None:
        """``rows`` (runs, *shape) are copied."""
        size = rows[0].nbytes if len(rows) else 0
        self._stride = -(-max(size, 1) // ALIGNMENT) * ALIGNMENT
        padded = np.zeros((len(rows), self._stride), np.uint8)
        padded[:, :size] = np.ascontiguousarray(rows).reshape(len(rows), -1).view(np.uint8)
        self.buffer = memory.allocate(TensorSpec("table", "uint8", padded.shape))
        self._memory, self._bytes, self._shape, self._dtype = memory, size, rows.shape, rows.dtype
        memory.write(self.buffer, padded)

    def row(self, number: int) -> int:
        """Address of a row."""
        return self.buffer.address + number * self._stride

    def read(self) -> Array:
        """All rows, when what was begun before is done. Raises EngineError."""
        padded = self._memory.read(self.buffer)
        return np.ascontiguousarray(padded[:, : self._bytes]).view(self._dtype).reshape(self._shape)


class DeviceMemory:
    """Makes buffers, fills and reads them. All of it is done in the order of one stream, ``stream``.

    Copies go through a piece of page-locked memory: the device reads ordinary memory at a fraction of the speed.
    """

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        self.stream = Stream(cuda)
        address = cuda.malloc_host(_STAGING_BYTES)
        weakref.finalize(self, cuda.release, "cudaFreeHost", address).atexit = False
        self._staging_address = address
        block = (ctypes.c_uint8 * _STAGING_BYTES).from_address(address)
        self._staging: Array = np.ctypeslib.as_array(block)

    def allocate(self, spec: TensorSpec, free: int = 1) -> DeviceBuffer:
        """A buffer of zeros. Raises EngineError where the device's memory does not suffice."""
        buffer = DeviceBuffer(self.cuda, spec.sized(free), spec.dtype)
        self.cuda.fill(buffer.address, 0, buffer.nbytes, self.stream.handle)
        return buffer

    def write(self, buffer: DeviceBuffer, value: Array) -> None:
        """Copy an array of the buffer's shape into it; ``value`` may change afterwards. Raises EngineError."""
        self.before(writes=[buffer])
        if not value.any():
            self.cuda.fill(buffer.address, 0, buffer.nbytes, self.stream.handle)
            return
        data = np.ascontiguousarray(value, buffer.dtype).reshape(-1).view(np.uint8)
        for start in range(0, len(data), _STAGING_BYTES):
            piece = data[start : start + _STAGING_BYTES]
            self._staging[: len(piece)] = piece
            target = buffer.address + start
            self.cuda.copy(target, self._staging_address, len(piece), "HostToDevice", self.stream.handle)
            # The next piece, or the next write, takes the same staging.
            self.stream.synchronize()

    def read(self, buffer: DeviceBuffer) -> Array:
        """What the buffer holds when all that was begun before is done. Raises EngineError."""
        self.before(reads=[buffer])
        data = np.empty(buffer.nbytes, np.uint8)
        if not buffer.nbytes:
            self.stream.synchronize()
        for start in range(0, len(data), _STAGING_BYTES):
            piece = data[start : start + _STAGING_BYTES]
            source = buffer.address + start
            self.cuda.copy(self._staging_address, source, len(piece), "DeviceToHost", self.stream.handle)
            self.stream.synchronize()
            piece[:] = self._staging[: len(piece)]
        return data.view(buffer.dtype).reshape(buffer.shape)

    def before(
        self,
        reads: Iterable[DeviceBuffer] = (),
        writes: Iterable[DeviceBuffer] = (),
        stream: Stream | None = None,
    ) -> None:
        """Let a stream, by default this one, wait for the programs that are in the way of this use."""
        waiting = stream or self.stream
        in_the_way = {event for buffer in reads for event in buffer.writers}
        for buffer in writes:
            in_the_way |= buffer.writers | buffer.readers
        for event in in_the_way:
            waiting.wait(event)
