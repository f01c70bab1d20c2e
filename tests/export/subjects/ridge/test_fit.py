"""Ridge heads: equal to scikit-learn's, exact held-out predictions, calibration, blocks from disk."""

from __future__ import annotations

import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ridge_problem import ALPHAS, fit_ridge, predicted, problem, relative, solved, weight_of, z_scored

from unibrain_rt.errors import InputError
from unibrain_rt.export.subjects.ridge import RidgeFit, fit_heads
from unibrain_rt.export.subjects.ridge import basis as basis_module
from unibrain_rt.export.subjects.ridge import fit as fit_module
from unibrain_rt.export.subjects.ridge import solution as solution_module
from unibrain_rt.export.subjects.ridge.basis import Basis
from unibrain_rt.export.subjects.ridge.held_out import Folds, HeldOut
from unibrain_rt.export.subjects.ridge.journal import Journal

# --- the solution -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape", [(120, 40, 15), (40, 120, 15), (60, 60, 1)], ids=["primal", "dual", "square"]
)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_equals_scikit_learn(shape: tuple[int, int, int], alpha: float, dtype: type) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    voxels, targets = problem(*shape)
    targets = targets.astype(dtype)
    z = z_scored(voxels)
    theirs = linear_model.Ridge(alpha=alpha).fit(z, targets.astype(np.float64))
    ours = fit_ridge(voxels, targets, [alpha])
    assert relative(weight_of(ours), theirs.coef_.reshape(-1, shape[1]).T) < 1e-4
    expected = theirs.predict(z).reshape(targets.shape)
    assert relative(z @ weight_of(ours) + ours.bias, expected) < 1e-4
    exact = ours.target_mean + (predicted(ours, voxels) - ours.target_mean) / ours.calibration
    assert relative(exact, expected) < 1e-4, "in the dual form, too"


