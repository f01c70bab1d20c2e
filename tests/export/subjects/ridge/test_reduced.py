"""Reduced rank: the smallest that keeps what held-out predictions need, and how it is stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ridge_problem import Array, fit_ridge, problem, weight_of

from unibrain_rt.errors import InputError
from unibrain_rt.export.subjects.ridge.reduced import Reduced
from unibrain_rt.export.subjects.ridge.storage import ROUNDING, Storage, StoredFactors


def whole(reduced: Reduced) -> tuple[Array, Array]:
    return reduced.left, np.concatenate([block for _, block in reduced.right()], axis=1)


def kept(exact: Array, found: Array) -> float:
    return 1.0 - float(np.square(exact - found).sum() / np.square(exact).sum())


@pytest.mark.parametrize("shape", [(100, 40, 25), (100, 25, 40), (30, 60, 45)])
@pytest.mark.parametrize("fidelity", [0.9, 0.99])
def test_the_smallest_rank_that_keeps_the_fidelity(shape: tuple[int, int, int], fidelity: float) -> None:
    voxels, targets = problem(*shape)
    fit = fit_ridge(voxels, targets, [10.0])
    reduced = fit.reduced(fidelity)
    left, right = whole(reduced)
    assert (left.shape, right.shape) == ((shape[1], reduced.rank), (reduced.rank, shape[2]))
    # Calibrated, the right factor is a basis of the leading directions of the predictions.
    directions = right * fit.units / np.sqrt(shape[2])
    np.testing.assert_allclose(directions @ directions.T, np.eye(reduced.rank), atol=1e-6)
    predictions = fit.basis.z(voxels) @ weight_of(fit) * fit.units
    leading = np.linalg.svd(predictions, full_matrices=False)[2][: reduced.rank]
    np.testing.assert_allclose(np.abs(np.linalg.det(directions @ leading.T)), 1.0, atol=1e-4)
    if reduced.rank > 1:
        fewer = reduced.cut(reduced.rank - 1)
        assert fewer.rank == reduced.rank - 1
        assert fewer.kept < fidelity
        np.testing.assert_array_equal(whole(fewer)[0], left[:, :-1])
        np.testing.assert_allclose(whole(fewer)[1], right[:-1], rtol=1e-12)
    # And the factors are the weights, projected onto them.
    projected = (weight_of(fit) * fit.units) @ directions.T @ directions / fit.units
    np.testing.assert_allclose(left @ right, projected, rtol=1e-4, atol=1e-5)


def test_the_share_holds_for_scans_not_fitted_on() -> None:
    """Of the training scans' own predictions, the same rank keeps much more."""
    voxels, targets = problem(400, 150, 300, noise=4.0)
    fit = fit_ridge(voxels[:300], targets[:300], [100.0])
    reduced = fit.reduced(0.95)
    left, right = whole(reduced)
    fresh = problem(1000, 150, 300, seed=5, noise=4.0)[0]
    z = fit.basis.z(fresh)
    found = kept(z @ weight_of(fit) * fit.units, z @ left @ right * fit.units)
    assert reduced.kept >= 0.95
    assert found == pytest.approx(reduced.kept, abs=0.02)


def test_more_targets_than_scans_are_as_many_as_scans() -> None:
    """Copies add nothing: the Gram matrix's root finds what the targets themselves do."""
    voxels, targets = problem(100, 40, 25, noise=2.0)
    few, many = (fit_ridge(voxels, np.tile(targets, (1, copies)), [10.0]) for copies in (1, 8))
    (left, right), (same, copied) = (whole(fit.reduced(0.95)) for fit in (few, many))
    np.testing.assert_allclose(same @ copied, np.tile(left @ right, (1, 8)), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(few.reduced(0.95).shares, many.reduced(0.95).shares, rtol=1e-4)


def test_every_target_counts_the_same() -> None:
    voxels, targets = problem(100, 30, 20)
    fits = [fit_ridge(voxels, values, [10.0]) for values in (targets, targets * 10.0 ** np.arange(-10, 10))]
    (left, right), (same, scaled) = (whole(fit.reduced(0.9)) for fit in fits)
    np.testing.assert_allclose(
        same @ scaled, left @ right * 10.0 ** np.arange(-10, 10), rtol=1e-3, atol=1e-12
    )


def test_full_fidelity_and_empty_heads() -> None:
    voxels, targets = problem(60, 20, 30)
    fit = fit_ridge(voxels, targets, [10.0])
    left, right = whole(fit.reduced(1.0))
    assert 20 <= left.shape[1] <= 21
    np.testing.assert_allclose(left @ right, weight_of(fit), atol=1e-5)
    for count in (5, 100):  # fewer targets than scans, and more
        empty = fit_ridge(voxels, np.full((60, count), 3.0), [10.0]).reduced(0.9)
        assert empty.rank == 1
        assert empty.kept == 1.0
        assert not any(part.any() for part in whole(empty))
    for wrong in (0.0, 1.1):
        with pytest.raises(InputError, match="fidelity"):
            fit.reduced(wrong)


@pytest.mark.parametrize(
    ("storage", "units"), [("int8", 1e-4), ("int8", 1.0), ("int8", 1e4), ("float16", 1.0), ("float32", 1e4)]
)
def test_rounding_takes_little_whatever_the_units(storage: Storage, units: float) -> None:
    voxels, targets = problem(200, 60, 300)
    targets *= units * np.random.default_rng(3).lognormal(0, 1, 300)
    fit = fit_ridge(voxels, targets, [100.0])
    reduced = fit.reduced(0.999)
    stored = StoredFactors("a", reduced, storage, fit.some_z(64), fit.units)
    blocks = list(stored.right())

    def wide(values: Any, scale: Any) -> Array:
        return values.astype(np.float64) * (1.0 if scale is None else scale)

    right = np.concatenate([wide(values, scale) for _, values, scale in blocks], axis=1)
    assert {values.dtype for _, values, _ in blocks} == {np.dtype(storage)} == {stored.left.dtype}
    left = wide(stored.left, stored.left_scale)
    exact_left, exact_right = whole(reduced)
    z = fit.basis.z(voxels)
    exact, found = z @ exact_left @ exact_right, z @ left @ right
    assert 1 - kept(exact * fit.units, found * fit.units) <= ROUNDING[storage] + 1e-9
    assert reduced.kept - ROUNDING[storage] - 1e-9 <= stored.fidelity <= reduced.kept
    each = [np.corrcoef(exact[:, t], found[:, t])[0, 1] for t in range(300)]
    assert min(each) > 0.998, "of a target with small units, too"


def test_values_beyond_half_precision_are_refused() -> None:
    voxels, targets = problem(60, 20, 30)
    fit = fit_ridge(voxels, 1e12 * targets, [10.0])
    with pytest.raises(InputError, match=r"a: factors .* do not fit in float16: store float32"):
        list(StoredFactors("a", fit.reduced(0.99), "float16", fit.some_z(9), fit.units).right())
