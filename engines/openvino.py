"""OpenVINO on the CPU: bf16 where the processor computes it natively, else fp32."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from unibrain_rt.engines.ahead import AheadEngine
from unibrain_rt.engines.base import Engine
from unibrain_rt.engines.catalogue import Probe, Settings
from unibrain_rt.engines.engine_errors import EngineError, first_line
from unibrain_rt.engines.graph_spec import GraphSpec, TensorSpec
from unibrain_rt.engines.host import HostSession, Ports, check_tensors, usable_cores
from unibrain_rt.engines.session import Session

_log = logging.getLogger(__name__)

NAME = "openvino"
PRECISION_VARIABLE = "UNIBRAIN_RT_OPENVINO_PRECISION"
"""Environment variable: ``fp32`` or ``bf16``, what is computed in; by default bf16 where that is native."""
PLAN_WEIGHTS_BYTES = 2**28
"""Of graphs with more weights than this, nothing is kept.

A plan holds the weights anew. For the phantom's image step it saves three fifths of the processor time of opening it;
for the published one (4.2 GB) a seventh, after three times as much has gone into writing it. OpenVINO's plans without
weights (CACHE_MODE=OPTIMIZE_SIZE) cannot be imported again where the graph was ONNX (2026.4).
"""
_HINTS = {"fp32": "f32", "bf16": "bf16"}
_COMPILE_WHEN_OPENED = b"unibrain-rt: compiled when it is opened\n"
_DEVICE = "CPU"
_BF16 = "BF16"
"""Among the processor's capabilities, where it computes bf16 natively."""
_EXACT = {"SNIPPETS_MODE": "DISABLE"}
"""OpenVINO's fused attention (2026.4, AVX2) is wrong by a half where there are few tokens; without it a published image
step takes a tenth more."""
_TYPES = {"f32": "float32", "f16": "float16", "i64": "int64", "i32": "int32", "boolean": "bool"}
_LINE_CHARACTERS = 200


def probe() -> Probe:
    """Whether OpenVINO is here, with its CPU plugin."""
    try:
        openvino = _import()
    except ImportError:
        return Probe(NAME, problem="is not installed", advice='run: pip install "unibrain-rt[openvino]"')
    version = _version(openvino)
    try:
        core = openvino.Core()
        device = str(core.get_property(_DEVICE, "FULL_DEVICE_NAME")).strip()
        native = _BF16 in _capabilities(core)
    except RuntimeError as error:
        advice = "run: pip install --force-reinstall openvino"
        return Probe(NAME, version, problem=f"has no CPU plugin ({_message(error)})", advice=advice)
    # In fp32 ONNX Runtime's decode takes 3 to 10 % less time, and less memory, at the phantom's size and the published
    # one (benchmarks/results/bench*, contest-*.md; with AVX2).
    return Probe(NAME, version, f"cpu ({device})", last_resort=not native)


