"""Any engine on little memory: a session's graph is loaded when it runs, and let go as soon as it rests."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from unibrain_rt.engines.base import Engine
from unibrain_rt.engines.graph_spec import Array, GraphSpec, TensorSpec
from unibrain_rt.engines.session import Session


class OnDemandEngine(Engine):
    """Opens graphs of ``engine`` late. Loading again at every use costs time and saves memory."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.name, self.passed_over = engine.name, engine.passed_over

    def describe(self) -> dict[str, str | int]:
        return {**self._engine.describe(), "memory": "low"}

    def allocate(self, spec: TensorSpec, free: int = 1) -> object:
        return self._engine.allocate(spec, free)

    def fetch(self, buffer: object) -> Array:
        return self._engine.fetch(buffer)

    def _open_impl(self, graph: GraphSpec, free: int, shared: Mapping[str, object]) -> Session:
        return OnDemandSession(self._engine, graph, free, shared)


class OnDemandSession(Session):
    """Owns every buffer that is not fed back, so that they outlive the graph; feedback is kept on the host."""

    def __init__(self, engine: Engine, graph: GraphSpec, free: int, shared: Mapping[str, object]) -> None:
        super().__init__(graph, free)
        self._engine = engine
        self._roles = graph.roles
        self._buffers = {
            spec.name: shared[spec.name] if spec.name in shared else engine.allocate(spec, free)
            for spec in (*graph.inputs, *graph.outputs)
            if spec.name not in self._roles.fed_back
        }
        self._kept: dict[str, Array] = {}  # what the graph is given when it wakes
        self._session: Session | None = None

    def _awake(self) -> Session:
        if self._session is None:
            self._session = self._engine.open(self.graph, free=self.free, shared=self._buffers)
            for name, value in self._kept.items():
                self._session.write(name, value)
            self._kept = {}
        return self._session

    def rewind(self) -> None:
        if self._session is not None:
            self._session.rewind()

    def rest(self) -> None:
        if self._session is not None:
            # What was fed back is the next run's input.
            self._kept = {name: self._session.read(name) for name in self._roles.carried}
            self._session.rest()
            self._session = None

    def _run_impl(self) -> None:
        self._awake().run()

    def buffer(self, name: str) -> object:
        return self._buffers[self.graph.tensor(name).name]

    def _write_impl(self, name: str, value: Array) -> None:
        if self._session is not None:
            self._session.write(name, value)
        else:
            self._kept[name] = value.astype(self.graph.tensor(name).dtype)  # a copy

    def _read_impl(self, name: str) -> Array:
        if self._session is not None:
            return self._session.read(name)
        # After a run, an output that is fed back lies in its input.
        carried = self._roles.result(name)
        if carried in self._kept:
            return np.array(self._kept[carried])
        if name in self._roles.fed_back:
            return self._awake().read(name)
        return self._engine.fetch(self._buffers[name])
