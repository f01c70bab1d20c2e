"""The engine ``cuda``: sessions and programs of ONNX Runtime on one GPU."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from unibrain_rt.engines.base import Array, Call, Engine, GraphSpec, Program, Session, TensorSpec
from unibrain_rt.engines.catalogue import Settings
from unibrain_rt.engines.errors import EngineError
from unibrain_rt.engines.onnxruntime_cuda.device import device_name, on_device
from unibrain_rt.engines.onnxruntime_cuda.installation import NAME
from unibrain_rt.engines.onnxruntime_cuda.kernels import shortfall
from unibrain_rt.engines.onnxruntime_cuda.program import CudaProgram, Underway
from unibrain_rt.engines.onnxruntime_cuda.session import CudaSession

GRAPHS_VARIABLE = "UNIBRAIN_RT_CUDA_GRAPHS"
"""Environment variable: ``0`` runs without CUDA graphs."""


def create(settings: Settings) -> Engine:
    return CudaEngine(settings)


class CudaEngine(Engine):
    """ONNX Runtime's CUDA provider. Programs run at the same time, each session on a stream of its own.

    Where a graph misses kernels (see `kernels`), a decode is told so and goes on, because it is right all the same;
    `check` refuses, and so does opening where the engine is ``strict``.
    """

    name = NAME
    concurrent = True
    on_device = True

    def __init__(
        self,
        settings: Settings,
        *,
        strict: bool = False,
        onnxruntime: Any = None,
    ) -> None:
        """
        Args:
            strict: refuse to open a graph that misses kernels.
            onnxruntime: the library, if not the installed one.
        """
        self._onnxruntime = onnxruntime if onnxruntime is not None else _import()
        self._tell = settings.tell if settings.tell is not None else _tell_nobody
        self.graphs = settings.capture and os.environ.get(GRAPHS_VARIABLE) != "0"
        self.strict = strict
        self._underway = Underway()
        with suppress(AttributeError):  # finds CUDA's libraries where pip put them; not in every version
            self._onnxruntime.preload_dlls()

    def describe(self) -> dict[str, str | int]:
        version = str(self._onnxruntime.__version__)
        graphs = "captured" if self.graphs else "none"
        return {"engine": self.name, "version": version, "device": device_name() or "cuda", "graphs": graphs}

    def program(self, calls: Sequence[Call]) -> Program:
        return CudaProgram(self._onnxruntime, calls, self._underway)

    def allocate(self, spec: TensorSpec, free: int = 1) -> object:
        return on_device(self._onnxruntime, np.zeros(spec.sized(free), spec.dtype))

    def fetch(self, buffer: object) -> Array:
        value: Any = buffer
        return np.array(value.numpy())

    def check(self, graph: GraphSpec, free: int = 1) -> None:
        if (missing := self._missing(self._session(graph, free, {}))) is not None:
            raise EngineError(missing)

    def _open_impl(self, graph: GraphSpec, free: int, shared: Mapping[str, object]) -> Session:
        session = self._session(graph, free, shared)
        missing = self._missing(session)
        if missing is not None:
            if self.strict:
                raise EngineError(missing)
            self._tell(missing)
        return session

    def _session(self, graph: GraphSpec, free: int, shared: Mapping[str, object]) -> CudaSession:
        return CudaSession(self._onnxruntime, graph, free, shared, self._tell, graphs=self.graphs)

    def _missing(self, session: CudaSession) -> str | None:
        """Which kernels a session misses, as a line; None where it has all."""
        short = shortfall(session.graph.path, session.kernels)
        if short is None:
            return None
        version = f"onnxruntime-gpu {self._onnxruntime.__version__}"
        advice = "run: pip install --upgrade onnxruntime-gpu"
        return f"{session.graph.name}: {short} in this {version}, and the others are slower; {advice}"


def _import() -> Any:
    import onnxruntime

    return onnxruntime


def _tell_nobody(line: str) -> None:
    """Where nobody listens."""
