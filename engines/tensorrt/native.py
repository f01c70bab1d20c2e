"""TensorRT: JetPack's, or the one for workstations and data centres."""

from __future__ import annotations

from unibrain_rt.engines.base import Engine
from unibrain_rt.engines.catalogue import Probe, Settings
from unibrain_rt.engines.tensorrt.library import NATIVE, Library
from unibrain_rt.engines.tensorrt.tensorrt_engine import TensorRtEngine, probe_kind


def probe() -> Probe:
    """Whether TensorRT is here, and a GPU."""
    return probe_kind(NATIVE)


def create(settings: Settings) -> Engine:
    """Raises EngineError where the library does not load."""
    return TensorRtEngine(Library(NATIVE), settings)
