"""Engines that compile ahead: which plan a graph takes, what is built when, and what is said where none is there."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unibrain_rt.engines import EngineError, GraphSpec, Session, Settings, TensorSpec
from unibrain_rt.engines.ahead import AheadEngine

WEIGHTS = "step.weights"


class CopyingEngine(AheadEngine):
    """Its plans are copies."""

    name = "copying"
    version = "1.0"
    here = "sm86"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.compiled: list[tuple[str, int, str | None]] = []

    def describe(self) -> dict[str, str | int]:
        return {}

    def _settings(self, graph: GraphSpec, free: int, target: str | None) -> Mapping[str, str]:
        return {"version": self.version, "target": target or self.here, "free": str(free)}

    def _compile(self, graph: GraphSpec, free: int, target: str | None, path: Path) -> None:
        assert not path.exists()
        self.compiled.append((graph.path.name, free, target))
        path.write_bytes(graph.path.read_bytes())

    def _open_impl(self, graph: GraphSpec, free: int, shared: Mapping[str, object]) -> Session:
        return PlanSession(graph, free, self.plan(graph, free))


class QuickEngine(CopyingEngine):
    quick = True


class PlanSession(Session):
    def __init__(self, graph: GraphSpec, free: int, plan: Path) -> None:
        super().__init__(graph, free)
        self.plan = plan

    def _run_impl(self) -> None: ...

    def buffer(self, name: str) -> object:
        return name

    def _write_impl(self, name: str, value: np.ndarray[Any, Any]) -> None: ...

    def _read_impl(self, name: str) -> np.ndarray[Any, Any]:
        return np.zeros(1)


@pytest.fixture
def graph(tmp_path: Path) -> GraphSpec:
    """With its weights and an fp32 twin, as a bundle describes it."""
    folder = tmp_path / "graphs"
    folder.mkdir()
    for name, content in (("step.onnx", f"reads {WEIGHTS}"), ("step.fp32.onnx", "twin"), (WEIGHTS, "1234")):
        (folder / name).write_text(content)
    return GraphSpec(
        "step",
        folder / "step.onnx",
        (TensorSpec("x", "float32", (1,)),),
        (TensorSpec("y", "float32", (1,)),),
        files={"step.onnx": "a" * 64, "step.fp32.onnx": "b" * 64, WEIGHTS: "c" * 64},
        fallback=folder / "step.fp32.onnx",
    )


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "plans"


@pytest.fixture
def engine(cache: Path) -> CopyingEngine:
    return CopyingEngine(Settings(cache=cache))


def twin(graph: GraphSpec) -> GraphSpec:
    assert graph.fallback is not None
    return replace(graph, path=graph.fallback, fallback=None)


def test_a_plan_is_built_once_for_each_target_and_size(engine: CopyingEngine, graph: GraphSpec) -> None:
    first = engine.build(graph)
    assert (first.graph, first.target, first.hit, first.reason) == ("step", None, False, "never built")
    assert first.path.read_bytes() == graph.path.read_bytes()
    assert first.size_bytes == graph.path.stat().st_size
    assert first.seconds > 0
    again = engine.build(graph)
    assert (again.hit, again.reason, again.path) == (True, None, first.path)
    other = engine.build(graph, 74, "sm89")
    assert (other.target, other.reason) == (
        "sm89",
        "built with free 1, not 74, built for sm86, not sm89",
    )
    assert engine.build(graph, 1, "sm86").hit, "which is the one here"
    assert engine.compiled == [("step.onnx", 1, None), ("step.onnx", 74, "sm89")]


def test_what_is_there_can_be_built_anew(engine: CopyingEngine, graph: GraphSpec) -> None:
    assert engine.build(graph, anew=True).reason == "never built"
    anew = engine.build(graph, anew=True)
    assert (anew.hit, anew.reason, len(engine.compiled)) == (False, "asked for", 2)


def test_opening_takes_the_plan_that_is_there(engine: CopyingEngine, graph: GraphSpec) -> None:
    built = engine.build(graph)
    session = engine.open(graph)
    assert isinstance(session, PlanSession)
    assert session.plan == built.path


def test_another_engines_flavour_changes_nothing(
    engine: CopyingEngine, graph: GraphSpec, tmp_path: Path
) -> None:
    """Neither the plan nor what is said of it: only fp32 forms want ``--fallbacks``."""
    flavours = {"other": tmp_path / "graphs" / "step.other.onnx"}
    files = {**graph.files, "step.other.onnx": "d" * 64}
    flavoured = replace(graph, files=files, flavours=flavours)
    assert engine.key(flavoured) == engine.key(graph)
    alone = {name: digest for name, digest in files.items() if name != "step.fp32.onnx"}
    with pytest.raises(EngineError, match="never built") as caught:
        engine.open(replace(flavoured, files=alone, fallback=None))
    assert "--fallbacks" not in str(caught.value)
    with pytest.raises(EngineError, match=r"\(never built\); run: .* --fallbacks"):
        engine.open(flavoured.in_fp32())


def test_opening_without_a_plan_says_what_to_run(engine: CopyingEngine, graph: GraphSpec) -> None:
    line = r"^step: no plan for copying \(never built\); run: unibrain-rt build BUNDLE --engine copying --cache .*plans$"
    with pytest.raises(EngineError, match=line):
        engine.open(graph)
    engine.build(graph)
    with pytest.raises(EngineError, match=r"\(never built\); run: .* --fallbacks"):
        engine.open(twin(graph))
    with pytest.raises(EngineError, match=r"\(built with free 1, not 2\)"):
        engine.open(graph, free=2)
    engine.version = "2.0"
    with pytest.raises(EngineError, match=r"\(built with copying 1.0, this is 2.0\)"):
        engine.open(graph)
    assert len(engine.compiled) == 1


def test_the_users_own_cache_is_not_named(graph: GraphSpec) -> None:
    with pytest.raises(EngineError, match="run: unibrain-rt build BUNDLE --engine copying$"):
        CopyingEngine(Settings()).open(graph)


def test_a_quick_engine_builds_when_a_graph_is_opened(
    cache: Path, graph: GraphSpec, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "unibrain_rt")
    engine = QuickEngine(Settings(cache=cache))
    assert engine.unready([(graph, 1)]) is None
    for _ in range(2):
        session = engine.open(graph)
    assert isinstance(session, PlanSession)
    assert session.plan.exists()
    assert caplog.messages == ["step: copying compiles it (never built)"]


def test_auto_is_told_of_plans_that_are_missing(engine: CopyingEngine, graph: GraphSpec) -> None:
    assert engine.unready([]) is None
    engine.build(graph)
    assert engine.unready([(graph, 1)]) is None
    reason = engine.unready([(graph, 1), (graph, 2)])
    assert reason is not None
    assert reason.startswith(
        "1 of 2 plans are missing (step: built with free 1, not 2); run: unibrain-rt build"
    )


def test_a_cache_that_cannot_be_read_keeps_auto_from_no_other_engine(cache: Path, graph: GraphSpec) -> None:
    cache.touch()
    reason = CopyingEngine(Settings(cache=cache)).unready([(graph, 1)])
    assert reason is not None
    assert "cannot be read (Not a directory); name another folder with --cache" in reason


# --- What a plan is made of ---------------------------------------------------------------------------------


def test_each_form_of_a_graph_has_its_own_file_and_the_weights(
    engine: CopyingEngine, graph: GraphSpec
) -> None:
    assert engine.key(graph).files == {"step.onnx": "a" * 64, WEIGHTS: "c" * 64}
    assert engine.key(twin(graph)).files == {"step.fp32.onnx": "b" * 64, WEIGHTS: "c" * 64}


def test_files_that_nobody_listed_are_read(engine: CopyingEngine, graph: GraphSpec) -> None:
    unlisted = replace(graph, files={})
    (graph.path.parent / "other.weights").write_text("of another graph")
    before = engine.key(unlisted)
    assert set(before.files) == {"step.onnx", WEIGHTS}
    engine.build(unlisted)
    (graph.path.parent / WEIGHTS).write_text("1235")
    after = engine.build(unlisted)
    assert (after.hit, after.reason) == (False, f"{WEIGHTS} has changed")
    assert engine.key(unlisted).digest != before.digest


def test_one_changed_byte_of_the_weights_is_a_miss_that_says_so(
    engine: CopyingEngine, graph: GraphSpec
) -> None:
    engine.build(graph)
    result = engine.build(replace(graph, files={**graph.files, WEIGHTS: "d" * 64}))
    assert (result.hit, result.reason) == (False, "step.weights has changed")


def test_a_graph_that_is_gone(engine: CopyingEngine, graph: GraphSpec) -> None:
    graph.path.unlink()
    with pytest.raises(
        EngineError, match=r"step\.onnx: the graph's file is missing; export the bundle again"
    ):
        engine.build(graph)


def test_a_graph_that_cannot_be_read(engine: CopyingEngine, graph: GraphSpec) -> None:
    graph.path.write_bytes(b"")
    with pytest.raises(
        EngineError, match=r"step\.onnx: the graph's files cannot be read .* export the bundle again"
    ):
        engine.build(replace(graph, files={}))
