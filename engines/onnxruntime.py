"""ONNX Runtime on the CPU: the engine that runs everywhere. `load` serves the GPU as well."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from unibrain_rt.engines.base import Engine
from unibrain_rt.engines.catalogue import Probe, Settings
from unibrain_rt.engines.engine_errors import EngineError, first_line
from unibrain_rt.engines.graph_spec import GraphSpec
from unibrain_rt.engines.host import HostSession, check_tensors, usable_cores
from unibrain_rt.engines.session import Session

NAME = "onnxruntime"
ONNX_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
}
LOG_NOTHING = 4  # what goes wrong is raised, too


def probe() -> Probe:
    """Whether onnxruntime is here, with its CPU provider."""
    try:
        import onnxruntime
    except ImportError:
        return Probe(NAME, problem="is not installed", advice='run: pip install "unibrain-rt[cpu]"')
    version = getattr(onnxruntime, "__version__", "?")
    if "CPUExecutionProvider" not in onnxruntime.get_available_providers():
        advice = "run: pip install --force-reinstall onnxruntime"
        return Probe(NAME, version, problem="this onnxruntime has no CPU provider", advice=advice)
    return Probe(NAME, version, "cpu")


def create(settings: Settings) -> Engine:
    return OnnxRuntimeEngine(settings.threads)


class OnnxRuntimeEngine(Engine):
    """ONNX Runtime's CPU provider with a fixed number of threads."""

    name = NAME

    def __init__(self, threads: int | None = None) -> None:
        """``threads``: how many cores a session uses; by default those this process may run on."""
        import onnxruntime

        self._onnxruntime: Any = onnxruntime
        self.threads = threads if threads is not None else usable_cores()

    def describe(self) -> dict[str, str | int]:
        version = self._onnxruntime.__version__
        return {"engine": self.name, "version": version, "device": "cpu", "threads": self.threads}

    def _open_impl(self, graph: GraphSpec, free: int, shared: Mapping[str, object]) -> Session:
        options = self._onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = LOG_NOTHING
        # Sessions share one decode's time line; a spinning thread of one would take the other's core.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        session = load(self._onnxruntime, graph, options, ["CPUExecutionProvider"])
        return OnnxRuntimeSession(self._onnxruntime, session, graph, free, shared)


class OnnxRuntimeSession(HostSession):
    """ONNX Runtime on bound numpy arrays."""

    def __init__(
        self, onnxruntime: Any, session: Any, graph: GraphSpec, free: int, shared: Mapping[str, object]
    ) -> None:
        super().__init__(graph, free, shared)
        self._session = session
        self._run_options = onnxruntime.RunOptions()
        self._run_options.log_severity_level = LOG_NOTHING
        self._bindings = [self._bind(onnxruntime, turn) for turn in range(self.roles.turns)]

    def _bind(self, onnxruntime: Any, turn: int) -> Any:
        binding = self._session.io_binding()
        for spec in self.graph.inputs:
            value = onnxruntime.OrtValue.ortvalue_from_numpy(self.at(spec.name, turn))
            binding.bind_ortvalue_input(spec.name, value)
        for spec in self.graph.outputs:
            value = onnxruntime.OrtValue.ortvalue_from_numpy(self.at(spec.name, turn))
            binding.bind_ortvalue_output(spec.name, value)
        return binding

    def _run_impl(self) -> None:
        try:
            self._session.run_with_iobinding(self._bindings[self.turn], self._run_options)
        except Exception as error:  # onnxruntime raises a dozen unrelated types
            raise EngineError(f"graph {self.graph.name}: onnxruntime failed ({first_line(error)})") from error
        self.advance(1)


def load(
    onnxruntime: Any,
    graph: GraphSpec,
    options: Any,
    providers: list[Any],
    reason: Callable[[Exception], str] = first_line,
) -> Any:
    """onnxruntime's own session of a graph, with the tensors that the manifest tells of.

    Raises:
        EngineError: it cannot be loaded, for the ``reason`` that is made of onnxruntime's exception.
    """
    # What int8 weights are multiplied with stays in fp32: by default it would be rounded to int8 as well.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    try:
        # A fallback would try the same provider again, and print that it does.
        session = onnxruntime.InferenceSession(
            str(graph.path), sess_options=options, providers=providers, enable_fallback=0
        )
    except Exception as error:
        raise EngineError(f"{graph.path.name}: onnxruntime cannot load it ({reason(error)})") from error
    inputs, outputs = (
        {node.name: (ONNX_TYPES.get(node.type, node.type), node.shape) for node in nodes}
        for nodes in (session.get_inputs(), session.get_outputs())
    )
    check_tensors(graph, inputs, outputs)
    return session
