"""ONNX Runtime on the CPU: the engine that runs everywhere. Every session is made here."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unibrain_rt.engines.base import Array, Engine, GraphSpec, Session, TensorSpec
from unibrain_rt.engines.catalogue import Probe, Settings
from unibrain_rt.engines.errors import EngineError

NAME = "onnxruntime"
_ONNX_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
}
_LOG_NOTHING = 4  # what goes wrong is raised, too


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
        options.log_severity_level = _LOG_NOTHING
        # Sessions share one decode's time line; a spinning thread of one would take the other's core.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            # A fallback would try the same provider again, and print that it does.
            session = self._onnxruntime.InferenceSession(
                str(graph.path), sess_options=options, providers=["CPUExecutionProvider"], enable_fallback=0
            )
        except Exception as error:  # onnxruntime raises a dozen unrelated types
            raise EngineError(
                f"{graph.path.name}: onnxruntime cannot load it ({_first_line(error)})"
            ) from error
        _check_tensors(graph, session)
        return OnnxRuntimeSession(self._onnxruntime, session, graph, free, shared)


class OnnxRuntimeSession(Session):
    """Buffers are numpy arrays bound once. Tensors that are fed back own two, which swap roles every run."""

    def __init__(
        self, onnxruntime: Any, session: Any, graph: GraphSpec, free: int, shared: Mapping[str, object]
    ) -> None:
        super().__init__(graph, free)
        self._session = session
        self._run_options = onnxruntime.RunOptions()
        self._run_options.log_severity_level = _LOG_NOTHING
        self._turn = 0
        self._buffers: dict[str, Array] = {}
        for spec in (*graph.inputs, *graph.outputs):
            if spec.name in shared:
                self._buffers[spec.name] = _checked(shared[spec.name], spec, graph, free)
            else:
                self._buffers[spec.name] = np.zeros(spec.sized(free), dtype=spec.dtype)
        # The odd turn reads where the even one wrote, and writes where it read.
        even = {name: name for name in self._buffers}
        odd = dict(even)
        for output, source in graph.feedback.items():
            odd[output], odd[source] = source, output
        turns = [even, odd] if graph.feedback else [even]
        self._bindings = [self._bind(onnxruntime, turn) for turn in turns]
        self._place = turns

    def rewind(self) -> None:
        self._turn = 0

    def run(self) -> None:
        try:
            self._session.run_with_iobinding(self._bindings[self._turn], self._run_options)
        except Exception as error:
            raise EngineError(
                f"graph {self.graph.name}: onnxruntime failed ({_first_line(error)})"
            ) from error
        self._turn = (self._turn + 1) % len(self._bindings)

    def buffer(self, name: str) -> object:
        return self._buffers[self.graph.tensor(name).name]

    def _bind(self, onnxruntime: Any, place: Mapping[str, str]) -> Any:
        binding = self._session.io_binding()
        for spec in self.graph.inputs:
            array = self._buffers[place[spec.name]]
            binding.bind_ortvalue_input(spec.name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
        for spec in self.graph.outputs:
            array = self._buffers[place[spec.name]]
            binding.bind_ortvalue_output(spec.name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
        return binding

    def _write_impl(self, name: str, value: Array) -> None:
        np.copyto(self._buffers[self._place[self._turn][name]], value, casting="same_kind")

    def _read_impl(self, name: str) -> Array:
        # After a run the turn has moved on: what was an output's buffer is its input's now.
        name = self.graph.feedback.get(name, name)
        array: Array = self._buffers[self._place[self._turn][name]].copy()
        return array


def usable_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _checked(buffer: object, spec: TensorSpec, graph: GraphSpec, free: int) -> Array:
    if not isinstance(buffer, np.ndarray) or (buffer.shape, buffer.dtype) != (spec.sized(free), spec.dtype):
        raise EngineError(f"graph {graph.name}: the shared buffer of {spec.name} has another shape or type")
    array: Array = buffer
    return array


def _check_tensors(graph: GraphSpec, session: Any) -> None:
    """Compare the file's inputs and outputs with the manifest's; an axis may be free in one of them alone."""
    for kind, specs, found in (
        ("input", graph.inputs, session.get_inputs()),
        ("output", graph.outputs, session.get_outputs()),
    ):
        have = {node.name: (_ONNX_TYPES.get(node.type, node.type), node.shape) for node in found}
        want = {spec.name: (spec.dtype, spec.shape) for spec in specs}
        odd = sorted(name for name in have.keys() | want.keys() if not _alike(have.get(name), want.get(name)))
        if odd:
            problem = f"{kind} {odd[0]!r} is not as the manifest says"
            raise EngineError(f"{graph.path.name}: {problem}; export the bundle again")


def _alike(have: tuple[str, Sequence[Any]] | None, want: tuple[str, Sequence[Any]] | None) -> bool:
    if have is None or want is None or have[0] != want[0] or len(have[1]) != len(want[1]):
        return False
    sizes = zip(have[1], want[1], strict=True)
    return all(a == b for a, b in sizes if isinstance(a, int) and isinstance(b, int))


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
