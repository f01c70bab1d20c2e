"""Execution back ends behind one interface."""

from __future__ import annotations

from unibrain_rt.engines.base import Call, Engine, GraphSpec, Program, Progress, Session, TensorSpec
from unibrain_rt.engines.catalogue import ENGINES, Probe, Settings, create_engine, probe
from unibrain_rt.engines.engine_errors import EngineError, NotFiniteError

__all__ = [
    "ENGINES",
    "Call",
    "Engine",
    "EngineError",
    "GraphSpec",
    "NotFiniteError",
    "Probe",
    "Program",
    "Progress",
    "Session",
    "Settings",
    "TensorSpec",
    "create_engine",
    "probe",
]
