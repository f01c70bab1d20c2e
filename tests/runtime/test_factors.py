"""Products with stored factors: right in every type and in both ways, and the same for a scan in any company."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from unibrain_rt import factors
from unibrain_rt.engines import integer_products
from unibrain_rt.factors import Factor, products

WAYS = ("integers", "widened")


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every int8 factor goes this way, whatever its size."""
    if request.param == "integers":
        monkeypatch.setattr(factors, "_INTEGERS_FROM", 0)
    else:
        monkeypatch.setattr(integer_products, "available", lambda: False)
    return str(request.param)


def factor(dtype: str, rows: int, columns: int, seed: int = 0) -> Factor:
    rng = np.random.default_rng(seed)
    if dtype == "int8":
        values: Any = rng.integers(-127, 128, (rows, columns)).astype(np.int8)
        return Factor(values, rng.uniform(0.001, 10.0, columns).astype(np.float32))
    return Factor(rng.standard_normal((rows, columns)).astype(dtype))


def exact(rows: np.ndarray[Any, Any], of: Factor) -> np.ndarray[Any, Any]:
    wide = of.values.astype(np.float64) * (1.0 if of.scale is None else of.scale.astype(np.float64))
    return rows.astype(np.float64) @ wide


@pytest.mark.parametrize("dtype", ["int8", "float16", "float32"])
@pytest.mark.parametrize("shape", [(1, 1), (700, 9001), (3000, 40)])
def test_products_are_those_of_the_wide_matrix(way: str, dtype: str, shape: tuple[int, int]) -> None:
    of = factor(dtype, *shape)
    rows = np.random.default_rng(1).standard_normal((3, shape[0]), np.float32)
    (found,) = products([rows], [of])
    expected = exact(rows, of)
    assert found.dtype == np.float32
    spread = np.sqrt(exact(np.ones((1, shape[0])), Factor(np.square(exact(np.eye(shape[0]), of)))))
    np.testing.assert_allclose(found / spread, expected / spread, atol=1e-5)


def test_rows_of_any_size_keep_their_precision(way: str) -> None:
    of = factor("int8", 300, 50)
    base = np.random.default_rng(2).standard_normal((1, 300)).astype(np.float32)
    rows = np.concatenate([base * np.float32(size) for size in (1e-20, 1e-3, 1.0, 1e6, 1e20)])
    (found,) = products([rows], [of])
    expected = exact(rows, of)
    assert (np.abs(found - expected).max(axis=1) <= 3e-6 * np.abs(expected).max(axis=1)).all()


def test_a_scan_is_the_same_in_any_company(way: str) -> None:
    rng = np.random.default_rng(3)
    given = [factor("int8", 500, 9000), factor("int8", 500, 70, seed=1)]
    rows = rng.standard_normal((37, 500), np.float32) * rng.uniform(0.1, 10, (37, 1)).astype(np.float32)
    together = products([rows, rows], given)
    for number in (0, 15, 16, 36):
        alone = products([rows[number : number + 1]] * 2, given)
        for one, many in zip(alone, together, strict=True):
            np.testing.assert_array_equal(one[0], many[number])


def test_zeros_stay_zeros_and_what_is_not_finite_stays_so(way: str) -> None:
    rows = np.zeros((3, 20), np.float32)
    rows[1, 4] = np.inf
    rows[2] = 1.0
    (found,) = products([rows], [factor("int8", 20, 8)])
    assert (found[0] == 0.0).all()
    assert not np.isfinite(found[1]).any()
    assert np.isfinite(found[2]).all()


def test_what_integers_cannot_hold_is_widened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factors, "_INTEGERS_FROM", 0)
    monkeypatch.setattr(integer_products, "MOST_ROWS", 10)
    of, rows = factor("int8", 11, 4), np.ones((1, 11), np.float32)
    np.testing.assert_allclose(products([rows], [of])[0], exact(rows, of), rtol=1e-5)


def test_the_matrix_is_not_copied() -> None:
    """Neither in its own type nor wider: the products' memory stays far below the matrix' size."""
    import tracemalloc

    of = factor("int8", 2000, 20_000)
    rows = np.ones((1, 2000), np.float32)
    products([rows], [of])
    tracemalloc.start()
    products([rows], [of])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < of.values.nbytes / 4
