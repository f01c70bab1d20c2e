"""A small run that takes what every decode takes: the provider's libraries, memory of the device, cuDNN, and a kernel
that was compiled for this GPU."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from unibrain_rt.engines.onnxruntime import LOG_NOTHING
from unibrain_rt.engines.onnxruntime_cuda.device import (
    FULL,
    OUT_OF_MEMORY,
    PROVIDER,
    on_device,
    prepare,
    provider,
    reason,
)

_FLOAT32 = 1
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
        why = missing[0] if missing else reason(error)
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
        convolution(image.shape, weights.shape),
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


def convolution(image: tuple[int, ...], weights: tuple[int, ...]) -> bytes:
    """An ONNX model in fp32: the exponential of ``image`` (N, C, H, W) convolved with ``weights`` (M, C, h, w)."""
    result = (image[0], weights[0], image[2] - weights[2] + 1, image[3] - weights[3] + 1)
    nodes = [_node("Conv", ["image", "weights"], "folded"), _node("Exp", ["folded"], "result")]
    tensors = [_tensor(11, "image", image), _tensor(11, "weights", weights), _tensor(12, "result", result)]
    graph = b"".join([*nodes, _field(2, b"trial"), *tensors])
    ir_version, opset = _number(1, 8), _field(8, _field(1, b"") + _number(2, 17))
    return ir_version + _field(7, graph) + opset


def _node(operator: str, inputs: list[str], output: str) -> bytes:
    names = b"".join(_field(1, name.encode()) for name in inputs)
    return _field(1, names + _field(2, output.encode()) + _field(4, operator.encode()))


def _tensor(number: int, name: str, sizes: tuple[int, ...]) -> bytes:
    shape = b"".join(_field(1, _number(1, size)) for size in sizes)
    return _field(
        number, _field(1, name.encode()) + _field(2, _field(1, _number(1, _FLOAT32) + _field(2, shape)))
    )


def _field(number: int, content: bytes) -> bytes:
    """Of a protobuf message: a text, or another message."""
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return bytes([number << 3]) + _varint(value)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])
