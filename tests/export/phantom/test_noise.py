"""Noise: as strong as NSD's, and shared between voxels in part."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from unibrain_rt.export.phantom import noise
from unibrain_rt.export.phantom.cortex import EARLY, Cortex


def three_trials(single: NDArray[np.float32]) -> NDArray[np.float32]:
    """Noise ceiling of the average of three trials."""
    return single / (single + (1 - single) / 3)


@pytest.mark.parametrize("seed", range(4))
def test_ceilings_are_like_those_of_nsd(seed: int, cortex: Cortex) -> None:
    single = noise.ceilings(np.random.default_rng(seed), cortex.region, quality=1.0)
    three = three_trials(single)
    assert single.dtype == np.float32
    assert 0.25 < np.median(three) < 0.36
    assert 0.58 < np.percentile(three[np.isin(cortex.region, EARLY)], 95) < 0.73
    assert three.max() < 0.75
    np.testing.assert_array_equal(single[cortex.region == ""], 0.0)


def test_quality_scales_the_ceilings(cortex: Cortex) -> None:
    good, poor = (noise.ceilings(np.random.default_rng(1), cortex.region, quality) for quality in (1.0, 0.5))
    assert np.median(three_trials(poor)) == pytest.approx(0.5 * np.median(three_trials(good)), rel=0.05)


def test_trials_have_unit_variance_and_share_a_part(cortex: Cortex) -> None:
    rng = np.random.default_rng(3)
    loadings = noise.loadings(rng, cortex.places)
    np.testing.assert_allclose(np.linalg.norm(loadings, axis=1), 1.0, rtol=1e-5)
    trials = noise.trial_noise(rng, loadings[::10], 3000)
    assert trials.shape == (3000, 120)
    assert trials.dtype == np.float32
    np.testing.assert_allclose(trials.std(axis=0), 1.0, atol=0.06)
    expected = 0.3 * loadings[::10] @ loadings[::10].T
    np.fill_diagonal(expected, 1.0)
    np.testing.assert_allclose(np.corrcoef(trials.T), expected, atol=0.1)
    # One trial has nothing in common with the next.
    assert abs(np.corrcoef(trials[:-1].ravel(), trials[1:].ravel())[0, 1]) < 0.01
