"""The engine ``cuda``: sessions and programs of ONNX Runtime on one GPU."""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unibrain_rt.engines.base import Engine
from unibrain_rt.engines.catalogue import Settings
from unibrain_rt.engines.cuda.driver import cuda_driver, device_name
from unibrain_rt.engines.engine_errors import EngineError
from unibrain_rt.engines.graph_spec import Array, GraphSpec, TensorSpec
from unibrain_rt.engines.onnxruntime_cuda.cuda_program import CudaProgram, Underway
from unibrain_rt.engines.onnxruntime_cuda.cuda_repetition import CudaRepetition
from unibrain_rt.engines.onnxruntime_cuda.cuda_session import CudaSession
from unibrain_rt.engines.onnxruntime_cuda.fused_kernels import shortfall
from unibrain_rt.engines.onnxruntime_cuda.installation import NAME
from unibrain_rt.engines.onnxruntime_cuda.provider import on_device, prepare, to_host
from unibrain_rt.engines.program import Call, Program
from unibrain_rt.engines.repetition import Repetition
from unibrain_rt.engines.session import Session

_log = logging.getLogger(__name__)

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

    A graph that misses kernels (see `fused_kernels`) decodes right all the same, and slower: `check` tells of it.
    """

    name = NAME
    flavour: str | None = "cuda"
    concurrent = True
    on_device = True

    def __init__(
        self,
        settings: Settings,
        *,
        options: Mapping[str, str] | None = None,
        onnxruntime: Any = None,
    ) -> None:
        """
        Args:
            options: of the provider, instead of the engine's own, to measure what they do.
            onnxruntime: the library, if not the installed one.
        """
        self._onnxruntime = onnxruntime if onnxruntime is not None else _import()
        self.graphs = settings.capture and os.environ.get(GRAPHS_VARIABLE) != "0"
        self._options = dict(options or {})
        self._underway = Underway()
        prepare(self._onnxruntime)
        version = str(self._onnxruntime.__version__)
        if _numbers(version) < _FLAVOURED:
            self.flavour = None
        if self.graphs and _numbers(version) < _SOUND_CAPTURE:
            self.graphs = False
            oldest = ".".join(map(str, _SOUND_CAPTURE))
            _log.warning(
                "onnxruntime-gpu %s: runs without CUDA graphs, whose replays are not sound before %s; install that, "
                "which needs Python 3.11",
                version,
                oldest,
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

    def repetition(
        self, session: Session, output: str, *, until: int, at_most: int, initial: Mapping[str, Array]
    ) -> Repetition:
        if not isinstance(session, CudaSession):
            raise EngineError(f"graph {session.graph.name}: its session is of another engine")
        return CudaRepetition(self._onnxruntime, session, output, until, at_most, initial)

    def allocate(self, spec: TensorSpec, free: int = 1) -> object:
        return on_device(
            self._onnxruntime, np.zeros(spec.sized(free), spec.dtype), f"the buffer of {spec.name}"
        )

    def fetch(self, buffer: object) -> Array:
        return to_host(buffer, "a buffer")

    def check(self, graph: GraphSpec, free: int = 1) -> None:
        costs = graph.flavoured(self.flavour).costs
        if costs is None:  # of an older export, or a subject's heads, which nothing is fused for
            return
        # Of loads that fail ONNX Runtime leaves the beginning of a profile, too.
        with tempfile.TemporaryDirectory(prefix="unibrain-rt-") as folder:
            session = self._session(graph.flavoured(self.flavour), free, {}, Path(folder))
            missing = shortfall(costs.operators, session.count_kernels())
        if missing is not None:
            version = f"onnxruntime-gpu {self._onnxruntime.__version__}"
            advice = "run: pip install --upgrade onnxruntime-gpu"
            raise EngineError(
                f"{graph.name}: {missing} in this {version}, and the others are slower; {advice}"
            )

    def _open_impl(self, graph: GraphSpec, free: int, shared: Mapping[str, object]) -> Session:
        return self._session(graph, free, shared)

    def _session(
        self, graph: GraphSpec, free: int, shared: Mapping[str, object], profiles: Path | None = None
    ) -> CudaSession:
        return CudaSession(
            self._onnxruntime,
            graph,
            free,
            shared,
            self._underway.wait,
            graphs=self.graphs,
            options=self._options,
            profiles=profiles,
        )


def _import() -> Any:
    import onnxruntime

    return onnxruntime


def _numbers(version: str) -> tuple[int, ...]:
    """The first two, as of a release or a build of one."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])
