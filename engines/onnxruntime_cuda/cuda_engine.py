"""The engine ``cuda``: sessions and programs of ONNX Runtime on one GPU."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unibrain_rt.engines.base import Array, Call, Engine, GraphSpec, Program, Session, TensorSpec
from unibrain_rt.engines.catalogue import Settings
from unibrain_rt.engines.cuda.driver import cuda_driver, device_name
from unibrain_rt.engines.engine_errors import EngineError
from unibrain_rt.engines.onnxruntime_cuda.cuda_program import CudaProgram, Underway
from unibrain_rt.engines.onnxruntime_cuda.cuda_session import CudaSession
from unibrain_rt.engines.onnxruntime_cuda.fused_kernels import shortfall
from unibrain_rt.engines.onnxruntime_cuda.installation import NAME
from unibrain_rt.engines.onnxruntime_cuda.provider import on_device, prepare, to_host

GRAPHS_VARIABLE = "UNIBRAIN_RT_CUDA_GRAPHS"
"""Environment variable: ``0`` runs without CUDA graphs."""
_SOUND_CAPTURE = (1, 31)
"""The oldest version that is known to keep what a captured graph reads of the host's memory at every replay, for nodes
such as Split. Older ones, like 1.23, free it: a graph then reads the addresses of the one that was captured after it
(https://github.com/microsoft/onnxruntime/pull/32121)."""
_FLAVOURED = (1, 31)
"""The oldest version whose kernels were seen to run the flavour's operators; older ones take the plain graphs."""


def create(settings: Settings) -> Engine:
    return CudaEngine(settings)


class CudaEngine(Engine):
    """ONNX Runtime's CUDA provider. Programs run at the same time, each session on a stream of its own.

    Where a graph misses kernels (see `kernels`), a decode is told so and goes on, because it is right all the same;
    `check` refuses, and so does opening where the engine is ``strict``.
    """

    name = NAME
    flavour: str | None = "cuda"
    concurrent = True
    on_device = True

    def __init__(
        self,
        settings: Settings,
        *,
        strict: bool = False,
        options: Mapping[str, str] | None = None,
        onnxruntime: Any = None,
    ) -> None:
        """
        Args:
            strict: refuse to open a graph that misses kernels.
            options: of the provider, instead of the engine's own, to measure what they do.
            onnxruntime: the library, if not the installed one.
        """
        self._onnxruntime = onnxruntime if onnxruntime is not None else _import()
        self._tell = settings.tell
        self.graphs = settings.capture and os.environ.get(GRAPHS_VARIABLE) != "0"
        self.strict = strict
        self._options = dict(options or {})
        self._underway = Underway()
        prepare(self._onnxruntime)
        version = str(self._onnxruntime.__version__)
        if _numbers(version) < _FLAVOURED:
            self.flavour = None
        if self.graphs and _numbers(version) < _SOUND_CAPTURE:
            self.graphs = False
            oldest = ".".join(map(str, _SOUND_CAPTURE))
            self._tell(
                f"onnxruntime-gpu {version}: runs without CUDA graphs, whose replays are not sound before {oldest}; "
                "install that, which needs Python 3.11"
            )

    def describe(self) -> dict[str, str | int]:
        version = str(self._onnxruntime.__version__)
        graphs = "captured" if self.graphs else "none"
        return {
            "engine": self.name,
            "version": version,
            "device": device_name(cuda_driver()) or "cuda",
            "graphs": graphs,
        }

    def program(self, calls: Sequence[Call]) -> Program:
        return CudaProgram(self._onnxruntime, calls, self._underway)

    def allocate(self, spec: TensorSpec, free: int = 1) -> object:
        return on_device(
            self._onnxruntime, np.zeros(spec.sized(free), spec.dtype), f"the buffer of {spec.name}"
        )

    def fetch(self, buffer: object) -> Array:
        return to_host(buffer, "a buffer")

    def check(self, graph: GraphSpec, free: int = 1) -> None:
        if (missing := self._missing(self._session(graph.flavoured(self.flavour), free, {}))) is not None:
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
        return CudaSession(
            self._onnxruntime,
            graph,
            free,
            shared,
            self._tell,
            self._underway.wait,
            graphs=self.graphs,
            options=self._options,
        )

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


def _numbers(version: str) -> tuple[int, ...]:
    """The first two, as of a release or a build of one."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])
