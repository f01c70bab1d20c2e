"""What voxels are tuned to follows from their region."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from unibrain_rt.export.phantom import tuning
from unibrain_rt.export.phantom.cortex import EARLY, HIGH, Cortex
from unibrain_rt.export.phantom.early_vision import FREQUENCIES, MAPS, ORIENTATIONS
from unibrain_rt.export.phantom.scenes import BACKGROUNDS, KINDS


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


@pytest.fixture(scope="module")
def field(cortex: Cortex) -> NDArray[np.float32]:
    return tuning.receptive_fields(np.random.default_rng(11), cortex)


def test_ventral_areas_see_the_upper_field(cortex: Cortex, field: NDArray[np.float32]) -> None:
    for area in ("V1", "V2", "V3"):
        assert field[cortex.region == area + "v", 1].max() <= 0.5
        assert field[cortex.region == area + "d", 1].min() >= 0.5


def test_a_hemisphere_sees_the_other_half(cortex: Cortex, field: NDArray[np.float32]) -> None:
    right = cortex.places[:, 0] >= cortex.shape[0] // 2
    assert field[right, 0].max() <= 0.5 <= field[~right, 0].min()


def test_receptive_fields_grow(cortex: Cortex, field: NDArray[np.float32]) -> None:
    areas = ("V1", "V2", "V3", "hV4")
    sigma = [np.median(field[np.char.startswith(cortex.region, area), 2]) for area in areas]
    assert sigma == sorted(sigma)
    v1 = np.char.startswith(cortex.region, "V1")
    eccentricity = np.hypot(*(field[v1, :2] - 0.5).T)
    assert np.corrcoef(eccentricity, field[v1, 2])[0, 1] > 0.5


def test_v1_compresses_least(cortex: Cortex) -> None:
    exponents = tuning.exponents(cortex.region)
    by_area = [exponents[np.char.startswith(cortex.region, area)] for area in ("V1", "V2", "V3", "hV4")]
    assert [float(area[0]) for area in by_area] == pytest.approx([0.70, 0.60, 0.55, 0.50])
    assert all(np.ptp(area) == 0.0 for area in by_area)


def test_weights_of_the_maps_are_shares(
    cortex: Cortex, field: NDArray[np.float32], rng: np.random.Generator
) -> None:
    early = np.isin(cortex.region, EARLY)
    region = cortex.region[early]
    weights = tuning.map_weights(rng, region, field[early])
    assert weights.shape == (early.sum(), MAPS)
    assert weights.min() >= 0.0
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, rtol=1e-5)
    v1, hv4 = np.char.startswith(region, "V1"), region == "hV4"
    np.testing.assert_array_equal(weights[v1, -2:], 0.0)  # junctions come later than V1
    energies = slice(len(FREQUENCIES) * len(ORIENTATIONS))
    assert weights[v1, energies].sum(axis=1).mean() > 2 * weights[hv4, energies].sum(axis=1).mean()


def test_regions_are_tuned_to_their_kind(cortex: Cortex, rng: np.random.Generator) -> None:
    region = cortex.region[np.isin(cortex.region, HIGH)]
    kinds = tuning.kind_tuning(rng, region)
    assert kinds.shape == (len(region), len(KINDS))
    assert kinds.min() > 0.0
    for name, kind in {"faces": "face", "words": "word", "places": "place", "bodies": "body"}.items():
        assert (kinds[region == name].argmax(axis=1) == KINDS.index(kind)).mean() > 0.95
    favourites = np.bincount(kinds[region == "LO"].argmax(axis=1), minlength=len(KINDS))
    assert (favourites > 0).sum() >= 8


def test_places_answer_to_the_outdoors(cortex: Cortex, rng: np.random.Generator) -> None:
    region = cortex.region[np.isin(cortex.region, HIGH)]
    answers = tuning.background_tuning(rng, region)
    assert answers.shape == (len(region), len(BACKGROUNDS))
    assert answers.min() >= 0.0
    mean = dict(zip(BACKGROUNDS, answers[region == "places"].mean(axis=0), strict=True))
    assert min(mean, key=lambda name: mean[name]) == "wall"
    assert answers[region == "places"].mean() > 2 * answers[region == "faces"].mean()


def test_objects_are_tuned_to_colour_most(cortex: Cortex, rng: np.random.Generator) -> None:
    region = cortex.region[np.isin(cortex.region, HIGH)]
    gains = tuning.colour_tuning(rng, region)
    assert gains.shape == (len(region), 3)
    assert gains[region == "LO"].std() > 1.3 * gains[region != "LO"].std()
