"""What a decode asks of its engine, run by run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

from unibrain_rt.benchmarks.bench.thread_clock import Moment, ThreadClock
from unibrain_rt.engines import Engine


@dataclass(frozen=True)
class GraphRun:
    """One run of a graph on the host's time line."""

    graph: str
    begun: Moment
    ended: Moment


class Tap:
    """Notes when the sessions run that an engine opens from now on. What its device runs by itself is not seen."""

    def __init__(self, engine: Engine, clock: ThreadClock) -> None:
        self._clock = clock
        self.runs: list[GraphRun] = []
        engine.observe(self._noted)

    def take(self) -> dict[str, list[GraphRun]]:
        """The runs since the last time, by graph."""
        by_graph: dict[str, list[GraphRun]] = {}
        for run in self.runs:
            by_graph.setdefault(run.graph, []).append(run)
        self.runs = []
        return by_graph

    @contextmanager
    def _noted(self, graph: str) -> Iterator[None]:
        begun = self._clock.now()
        yield
        self.runs.append(GraphRun(graph, begun, self._clock.now()))


def spans(runs: list[GraphRun]) -> Iterator[float]:
    """Milliseconds from the end of a run to the next one's, the first from its own beginning: steps, or tokens."""
    if runs:
        yield runs[0].ended.milliseconds_since(runs[0].begun)
    for one, following in pairwise(runs):
        yield following.ended.milliseconds_since(one.ended)


def between(runs: list[GraphRun]) -> float:
    """Milliseconds between runs, when the engine does nothing and the host prepares the next; without the wait for a
    core."""
    return sum(following.begun.undisturbed_since(one.ended) for one, following in pairwise(runs))


def undisturbed(runs: list[GraphRun]) -> float:
    """Milliseconds from the first beginning to the last end, without the wait for a core."""
    return runs[-1].ended.undisturbed_since(runs[0].begun)
