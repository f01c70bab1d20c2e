"""A stand-in for TensorRT: plans are run on the stand-in's device memory, by whatever computes graphs for it.

It takes from a caller what TensorRT takes, and no more: addresses that are aligned, one after another, and a stream. What
is behind them is read and written when the stream gets there. The first run of a context allocates, as TensorRT's may.
Needs numpy alone: `onnx_graphs` computes with ONNX Runtime, `lean_stand_ins` makes numbers up.
"""

from __future__ import annotations

import enum
import json
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from fake_cuda import ALIGNMENT, OK, FakeCuda
from stand_in_graphs import Graphs

DataType = enum.Enum("DataType", ["FLOAT", "HALF", "INT64", "INT32", "BOOL"])
TensorIOMode = enum.Enum("TensorIOMode", ["INPUT", "OUTPUT"])
TensorLocation = enum.Enum("TensorLocation", ["DEVICE", "HOST"])
Capability = enum.Enum("Capability", ["NONE", "CURRENT", "SM75", "SM89", "SM120", "SM80", "SM86", "SM121"])
Severity = enum.IntEnum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO"])

_TYPES = {
    "float32": DataType.FLOAT,
    "float16": DataType.HALF,
    "int64": DataType.INT64,
    "int32": DataType.INT32,
    "bool": DataType.BOOL,
}


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING = Severity.INTERNAL_ERROR, Severity.ERROR, Severity.WARNING


class IProgressMonitor:
    pass


class IRuntimeCache:
    """Kernels compiled where they run. It takes back what it gave, in the environment that it was given in."""

    def __init__(self, library: FakeTensorRt, log: Any) -> None:
        self._library, self._log = library, log
        self.kernels: set[str] = set()

    def serialize(self) -> memoryview:
        facts = {"environment": self._library.environment, "kernels": sorted(self.kernels)}
        return memoryview(json.dumps(facts).encode())

    def deserialize(self, blob: bytes) -> bool:
        try:
            facts = json.loads(blob)
            alike = facts["environment"] == self._library.environment
        except (ValueError, KeyError, TypeError):
            alike = False
        if not alike:
            self._log.log(Severity.ERROR, "[runtimeCache.cpp::deserialize::7] another environment\nand more")
            return False
        self.kernels |= {*facts["kernels"]}
        return True


class IRuntimeConfig:
    def __init__(self, library: FakeTensorRt, log: Any) -> None:
        self._library, self._log = library, log
        self._cache: IRuntimeCache | None = None

    def create_runtime_cache(self) -> IRuntimeCache | None:
        if not self._library.caches:
            self._log.log(Severity.ERROR, self._library.opinion)
            return None
        return IRuntimeCache(self._library, self._log)

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        self._cache = cache
        return True

    def get_runtime_cache(self) -> IRuntimeCache | None:
        return self._cache


class FakeTensorRt:
    """The module. ``device`` is where it runs; None where there is none, as for one that only compiles. ``graphs`` is
    what reads and computes graphs.

    Ways to go wrong: ``during_capture`` is called by every run that is captured, ``refuse`` names operators that the
    parser does not take, ``compiles``, ``loads`` and ``caches`` False, ``opinion`` is what it says then. ``jitted`` is
    every kernel that was compiled for a run, ``late`` the runs of a context after which there is another one.
    """

    __version__ = "10.3.0.26"
    ILogger = ILogger
    IProgressMonitor = IProgressMonitor
    IRuntimeCache, IRuntimeConfig = IRuntimeCache, IRuntimeConfig
    TensorIOMode, TensorLocation = TensorIOMode, TensorLocation
    ComputeCapability = Capability
    MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)

    def __init__(self, device: FakeCuda | None, graphs: Graphs) -> None:
        self.device, self.graphs = device, graphs
        self.during_capture: Callable[[], bool] | None = None
        self.refuse: set[str] = set()
        self.compiles = self.loads = self.caches = True
        self.driver, self.late = "580.1", 0
        self.jitted: list[str] = []
        self.opinion = "[builder.cpp::build::42] something is odd\nand a second line"
        self.builds: list[dict[str, Any]] = []
        self.flags: list[int] = []

    @property
    def environment(self) -> list[str]:
        """What compiled kernels depend on."""
        assert self.device is not None
        return [self.__version__, self.device.name, self.driver]

    def Builder(self, log: Any) -> Any:  # noqa: N802 - the name is TensorRT's
        return _Builder(self, log)

    def OnnxParser(self, network: Any, log: Any) -> Any:  # noqa: N802
        return _Parser(self, network)

    def Runtime(self, log: Any) -> Any:  # noqa: N802
        return _Runtime(self, log)


