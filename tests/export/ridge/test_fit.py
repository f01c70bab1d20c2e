"""Ridge heads: equal to scikit-learn's, exact cross-validation, calibration, reduced rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unibrain_rt.errors import InputError
from unibrain_rt.export import ridge
from unibrain_rt.export.ridge import Basis, Folds, HeldOut, factorise, fit_heads, fit_ridge

Array = np.ndarray[Any, np.dtype[np.float64]]

ALPHAS = (0.1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5)


def problem(scans: int, voxels: int, targets: int, seed: int = 0, noise: float = 2.0) -> tuple[Array, Array]:
    """Voxels and targets that share a few latents, in units of their own, under noise."""
    world = np.random.default_rng(99)
    maps = [world.normal(size=(8, width)) * np.arange(1, 9)[:, None] ** -0.7 for width in (voxels, targets)]
    units = [(world.normal(size=width), world.uniform(0.2, 3, width)) for width in (voxels, targets)]
    rng = np.random.default_rng(seed)
    latents = rng.normal(size=(scans, 8))
    betas, wanted = (
        mean + unit * (latents @ weights + noise * rng.normal(size=(scans, weights.shape[1])))
        for weights, (mean, unit) in zip(maps, units, strict=True)
    )
    return betas, wanted


def z_scored(voxels: Array) -> Array:
    return (voxels - voxels.mean(axis=0)) / voxels.std(axis=0, ddof=1)


def solved(z: Array, targets: Array, alpha: float) -> tuple[Array, Array]:
    """Weights and intercept from the normal equations, intercept not penalised."""
    centred = z - z.mean(axis=0)
    gram = centred.T @ centred + alpha * np.eye(z.shape[1])
    weight = np.linalg.solve(gram, centred.T @ (targets - targets.mean(axis=0)))
    return weight, targets.mean(axis=0) - z.mean(axis=0) @ weight


def relative(found: Any, expected: Any) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


# --- the solution -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape", [(120, 40, 15), (40, 120, 15), (60, 60, 1)], ids=["primal", "dual", "square"]
)
@pytest.mark.parametrize("alpha", ALPHAS)
def test_equals_scikit_learn(shape: tuple[int, int, int], alpha: float) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    voxels, targets = problem(*shape)
    z = z_scored(voxels)
    theirs = linear_model.Ridge(alpha=alpha).fit(z, targets)
    ours = fit_ridge(voxels, targets, [alpha], folds=5)
    assert relative(ours.weight, theirs.coef_.reshape(-1, shape[1]).T) < 1e-4
    assert relative(z @ ours.weight + ours.bias, theirs.predict(z).reshape(targets.shape)) < 1e-4
    ours_dense = solved(z, targets, alpha)[0]
    assert relative(ours.weight, ours_dense) < 1e-4


@pytest.mark.parametrize("shape", [(90, 30, 12), (50, 130, 12)], ids=["primal", "dual"])
@pytest.mark.parametrize("alpha", [1.0, 100.0, 1e4])
def test_held_out_predictions_equal_refits(shape: tuple[int, int, int], alpha: float) -> None:
    voxels, targets = problem(*shape)
    basis, folds = Basis.of(voxels), Folds.of(len(voxels), 7, seed=3)
    y = (targets - targets.mean(axis=0))[folds.order]
    (held_out,) = HeldOut.of(basis, folds, [alpha])
    found = held_out.predict(y, held_out.scores.T @ y)
    z = z_scored(voxels)[folds.order]
    for fold in folds:
        rest = np.setdiff1d(np.arange(len(z)), np.arange(len(z))[fold])
        weight, bias = solved(z[rest], y[rest], alpha * 6 / 7)
        np.testing.assert_allclose(found[fold], z[fold] @ weight + bias, rtol=1e-8, atol=1e-8)


def test_basis_rebuilds_the_voxels() -> None:
    for shape in ((50, 20, 1), (20, 50, 1)):
        voxels, _ = problem(*shape)
        basis, z = Basis.of(voxels), z_scored(voxels)
        np.testing.assert_allclose(basis.z(voxels), z, atol=1e-10)
        np.testing.assert_allclose(basis.scores @ basis.axes.T, z, atol=1e-10)
        np.testing.assert_allclose(basis.root.T @ basis.root, z.T @ z, atol=1e-9)
        assert (basis.scans, basis.voxels) == shape[:2]


def test_one_factorisation_serves_all_heads_and_alphas(monkeypatch: pytest.MonkeyPatch) -> None:
    voxels, targets = problem(80, 30, 20)
    calls = []
    eigh = np.linalg.eigh
    monkeypatch.setattr(np.linalg, "eigh", lambda gram: calls.append(gram.shape) or eigh(gram))
    heads = {"a": targets[:, :12].reshape(80, 3, 4), "b": targets[:, 12:]}
    fits = fit_heads(voxels, heads, ALPHAS, 5, seed=1)
    assert calls == [(30, 30)]
    assert fits["a"].basis is fits["b"].basis
    assert (fits["a"].shape, fits["b"].shape) == ((3, 4), (8,))
    for name, fit in fits.items():
        alone = fit_ridge(voxels, heads[name], ALPHAS, 5, seed=1)
        assert alone.alpha == fit.alpha
        np.testing.assert_allclose(alone.weight, fit.weight, rtol=1e-6)
        np.testing.assert_allclose(alone.calibration, fit.calibration, rtol=1e-6)


def test_targets_come_in_blocks_from_half_precision_maps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    voxels, targets = problem(60, 20, 23)
    half = targets.astype(np.float16)
    np.save(tmp_path / "targets.npy", half)
    whole = fit_ridge(voxels, half.astype(np.float64), ALPHAS, 5)
    monkeypatch.setattr(ridge, "_BLOCK_BYTES", 4 * 8 * 60)
    blocks = fit_ridge(voxels, np.load(tmp_path / "targets.npy", mmap_mode="r"), ALPHAS, 5)
    assert blocks.alpha == whole.alpha
    for name in ("weight", "target_mean", "calibration", "held_out_correlation"):
        np.testing.assert_allclose(getattr(blocks, name), getattr(whole, name), rtol=1e-5, atol=1e-7)


# --- choosing alpha -----------------------------------------------------------------------------------------


def test_alpha_has_the_best_held_out_correlation() -> None:
    voxels, targets = problem(90, 40, 10)
    fit = fit_ridge(voxels, targets, ALPHAS, folds=5, seed=2)
    folds = Folds.of(90, 5, seed=2)
    z, y = z_scored(voxels)[folds.order], targets[folds.order]
    expected = []
    for alpha in ALPHAS:
        true, predicted = [], []
        for fold in folds:
            rest = np.setdiff1d(np.arange(90), np.arange(90)[fold])
            weight, bias = solved(z[rest], y[rest], 0.8 * alpha)
            for found, values in ((true, y[fold]), (predicted, z[fold] @ weight + bias)):
                found.append(values - values.mean(axis=0))
        a, b = np.concatenate(true), np.concatenate(predicted)
        expected.append(np.mean((a * b).sum(0) / np.sqrt((a * a).sum(0) * (b * b).sum(0))))
    np.testing.assert_allclose(fit.alpha_scores, expected, rtol=1e-7)
    assert fit.alphas == ALPHAS
    assert fit.alpha == ALPHAS[int(np.argmax(expected))]
    assert ALPHAS[0] < fit.alpha < ALPHAS[-1]
    assert fit.mean_correlation == pytest.approx(max(expected), rel=1e-6)
    tests, truth = problem(2000, 40, 10, seed=8)
    found = fit.predict(tests)
    fresh = np.mean([np.corrcoef(found[:, t], truth[:, t])[0, 1] for t in range(10)])
    assert fit.mean_correlation == pytest.approx(fresh, abs=0.1)


def test_useless_voxels_correlate_with_nothing() -> None:
    rng = np.random.default_rng(0)
    fit = fit_ridge(rng.normal(size=(300, 50)), rng.normal(size=(300, 200)), (1e2, 1e4, 1e6), folds=10)
    assert np.abs(fit.alpha_scores).max() < 0.02  # without centring within folds, -0.1 at 1e6
    assert np.isfinite(fit.calibration).all()


def test_folds_are_even_shuffled_and_seeded() -> None:
    folds = Folds.of(23, 5, seed=0)
    assert sorted(folds.order.tolist()) == list(range(23))
    assert sorted(fold.stop - fold.start for fold in folds) == [4, 4, 5, 5, 5]
    assert folds.order.tolist() == Folds.of(23, 5, seed=0).order.tolist()
    assert folds.order.tolist() != Folds.of(23, 5, seed=1).order.tolist()


def test_trials_of_one_stimulus_stay_in_one_fold() -> None:
    stimulus = np.random.default_rng(0).permutation(np.repeat(np.arange(20), 3))
    folds = Folds.of(60, 4, seed=0, groups=stimulus)
    seen = [set(stimulus[folds.order[fold]].tolist()) for fold in folds]
    assert sum(map(len, seen)) == 20
    assert set().union(*seen) == set(range(20))
    # Targets that are noise, once a stimulus: only a model that has seen the stimulus seems to predict them.
    rng = np.random.default_rng(1)
    voxels = np.repeat(rng.normal(size=(20, 30)), 3, axis=0) + 0.1 * rng.normal(size=(60, 30))
    targets = np.repeat(rng.normal(size=(20, 40)), 3, axis=0)
    names = np.repeat(np.arange(20), 3)
    assert fit_ridge(voxels, targets, [10.0], 4).mean_correlation > 0.5
    assert abs(fit_ridge(voxels, targets, [10.0], 4, groups=names).mean_correlation) < 0.15


# --- calibration --------------------------------------------------------------------------------------------


def test_calibrated_predictions_have_the_variance_of_the_targets() -> None:
    voxels, targets = problem(400, 60, 12)
    fit = fit_ridge(voxels, targets, ALPHAS, folds=5, seed=4)
    folds = Folds.of(400, 5, seed=4)
    y = (targets - targets.mean(axis=0))[folds.order]
    (held_out,) = HeldOut.of(fit.basis, folds, [fit.alpha])
    predicted = held_out.predict(y, held_out.scores.T @ y)
    assert (folds.centred(predicted).std(axis=0) < 0.95 * folds.centred(y).std(axis=0)).all()
    calibrated = folds.centred(predicted * fit.calibration)
    np.testing.assert_allclose(calibrated.std(axis=0), folds.centred(y).std(axis=0), rtol=1e-5)
    tests, truth = problem(2000, 60, 12, seed=9)
    found = fit.predict(tests)
    ratio = found.std(axis=0) / truth.std(axis=0)
    assert 0.93 < ratio.mean() < 1.07  # at the same alpha in folds, 1.13
    np.testing.assert_allclose(ratio, 1.0, atol=0.25)
    np.testing.assert_allclose(
        found.mean(axis=0), truth.mean(axis=0), atol=0.2 * float(truth.std(axis=0).max())
    )


def test_calibration_is_a_choice_of_each_head() -> None:
    voxels, targets = problem(80, 20, 6)
    heads = {"a": targets[:, :3], "b": targets[:, 3:]}
    fits = fit_heads(voxels, heads, ALPHAS, 5, calibration={"a": "none"})
    np.testing.assert_array_equal(fits["a"].calibration, 1.0)
    assert (fits["b"].calibration > 1.0).all()
    np.testing.assert_array_equal(fit_ridge(voxels, targets, ALPHAS, 5, calibration="none").calibration, 1.0)


def test_calibration_has_limits() -> None:
    voxels, targets = problem(80, 20, 6)
    high = fit_ridge(voxels, targets, [1e9], 5)
    np.testing.assert_array_equal(high.calibration, np.float32(ridge.CALIBRATION_RANGE[1]))
    rng = np.random.default_rng(0)
    wild = fit_ridge(rng.normal(size=(40, 400)) ** 3, 1e-3 * rng.normal(size=(40, 3)), [1e-3], 5)
    assert (wild.calibration >= np.float32(ridge.CALIBRATION_RANGE[0])).all()


# --- data as they come --------------------------------------------------------------------------------------


def test_constant_voxels_and_targets() -> None:
    voxels, targets = problem(60, 12, 6)
    voxels[:, 4] = 0.1
    targets[:, 2] = 3.3
    fit = fit_ridge(voxels, targets, ALPHAS, 5)
    assert fit.basis.voxel_std[4] == 0.0
    assert not fit.weight[4].any()
    assert not fit.weight[:, 2].any()
    assert (fit.target_mean[2], fit.calibration[2]) == (np.float32(3.3), 1.0)
    assert np.isnan(fit.held_out_correlation).tolist() == [False, False, True, False, False, False]
    assert np.isfinite(fit.mean_correlation)
    without = fit_ridge(np.delete(voxels, 4, axis=1), targets, ALPHAS, 5)
    np.testing.assert_allclose(np.delete(fit.weight, 4, axis=0), without.weight, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(fit.predict(voxels)[:, 2], 3.3, rtol=1e-6)
    nothing = fit_ridge(voxels, np.full((60, 2), 5.0), ALPHAS, 5)
    assert nothing.mean_correlation == 0.0
    np.testing.assert_array_equal(nothing.calibration, 1.0)


GOOD = problem(20, 5, 3)


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({"voxels": GOOD[0][:, 0]}, "shape (20,)"),
        ({"voxels": GOOD[0][:2]}, "shape (2, 5)"),
        ({"voxels": np.full((20, 5), np.nan)}, "not finite"),
        ({"voxels": np.ones((20, 5))}, "every voxel is constant"),
        ({"targets": GOOD[1][:19]}, "19 targets for 20 scans"),
        ({"targets": GOOD[1][:, 0]}, "float64 (20,)"),
        ({"targets": np.ones((20, 3), int)}, "int64"),
        ({"targets": np.ones((20, 0))}, "(20, 0)"),
        ({"targets": np.where(GOOD[1] > 0, np.inf, 0.0)}, "not finite"),
        ({"alphas": []}, "alphas ()"),
        ({"alphas": [1.0, 0.0]}, "alphas"),
        ({"alphas": [float("nan")]}, "alphas"),
        ({"voxels": problem(20, 50, 1)[0], "alphas": [1e-12]}, "too small"),
        ({"folds": 1}, "1 folds"),
        ({"folds": 11}, "11 folds"),
        ({"groups": np.arange(19)}, "groups have shape (19,)"),
        ({"groups": np.repeat([0, 1], 10), "folds": 3}, "of 2 stimuli"),
        ({"groups": np.r_[0, np.ones(19)], "folds": 2}, "a fold of 1 scan"),
        ({"calibration": "full"}, "calibration 'full'"),
    ],
)
def test_what_cannot_be_fitted_is_refused(changed: dict[str, Any], part: str) -> None:
    arguments: dict[str, Any] = {"voxels": GOOD[0], "targets": GOOD[1], "alphas": ALPHAS, "folds": 5}
    with pytest.raises(InputError) as caught:
        fit_ridge(**{**arguments, **changed})
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


# --- reduced rank -------------------------------------------------------------------------------------------


def kept(exact: Array, found: Array) -> float:
    return 1.0 - float(np.square(exact - found).sum() / np.square(exact).sum())


@pytest.mark.parametrize("shape", [(100, 40, 25), (100, 25, 40), (30, 60, 45)])
@pytest.mark.parametrize("fidelity", [0.9, 0.99, 0.9999])
def test_the_smallest_rank_that_keeps_the_fidelity(shape: tuple[int, int, int], fidelity: float) -> None:
    voxels, targets = problem(*shape)
    fit = fit_ridge(voxels, targets, [10.0], 5)
    z = fit.basis.z(voxels)
    exact = z @ fit.weight
    left, right = factorise(fit.weight, z, fidelity)
    rank = left.shape[1]
    assert (left.shape, right.shape) == ((shape[1], rank), (rank, shape[2]))
    assert kept(exact, z @ left @ right) >= fidelity - 1e-6
    if rank > 1:
        fewer = factorise(fit.weight, z, fidelity, max_rank=rank - 1)
        assert fewer[0].shape[1] == rank - 1
        assert kept(exact, z @ fewer[0] @ fewer[1]) < fidelity
    by_root = factorise(fit.weight, fit.basis.root, fidelity)
    np.testing.assert_allclose(by_root[0] @ by_root[1], left @ right, rtol=1e-3, atol=1e-5)


def test_rank_is_chosen_for_predictions_not_for_weights() -> None:
    voxels, targets = problem(200, 50, 40)
    fit = fit_ridge(voxels, targets, [1.0], 5)
    z = fit.basis.z(voxels)
    left, right = factorise(fit.weight, z, 1.0, max_rank=4)
    u, s, v = np.linalg.svd(fit.weight, full_matrices=False)
    exact = z @ fit.weight
    assert kept(exact, z @ left @ right) > kept(exact, z @ (u[:, :4] * s[:4]) @ v[:4]) + 0.02


def test_errors_count_in_the_units_of_target_scale() -> None:
    voxels, targets = problem(100, 30, 20)
    fit = fit_ridge(voxels, targets, [10.0], 5)
    z = fit.basis.z(voxels)
    scale = np.ones(20)
    scale[3] = 100.0
    plain, scaled = factorise(fit.weight, z, 1.0, 2), factorise(fit.weight, z, 1.0, 2, scale)
    exact = (z @ fit.weight)[:, 3]
    assert kept(exact, (z @ scaled[0] @ scaled[1])[:, 3]) > kept(exact, (z @ plain[0] @ plain[1])[:, 3])
    assert kept(exact, (z @ scaled[0] @ scaled[1])[:, 3]) > 0.999
    with pytest.raises(ValueError, match="target_scale"):
        factorise(fit.weight, z, target_scale=0.0 * scale)


def test_full_fidelity_and_empty_heads() -> None:
    voxels, targets = problem(60, 20, 30)
    fit = fit_ridge(voxels, targets, [10.0], 5)
    left, right = factorise(fit.weight, fit.basis.root, 1.0)
    assert left.shape[1] == 20
    np.testing.assert_allclose(left @ right, fit.weight, atol=1e-5)
    left, right = factorise(np.zeros((20, 30)), fit.basis.root)
    assert (left.shape, right.shape) == ((20, 1), (1, 30))
    assert not left.any()
    assert not right.any()
    for wrong in ({"fidelity": 0.0}, {"fidelity": 1.1}, {"max_rank": 0}):
        with pytest.raises(InputError):
            factorise(fit.weight, fit.basis.root, **wrong)


def test_factors_are_balanced_and_their_signs_fixed() -> None:
    voxels, targets = problem(60, 20, 30)
    fit = fit_ridge(voxels, 1e-4 * targets, [10.0], 5)
    z = fit.basis.z(voxels)
    left, right = factorise(fit.weight, z)
    np.testing.assert_allclose(np.abs(left).max(axis=0), np.abs(right).max(axis=1), rtol=1e-5)
    assert (left[np.abs(left).argmax(axis=0), np.arange(left.shape[1])] > 0).all()
    again = factorise(fit.weight, z)
    assert left.tobytes() == again[0].tobytes()
    assert right.tobytes() == again[1].tobytes()
    half = [factor.astype(np.float16).astype(np.float64) for factor in (left, right)]
    assert kept(z @ left @ right, z @ half[0] @ half[1]) > 1 - 1e-5
