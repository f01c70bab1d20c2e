"""Products of small integers with a matrix of int8, read where it lies, by ONNX Runtime's kernel on the CPU.

numpy has no such product: it would widen the matrix first, which takes several times as long as reading it. The
kernel multiplies pairs of bytes and adds up in int32, so that a product is exact, whatever the number of threads.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.engines.engine_errors import EngineError, first_line
from unibrain_rt.engines.host import usable_cores

MODEL = Path(__file__).with_name("integer_product.onnx")
"""One MatMulInteger of two matrices with free axes, and of `ZERO` on the left."""
ZERO = 64
"""What stands for 0 in the left matrix: it holds 0 to 127. Pairs of larger bytes times int8 would overflow the 16
bits that AVX2 adds them up in."""
MOST_ROWS = (2**31 - 1) // (ZERO * 128)
"""Of the right matrix: more could overflow int32."""

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
    return onnxruntime.InferenceSession(str(MODEL), options, providers=["CPUExecutionProvider"])
