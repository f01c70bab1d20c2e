"""The CUDA runtime, through cuda-python: every call is checked, and fails in one line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from unibrain_rt.engines.engine_errors import EngineError, first_line

Handle = Any
"""Of a stream, an event or a graph: whatever cuda-python gives."""

_OUT_OF_MEMORY = 2
_NON_BLOCKING = 1
_NO_TIMING = 2
_EXTERNAL = 1


@dataclass(frozen=True)
class Device:
    """A CUDA device; sizes in bytes. ``integrated``: it shares the host's memory, as on a Jetson."""

    name: str
    major: int
    minor: int
    memory_bytes: int
    free_bytes: int
    integrated: bool

    @property
    def capability(self) -> str:
        """Compute capability, such as ``8.9``."""
        return f"{self.major}.{self.minor}"

    @property
    def target(self) -> str:
        """Compute capability as compilers name it, such as ``sm89``."""
        return f"sm{self.major}{self.minor}"


class Cuda:
    """A thin wrapper over cuda-python's runtime bindings, on the first device that the process sees.

    While a stream is captured, freeing memory would break the capture: ``release`` then waits for its end.
    """

    def __init__(self, module: Any = None) -> None:
        """``module``: the bindings, by default those installed. Raises EngineError where there are none."""
        self._module = module if module is not None else load_bindings()
        self._capturing = False
        self._released: list[tuple[str, Handle]] = []

    def call(self, function: str, *arguments: Any) -> Any:
        """Call a function of the runtime; its result, without the error code.

        Raises:
            EngineError: it failed, with the name that CUDA gives the error.
        """
        try:
            code, *results = getattr(self._module, function)(*arguments)
        except (RuntimeError, AttributeError) as error:  # the bindings load the driver late, or are too old
            raise EngineError(f"CUDA: {first_line(error)}") from error
        if int(code) != 0:
            raise EngineError(self._complaint(function, code))
        return results[0] if len(results) == 1 else tuple(results)

    def _complaint(self, function: str, code: Any) -> str:
        if int(code) == _OUT_OF_MEMORY:
            # Otherwise the next call would report it again.
            self.clear_error()
            return "the device is out of memory; close other programs, or decode with --low-memory"
        _, name = self._module.cudaGetErrorName(code)
        return f"CUDA: {name.decode() if isinstance(name, bytes) else name} in {function}"

    def clear_error(self) -> None:
        """Forget the last error, so that it is not reported by the next call that has none."""
        self._module.cudaGetLastError()

    def release(self, function: str, handle: Handle) -> None:
        """Free or destroy something. An error is not raised: what is let go cannot be helped any more."""
        if self._capturing:
            self._released.append((function, handle))
            return
        code, *_ = getattr(self._module, function)(handle)
        if int(code) != 0:
            self.clear_error()

    # --- The device -----------------------------------------------------------------------------------------

    def device_count(self) -> int:
        """Number of devices. Raises EngineError without a driver, or with one that is too old."""
        return int(self.call("cudaGetDeviceCount"))

    def device(self) -> Device:
        """The device in use. Raises EngineError where there is none."""
        properties = self.call("cudaGetDeviceProperties", 0)
        free, total = self.call("cudaMemGetInfo")
        name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
        return Device(
            name.rstrip("\0"),
            properties.major,
            properties.minor,
            int(total),
            int(free),
            bool(properties.integrated),
        )

    # --- Memory ---------------------------------------------------------------------------------------------

    def malloc(self, size: int) -> int:
        """Address of ``size`` bytes on the device."""
        return int(self.call("cudaMalloc", size))

    def malloc_host(self, size: int) -> int:
        """Address of ``size`` bytes of page-locked memory on the host, which is copied from at full speed."""
        return int(self.call("cudaMallocHost", size))

    def copy(self, target: int, source: int, size: int, kind: str, stream: Handle) -> None:
        """Begin to copy ``size`` bytes; ``kind`` is ``HostToDevice``, ``DeviceToHost`` or ``DeviceToDevice``."""
        direction = getattr(self._module.cudaMemcpyKind, f"cudaMemcpy{kind}")
        self.call("cudaMemcpyAsync", target, source, size, direction, stream)

    def fill(self, target: int, value: int, size: int, stream: Handle) -> None:
        """Begin to set ``size`` bytes to ``value``."""
        self.call("cudaMemsetAsync", target, value, size, stream)

    # --- Streams and events ---------------------------------------------------------------------------------

    def stream(self) -> Handle:
        """A stream that does not wait for the default one."""
        return self.call("cudaStreamCreateWithFlags", _NON_BLOCKING)

    def event(self, timing: bool) -> Handle:
        return self.call("cudaEventCreateWithFlags", 0 if timing else _NO_TIMING)

    def record(self, event: Handle, stream: Handle, *, inside_graph: bool = False) -> None:
        """Let ``event`` happen when the stream gets here; ``inside_graph``: at every launch of what is captured."""
        if inside_graph:
            self.call("cudaEventRecordWithFlags", event, stream, _EXTERNAL)
        else:
            self.call("cudaEventRecord", event, stream)

    def wait(self, stream: Handle, event: Handle) -> None:
        """Let the stream wait for ``event``, without the host."""
        self.call("cudaStreamWaitEvent", stream, event, 0)

    def elapsed_ms(self, start: Handle, end: Handle) -> float:
        """Milliseconds between two events that have happened."""
        return float(self.call("cudaEventElapsedTime", start, end))

    # --- Graphs ---------------------------------------------------------------------------------------------

    def capture(self, stream: Handle, work: Callable[[], None]) -> Handle:
        """The graph of what ``work`` gives the stream to do; none of it is done.

        Other threads may go on using the device. However it ends, the stream is out of capture and no error is left.

        Raises:
            EngineError: ``work`` did what cannot be captured, such as to wait or to allocate.
        """
        self._capturing = True
        try:
            mode = self._module.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
            self.call("cudaStreamBeginCapture", stream, mode)
            try:
                work()
            except BaseException:
                code, graph = self._module.cudaStreamEndCapture(stream)
                if int(code) == 0:
                    self.release("cudaGraphDestroy", graph)
                raise
            return self.call("cudaStreamEndCapture", stream)
        except BaseException:
            self.clear_error()
            raise
        finally:
            self._capturing = False
            released, self._released = self._released, []
            for function, handle in released:
                self.release(function, handle)

    def instantiate(self, graph: Handle) -> Handle:
        """The graph in executable form."""
        return self.call("cudaGraphInstantiate", graph, 0)

    def node_count(self, graph: Handle) -> int:
        _, count = self.call("cudaGraphGetNodes", graph)
        return int(count)


def load_bindings() -> Any:
    """cuda-python's bindings of the CUDA runtime, in its newer or its older layout.

    Raises:
        EngineError: it is not installed.
    """
    try:
        from cuda.bindings import runtime
    except ImportError:
        try:
            from cuda import cudart as runtime
        except ImportError as error:
            problem = 'cuda-python is not installed; run: pip install "cuda-python>=12.6"'
            raise EngineError(problem) from error
    return runtime
