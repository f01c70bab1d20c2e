"""What back ends that compute in the host's memory share: buffers that are numpy arrays, and checks of them."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np

from unibrain_rt.engines.base import Array, GraphSpec, Session, TensorSpec
from unibrain_rt.engines.engine_errors import EngineError

Ports = Mapping[str, tuple[str, Sequence[object]]]
"""Name -> numpy type and shape of a file's tensors; a size that is no int is a free axis."""
_LINE_CHARACTERS = 200


class HostSession(Session):
    """Buffers are numpy arrays bound once. Tensors that are fed back own two, which swap roles every run."""

    def __init__(self, graph: GraphSpec, free: int, shared: Mapping[str, object]) -> None:
        """Raises EngineError: a shared buffer does not fit its tensor."""
        super().__init__(graph, free)
        self._turn = 0
        self._turns = turns(graph)
        self._buffers: dict[str, Array] = {}
        for spec in (*graph.inputs, *graph.outputs):
            if spec.name in shared:
                self._buffers[spec.name] = _checked(shared[spec.name], spec, graph, free)
            else:
                self._buffers[spec.name] = np.zeros(spec.sized(free), dtype=spec.dtype)

    def rewind(self) -> None:
        self._turn = 0

    def run(self) -> None:
        self._run_impl(self._turn)
        self._turn = (self._turn + 1) % len(self._turns)

    def buffer(self, name: str) -> object:
        return self._buffers[self.graph.tensor(name).name]

    def _array(self, name: str, turn: int) -> Array:
        """What a tensor is bound to at a turn."""
        return self._buffers[self._turns[turn][name]]

    @abstractmethod
    def _run_impl(self, turn: int) -> None:
        """Run once on the buffers of ``turn``. Raises EngineError."""

    def _write_impl(self, name: str, value: Array) -> None:
        np.copyto(self._array(name, self._turn), value, casting="same_kind")

    def _read_impl(self, name: str) -> Array:
        # After a run the turn has moved on: what was an output's buffer is its input's now.
        name = self.graph.feedback.get(name, name)
        array: Array = self._array(name, self._turn).copy()
        return array


def turns(graph: GraphSpec) -> list[dict[str, str]]:
    """Whose buffer each tensor uses at each turn: two turns with feedback, else one.

    The odd turn reads where the even one wrote, and writes where it read.
    """
    even = {spec.name: spec.name for spec in (*graph.inputs, *graph.outputs)}
    odd = dict(even)
    for output, source in graph.feedback.items():
        odd[output], odd[source] = source, output
    return [even, odd] if graph.feedback else [even]


def check_tensors(graph: GraphSpec, inputs: Ports, outputs: Ports) -> None:
    """Compare the file's inputs and outputs with the manifest's; an axis may be free in one of them alone.

    Raises:
        EngineError: a tensor is missing, too many, or of another type or shape.
    """
    for kind, specs, have in (("input", graph.inputs, inputs), ("output", graph.outputs, outputs)):
        want = {spec.name: (spec.dtype, spec.shape) for spec in specs}
        odd = sorted(name for name in have.keys() | want.keys() if not _alike(have.get(name), want.get(name)))
        if odd:
            problem = f"{kind} {odd[0]!r} is not as the manifest says"
            raise EngineError(f"{graph.path.name}: {problem}; export the bundle again")


def usable_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def first_line(error: Exception) -> str:
    """What a library's exception says, as one line."""
    lines = str(error).strip().splitlines()
    return lines[0][:_LINE_CHARACTERS] if lines else type(error).__name__


def _checked(buffer: object, spec: TensorSpec, graph: GraphSpec, free: int) -> Array:
    if not isinstance(buffer, np.ndarray) or (buffer.shape, buffer.dtype) != (spec.sized(free), spec.dtype):
        raise EngineError(f"graph {graph.name}: the shared buffer of {spec.name} has another shape or type")
    array: Array = buffer
    return array


def _alike(have: tuple[str, Sequence[object]] | None, want: tuple[str, Sequence[object]] | None) -> bool:
    if have is None or want is None or have[0] != want[0] or len(have[1]) != len(want[1]):
        return False
    sizes = zip(have[1], want[1], strict=True)
    return all(a == b for a, b in sizes if isinstance(a, int) and isinstance(b, int))
