"""Which back ends there are, which of them work here, and which one ``auto`` takes."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from unibrain_rt.engines.base import Engine
from unibrain_rt.engines.engine_errors import EngineError
from unibrain_rt.engines.graph_spec import GraphSpec
from unibrain_rt.engines.on_demand import OnDemandEngine

_log = logging.getLogger(__name__)

#: Fastest first: the order in which ``auto`` tries them, last resorts (`Probe`) apart. Each has `probe` and `create`.
MODULES = {
    "tensorrt": "unibrain_rt.engines.tensorrt.native",
    "tensorrt-rtx": "unibrain_rt.engines.tensorrt.rtx",
    "cuda": "unibrain_rt.engines.onnxruntime_cuda",
    "openvino": "unibrain_rt.engines.openvino",
    "onnxruntime": "unibrain_rt.engines.onnxruntime",
}
ENGINES = tuple(MODULES)
ENGINE_VARIABLE = "UNIBRAIN_RT_ENGINE"
"""Environment variable: the engine that ``auto`` means, whatever else would work."""


@dataclass(frozen=True)
class Probe:
    """Whether a back end can be used here. ``problem`` says why not, ``advice`` what to do about it.

    ``version`` is None where it is not installed; ``device`` is what it would run on. ``last_resort``: whatever else
    works here is as fast or faster, so ``auto`` tries that first.
    """

    engine: str
    version: str | None = None
    device: str | None = None
    problem: str | None = None
    advice: str | None = None
    last_resort: bool = False

    @property
    def usable(self) -> bool:
        return self.problem is None

    def __str__(self) -> str:
        """Why it cannot be used, in one line."""
        return "; ".join(part for part in (f"{self.engine}: {self.problem}", self.advice) if part)


@dataclass(frozen=True)
class Settings:
    """What an engine is made with.

    ``threads``: cores to use, by default all that this process may run on. ``cache``: folder of compiled plans, by
    default the user's. ``targets``: compute capabilities to build for, such as ``sm89``; by default that of the device
    here. ``capture``: whether a GPU's work is captured and replayed as a CUDA graph.
    """

    threads: int | None = None
    cache: Path | None = None
    targets: tuple[str, ...] = ()
    capture: bool = True


def probe(name: str) -> Probe:
    """Whether the back end called ``name`` works here. Raises EngineError for an unknown name."""
    state: Probe = _module(name).probe()
    return state


def create_engine(
    name: str = "auto",
    threads: int | None = None,
    *,
    cache: Path | None = None,
    targets: Sequence[str] = (),
    graphs: Sequence[tuple[GraphSpec, int]] = (),
    device_graphs: Sequence[tuple[GraphSpec, int]] = (),
    capture: bool = True,
    low_memory: bool = False,
) -> Engine:
    """The back end called ``name``; ``auto`` is the fastest that works here.

    Args:
        threads, cache, capture: see `Settings`.
        targets: see `Settings`. With any, a back end need only be installed: what it compiles, it does not run here.
        graphs: what will be opened, with the size of its free axes: ``auto`` passes over an engine that would have to
            compile them for minutes first.
        device_graphs: the same, of graphs that are opened on a device alone; with ``low_memory`` on none.
        low_memory: load a graph when it is run and let it go when its session rests; see `OnDemandEngine`.

    Raises:
        EngineError: an unknown name, or a back end that cannot be used here.
    """
    # A captured CUDA graph would go with the session that is let go after its stage, and be captured anew for every
    # scan. Even a loop gains nothing by it: each of its two turns is run plainly once, then captured and compared with
    # one more plain run, so that replays begin at the fifth step: of preset realtime, hardly any. And a step that is
    # large enough to be loaded by itself takes long beside the launches that a replay saves.
    capture = capture and not low_memory
    settings = Settings(threads, cache, tuple(targets), capture)
    if name == "auto":
        name = os.environ.get(ENGINE_VARIABLE) or name
    if name == "auto":
        engine = _fastest(settings, graphs, () if low_memory else device_graphs)
    else:
        state = probe(name)
        if not state.usable and not (targets and state.version is not None):
            raise EngineError(f"engine {state}")
        engine = _module(name).create(settings)
    _log.debug("engine %s", engine.name)
    return OnDemandEngine(engine) if low_memory else engine


def _fastest(
    settings: Settings,
    graphs: Sequence[tuple[GraphSpec, int]],
    device_graphs: Sequence[tuple[GraphSpec, int]],
) -> Engine:
    """The first back end that works here and need not compile the graphs. Raises EngineError where none does."""
    passed_over: list[Probe] = []
    for state in _in_turn():
        reason: str | None = None
        if state.usable:
            try:
                engine: Engine = _module(state.engine).create(settings)
                reason = engine.unready([*graphs, *(device_graphs if engine.on_device else ())])
            except EngineError as error:  # what a probe does not see is no reason to stop, either
                reason = str(error)
            if reason is None:
                engine.passed_over = tuple(passed_over)
                return engine
        passed_over.append(state if reason is None else replace(state, problem=reason))
    raise EngineError(f"no engine works here: {passed_over[-1]} (unibrain-rt doctor tells of the others)")


def _in_turn() -> Iterator[Probe]:
    """All back ends, the fastest here first. None is looked at, which may mean loading a library, before its turn."""
    last = []
    for name in ENGINES:
        state = probe(name)
        if state.last_resort:
            last.append(state)
        else:
            yield state
    yield from last


def _module(name: str) -> Any:
    if name not in MODULES:
        raise EngineError(f"unknown engine {name!r}; known are auto, {', '.join(ENGINES)}")
    return import_module(MODULES[name])
