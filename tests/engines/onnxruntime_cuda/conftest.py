"""The engine on a stand-in for ONNX Runtime, whose GPU is the CPU."""

from __future__ import annotations

import importlib
from typing import Any

import pytest


class Device:
    """An engine on the stand-in, and what it told."""

    def __init__(self, refuses: str | None = None, graphs: bool = True) -> None:
        pytest.importorskip("onnxruntime")
        from unibrain_rt.engines import Settings
        from unibrain_rt.engines.onnxruntime_cuda import CudaEngine

        standin = importlib.import_module("cuda_as_cpu")
        self.library: Any = standin.Library(refuses)
        self.told: list[str] = importlib.import_module("log_lines").LogLines()
        self.engine = CudaEngine(Settings(capture=graphs), onnxruntime=self.library)

    def kinds(self) -> list[tuple[str, str]]:
        """What was run since the last time one asked, and how."""
        found = [(name, kind) for name, kind, _, _ in self.library.runs]
        self.library.runs.clear()
        return found


@pytest.fixture(params=["captured", "eager", "refused loading", "refused capturing"])
def device(request: pytest.FixtureRequest) -> Device:
    """With graphs, without, and where the library refuses them."""
    refuses = request.param.partition(" ")[2] or None
    return Device(refuses, graphs=request.param != "eager")


@pytest.fixture
def capturing() -> Device:
    return Device()


@pytest.fixture
def make_device() -> type[Device]:
    return Device