class _Builder:
    def __init__(self, library: FakeTensorRt, log: Any) -> None:
        self._library, self._log = library, log

    def create_network(self, flags: int) -> Any:
        self._library.flags.append(flags)
        return SimpleNamespace(path="", inputs=[], num_inputs=0, get_input=None)

    def create_builder_config(self) -> Any:
        return _Config()

    def create_optimization_profile(self) -> Any:
        return _Profile()

    def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
        if not self._library.compiles:
            self._log.log(Severity.WARNING, "tactic skipped")
            self._log.log(Severity.ERROR, self._library.opinion)
            return None
        monitor = config.progress_monitor
        monitor.phase_start("Building engine", None, 4)
        monitor.phase_start("Tactics", "Building engine", 2)
        for step in range(4):
            if not monitor.step_complete("Building engine", step):
                return None
        monitor.phase_finish("Building engine")
        plan = {"path": network.path, "shapes": config.shapes}
        self._library.builds.append({**plan, "workspace": config.workspace, "targets": config.targets})
        return json.dumps(plan).encode()


class _Config:
    def __init__(self) -> None:
        self.workspace = 0
        self.shapes: dict[str, Any] = {}
        self.targets: dict[int, str] = {}
        self.progress_monitor: Any = None
        self.num_compute_capabilities = 0

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self.workspace = size

    def set_compute_capability(self, capability: Capability, place: int) -> bool:
        assert place < self.num_compute_capabilities
        self.targets[place] = capability.name
        return True

    def add_optimization_profile(self, profile: Any) -> None:
        self.shapes = profile.shapes


class _Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}

    def set_shape(self, name: str, least: Any, best: Any, most: Any) -> None:
        assert least == best == most
        self.shapes[name] = best


class _Parser:
    def __init__(self, library: FakeTensorRt, network: Any) -> None:
        self._library, self._network = library, network
        self._errors: list[Any] = []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, place: int) -> Any:
        return self._errors[place]

    def parse_from_file(self, path: str) -> bool:
        for operator, name in self._library.graphs.operators(path):
            if operator in self._library.refuse:
                words = {"node_operator": operator, "node_name": name, "desc": "no importer\nfor it"}
                self._errors.append(SimpleNamespace(**{k: lambda v=v: v for k, v in words.items()}))
                return False
        found = self._library.graphs.open(path).inputs
        inputs = [SimpleNamespace(name=name, shape=tensor.shape) for name, tensor in found.items()]
        self._network.path, self._network.num_inputs = path, len(inputs)
        self._network.get_input = inputs.__getitem__
        return True


class _Runtime:
    def __init__(self, library: FakeTensorRt, log: Any) -> None:
        self._library, self._log = library, log

    def deserialize_cuda_engine(self, plan: Any) -> Any:
        if not self._library.loads:
            self._log.log(Severity.ERROR, self._library.opinion)
            return None
        return _Engine(self._library, self._log, json.loads(bytes(plan)))


