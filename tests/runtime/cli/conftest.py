"""An engine that compiles ahead, without any library: its plans are copies, and ONNX Runtime runs them."""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from unibrain_rt.engines import EngineError, GraphSpec, Session, Settings, catalogue
from unibrain_rt.engines.ahead import AheadEngine
from unibrain_rt.engines.catalogue import Probe


class CopyingEngine(AheadEngine):
    name = "copying"
    version = "1.0"
    refused: str | None = None
    """Name of a graph that it cannot compile."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        from unibrain_rt.engines.onnxruntime import OnnxRuntimeEngine

        self._runs = OnnxRuntimeEngine(1)

    def describe(self) -> dict[str, str | int]:
        return {"engine": self.name, "version": self.version, "device": "copier"}

    def _settings(self, graph: GraphSpec, free: int, target: str | None) -> Mapping[str, str]:
        return {"version": self.version, "target": target or "sm86", "free": str(free)}

    def _compile(self, graph: GraphSpec, free: int, target: str | None, path: Path) -> None:
        if graph.name == self.refused:
            raise EngineError(f"{graph.name}: unknown operator Copy")
        path.write_bytes(graph.path.read_bytes())

    def _open_impl(self, graph: GraphSpec, free: int, shared: Mapping[str, object]) -> Session:
        assert self.plan(graph, free).read_bytes() == graph.path.read_bytes()
        return self._runs.open(replace(graph, path=graph.path), free=free, shared=shared)


@pytest.fixture
def copying(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The engine's class, registered before ONNX Runtime; attributes that are set on it last for a test."""
    pytest.importorskip("onnxruntime")
    made = type("CopyingEngine", (CopyingEngine,), {})
    found = Probe("copying", "1.0", "copier")
    module = types.SimpleNamespace(probe=lambda: module.found, create=made, found=found)
    made.module = module
    monkeypatch.setitem(sys.modules, "copying_back_end", module)
    monkeypatch.setitem(catalogue.MODULES, "copying", "copying_back_end")
    monkeypatch.setattr(catalogue, "ENGINES", ("copying", "onnxruntime"))
    return made


@pytest.fixture
def plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This test's own cache folder."""
    folder = tmp_path / "plans"
    monkeypatch.setenv("UNIBRAIN_RT_CACHE", str(folder))
    return folder
