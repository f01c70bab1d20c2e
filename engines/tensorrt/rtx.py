"""TensorRT-RTX: for GeForce and RTX cards, compiled ahead also where there is none."""

from __future__ import annotations

from unibrain_rt.engines.base import Engine
from unibrain_rt.engines.catalogue import Probe, Settings
from unibrain_rt.engines.tensorrt.library import RTX, Library
from unibrain_rt.engines.tensorrt.tensorrt_engine import TensorRtEngine, probe_kind


def probe() -> Probe:
    """Whether TensorRT-RTX is here, and a GPU that it has kernels for."""
    return probe_kind(RTX)


def create(settings: Settings) -> Engine:
    """Raises EngineError where the library does not load. Without a GPU, it compiles for others."""
    return TensorRtEngine(Library(RTX), settings)
