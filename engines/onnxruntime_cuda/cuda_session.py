"""A graph on the GPU: buffers there, and runs that are captured once and replayed.

ONNX Runtime captures a graph for each ``gpu_graph_id``, of the addresses that were bound at its first run, and keeps
it for the thread that ran it. So every session runs in a thread of its own, and every row of a program's tables lies
at its own address under an id of its own: nothing is copied between steps.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from unibrain_rt.engines.buffered_session import BufferedSession
from unibrain_rt.engines.engine_errors import EngineError
from unibrain_rt.engines.graph_spec import Array, GraphSpec, TensorSpec
from unibrain_rt.engines.onnxruntime import LOG_NOTHING, ONNX_TYPES, load
from unibrain_rt.engines.onnxruntime_cuda.convolutions import adds_biases, convolves_in_half
from unibrain_rt.engines.onnxruntime_cuda.device_rows import DeviceRow
from unibrain_rt.engines.onnxruntime_cuda.fused_kernels import kernels_in
from unibrain_rt.engines.onnxruntime_cuda.provider import (
    DEVICE,
    on_device,
    provider,
    reason,
    reported,
    to_device,
    to_host,
)
from unibrain_rt.engines.program import Progress

_log = logging.getLogger(__name__)

_NOT_CAPTURED = "-1"
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Launch:
    """What a run is bound to, and its options: ``queued`` does not wait for the device."""

    binding: Any
    waiting: Any
    queued: Any


class CudaSession(BufferedSession[Any]):
    """Buffers are OrtValues on the device."""

    def __init__(
        self,
        onnxruntime: Any,
        graph: GraphSpec,
        free: int,
        shared: Mapping[str, object],
        settle: Callable[[], None],
        *,
        graphs: bool,
        options: Mapping[str, str],
        profiles: Path | None = None,
    ) -> None:
        """
        Args:
            settle: waits until nothing runs on the device, so that a capture can begin.
            graphs: capture what is run.
            options: of the provider, instead of ours.
            profiles: a folder for the profile that `count_kernels` makes.

        Raises:
            EngineError: see `Engine.open`; or the device is out of memory.
        """
        self._onnxruntime, self.settle = onnxruntime, settle
        super().__init__(graph, free, shared)
        self._graphs, self._profiles = graphs, profiles
        self._instead = options
        self._ids = itertools.count(1)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix=f"cuda-{graph.name}")
        self._own: dict[int, Launch] = {}
        self._native = self._load()

    def in_thread(self, work: Callable[[], T]) -> Future[T]:
        """Have the session's own thread do it: what was captured can be replayed there alone."""
        return self._worker.submit(work)

    def _run_impl(self) -> None:
        if self._graphs and self.turn not in self._own:
            self.settle()
        self.in_thread(self._run_once).result()

    def prepare(self, turn: int, instead: Mapping[str, Any]) -> Launch:
        """Bind a run at a turn, with other places for some tensors, and capture it. In the session's own thread.

        ``instead`` are OrtValues or `DeviceRow`, by the tensor's name.

        It is run for that, as often as ONNX Runtime needs; what it writes is void.
        """
        if self._native is None:  # it could not be loaded anew, the last time
            self._native = self._load()
        launch = self._bind(turn, instead)
        if not self._graphs:
            return launch
        try:
            self._native.run_with_iobinding(launch.binding, launch.waiting)
            return launch
        except Exception as error:
            why = reason(error)
        del launch  # it holds the session, as the exception did
        self._without_graphs(why)
        return self._bind(turn, instead)

    def launch(self, launches: Sequence[Launch], progress: Progress | None = None) -> None:
        """Run all of them and wait for the last. In the session's own thread. Raises EngineError."""
        for place, launch in enumerate(launches):
            last = place == len(launches) - 1
            with reported(f"graph {self.graph.name}"):
                self._native.run_with_iobinding(launch.binding, launch.waiting if last else launch.queued)
            if progress is not None:
                progress(1)
        self.advance(len(launches))

    def count_kernels(self) -> Counter[str]:
        """Run once, not captured, to count what the provider runs as one kernel, by operator.

        Only of a session that was opened with ``profiles``, and only the operators in `fused_kernels.FUSED`.

        Raises:
            EngineError: it does not run, or its profile cannot be read.
        """
        options = self._run_options(_NOT_CAPTURED, wait=True)
        try:
            with reported(f"graph {self.graph.name}"):
                self._native.run_with_iobinding(self._binding(0, {}), options)
        finally:
            profile = Path(self._native.end_profiling())
        try:
            return kernels_in(profile)
        except (OSError, ValueError) as error:
            problem = f"onnxruntime's profile of it cannot be read ({error})"
            raise EngineError(f"graph {self.graph.name}: {problem}") from error

    @property
    def native(self) -> Any:
        """ONNX Runtime's session; another one after a capture was refused."""
        return self._native

    def _run_once(self) -> None:
        if self.turn not in self._own:
            self._own[self.turn] = self.prepare(self.turn, {})
        self.launch([self._own[self.turn]])

    def _load(self) -> Any:
        """ONNX Runtime's session."""
        if self._graphs:
            try:
                return self._load_with(graphs=True)
            except EngineError as error:
                why = str(error)
            native = self._load_with(graphs=False)
            # The file is sound, so it was the capture that was refused.
            self._graphs = False
            _log.warning("%s: runs without CUDA graphs (%s)", self.graph.name, why)
            return native
        return self._load_with(graphs=False)

    def _load_with(self, *, graphs: bool) -> Any:
        costs = self.graph.costs
        name, options = provider(
            graphs=graphs, half=convolves_in_half(costs), fuse_conv_bias=adds_biases(costs)
        )
        providers = [(name, {**options, **self._instead})]
        return load(self._onnxruntime, self.graph, self._options(graphs), providers, reason)

    def _without_graphs(self, why: str) -> None:
        """Begin again: a stream in which a capture broke is of no more use."""
        self._graphs = False
        # The old one first: both may not fit, and nobody can allocate while its stream believes that it captures.
        self._own, self._native = {}, None
        self._native = self._load()
        _log.warning("%s: runs without CUDA graphs (%s)", self.graph.name, why)

    def _options(self, graphs: bool) -> Any:
        options = self._onnxruntime.SessionOptions()
        options.log_severity_level = LOG_NOTHING
        # The host has little to do, and other sessions' threads need the cores to launch.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        # A pattern spares single runs the asking for memory, which a captured one does not do, and takes as much again
        # as they do that come before it is known: half of what graphs of the published size work with.
        options.enable_mem_pattern = not graphs
        if self._profiles is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(self._profiles / "profile")
        return options

    def _bind(self, turn: int, instead: Mapping[str, Any]) -> Launch:
        number = str(next(self._ids)) if self._graphs else _NOT_CAPTURED
        return Launch(
            self._binding(turn, instead),
            self._run_options(number, wait=True),
            self._run_options(number, wait=False),
        )

    def _binding(self, turn: int, instead: Mapping[str, Any]) -> Any:
        with reported(f"graph {self.graph.name}"):
            binding = self._native.io_binding()
            for specs, to_value, to_place in (
                (self.graph.inputs, binding.bind_ortvalue_input, binding.bind_input),
                (self.graph.outputs, binding.bind_ortvalue_output, binding.bind_output),
            ):
                for spec in specs:
                    value = instead[spec.name] if spec.name in instead else self.at(spec.name, turn)
                    if isinstance(value, DeviceRow):
                        to_place(spec.name, "cuda", DEVICE, value.dtype, value.shape, value.address)
                    else:
                        to_value(spec.name, value)
        return binding

    def _run_options(self, number: str, *, wait: bool) -> Any:
        options = self._onnxruntime.RunOptions()
        options.log_severity_level = LOG_NOTHING
        options.add_run_config_entry("gpu_graph_id", number)
        if not wait:
            options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        return options

    def _make(self, spec: TensorSpec) -> Any:
        zeros = np.zeros(spec.sized(self.free), spec.dtype)
        return on_device(self._onnxruntime, zeros, f"graph {self.graph.name}, {spec.name}")

    def _shape_and_type(self, buffer: Any) -> tuple[tuple[int, ...], object] | None:
        try:
            return tuple(buffer.shape()), ONNX_TYPES.get(buffer.data_type())
        except (AttributeError, TypeError):
            return None

    def _write_impl(self, name: str, value: Array) -> None:
        array = np.ascontiguousarray(value, dtype=self.graph.tensor(name).dtype)
        to_device(self.at(name, self.turn), array, f"graph {self.graph.name}, {name}")

    def _read_impl(self, name: str) -> Array:
        return to_host(self.result(name, self.turn), f"graph {self.graph.name}, {name}")
