"""What back ends that compute in the host's memory share: buffers that are numpy arrays, and checks of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np

from unibrain_rt.engines.buffered_session import BufferedSession
from unibrain_rt.engines.engine_errors import EngineError
from unibrain_rt.engines.graph_spec import Array, GraphSpec, TensorSpec

Ports = Mapping[str, tuple[str, Sequence[object]]]
"""Name -> numpy type and shape of a file's tensors; a size that is no int is a free axis."""


class HostSession(BufferedSession[Array]):
    """Buffers are numpy arrays."""

    def _make(self, spec: TensorSpec) -> Array:
        return np.zeros(spec.sized(self.free), spec.dtype)

    def _shape_and_type(self, buffer: object) -> tuple[tuple[int, ...], object] | None:
        return (buffer.shape, buffer.dtype) if isinstance(buffer, np.ndarray) else None

    def _write_impl(self, name: str, value: Array) -> None:
        np.copyto(self.at(name, self.turn), value, casting="same_kind")

    def _read_impl(self, name: str) -> Array:
        return np.array(self.result(name, self.turn))


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


def _alike(have: tuple[str, Sequence[object]] | None, want: tuple[str, Sequence[object]] | None) -> bool:
    if have is None or want is None or have[0] != want[0] or len(have[1]) != len(want[1]):
        return False
    sizes = zip(have[1], want[1], strict=True)
    return all(a == b for a, b in sizes if isinstance(a, int) and isinstance(b, int))
