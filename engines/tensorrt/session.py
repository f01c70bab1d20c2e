"""Plans, opened and run."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from unibrain_rt.engines.base import GraphSpec, TensorSpec
from unibrain_rt.engines.cuda.memory import DeviceMemory
from unibrain_rt.engines.cuda.session import DeviceSession
from unibrain_rt.engines.cuda.stream import Stream
from unibrain_rt.engines.errors import EngineError
from unibrain_rt.engines.tensorrt.library import Library

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
        tell: Callable[[str], None],
        capture: bool,
    ) -> None:
        """Raises EngineError: the plan does not load, or is not the graph's, or the device is out of memory."""
        self._title, self._log = library.kind.title, library.logger()
        self._runtime = library.module.Runtime(self._log)
        self._engine = _deserialized(self._runtime, plan)
        if self._engine is None:
            raise self._failure(
                graph, "does not load its plan", "build it anew with unibrain-rt build --force"
            )
        _check_tensors(library, self._engine, graph, free)
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise self._failure(
                graph, "cannot run its plan", "close other programs, or decode with --low-memory"
            )
        super().__init__(graph, free, memory, shared, tell, capture=capture)
        self._bound: dict[str, int] = {}
        for spec in graph.inputs:
            if any(isinstance(size, str) for size in spec.shape):
                self._context.set_input_shape(spec.name, spec.sized(free))

    def enqueue(self, addresses: Mapping[str, int], stream: Stream) -> None:
        for name, address in addresses.items():
            if self._bound.get(name) != address:
                if not self._context.set_tensor_address(name, address):
                    raise self._failure(self.graph, f"does not take {name} where it lies")
                self._bound[name] = address
        if not self._context.execute_async_v3(int(stream.handle)):
            raise self._failure(self.graph, "failed")

    def resources(self) -> object:
        return (self._context, self._engine, self._runtime)

    def _failure(self, graph: GraphSpec, what: str, advice: str = "") -> EngineError:
        problem = f"graph {graph.name}: {self._title} {what}"
        if self._log.problem:
            problem += f" ({self._log.problem})"
        return EngineError(f"{problem}; {advice}" if advice else problem)


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
            found in (-1, size) for found, size in zip(shape, spec.sized(free), strict=True)
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
