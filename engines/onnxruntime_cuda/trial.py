"""A small run that takes what every decode takes: the provider's libraries, memory of the device, cuDNN, and a kernel
that was compiled for this GPU."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unibrain_rt.engines.engine_errors import EngineError
from unibrain_rt.engines.onnxruntime import LOG_NOTHING
from unibrain_rt.engines.onnxruntime_cuda.provider import (
    FULL,
    OUT_OF_MEMORY,
    PROVIDER,
    on_device,
    prepare,
    provider,
    reason,
)

GRAPH = Path(__file__).with_name("trial.onnx")
"""In fp32: the exponential of ``image`` (1, 8, 8, 8) convolved with ``weights`` (8, 8, 3, 3)."""
_LIBRARIES = 'run: pip install --upgrade "onnxruntime-gpu[cuda,cudnn]"'


@dataclass(frozen=True)
class Failure:
    """Why ONNX Runtime cannot run on the GPU, and what to do about it."""

    problem: str
    advice: str


@functools.cache
def failure(onnxruntime: Any) -> Failure | None:
    """What keeps the library from the GPU; None where it works. Tried once a process: it takes about a second."""
    missing = prepare(onnxruntime)
    try:
        _run(onnxruntime)
    except Exception as error:  # a probe tells, whatever is raised
        cause = error.__cause__ if isinstance(error, EngineError) else None
        why = missing[0] if missing else reason(cause if isinstance(cause, Exception) else error)
        if why == OUT_OF_MEMORY:
            return Failure(FULL, "close other programs that use it")
        return Failure(f"does not run here ({why})", _advice(why))
    return None


def _run(onnxruntime: Any) -> None:
    image, weights = np.ones((1, 8, 8, 8), np.float32), np.ones((8, 8, 3, 3), np.float32)
    on_device(onnxruntime, image, "a value")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = LOG_NOTHING
    session = onnxruntime.InferenceSession(
        str(GRAPH),
        sess_options=options,
        providers=[provider(graphs=False)],
        enable_fallback=0,
    )
    if PROVIDER not in session.get_providers():
        raise RuntimeError("its CUDA provider does not load")
    session.run(None, {"image": image, "weights": weights})


def _advice(why: str) -> str:
    if "driver version" in why:
        return "update NVIDIA's driver"
    if "kernel image" in why:
        return "this onnxruntime-gpu was not built for this GPU: use another engine"
    return _LIBRARIES