@pytest.mark.parametrize("shape", [(90, 30, 12), (50, 130, 12)], ids=["primal", "dual"])
@pytest.mark.parametrize("alpha", [1.0, 100.0, 1e4])
@pytest.mark.parametrize("kind", ["each", "folds", "trials", "weights"])
def test_held_out_predictions_equal_refits(shape: tuple[int, int, int], alpha: float, kind: str) -> None:
    """By scikit-learn, on the scans that are left, less the mean of their targets."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    voxels, targets = problem(*shape)
    scans = len(voxels)
    weights = np.random.default_rng(0).integers(1, 4, scans) if kind == "weights" else None
    groups = np.random.default_rng(1).permutation(np.arange(scans) // 3) if kind == "trials" else None
    basis = Basis.factorise(voxels, weights)
    folds = Folds.of(scans, 7 if kind == "folds" else None, seed=3, groups=groups)
    held_out = HeldOut(basis, folds)
    w = (np.ones(scans) if weights is None else weights / weights.mean())[folds.order]
    root = np.sqrt(w)[:, None]
    z, y = basis.z(voxels)[folds.order], targets[folds.order]
    y = y - np.average(y, axis=0, weights=w)
    found = held_out.operator(alpha) @ (root * y)
    np.testing.assert_allclose(
        held_out.at(alpha).predict(root * y, held_out.scores.T @ (root * y)), found, atol=1e-10
    )
    for fold in folds:
        rest = np.setdiff1d(np.arange(scans), np.arange(scans)[fold])
        model = linear_model.Ridge(alpha=alpha * (1 - 1 / folds.count))
        expected = model.fit(z[rest], y[rest], sample_weight=w[rest]).predict(z[fold])
        expected = expected - np.average(y[rest], axis=0, weights=w[rest])
        np.testing.assert_allclose(found[fold], root[fold] * expected, rtol=1e-7, atol=1e-7)


def test_weights_stand_for_repeats() -> None:
    """Means over repeats, weighted by their numbers, fit as if each had been given as often as it was seen."""
    voxels, targets = problem(30, 12, 4)
    times = np.random.default_rng(2).integers(1, 4, 30)
    weighted = fit_ridge(voxels, targets, [10.0], weights=times)
    mean = np.average(voxels, axis=0, weights=times)
    std = np.sqrt(np.average(np.square(voxels - mean), axis=0, weights=times) * 30 / 29)
    z, share = (voxels - mean) / std, times / times.mean()
    y = targets - np.average(targets, axis=0, weights=times)
    expected = np.linalg.solve((z * share[:, None]).T @ z + 10 * np.eye(12), (z * share[:, None]).T @ y)
    np.testing.assert_allclose(weight_of(weighted), expected, rtol=1e-5)
    same = fit_ridge(voxels, targets, [10.0], weights=np.full(30, 2))
    np.testing.assert_array_equal(weight_of(same), weight_of(fit_ridge(voxels, targets, [10.0])))


def test_basis_rebuilds_the_voxels() -> None:
    for shape in ((50, 20, 1), (20, 50, 1)):
        voxels, _ = problem(*shape)
        basis, z = Basis.factorise(voxels), z_scored(voxels)
        np.testing.assert_allclose(basis.z(voxels), z, atol=1e-10)
        np.testing.assert_allclose(basis.scores @ basis.axes.T, z, atol=1e-10)
        assert (basis.scans, basis.voxels) == shape[:2]


def test_one_factorisation_serves_all_heads_and_alphas(monkeypatch: pytest.MonkeyPatch) -> None:
    voxels, targets = problem(80, 30, 20)
    calls = []
    eigh = basis_module.eigh
    monkeypatch.setattr(
        basis_module, "eigh", lambda gram, **options: calls.append(gram.shape) or eigh(gram, **options)
    )
    heads = {"a": targets[:, :12].reshape(80, 3, 4), "b": targets[:, 12:]}
    fits = fit_heads(voxels, heads, ALPHAS)
    assert calls == [(30, 30)]
    assert fits["a"].basis is fits["b"].basis
    assert (fits["a"].shape, fits["b"].shape) == ((3, 4), (8,))
    for name, fit in fits.items():
        alone = fit_ridge(voxels, heads[name], ALPHAS)
        assert alone.alpha == fit.alpha
        np.testing.assert_allclose(weight_of(alone), weight_of(fit), rtol=1e-6)
        np.testing.assert_allclose(alone.calibration, fit.calibration, rtol=1e-6)


# --- from disk, in blocks -----------------------------------------------------------------------------------


def arrays_of(fit: RidgeFit) -> list[np.ndarray]:
    return [weight_of(fit), fit.target_mean, fit.calibration, fit.held_out_correlation]


@pytest.mark.parametrize("shape", [(60, 20, 23), (20, 60, 23)])
def test_voxels_and_targets_come_in_blocks_from_half_precision_maps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int]
) -> None:
    voxels, targets = problem(*shape)
    np.save(tmp_path / "voxels.npy", voxels)
    half = targets.astype(np.float16)
    np.save(tmp_path / "targets.npy", half)
    whole = fit_ridge(voxels, half.astype(np.float64), ALPHAS)
    monkeypatch.setattr(solution_module, "_BLOCK_BYTES", 4 * 4 * 60)
    monkeypatch.setattr(basis_module, "_BLOCK_BYTES", 1)
    maps = [np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("voxels", "targets")]
    blocks = fit_ridge(*maps, ALPHAS)
    assert blocks.alpha == whole.alpha
    for in_blocks, at_once in zip(arrays_of(blocks), arrays_of(whole), strict=True):
        np.testing.assert_allclose(in_blocks, at_once, rtol=1e-4, atol=1e-5)


def test_memory_does_not_grow_with_the_number_of_targets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(solution_module, "_BLOCK_BYTES", 64 << 10)
    voxels, _ = problem(150, 40, 1)
    peaks = []
    for count in (4_000, 40_000):
        shape = (150, count)
        targets = np.lib.format.open_memmap(tmp_path / "targets.npy", "w+", np.float16, shape)
        targets[:] = np.random.default_rng(0).normal(size=shape)
        tracemalloc.start()
        fit = fit_ridge(voxels, targets, [10.0, 100.0])
        reduced = fit.reduced(0.9)
        for _ in reduced.right():
            pass
        peaks.append(tracemalloc.get_traced_memory()[1] - 12 * count)  # mean, calibration and correlation
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] < targets.nbytes


def test_a_killed_fit_goes_on_and_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # One head has fewer targets than there are scans, the other more.
    voxels, targets = problem(40, 60, 75)
    heads = {"a": targets[:, :30].astype(np.float32), "b": targets[:, 30:].astype(np.float32)}
    monkeypatch.setattr(solution_module, "_BLOCK_BYTES", 4 * 4 * 40)
    monkeypatch.setattr(Journal, "due", True)

    def run(journal: Journal, stop_after: int = 10**9) -> bytes:
        told = []

        def report(what: str) -> None:
            told.append(what)
            if len(told) >= stop_after:
                raise KeyboardInterrupt

        fits = fit_heads(voxels, heads, ALPHAS, journal=journal, report=report)
        found = [fit.reduced(0.99, journal, report) for fit in fits.values()]
        parts = [array for fit in fits.values() for array in arrays_of(fit)]
        parts += [part for each in found for part in (each.left, each.right_of)]
        run.told = len(told)  # type: ignore[attr-defined]
        return b"".join(part.tobytes() for part in parts)

    expected, steps = run(Journal()), run.told  # type: ignore[attr-defined]
    assert steps > 25
    for stop_after in (1, 2, 5, 12, 20, steps - 1):
        shutil.rmtree(tmp_path / "work", ignore_errors=True)
        with pytest.raises(KeyboardInterrupt):
            run(Journal(tmp_path / "work", {"fit": 1}), stop_after)
        assert run(Journal(tmp_path / "work", {"fit": 1})) == expected
        if stop_after > 2:
            assert run.told < steps - stop_after + 4  # type: ignore[attr-defined]


# --- choosing alpha -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("folds", [None, 5])
def test_alpha_has_the_best_held_out_correlation(folds: int | None) -> None:
    voxels, targets = problem(90, 40, 10)
    fit = fit_ridge(voxels, targets, ALPHAS, folds, seed=2)
    division = Folds.of(90, folds, seed=2)
    z, y = z_scored(voxels)[division.order], targets[division.order]
    expected = []
    for alpha in ALPHAS:
        guesses = np.empty_like(y)
        for fold in division:
            rest = np.setdiff1d(np.arange(90), np.arange(90)[fold])
            weight, bias = solved(z[rest], y[rest], (1 - 1 / division.count) * alpha)
            guesses[fold] = z[fold] @ weight + bias - y[rest].mean(axis=0)
        expected.append(np.mean([np.corrcoef(y[:, t], guesses[:, t])[0, 1] for t in range(10)]))
    np.testing.assert_allclose(fit.alpha_scores, expected, rtol=1e-7)
    assert fit.alphas == ALPHAS
    assert fit.alpha == ALPHAS[int(np.argmax(expected))]
    assert ALPHAS[0] < fit.alpha < ALPHAS[-1]
    assert fit.mean_correlation == pytest.approx(max(expected), rel=1e-6)
    tests, truth = problem(2000, 40, 10, seed=8)
    found = predicted(fit, tests)
    fresh = np.mean([np.corrcoef(found[:, t], truth[:, t])[0, 1] for t in range(10)])
    assert fit.mean_correlation == pytest.approx(fresh, abs=0.1)


def test_of_many_targets_a_sample_chooses_alpha(monkeypatch: pytest.MonkeyPatch) -> None:
    voxels, targets = problem(60, 20, 500)
    every = fit_ridge(voxels, targets, ALPHAS)
    monkeypatch.setattr(fit_module, "_SAMPLE", 128)
    sampled = fit_ridge(voxels, targets, ALPHAS)
    assert sampled.alpha_scores != every.alpha_scores
    np.testing.assert_allclose(sampled.alpha_scores, every.alpha_scores, atol=0.05)
    if sampled.alpha == every.alpha:
        np.testing.assert_array_equal(sampled.held_out_correlation, every.held_out_correlation)


@pytest.mark.parametrize("folds", [None, 10])
def test_useless_voxels_correlate_with_nothing(folds: int | None) -> None:
    rng = np.random.default_rng(0)
    fit = fit_ridge(rng.normal(size=(300, 50)), rng.normal(size=(300, 200)), (1e2, 1e4, 1e6), folds)
    assert np.abs(fit.alpha_scores).max() < 0.02  # with the models' own means, -1 at 1e6
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
    each = Folds.of(60, groups=stimulus)
    assert each.count == 20
    assert all(len(set(stimulus[each.order[fold]].tolist())) == 1 for fold in each)
    # Targets that are noise, once a stimulus: only a model that has seen the stimulus seems to predict them.
    rng = np.random.default_rng(1)
    voxels = np.repeat(rng.normal(size=(20, 30)), 3, axis=0) + 0.1 * rng.normal(size=(60, 30))
    targets = np.repeat(rng.normal(size=(20, 40)), 3, axis=0)
    names = np.repeat(np.arange(20), 3)
    assert fit_ridge(voxels, targets, [10.0]).mean_correlation > 0.5
    assert abs(fit_ridge(voxels, targets, [10.0], groups=names).mean_correlation) < 0.15


# --- calibration --------------------------------------------------------------------------------------------


def test_calibrated_predictions_have_the_variance_of_the_targets() -> None:
    voxels, targets = problem(400, 60, 12)
    fit = fit_ridge(voxels, targets, ALPHAS)
    y = targets - targets.mean(axis=0)
    guesses = fit.held_out.centred(fit.held_out.operator(fit.alpha) @ y)
    assert (guesses.std(axis=0) < 0.95 * y.std(axis=0)).all()
    np.testing.assert_allclose((guesses * fit.calibration).std(axis=0), y.std(axis=0), rtol=1e-5)
    tests, truth = problem(2000, 60, 12, seed=9)
    found = predicted(fit, tests)
    ratio = found.std(axis=0) / truth.std(axis=0)
    assert 0.93 < ratio.mean() < 1.07
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
    np.testing.assert_array_equal(high.calibration, np.float32(fit_module.CALIBRATION_RANGE[1]))
    rng = np.random.default_rng(0)
    wild = fit_ridge(rng.normal(size=(40, 400)) ** 3, 1e-3 * rng.normal(size=(40, 3)), [1e-3], 5)
    assert (wild.calibration >= np.float32(fit_module.CALIBRATION_RANGE[0])).all()


# --- data as they come --------------------------------------------------------------------------------------


def test_constant_voxels_and_targets() -> None:
    voxels, targets = problem(60, 12, 6)
    voxels[:, 4] = 0.1
    targets[:, 2] = 3.3
    fit = fit_ridge(voxels, targets, ALPHAS, 5)
    assert fit.basis.voxel_std[4] == 0.0
    assert not weight_of(fit)[4].any()
    assert not weight_of(fit)[:, 2].any()
    assert (fit.target_mean[2], fit.calibration[2]) == (np.float32(3.3), 1.0)
    assert np.isnan(fit.held_out_correlation).tolist() == [False, False, True, False, False, False]
    assert np.isfinite(fit.mean_correlation)
    without = fit_ridge(np.delete(voxels, 4, axis=1), targets, ALPHAS, 5)
    np.testing.assert_allclose(np.delete(weight_of(fit), 4, axis=0), weight_of(without), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(predicted(fit, voxels)[:, 2], 3.3, rtol=1e-6)
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
        ({"folds": 21}, "21 folds"),
        ({"groups": np.arange(19)}, "groups have shape (19,)"),
        ({"groups": np.repeat([0, 1], 10), "folds": 3}, "of 2 stimuli"),
        ({"groups": np.r_[0, np.ones(19)]}, "a fold leaves 1 scan"),
        ({"weights": np.ones(19)}, "weights of scans are (19,)"),
        ({"weights": np.zeros(20)}, "weights of scans"),
        ({"calibration": "full"}, "calibration 'full'"),
    ],
)
def test_what_cannot_be_fitted_is_refused(changed: dict[str, Any], part: str) -> None:
    arguments: dict[str, Any] = {"voxels": GOOD[0], "targets": GOOD[1], "alphas": ALPHAS}
    with pytest.raises(InputError) as caught:
        fit_ridge(**{**arguments, **changed})
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)
