"""From a graph's file to a compiled plan."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from unibrain_rt.engines.engine_errors import EngineError, first_line
from unibrain_rt.engines.graph_spec import GraphSpec
from unibrain_rt.engines.tensorrt.library import Library

_log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 5.0


def write_plan(
    library: Library,
    graph: GraphSpec,
    free: int,
    target: str | None,
    workspace_bytes: int,
    path: Path,
) -> None:
    """Compile a graph and write the plan to ``path``.

    How far it is, is logged every few seconds. The network is strongly typed: what is computed in which precision is
    the graph's own matter.

    Args:
        free: size of the free axes.
        target: compute capability to compile for, such as ``sm89``; by default that of the device here.
        workspace_bytes: scratch memory that the plan may take on the device.

    Raises:
        EngineError: the compiler does not take the graph, or fails.
    """
    trt, log = library.module, library.logger()
    try:
        builder = trt.Builder(log)
    except Exception as error:  # the bindings raise TypeError where the library gives nothing
        raise _failure(library, graph, log, error) from error
    network = builder.create_network(_network_flags(trt))
    # The parser has to outlive the build: the network's weights are its own.
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(graph.path)):
        raise EngineError(f"graph {graph.name}: {library.kind.title} cannot read it ({_complaint(parser)})")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    if target is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), 0)
    _fix_shapes(builder, network, config, graph, free)
    monitor = None
    if hasattr(trt, "IProgressMonitor"):
        monitor = _monitor(trt, graph.name)
        config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if monitor is not None and monitor.raised is not None:
        raise monitor.raised
    if plan is None:
        raise _failure(library, graph, log)
    with path.open("wb") as file:
        file.write(plan)


def _network_flags(trt: Any) -> int:
    """Strongly typed; where the library has no such flag any more, every network is."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _fix_shapes(builder: Any, network: Any, config: Any, graph: GraphSpec, free: int) -> None:
    """Let every free axis have one size: kernels are chosen for it."""
    profile = builder.create_optimization_profile()
    for place in range(network.num_inputs):
        tensor = network.get_input(place)
        if any(size < 0 for size in tuple(tensor.shape)):
            shape = graph.tensor(tensor.name).sized(free)
            profile.set_shape(tensor.name, shape, shape, shape)
    config.add_optimization_profile(profile)


def _complaint(parser: Any) -> str:
    """The parser's first error: at which operator, and what."""
    if not parser.num_errors:
        return "it does not say why"
    error = parser.get_error(0)
    operator, node = (getattr(error, name, str)() for name in ("node_operator", "node_name"))
    where = f"at {operator} {node}: " if operator else ""
    return where + first_line(error.desc())


def _failure(library: Library, graph: GraphSpec, log: Any, error: Exception | None = None) -> EngineError:
    why = log.problem or (first_line(error) if error is not None else "it does not say why")
    return EngineError(f"graph {graph.name}: {library.kind.title} cannot compile it ({why})")


def _monitor(trt: Any, graph: str) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """A line every few seconds, of the outermost phase. What a handler of it raises ends the build, and is kept."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.raised: BaseException | None = None
            self._steps: dict[str, int] = {}
            self._told = time.monotonic()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if not parent_phase:
                self._steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            now = time.monotonic()
            if phase_name in self._steps and now - self._told >= _SECONDS_BETWEEN_LINES:
                self._told = now
                percent = 100 * (step + 1) // max(self._steps[phase_name], 1)
                try:
                    _log.info("%s: %s %d %%", graph, phase_name, percent)
                except BaseException as error:  # nothing may be raised through the library
                    self.raised = error
            return self.raised is None

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

    return Monitor()
