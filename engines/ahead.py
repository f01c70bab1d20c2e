"""Back ends that compile a graph before they run it: what they share is the cache of plans."""

from __future__ import annotations

import logging
import mmap
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from unibrain_rt.engines.base import Engine
from unibrain_rt.engines.catalogue import Settings
from unibrain_rt.engines.engine_errors import EngineError
from unibrain_rt.engines.file_digest import file_sha256
from unibrain_rt.engines.graph_spec import GraphSpec
from unibrain_rt.engines.plans import PlanCache, PlanKey

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildResult:
    """What became of a graph: its plan, whether that was there already, or else why it was not and how long it took.

    ``reason`` is None for a hit.
    """

    graph: str
    target: str | None
    hit: bool
    reason: str | None
    seconds: float
    size_bytes: int
    path: Path


class AheadEngine(Engine):
    """An engine that opens compiled plans. A back end gives the two hooks, and takes the file from ``plan``.

    ``quick``: it compiles within seconds, so that a plan that is missing when a graph is opened is built then.
    """

    quick = False

    def __init__(self, settings: Settings) -> None:
        """Raises EngineError: there is no folder for plans; see `PlanCache`."""
        self.cache = PlanCache(settings.cache)
        self._named_cache = settings.cache

    def key(self, graph: GraphSpec, free: int = 1, target: str | None = None) -> PlanKey:
        """What the plan of a graph depends on, for the device here or for ``target``. Raises EngineError."""
        return PlanKey(self.name, graph.name, _files(graph), dict(self._settings(graph, free, target)))

    def plan(self, graph: GraphSpec, free: int = 1) -> Path:
        """The plan's file, to open it here; built now if it is missing and the back end is quick.

        Raises:
            EngineError: it is missing and takes long to build, or cannot be built.
        """
        if self.quick:
            return self.build(graph, free).path
        key = self.key(graph, free)
        plan = self.cache.find(key)
        if plan is None:
            why = self.cache.why_missing(key)
            raise EngineError(f"{graph.name}: no plan for {self.name} ({why}); {self._advice([graph])}")
        return plan

    def build(
        self, graph: GraphSpec, free: int = 1, target: str | None = None, *, anew: bool = False
    ) -> BuildResult:
        """Compile a graph into the cache, unless it is there.

        Args:
            target: what to compile for, such as ``sm89``; by default the device here.
            anew: compile it even if it is there.

        Raises:
            EngineError: the back end cannot compile it, or the cache cannot be written.
        """
        begun = time.perf_counter()
        key = self.key(graph, free, target)
        plan, hit, reason = self.cache.find(key), True, None
        if plan is None or anew:
            reason = self.cache.why_missing(key) if plan is None else "asked for"

            def make(path: Path) -> None:
                where = f" for {target}" if target else ""
                _log.info("%s: %s compiles it%s (%s)", graph.name, self.name, where, reason)
                self._compile(graph, free, target, path)

            plan, built = self.cache.build(key, make, anew=anew)
            hit = not built
        seconds = time.perf_counter() - begun
        size_bytes = plan.stat().st_size
        return BuildResult(graph.name, target, hit, None if hit else reason, seconds, size_bytes, plan)

    def unready(self, graphs: Sequence[tuple[GraphSpec, int]]) -> str | None:
        if self.quick:
            return None
        try:
            keys = [self.key(graph, free) for graph, free in graphs]
            missing = [key for key in keys if self.cache.find(key) is None]
            if not missing:
                return None
            why = self.cache.why_missing(missing[0])
        except EngineError as error:  # no reason to keep ``auto`` from the next engine
            return str(error)
        count = f"{len(missing)} of {len(keys)} plans are missing"
        return f"{count} ({missing[0].graph}: {why}); {self._advice([graph for graph, _ in graphs])}"

    def _advice(self, graphs: Sequence[GraphSpec]) -> str:
        words = f"run: unibrain-rt build BUNDLE --engine {self.name}"
        if any(_is_fallback(graph) for graph in graphs):
            words += " --fallbacks"
        return words if self._named_cache is None else f"{words} --cache {self._named_cache}"

    @abstractmethod
    def _settings(self, graph: GraphSpec, free: int, target: str | None) -> Mapping[str, str]:
        """All besides the graph's files that changes the plan: ``version``, ``target``, precision, shapes, ….

        ``target`` is None for the device here. Raises EngineError if there is none, or no compiling for that target.
        """

    @abstractmethod
    def _compile(self, graph: GraphSpec, free: int, target: str | None, path: Path) -> None:
        """Write the plan to ``path``, a name of a file that is not there.

        Raises:
            EngineError: the graph cannot be compiled.
        """


def _files(graph: GraphSpec) -> dict[str, str]:
    """SHA-256 of the graph's file and of its weights, by file name."""
    if not graph.path.is_file():
        raise EngineError(f"{graph.path.name}: the graph's file is missing; export the bundle again")
    if graph.path.name in graph.files:
        # All forms of a graph are listed, and only one of them is compiled.
        own = {graph.path.name: graph.files[graph.path.name]}
        return own | {name: digest for name, digest in graph.files.items() if not name.endswith(".onnx")}
    try:
        beside = [path for path in graph.path.parent.iterdir() if path.is_file() and path.suffix != ".onnx"]
        with graph.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            named = [path for path in beside if content.find(path.name.encode()) >= 0]
        return {path.name: file_sha256(path) for path in (graph.path, *sorted(named))}
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        problem = f"the graph's files cannot be read ({error})"
        raise EngineError(f"{graph.path.name}: {problem}; export the bundle again") from error


def _is_fallback(graph: GraphSpec) -> bool:
    """Whether this is the fp32 form of a graph: the other one's file is listed, too."""
    graphs = {name for name in graph.files if name.endswith(".onnx")}
    own = {path.name for path in (graph.path, *graph.flavours.values())}
    return graph.fallback is None and bool(graphs - own)
