"""Sessions whose tensors live on a device."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

from unibrain_rt.engines.buffered_session import BufferedSession
from unibrain_rt.engines.cuda.device_memory import DeviceBuffer, DeviceMemory
from unibrain_rt.engines.cuda.replay import Replay, Work
from unibrain_rt.engines.cuda.stream import Stream
from unibrain_rt.engines.engine_errors import EngineError
from unibrain_rt.engines.graph_spec import Array, GraphSpec, TensorSpec


class DeviceSession(BufferedSession[DeviceBuffer]):
    """Buffers are the device's.

    ``run`` gives the memory's stream one run to do and does not wait for it; reads and ``rest`` wait.
    """

    def __init__(
        self,
        graph: GraphSpec,
        free: int,
        memory: DeviceMemory,
        shared: Mapping[str, object],
        *,
        capture: bool = True,
    ) -> None:
        """Raises EngineError: a shared buffer does not fit, or the device is out of memory."""
        self.memory = memory
        super().__init__(graph, free, shared)
        self._replays = [Replay(memory, memory.stream, capture=capture) for _ in range(self.roles.turns)]

    def __del__(self) -> None:
        # What runs may not lose its buffers.
        if hasattr(self, "_replays"):
            self.memory.cuda.release("cudaStreamSynchronize", self.memory.stream.handle)

    def addresses(self, turn: int) -> dict[str, int]:
        """Every tensor's address in a run of this turn."""
        return {name: self.at(name, turn).address for name in self._buffers}

    def rest(self) -> None:
        self.memory.stream.synchronize()

    def _run_impl(self) -> None:
        turn, stream = self.turn, self.memory.stream
        self.memory.before(self.unwritten, self.written)
        work = Work(
            name=f"graph {self.graph.name}",
            enqueue=lambda _: self.enqueue(self.addresses(turn), stream),
            pieces=1,
            marks=(),
            carried=self.carried(turn),
            written=self.written,
            keeps=(*self.buffers, self.resources()),
        )
        self._replays[turn].launch(work)
        self.advance(1)

    @abstractmethod
    def enqueue(self, addresses: Mapping[str, int], stream: Stream) -> None:
        """Give the stream one run on tensors at these addresses. Raises EngineError."""

    @abstractmethod
    def resources(self) -> object:
        """What a captured run uses beside the buffers. It must not refer to this session."""

    def _make(self, spec: TensorSpec) -> DeviceBuffer:
        try:
            return self.memory.allocate(spec, self.free)
        except EngineError as error:
            raise EngineError(f"graph {self.graph.name}: {error}") from error

    def _shape_and_type(self, buffer: object) -> tuple[tuple[int, ...], object] | None:
        return (buffer.shape, buffer.dtype) if isinstance(buffer, DeviceBuffer) else None

    def _write_impl(self, name: str, value: Array) -> None:
        self.memory.write(self.at(name, self.turn), value)

    def _read_impl(self, name: str) -> Array:
        return self.memory.read(self.result(name, self.turn))
