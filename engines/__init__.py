"""Execution back ends behind one interface."""

from __future__ import annotations

from unibrain_rt.engines.base import Call, Engine, GraphSpec, Program, Progress, Session, TensorSpec
from unibrain_rt.engines.errors import EngineError, NotFiniteError

__all__ = [
    "ENGINES",
    "Call",
    "Engine",
    "EngineError",
    "GraphSpec",
    "NotFiniteError",
    "Program",
    "Progress",
    "Session",
    "TensorSpec",
    "create_engine",
]

ENGINES = ("onnxruntime",)


def create_engine(name: str = "auto", threads: int | None = None) -> Engine:
    """The back end called ``name``; ``auto`` is the fastest that works here.

    Raises:
        EngineError: an unknown name, or a back end that cannot be used here.
    """
    if name not in ("auto", *ENGINES):
        raise EngineError(f"unknown engine {name!r}; known are auto, {', '.join(ENGINES)}")
    from unibrain_rt.engines.onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(threads)
