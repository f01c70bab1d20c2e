"""The GPU as ONNX Runtime sees it: its name, its provider's options, and values in its memory."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from unibrain_rt.engines.base import Array

PROVIDER = "CUDAExecutionProvider"
_DEVICE = 0
_NAME_BYTES = 256


def device_name() -> str | None:
    """Of the first GPU, asked of the driver itself; None without one."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, name = ctypes.c_int(0), ctypes.create_string_buffer(_NAME_BYTES)
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), _DEVICE):
        return None
    if driver.cuDeviceGetName(name, len(name), device):
        return None
    return name.value.decode(errors="replace")


def on_device(onnxruntime: Any, array: Array) -> Any:
    """An OrtValue with a copy of ``array``."""
    return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), "cuda", _DEVICE)


def provider(*, graphs: bool) -> tuple[str, dict[str, str]]:
    """Name and options; ``graphs``: capture what is run as CUDA graphs."""
    options = {
        "device_id": str(_DEVICE),
        "enable_cuda_graph": "1" if graphs else "0",
        # What fp32 graphs promise; those in fp16 say so themselves.
        "use_tf32": "0",
        # Taken once: shapes do not change.
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "arena_extend_strategy": "kSameAsRequested",
    }
    return PROVIDER, options
