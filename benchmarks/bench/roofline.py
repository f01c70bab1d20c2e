"""How long each stage takes at least on this device, and the share of that limit that it reaches.

The roofline of Williams et al. 2009 (doi 10.1145/1498765.1498785): a graph's run takes no less than its FLOPs at the
device's best rate of matrix products, nor than its bytes at the best rate of copies; the longer of the two is the
limit. A model that stays in the caches from one run to the next can be faster than the second: the phantom's do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from unibrain_rt.benchmarks.bench.decodes import GRAPHS, ONCE
from unibrain_rt.bundle import Bundle
from unibrain_rt.engines.graph_costs import GraphCosts
from unibrain_rt.graph_size import costs_of
from unibrain_rt.sessions import decode_graphs
from unibrain_rt.subject import Subject
from unibrain_rt.subject_files import TENSOR_FILE

RIDGE = "ridge"


@dataclass(frozen=True)
class StageWork:
    """What a stage does in one decode: ``runs`` runs of a graph."""

    stage: str
    graph: str
    runs: int
    work: GraphCosts

    def limit_ms(self, flops_per_s: float, bytes_per_s: float, bytes_per_number: int | None = None) -> float:
        """Milliseconds that all runs take at least; with ``bytes_per_number``, where numbers are as wide as that."""
        compute, memory = self._seconds(flops_per_s, bytes_per_s, bytes_per_number)
        return 1000 * self.runs * max(compute, memory)

    def bound(self, flops_per_s: float, bytes_per_s: float) -> str:
        """Which of the two is the limit: ``compute`` or ``memory``."""
        compute, memory = self._seconds(flops_per_s, bytes_per_s, None)
        return "compute" if compute >= memory else "memory"

    def _seconds(
        self, flops_per_s: float, bytes_per_s: float, bytes_per_number: int | None
    ) -> tuple[float, float]:
        size = self.work.bytes
        if bytes_per_number is not None:
            size = (self.work.weight_numbers + self.work.activation_numbers) * bytes_per_number
        return self.work.flops / flops_per_s, size / bytes_per_s


def stage_works(bundle: Bundle, preset: str, runs: Mapping[str, int], subject: str) -> list[StageWork]:
    """The work of every stage that a graph does, in order; ``runs`` of each are as a decode made them.

    Raises:
        BundleError: the bundle is too old to tell what its graphs cost.
    """
    works = []
    if subject in bundle.subjects:
        works.append(StageWork(RIDGE, TENSOR_FILE, 1, heads_work(bundle.subject(subject))))
    free = {graph.name: size for graph, size in decode_graphs(bundle, [preset])}
    for stage, graph in {**GRAPHS, ONCE: "unet_time"}.items():
        if stage in runs or stage == ONCE:
            work = costs_of(bundle, graph).sized(free[graph])
            works.append(StageWork(stage, graph, runs.get(stage, 1), work))
    return works


def heads_work(subject: Subject) -> GraphCosts:
    """Every number of a subject's factors is used once, in a product and an addition, as wide as it is stored."""
    size = sum(subject.size_bytes(head) for head in subject.heads)
    width = max(np.dtype(subject.storage(head)).itemsize for head in subject.heads)
    numbers = sum(
        subject.voxels * head.targets if head.rank is None else head.rank * (subject.voxels + head.targets)
        for head in subject.heads.values()
    )
    return GraphCosts(2 * numbers, numbers, 0, size, width)


def roofline(
    works: list[StageWork], stages: Mapping[str, Mapping[str, float]], peaks: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """By stage: work of a run, limit of all runs at ``peaks``, and its share of the stage's median."""
    rates = peaks["flops_per_s"], peaks["bytes_per_s"]
    limits: dict[str, dict[str, Any]] = {}
    for one in works:
        limit = one.limit_ms(*rates)
        limits[one.stage] = {
            "graph": one.graph,
            "runs": one.runs,
            "flops": one.work.flops,
            "weight_bytes": one.work.weight_bytes,
            "stored_bytes": one.work.stored_bytes,
            "activation_bytes": one.work.activation_bytes,
            "limit_ms": limit,
            "bound": one.bound(*rates),
            "share": limit / stages[one.stage]["p50"],
        }
    decode = [one for one in works if one.stage != ONCE]
    limit = sum(one.limit_ms(*rates) for one in decode)
    spent = sum(stages[one.stage]["p50"] for one in decode)
    limits["all"] = {"limit_ms": limit, "share": limit / spent}
    return limits
