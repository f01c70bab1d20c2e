"""Execution back ends behind one interface."""

from __future__ import annotations

from unibrain_rt.engines.base import Engine
from unibrain_rt.engines.catalogue import ENGINES, Probe, Settings, create_engine, probe
from unibrain_rt.engines.engine_errors import EngineError, NotFiniteError
from unibrain_rt.engines.graph_spec import GraphSpec, TensorSpec
from unibrain_rt.engines.program import Call, Program, Progress
from unibrain_rt.engines.repetition import Repetition
from unibrain_rt.engines.session import Session

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
    "Repetition",
    "Session",
    "Settings",
    "TensorSpec",
    "create_engine",
    "probe",
]
