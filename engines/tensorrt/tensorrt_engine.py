"""The engine of both libraries: plans out of the cache, whole programs as one CUDA graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unibrain_rt.engines.ahead import AheadEngine
from unibrain_rt.engines.catalogue import Probe, Settings
from unibrain_rt.engines.cuda.device_memory import DeviceBuffer, DeviceMemory
from unibrain_rt.engines.cuda.device_program import DeviceProgram
from unibrain_rt.engines.cuda.device_repetition import DeviceRepetition
from unibrain_rt.engines.cuda.runtime import Cuda, Device
from unibrain_rt.engines.engine_errors import EngineError
from unibrain_rt.engines.graph_spec import Array, GraphSpec, TensorSpec
from unibrain_rt.engines.program import Call, Program
from unibrain_rt.engines.repetition import Repetition
from unibrain_rt.engines.session import Session
from unibrain_rt.engines.tensorrt.builder import write_plan
from unibrain_rt.engines.tensorrt.kernel_cache import KernelFile
from unibrain_rt.engines.tensorrt.library import Kind, Library, install_advice
from unibrain_rt.engines.tensorrt.tensorrt_session import TensorRtSession

_NO_DRIVER = "cudaErrorInsufficientDriver"


class TensorRtEngine(AheadEngine):
    """TensorRT or TensorRT-RTX on the first CUDA device; without one, it compiles for others at most."""

    concurrent = True
    on_device = True

    def __init__(self, library: Library, settings: Settings, cuda: Any = None) -> None:
        """``cuda``: bindings of the CUDA runtime, by default those installed."""
        super().__init__(settings)
        self.name = library.kind.engine
        self.quick = library.kind.quick
        self._library, self._bindings, self._capture = library, cuda, settings.capture
        self._memory: DeviceMemory | None = None
        self._device: Device | None = None

    def describe(self) -> dict[str, str | int]:
        device = self._here()
        version = self._library.version
        return {"engine": self.name, "version": version, "device": device.name, "compute": device.capability}

    def program(self, calls: Sequence[Call]) -> Program:
        return DeviceProgram(calls, self._on_device(), capture=self._capture)

    def repetition(
        self, session: Session, output: str, *, until: int, at_most: int, initial: Mapping[str, Array]
    ) -> Repetition:
        if not isinstance(session, TensorRtSession):
            raise EngineError(f"graph {session.graph.name}: its session is of another engine")
        return DeviceRepetition(session, output, until, at_most, initial, capture=self._capture)

    def allocate(self, spec: TensorSpec, free: int = 1) -> object:
        return self._on_device().allocate(spec, free)

    def fetch(self, buffer: object) -> Array:
        if not isinstance(buffer, DeviceBuffer):
            raise EngineError(f"engine {self.name}: this buffer is not on the device")
        return self._on_device().read(buffer)

    def _open_impl(self, graph: GraphSpec, free: int, shared: Mapping[str, object]) -> Session:
        memory = self._on_device()
        plan, library = self.plan(graph, free), self._library
        kernels = None
        if library.keeps_kernels:
            kernels = KernelFile.beside(plan, graph.name, library, self._here(), self.cache)
        return TensorRtSession(library, plan, graph, free, memory, shared, self._capture, kernels)

    def _settings(self, graph: GraphSpec, free: int, target: str | None) -> Mapping[str, str]:
        settings = {"version": self._library.version, "target": self._target(target)}
        if not self._library.kind.ahead:
            # Kernels were timed on this very model.
            settings["device"] = self._here().name
        if any(isinstance(size, str) for spec in graph.inputs for size in spec.shape):
            settings["free"] = str(free)
        return settings

    def _compile(self, graph: GraphSpec, free: int, target: str | None, path: Path) -> None:
        device = None if target is not None and self._library.kind.ahead else self._here()
        workspace_bytes = self._library.workspace_bytes(device)
        named = self._target(target) if self._library.kind.ahead else None
        write_plan(self._library, graph, free, named, workspace_bytes, path)

    def _target(self, target: str | None) -> str:
        """What to compile for. Raises EngineError where the library cannot."""
        kind, known = self._library.kind, self._library.targets()
        if target is None:
            try:
                target = self._here().target
            except EngineError as error:
                if not kind.ahead:
                    raise
                advice = f"name what to compile for with --target, of {', '.join(known)}"
                raise EngineError(f"{kind.title} finds no GPU here ({error}); {advice}") from error
        if kind.ahead and target not in known:
            raise EngineError(
                f"{kind.title} does not compile for {target}, but for {', '.join(known)}; "
                "use --engine tensorrt on the device itself"
            )
        if not kind.ahead and target != self._here().target:
            raise EngineError(
                f"{kind.title} compiles for the GPU here alone, which is {self._here().target}; "
                f"for {target}, build there or with --engine tensorrt-rtx"
            )
        return target

    def _here(self) -> Device:
        """The device. Raises EngineError where there is none."""
        if self._device is None:
            self._device = Cuda(self._bindings).device()
        return self._device

    def _on_device(self) -> DeviceMemory:
        if self._memory is None:
            self._memory = DeviceMemory(Cuda(self._bindings))
        return self._memory


def probe_kind(kind: Kind) -> Probe:
    """Whether the library is here, and a GPU that it has kernels for."""
    try:
        library = Library(kind)
    except EngineError as error:
        return Probe(kind.engine, problem=str(error), advice=install_advice(kind))
    version = library.version
    if library.too_old:
        return Probe(
            kind.engine, version, problem="is older than 10.3", advice="install JetPack 6 or TensorRT 10.3"
        )
    ahead = "to compile for other machines, name --target" if kind.ahead else None
    try:
        cuda = Cuda()
    except EngineError as error:
        return Probe(kind.engine, version, problem=str(error), advice=ahead)
    try:
        cuda.device_count()
        device = cuda.device()
    except EngineError as error:
        problem = "no NVIDIA driver" if _NO_DRIVER in str(error) else f"no GPU ({error})"
        problem = f"can compile here, but not run: {problem}" if kind.ahead else problem
        advice = "; or ".join(filter(None, ["install the driver of your GPU", ahead]))
        return Probe(kind.engine, version, problem=problem, advice=advice)
    named = f"{device.name} ({device.target})"
    if not library.runs_on(device):
        problem = f"has no kernels for {named}"
        return Probe(kind.engine, version, named, problem, "use --engine tensorrt")
    return Probe(kind.engine, version, named)
