"""A stand-in for TensorRT whose plans really compute: ONNX Runtime runs them on the stand-in's device memory.

It takes from a caller what TensorRT takes, and no more: addresses that are aligned, one after another, and a stream. What
is behind them is read and written when the stream gets there. The first run of a context allocates, as TensorRT's may.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
from fake_cuda import ALIGNMENT, OK, FakeCuda

DataType = enum.Enum("DataType", ["FLOAT", "HALF", "INT64", "INT32", "BOOL"])
TensorIOMode = enum.Enum("TensorIOMode", ["INPUT", "OUTPUT"])
TensorLocation = enum.Enum("TensorLocation", ["DEVICE", "HOST"])
Capability = enum.Enum("Capability", ["NONE", "CURRENT", "SM75", "SM89", "SM120", "SM80", "SM86", "SM121"])
Severity = enum.IntEnum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO"])

_TYPES = {
    "tensor(float)": (DataType.FLOAT, np.float32),
    "tensor(float16)": (DataType.HALF, np.float16),
    "tensor(int64)": (DataType.INT64, np.int64),
    "tensor(int32)": (DataType.INT32, np.int32),
    "tensor(bool)": (DataType.BOOL, np.bool_),
}


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING = Severity.INTERNAL_ERROR, Severity.ERROR, Severity.WARNING


class IProgressMonitor:
    pass


class FakeTensorRt:
    """The module. ``device`` is where it runs; None where there is none, as for one that only compiles.

    Ways to go wrong: ``during_capture`` is called by every run that is captured, ``refuse`` names operators that the
    parser does not take, ``compiles`` and ``loads`` False, ``opinion`` is what it says then.
    """

    __version__ = "10.3.0.26"
    ILogger = ILogger
    IProgressMonitor = IProgressMonitor
    TensorIOMode, TensorLocation = TensorIOMode, TensorLocation
    ComputeCapability = Capability
    MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)

    def __init__(self, device: FakeCuda | None) -> None:
        self.device = device
        self.during_capture: Callable[[], bool] | None = None
        self.refuse: set[str] = set()
        self.compiles = self.loads = True
        self.opinion = "[builder.cpp::build::42] something is odd\nand a second line"
        self.builds: list[dict[str, Any]] = []
        self.flags: list[int] = []

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
        model = onnx.load(path, load_external_data=False)
        for node in model.graph.node:
            if node.op_type in self._library.refuse:
                words = {"node_operator": node.op_type, "node_name": node.name, "desc": "no importer\nfor it"}
                self._errors.append(SimpleNamespace(**{k: lambda v=v: v for k, v in words.items()}))
                return False
        inputs = [
            SimpleNamespace(
                name=value.name,
                shape=tuple(
                    d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim
                ),
            )
            for value in model.graph.input
        ]
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
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        self.library, self.log = library, log
        self.name = plan["path"].rsplit("/", 1)[-1].removesuffix(".onnx")
        self.session = onnxruntime.InferenceSession(plan["path"], options, providers=["CPUExecutionProvider"])
        self._nodes = {
            **{node.name: (node, TensorIOMode.INPUT) for node in self.session.get_inputs()},
            **{node.name: (node, TensorIOMode.OUTPUT) for node in self.session.get_outputs()},
        }
        self.fixed = {name: tuple(shape) for name, shape in plan["shapes"].items()}
        self.num_io_tensors = len(self._nodes)

    def get_tensor_name(self, place: int) -> str:
        return list(self._nodes)[place]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return self._nodes[name][1]

    def get_tensor_dtype(self, name: str) -> DataType:
        return _TYPES[self._nodes[name][0].type][0]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(size if isinstance(size, int) else -1 for size in self._nodes[name][0].shape)

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.DEVICE

    def create_execution_context(self) -> Any:
        return _Context(self)


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self._engine = engine
        self._addresses: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._scratch = 0

    def __del__(self) -> None:
        if self._scratch:
            self._device.cudaFree(self._scratch)

    @property
    def _device(self) -> FakeCuda:
        device = self._engine.library.device
        assert device is not None
        return device

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
        addresses = dict(self._addresses)
        names = [node.name for node in (*engine.session.get_inputs(), *engine.session.get_outputs())]
        missing = [name for name in names if name not in addresses]
        if missing:
            engine.log.log(Severity.ERROR, f"{missing[0]} has no address")
            return False
        return device.kernel(stream, engine.name, lambda: self._compute(addresses), addresses=addresses)

    def _compute(self, addresses: dict[str, int]) -> None:
        engine, device = self._engine, self._device
        device.array(self._scratch, (1024,), np.uint8)
        free = next((shape[0] for shape in self._shapes.values()), 1)
        feeds = {}
        for node in engine.session.get_inputs():
            shape = tuple(size if isinstance(size, int) else free for size in node.shape)
            feeds[node.name] = device.array(addresses[node.name], shape, _TYPES[node.type][1]).copy()
        results = engine.session.run(None, feeds)
        for node, result in zip(engine.session.get_outputs(), results, strict=True):
            if device.lossy and device.replaying and result.dtype.kind == "f":
                result = result + 1
            device.array(addresses[node.name], result.shape, result.dtype)[...] = result
