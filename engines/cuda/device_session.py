"""Sessions whose tensors live on a device."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping

from unibrain_rt.engines.base import Array, GraphSpec, Session
from unibrain_rt.engines.cuda.device_memory import DeviceBuffer, DeviceMemory
from unibrain_rt.engines.cuda.replay import Replay, Work
from unibrain_rt.engines.cuda.stream import Stream
from unibrain_rt.engines.engine_errors import EngineError

Places = Mapping[str, str]
"""Which tensor's buffer each tensor has in a turn."""


class DeviceSession(Session):
    """Buffers are allocated once. Tensors that are fed back own two, which swap roles every run.

    ``run`` begins a run in the order of the memory's stream and does not wait; reads and ``rest`` do.
    """

    def __init__(
        self,
        graph: GraphSpec,
        free: int,
        memory: DeviceMemory,
        shared: Mapping[str, object],
        tell: Callable[[str], None],
        *,
        capture: bool = True,
    ) -> None:
        """Raises EngineError: a shared buffer does not fit, or the device is out of memory."""
        super().__init__(graph, free)
        self.memory = memory
        self._turn = 0
        self._buffers: dict[str, DeviceBuffer] = {}
        for spec in (*graph.inputs, *graph.outputs):
            try:
                self._buffers[spec.name] = (
                    memory.fitting(shared[spec.name], spec, free)
                    if spec.name in shared
                    else memory.allocate(spec, free)
                )
            except EngineError as error:
                raise EngineError(f"graph {graph.name}: {error}") from error
        # The odd turn reads where the even one wrote, and writes where it read.
        even = {name: name for name in self._buffers}
        odd = dict(even)
        for output, source in graph.feedback.items():
            odd[output], odd[source] = source, output
        self._places: list[Places] = [even, odd] if graph.feedback else [even]
        self._replays = [Replay(memory, memory.stream, tell, capture=capture) for _ in self._places]

    def __del__(self) -> None:
        # What runs may not lose its buffers.
        if hasattr(self, "_replays"):
            self.memory.cuda.release("cudaStreamSynchronize", self.memory.stream.handle)

    @property
    def turn(self) -> int:
        """Which of its roles each buffer has in the next run."""
        return self._turn

    def after(self, runs: int, turn: int | None = None) -> int:
        """The turn so many runs after ``turn``, by default the present one."""
        return ((self._turn if turn is None else turn) + runs) % len(self._places)

    def at(self, name: str, turn: int | None = None) -> DeviceBuffer:
        """A tensor's buffer in a turn, by default the present one."""
        return self._buffers[self._places[self._turn if turn is None else turn][name]]

    def addresses(self, turn: int | None = None) -> dict[str, int]:
        """Every tensor's address in a turn."""
        return {name: self.at(name, turn).address for name in self._buffers}

    def advance(self, runs: int) -> None:
        """So many runs were begun elsewhere."""
        self._turn = self.after(runs)

    @property
    def written(self) -> list[DeviceBuffer]:
        """All buffers that runs write, whatever the turn."""
        names = dict.fromkeys([*(spec.name for spec in self.graph.outputs), *self.graph.feedback.values()])
        return [self._buffers[name] for name in names]

    @property
    def unwritten(self) -> list[DeviceBuffer]:
        """Buffers that runs only read."""
        written = {id(buffer) for buffer in self.written}
        return [buffer for buffer in self._buffers.values() if id(buffer) not in written]

    def fed(self, turn: int) -> list[DeviceBuffer]:
        """Buffers that a run of this turn reads, and later ones overwrite."""
        return [self.at(name, turn) for name in self.graph.feedback.values()]

    def rewind(self) -> None:
        self._turn = 0

    def rest(self) -> None:
        self.memory.stream.synchronize()

    def run(self) -> None:
        turn, stream = self._turn, self.memory.stream
        self.memory.before(self.unwritten, self.written)
        work = Work(
            name=f"graph {self.graph.name}",
            enqueue=lambda _: self.enqueue(self.addresses(turn), stream),
            pieces=1,
            marks=(),
            fed=self.fed(turn),
            written=self.written,
            keeps=(*self._buffers.values(), self.resources()),
        )
        self._replays[turn].launch(work)
        self.advance(1)

    def buffer(self, name: str) -> object:
        return self._buffers[self.graph.tensor(name).name]

    @abstractmethod
    def enqueue(self, addresses: Mapping[str, int], stream: Stream) -> None:
        """Give the stream one run on tensors at these addresses. Raises EngineError."""

    @abstractmethod
    def resources(self) -> object:
        """What a captured run uses beside the buffers. It must not refer to this session."""

    def _write_impl(self, name: str, value: Array) -> None:
        self.memory.write(self.at(name), value)

    def _read_impl(self, name: str) -> Array:
        # After a run the turn has moved on: what was an output's buffer is its input's now.
        return self.memory.read(self.at(self.graph.feedback.get(name, name)))
