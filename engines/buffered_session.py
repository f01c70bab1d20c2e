"""Sessions with a buffer for every tensor: what the back ends share, wherever their memory is."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Generic, TypeVar, cast

from unibrain_rt.engines.engine_errors import EngineError
from unibrain_rt.engines.graph_spec import GraphSpec, TensorSpec
from unibrain_rt.engines.session import Session

Buffer = TypeVar("Buffer")


class BufferedSession(Session, Generic[Buffer]):
    """Buffers are made once. What is fed back swaps buffers at every run, as `BufferRoles` tells.

    ``turn`` is that of the next run. A back end that needs anything for ``_make`` has it before it calls ``__init__``.
    """

    def __init__(self, graph: GraphSpec, free: int, shared: Mapping[str, object]) -> None:
        """``shared``: buffers of other sessions to use instead of own ones, by tensor name.

        Raises:
            EngineError: a shared buffer does not fit its tensor, or there is no memory for another one.
        """
        super().__init__(graph, free)
        self.roles = graph.roles
        self.turn = 0
        self._places = [self.roles.at(turn) for turn in range(self.roles.turns)]
        self._buffers: dict[str, Buffer] = {}
        for spec in (*graph.inputs, *graph.outputs):
            if spec.name not in shared:
                self._buffers[spec.name] = self._make(spec)
                continue
            if self._shape_and_type(shared[spec.name]) != (spec.sized(free), spec.dtype):
                problem = f"the shared buffer of {spec.name} has another shape or type"
                raise EngineError(f"graph {graph.name}: {problem}, or is another engine's")
            self._buffers[spec.name] = cast(Buffer, shared[spec.name])

    @abstractmethod
    def _make(self, spec: TensorSpec) -> Buffer:
        """A buffer of zeros."""

    @abstractmethod
    def _shape_and_type(self, buffer: object) -> tuple[tuple[int, ...], object] | None:
        """Of a buffer; None of what is no buffer of this engine."""

    def rewind(self) -> None:
        self.turn = 0

    def advance(self, runs: int) -> None:
        """So many runs were begun: the next one is in another turn."""
        self.turn = self.roles.after(self.turn, runs)

    def at(self, name: str, turn: int) -> Buffer:
        """The buffer of a tensor in a run of this turn."""
        return self._buffers[self._places[turn][name]]

    def result(self, name: str, turn: int) -> Buffer:
        """The buffer that holds a tensor when the session has come to this turn."""
        return self.at(self.roles.result(name), turn)

    def carried(self, turn: int) -> list[Buffer]:
        """What a run of this turn reads of the run before it, and later ones overwrite."""
        return [self.at(name, turn) for name in self.roles.carried]

    @property
    def buffers(self) -> list[Buffer]:
        return list(self._buffers.values())

    @property
    def written(self) -> list[Buffer]:
        """What runs write, whatever the turn."""
        return [self._buffers[name] for name in self.roles.written]

    @property
    def unwritten(self) -> list[Buffer]:
        """What runs only read."""
        return [self._buffers[name] for name in self.roles.unwritten]

    def buffer(self, name: str) -> object:
        return self._buffers[self.graph.tensor(name).name]