class _Engine:
    def __init__(self, library: FakeTensorRt, log: Any, plan: dict[str, Any]) -> None:
        self.library, self.log = library, log
        self.name = plan["path"].rsplit("/", 1)[-1].removesuffix(".onnx")
        self.graph = library.graphs.open(plan["path"])
        self._nodes = {
            **{name: (tensor, TensorIOMode.INPUT) for name, tensor in self.graph.inputs.items()},
            **{name: (tensor, TensorIOMode.OUTPUT) for name, tensor in self.graph.outputs.items()},
        }
        self.fixed = {name: tuple(shape) for name, shape in plan["shapes"].items()}
        self.num_io_tensors = len(self._nodes)

    def get_tensor_name(self, place: int) -> str:
        return list(self._nodes)[place]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return self._nodes[name][1]

    def get_tensor_dtype(self, name: str) -> DataType:
        return _TYPES[self._nodes[name][0].dtype]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._nodes[name][0].shape

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.DEVICE

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig(self.library, self.log)

    def create_execution_context(self, runtime_config: IRuntimeConfig | None = None) -> Any:
        return _Context(self, None if runtime_config is None else runtime_config.get_runtime_cache())


class _Context:
    def __init__(self, engine: _Engine, cache: IRuntimeCache | None) -> None:
        self._engine = engine
        # As in the library, nothing here keeps the cache: who made it has to.
        self._cache = None if cache is None else weakref.ref(cache)
        self._runs = 0
        self._addresses: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._scratch = 0

    def __del__(self) -> None:
        if self._cache is not None and self._cache() is None:
            self._device.faults.append("a runtime cache went before its context")
        if self._scratch:
            self._device.cudaFree(self._scratch)

    @property
    def _device(self) -> FakeCuda:
        device = self._engine.library.device
        assert device is not None
        return device

    def _jit(self) -> None:
        """Compile what this run needs, and what a thread of the library's has ready by now."""
        self._runs += 1
        late = [f"{self._engine.name}.late"] if self._runs == self._engine.library.late else []
        needed = {self._engine.name, *late}
        cache = set[str]() if self._cache is None else self._cache().kernels  # type: ignore[union-attr]
        if self._runs == 1 or late:
            self._engine.library.jitted += sorted(needed - cache)
            cache |= needed

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shapes[name] = tuple(shape)
        return self._engine.fixed[name] == self._shapes[name]

    def set_tensor_address(self, name: str, address: int) -> bool:
        if not address or address % ALIGNMENT:
            self._engine.log.log(Severity.ERROR, f"the address of {name} is not aligned")
            return False
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        engine, device = self._engine, self._device
        if not self._scratch:
            code, self._scratch = device.cudaMalloc(1024)
            if code != OK:
                engine.log.log(Severity.ERROR, "cannot allocate")
                return False
        during = engine.library.during_capture
        if during is not None and device.captures(stream) and not during():
            engine.log.log(Severity.ERROR, "cannot be captured")
            return False
        self._jit()
        addresses = dict(self._addresses)
        missing = [name for name in (*engine.graph.inputs, *engine.graph.outputs) if name not in addresses]
        if missing:
            engine.log.log(Severity.ERROR, f"{missing[0]} has no address")
            return False
        free, scratch = next((shape[0] for shape in self._shapes.values()), 1), self._scratch

        def compute() -> None:  # knows addresses alone: what the device is given does not keep its context
            device.array(scratch, (1024,), np.uint8)
            feeds = {}
            for name, tensor in engine.graph.inputs.items():
                shape = tuple(free if size < 0 else size for size in tensor.shape)
                feeds[name] = device.array(addresses[name], shape, np.dtype(tensor.dtype)).copy()
            for name, result in zip(engine.graph.outputs, engine.graph.run(feeds), strict=True):
                if device.lossy and device.replaying and result.dtype.kind == "f":
                    result = result + 1
                device.array(addresses[name], result.shape, result.dtype)[...] = result

        return device.kernel(stream, engine.name, compute, addresses=addresses)
