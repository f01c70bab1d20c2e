"""Plans, opened and run."""

from __future__ import annotations

import logging
import mmap
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unibrain_rt.engines.cuda.device_memory import DeviceMemory
from unibrain_rt.engines.cuda.device_session import DeviceSession
from unibrain_rt.engines.cuda.stream import Stream
from unibrain_rt.engines.engine_errors import EngineError
from unibrain_rt.engines.graph_spec import GraphSpec, TensorSpec
from unibrain_rt.engines.tensorrt.kernel_cache import KernelFile, Kernels, not_kept
from unibrain_rt.engines.tensorrt.library import Library

_log = logging.getLogger(__name__)

_TYPES = {"FLOAT": "float32", "HALF": "float16", "INT64": "int64", "INT32": "int32", "BOOL": "bool"}


class TensorRtSession(DeviceSession):
    """A plan with an execution context of its own."""

    def __init__(
        self,
        library: Library,
        plan: Path,
        graph: GraphSpec,
        free: int,
        memory: DeviceMemory,
        shared: Mapping[str, object],
        capture: bool,
        kernels: KernelFile | None = None,
    ) -> None:
        """``kernels``: where to keep what the library compiles at the first run, if it can.

        Raises:
            EngineError: the plan does not load, or is not the graph's, or the device is out of memory.
        """
        self._title, self._log = library.kind.title, library.logger()
        runtime = library.module.Runtime(self._log)
        engine = _deserialized(runtime, plan)
        if engine is None:
            raise self._failure(
                graph, "does not load its plan", "build it anew with unibrain-rt build --force"
            )
        _check_tensors(library, engine, graph, free)
        compiled = None
        if kernels is not None:
            try:
                compiled = Kernels(library, self._log, engine, kernels)
            except EngineError as error:
                _log.warning(not_kept(self._title, error))
        self._context = _Context(runtime, engine, compiled)
        if self._context.native is None:
            raise self._failure(
                graph, "cannot run its plan", "close other programs, or decode with --low-memory"
            )
        super().__init__(graph, free, memory, shared, capture=capture)
        self._bound: dict[str, int] = {}
        for spec in graph.inputs:
            if any(isinstance(size, str) for size in spec.shape):
                self._context.native.set_input_shape(spec.name, spec.sized(free))

    def enqueue(self, addresses: Mapping[str, int], stream: Stream) -> None:
        context = self._context.native
        for name, address in addresses.items():
            if self._bound.get(name) != address:
                if not context.set_tensor_address(name, address):
                    raise self._failure(self.graph, f"does not take {name} where it lies")
                self._bound[name] = address
        if not context.execute_async_v3(int(stream.handle)):
            raise self._failure(self.graph, "failed")
        self._context.has_run()

    def resources(self) -> object:
        return self._context

    def _failure(self, graph: GraphSpec, what: str, advice: str = "") -> EngineError:
        problem = f"graph {graph.name}: {self._title} {what}"
        if self._log.problem:
            problem += f" ({self._log.problem})"
        return EngineError(f"{problem}; {advice}" if advice else problem)


class _Context:
    """A plan's execution context, ``native``, and all that has to outlive it.

    Kernels are saved after the first run, so that a process that is killed later has not compiled in vain, and at the
    end, since some may be compiled while others run already.
    """

    def __init__(self, runtime: Any, engine: Any, kernels: Kernels | None) -> None:
        """``native`` is None where the library makes none."""
        self._keeps = (runtime, engine)
        self._kernels, self._saved = kernels, kernels is None
        if kernels is None:
            self.native = engine.create_execution_context()
            return
        self.native = engine.create_execution_context(kernels.config)
        if self.native is not None:
            weakref.finalize(self, kernels.save)  # with the process, too, where nothing else lets it go

    def __del__(self) -> None:
        # Before what it uses: the bindings do not see to that.
        self.native = None

    def has_run(self) -> None:
        """A run was begun; the first one of all is never captured, so that the library may do here what it likes."""
        if not self._saved and self._kernels is not None:
            self._saved = True
            self._kernels.save()


def _deserialized(runtime: Any, plan: Path) -> Any:
    """The plan's engine, or None. A plan has gigabytes, so it is not read into memory first."""
    with plan.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return runtime.deserialize_cuda_engine(content)


def _check_tensors(library: Library, engine: Any, graph: GraphSpec, free: int) -> None:
    """Compare the plan's inputs and outputs with the manifest's: addresses alone are handed over."""
    trt = library.module
    names = [engine.get_tensor_name(place) for place in range(engine.num_io_tensors)]
    want: dict[str, tuple[TensorSpec, Any]] = {
        **{spec.name: (spec, trt.TensorIOMode.INPUT) for spec in graph.inputs},
        **{spec.name: (spec, trt.TensorIOMode.OUTPUT) for spec in graph.outputs},
    }
    odd = {*names} ^ want.keys()
    for name in want.keys() - odd:
        spec, mode = want[name]
        dtype = engine.get_tensor_dtype(name)
        shape = tuple(engine.get_tensor_shape(name))
        alike = len(shape) == len(spec.shape) and all(
            own in (-1, size) for own, size in zip(shape, spec.sized(free), strict=True)
        )
        on_device = engine.get_tensor_location(name) == trt.TensorLocation.DEVICE
        if not alike or engine.get_tensor_mode(name) != mode or not on_device:
            odd.add(name)
        if _TYPES.get(getattr(dtype, "name", "")) != spec.dtype:
            odd.add(name)
    if odd:
        raise EngineError(
            f"{graph.path.name}: tensor {min(odd)!r} is not as the manifest says; export the bundle again"
        )
