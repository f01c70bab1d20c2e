"""The integer kernel: exact on every shape and at the ends of the ranges, and a graph that ONNX itself accepts."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from unibrain_rt.engines import integer_products
from unibrain_rt.engines.engine_errors import EngineError


@pytest.mark.parametrize(("many", "length", "width"), [(1, 1, 1), (3, 1000, 33), (48, 700, 70), (2, 3, 5000)])
def test_products_are_exact(many: int, length: int, width: int) -> None:
    rng = np.random.default_rng(0)
    left = rng.integers(0, 128, (many, length), dtype=np.uint8)
    right = rng.integers(-128, 128, (length, width)).astype(np.int8)
    right.flags.writeable = False  # as what is mapped from a file
    expected = (left.astype(np.int64) - integer_products.ZERO) @ right.astype(np.int64)
    np.testing.assert_array_equal(integer_products.multiply(left, right), expected)


@pytest.mark.parametrize("left", [0, 127])
@pytest.mark.parametrize("right", [-128, 127])
def test_the_largest_sums_do_not_overflow(left: int, right: int) -> None:
    """Kernels without instructions for it add up pairs in 16 bits, and saturate."""
    length = integer_products.MOST_ROWS
    found = integer_products.multiply(
        np.full((1, length), left, np.uint8), np.full((length, 16), right, np.int8)
    )
    assert np.unique(found).tolist() == [(left - integer_products.ZERO) * right * length]


def test_the_graph_is_valid_onnx() -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(integer_products.MODEL)
    onnx.checker.check_model(model, full_check=True)
    (zero,) = model.graph.initializer
    assert onnx.numpy_helper.to_array(zero) == integer_products.ZERO
    assert [node.op_type for node in model.graph.node] == ["MatMulInteger"]


def test_without_onnxruntime_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    integer_products._session.cache_clear()
    try:
        assert not integer_products.available()
        with pytest.raises(EngineError, match="pip install"):
            integer_products.multiply(np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.int8))
    finally:
        integer_products._session.cache_clear()
