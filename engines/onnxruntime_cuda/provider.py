"""The GPU as ONNX Runtime sees it: its name, its provider's options, values in its memory, and what fails there."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any

import numpy as np

from unibrain_rt.engines.engine_errors import EngineError, first_line
from unibrain_rt.engines.graph_spec import Array
from unibrain_rt.engines.onnxruntime import LOG_NOTHING

PROVIDER = "CUDAExecutionProvider"
FULL = "the device is out of memory"
OUT_OF_MEMORY = f"{FULL}; close other programs, or decode with --low-memory"
DEVICE = 0
_NOT_ALLOCATED = re.compile(
    r"out of memory|failed to allocate memory|_ALLOC_FAILED|than requested bytes", re.I
)
_CAUSE = re.compile(r"\bCU\w+ failure \d+: [^;\n]*[^;\s]")
_CODE = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : ")
_PLACE = re.compile(r"/\S+\.\w+:\d+ [^()]*\([^()]*\) ?")
"""File, line and function that C++ puts before what it has to say."""


def prepare(onnxruntime: Any) -> list[str]:
    """Load CUDA's libraries from where pip put them, and let ONNX Runtime print nothing from now on.

    What goes wrong is raised as well. Returns what it said of libraries that are missing.
    """
    # Not only a session's own log: of a session without a plug-in, the default one is told so.
    onnxruntime.set_default_logger_severity(LOG_NOTHING)
    said = io.StringIO()
    with suppress(AttributeError), redirect_stdout(said), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        onnxruntime.preload_dlls()  # not in every version
    lines = [line.partition(": ") for line in said.getvalue().splitlines()]
    return [why for what, _, why in lines if what.startswith("Failed to load ")]


def on_device(onnxruntime: Any, array: Array, what: str) -> Any:
    """An OrtValue with a copy of ``array``, which is ``what`` in an error. Raises EngineError."""
    with reported(what):
        return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), "cuda", DEVICE)


def to_host(value: Any, what: str) -> Array:
    """A copy of an OrtValue, which is ``what`` in an error. Raises EngineError."""
    with reported(what):
        return np.array(value.numpy())


def to_device(value: Any, array: Array, what: str) -> None:
    """Write over an OrtValue, which is ``what`` in an error. Raises EngineError."""
    with reported(what):
        value.update_inplace(np.ascontiguousarray(array))


@contextmanager
def reported(what: str) -> Iterator[None]:
    """Whatever onnxruntime raises in here becomes an EngineError of one line that begins with ``what``."""
    try:
        yield
    except (EngineError, MemoryError):
        raise
    except Exception as error:  # it raises a dozen unrelated types
        why = reason(error)
        problem = why if why == OUT_OF_MEMORY else f"onnxruntime failed ({why})"
        raise EngineError(f"{what}: {problem}") from error


def reason(error: Exception) -> str:
    """What an exception of onnxruntime says, as one line without the places in C++ that it came through."""
    text = str(error)
    if _NOT_ALLOCATED.search(text):
        return OUT_OF_MEMORY
    if (cause := _CAUSE.search(text)) is not None:
        return cause[0]
    return first_line(Exception(_PLACE.sub("", _CODE.split(text)[-1])))


def provider(*, graphs: bool, half: bool = False, fuse_conv_bias: bool = False) -> tuple[str, dict[str, str]]:
    """Name and options.

    Args:
        graphs: capture what is run as CUDA graphs.
        half: the graph convolves in half precision; see `convolutions`.
        fuse_conv_bias: let cuDNN add biases within convolutions, which has to be sound; see `convolutions`.
    """
    options = {
        "device_id": str(DEVICE),
        "enable_cuda_graph": "1" if graphs else "0",
        # Named after fp32, this keeps every convolution off the tensor cores, those in half precision too.
        "use_tf32": "1" if half else "0",
        "fuse_conv_bias": "1" if fuse_conv_bias else "0",
        # Taken once: shapes do not change.
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "arena_extend_strategy": "kSameAsRequested",
        # Older versions sum what they normalise in the type that they read, unless told not to
        # (https://github.com/microsoft/onnxruntime/pull/28682).
        "enable_skip_layer_norm_strict_mode": "1",
    }
    return PROVIDER, options