def _capabilities(core: Any) -> list[str]:
    """What the processor computes natively, by OpenVINO's names."""
    return sorted(core.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES"))


def create(settings: Settings) -> Engine:
    return OpenVinoEngine(settings)


class OpenVinoEngine(AheadEngine):
    """OpenVINO's CPU plugin, set for the latency of one run at a time."""

    name = NAME
    quick = True

    def __init__(self, settings: Settings, precision: str | None = None) -> None:
        """``precision``: ``fp32`` or ``bf16``; by default that of the environment, or the best of this processor.

        Raises:
            EngineError: an unknown precision, or one that this processor does not compute natively.
        """
        super().__init__(settings)
        self._openvino = _import()
        self._core = self._openvino.Core()
        self.threads = settings.threads if settings.threads is not None else usable_cores()
        self._capabilities = _capabilities(self._core)
        native = _BF16 in self._capabilities
        self.precision = precision or os.environ.get(PRECISION_VARIABLE) or ("bf16" if native else "fp32")
        if self.precision not in _HINTS:
            raise EngineError(f"openvino: unknown precision {self.precision!r}; known are fp32 and bf16")
        if self.precision == "bf16" and not native:
            # OpenVINO would take fp32 without a word.
            raise EngineError(
                f"openvino: this processor does not compute bf16; use fp32 ({PRECISION_VARIABLE})"
            )
        self._options = {
            "INFERENCE_PRECISION_HINT": _HINTS[self.precision],
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": 1,
            # Threads that are tied to cores wait there for other programs' while another core is free.
            "ENABLE_CPU_PINNING": False,
            **_EXACT,
        }

    def describe(self) -> dict[str, str | int]:
        version = _version(self._openvino)
        return {
            "engine": self.name,
            "version": version,
            "device": "cpu",
            "precision": self.precision,
            "threads": self.threads,
        }

    def _settings(self, graph: GraphSpec, free: int, target: str | None) -> Mapping[str, str]:
        if target is not None:
            raise EngineError("openvino compiles for the processor here alone; leave --target out")
        device = self._core.get_property(_DEVICE, "FULL_DEVICE_NAME").strip()
        return {
            "version": str(self._openvino.get_version()),
            "target": f"{device} ({' '.join(self._capabilities)})",
            "precision": self.precision,
            "shapes": f"free axes of {free}",
            "options": " ".join(f"{name}={value}" for name, value in _EXACT.items()),
        }

    def _compile(self, graph: GraphSpec, free: int, target: str | None, path: Path) -> None:
        model = self._read(graph, free)
        if _weights_bytes(model) > PLAN_WEIGHTS_BYTES:
            path.write_bytes(_COMPILE_WHEN_OPENED)
            return
        path.write_bytes(self._compiled(graph, model).export_model().getbuffer())

    def _open_impl(self, graph: GraphSpec, free: int, shared: Mapping[str, object]) -> Session:
        compiled = self._load(graph, free)
        sized = replace(graph, inputs=_sized(graph.inputs, free), outputs=_sized(graph.outputs, free))
        check_tensors(sized, _ports(graph.inputs, compiled.inputs), _ports(graph.outputs, compiled.outputs))
        return OpenVinoSession(self._openvino, compiled, graph, free, shared)

    def _load(self, graph: GraphSpec, free: int) -> Any:
        """The compiled graph, out of its plan if that can be had."""
        for anew in (False, True):
            try:
                plan = self.build(graph, free, anew=anew).path
            except EngineError as error:
                compiled = self._compiled(graph, self._read(graph, free))
                # The graph is sound, the folder of plans is not: no reason to fail where compiling takes seconds.
                _log.warning("%s; compiled without it", str(error))
                return compiled
            if _is_empty(plan):
                break
            try:
                return self._core.import_model(plan.read_bytes(), _DEVICE, self._options)
            except RuntimeError:
                _log.warning("%s: openvino cannot read its plan; compiling anew", graph.name)
        return self._compiled(graph, self._read(graph, free))

    def _read(self, graph: GraphSpec, free: int) -> Any:
        """The graph with no axis left free."""
        try:
            model = self._core.read_model(graph.path)
            shapes = {}
            for port in model.inputs:
                spec = next((spec for spec in graph.inputs if spec.name in port.get_names()), None)
                sizes = list(port.partial_shape)
                if spec is not None and len(spec.shape) == len(sizes) and port.partial_shape.is_dynamic:
                    pairs = zip(sizes, spec.sized(free), strict=True)
                    shapes[port] = [wanted if size.is_dynamic else size for size, wanted in pairs]
            if shapes:
                model.reshape(shapes)
        except RuntimeError as error:
            raise EngineError(f"{graph.path.name}: openvino cannot load it ({_message(error)})") from error
        return model

    def _compiled(self, graph: GraphSpec, model: Any) -> Any:
        try:
            return self._core.compile_model(model, _DEVICE, self._options)
        except RuntimeError as error:
            raise EngineError(f"{graph.path.name}: openvino cannot load it ({_message(error)})") from error


class OpenVinoSession(HostSession):
    """OpenVINO on bound numpy arrays: a request a turn, so that nothing is bound anew between runs."""

    def __init__(
        self, openvino: Any, compiled: Any, graph: GraphSpec, free: int, shared: Mapping[str, object]
    ) -> None:
        super().__init__(graph, free, shared)
        ports = _names(graph.inputs, compiled.inputs) | _names(graph.outputs, compiled.outputs)
        self._requests = [compiled.create_infer_request() for _ in range(self.roles.turns)]
        for turn, request in enumerate(self._requests):
            for name, port in ports.items():
                tensor = openvino.Tensor(self.at(name, turn), shared_memory=True)
                request.set_tensor(port, tensor)

    def _run_impl(self) -> None:
        request = self._requests[self.turn]
        try:
            # `infer` would copy the outputs.
            request.start_async()
            request.wait()
        except RuntimeError as error:
            raise EngineError(f"graph {self.graph.name}: openvino failed ({_message(error)})") from error
        self.advance(1)


def _import() -> Any:
    """The library, without its converter of models, which takes longer to import than all the rest."""
    converter = "openvino.tools.ovc"
    hidden = converter not in sys.modules
    if hidden:
        sys.modules[converter] = None  # type: ignore[assignment]  # what makes importing it fail
    try:
        import openvino
    finally:
        if hidden:
            del sys.modules[converter]
    return openvino


def _version(openvino: Any) -> str:
    """Its release, without the build."""
    return str(openvino.get_version()).split("-")[0]


def _is_empty(plan: Path) -> bool:
    with plan.open("rb") as file:
        return file.read(len(_COMPILE_WHEN_OPENED)) == _COMPILE_WHEN_OPENED


def _weights_bytes(model: Any) -> int:
    return sum(node.get_byte_size() for node in model.get_ops() if node.get_type_name() == "Constant")


def _names(specs: Sequence[TensorSpec], ports: Sequence[Any]) -> dict[str, Any]:
    """The ports by name. One may have several: an input that is also an output has both."""
    wanted = {spec.name for spec in specs}
    return {next(iter(wanted & port.get_names()), port.get_any_name()): port for port in ports}


def _sized(specs: Sequence[TensorSpec], free: int) -> tuple[TensorSpec, ...]:
    return tuple(replace(spec, shape=spec.sized(free)) for spec in specs)


def _ports(specs: Sequence[TensorSpec], ports: Sequence[Any]) -> Ports:
    return {
        name: (_type(port), [size.get_length() if size.is_static else None for size in port.partial_shape])
        for name, port in _names(specs, ports).items()
    }


def _type(port: Any) -> str:
    name = str(port.get_element_type().get_type_name())
    return _TYPES.get(name, name)


def _message(error: Exception) -> str:
    """What went wrong, as one line: OpenVINO begins with where in its sources it did."""
    lines = [line.strip() for line in str(error).splitlines()]
    telling = [line for line in lines if line and not line.startswith(("Exception from ", "Check "))]
    return " ".join(telling[:2])[:_LINE_CHARACTERS] or first_line(error)
