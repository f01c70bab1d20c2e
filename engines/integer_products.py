"""Products of small integers with a matrix of int8, read where it lies, by ONNX Runtime's kernel on the CPU.

numpy has no such product: it would widen the matrix first, which takes several times as long as reading it. The
kernel multiplies pairs of bytes and adds up in int32, so that a product is exact, whatever the number of threads.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.engines.engine_errors import EngineError, first_line
from unibrain_rt.engines.host import usable_cores

ZERO = 64
"""What stands for 0 in the left matrix: it holds 0 to 127. Pairs of larger bytes times int8 would overflow the 16
bits that AVX2 adds them up in."""
MOST_ROWS = (2**31 - 1) // (ZERO * 128)
"""Of the right matrix: more could overflow int32."""

_UINT8, _INT8, _INT32 = 2, 3, 6  # TensorProto.DataType
_LOG_NOTHING = 4


def available() -> bool:
    """Whether ONNX Runtime is installed."""
    return _session() is not None


def multiply(left: NDArray[np.uint8], right: NDArray[np.int8]) -> NDArray[np.int32]:
    """``(left - ZERO) @ right`` (M, N) int32 of left (M, K), from 0 to 127, and right (K, N), both in C order.

    Raises EngineError: ONNX Runtime is not installed, or fails.
    """
    session = _session()
    if session is None:
        raise EngineError('onnxruntime is not installed; run: pip install "unibrain-rt[cpu]"')
    import onnxruntime

    result = np.empty((len(left), right.shape[1]), np.int32)
    binding = session.io_binding()
    for name, value in (("left", left), ("right", right)):
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(value))
    binding.bind_ortvalue_output("product", onnxruntime.OrtValue.ortvalue_from_numpy(result))
    try:
        session.run_with_iobinding(binding)
    except Exception as error:  # onnxruntime raises a dozen unrelated types
        raise EngineError(f"integer product: onnxruntime failed ({first_line(error)})") from error
    return result


@cache
def _session() -> Any:
    try:
        import onnxruntime
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    options.log_severity_level = _LOG_NOTHING
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(_model(), options, providers=["CPUExecutionProvider"])


def _model() -> bytes:
    """A graph of one MatMulInteger, in ONNX's wire format: the onnx package is none of the runtime's."""
    zero = _message((2, _UINT8), (8, "zero"), (9, bytes([ZERO])))
    node = _message(
        (1, "left"), (1, "right"), (1, "zero"), (2, "product"), (3, "product"), (4, "MatMulInteger")
    )
    ports = [(11, _port("left", _UINT8)), (11, _port("right", _INT8)), (12, _port("product", _INT32))]
    graph = _message((1, node), (2, "integer_product"), (5, zero), *ports)
    return _message((1, 8), (7, graph), (8, _message((2, 13))))  # IR version 8, opset 13


def _port(name: str, kind: int) -> bytes:
    """ValueInfoProto of a matrix with two free axes."""
    axes = _message(*((1, _message((2, f"{name}_{axis}"))) for axis in (0, 1)))
    return _message((1, name), (2, _message((1, _message((1, kind), (2, axes))))))


def _message(*fields: tuple[int, int | str | bytes]) -> bytes:
    """Fields by number, as protocol buffers are encoded."""
    encoded = b""
    for number, value in fields:
        if isinstance(value, int):
            encoded += _varint(number << 3) + _varint(value)
        else:
            content = value.encode() if isinstance(value, str) else value
            encoded += _varint(number << 3 | 2) + _varint(len(content)) + content
    return encoded


def _varint(value: int) -> bytes:
    low = [value >> shift & 127 for shift in range(0, max(1, value.bit_length()), 7)]
    return bytes([*(part | 128 for part in low[:-1]), low[-1]])
