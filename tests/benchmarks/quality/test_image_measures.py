from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import correlation

from unibrain_rt.benchmarks.quality import image_measures as module
from unibrain_rt.benchmarks.quality.image_measures import (
    SIDE,
    correlation_distance,
    grey,
    pixel_correlation,
    resized,
    structure,
    two_way_identification,
)
from unibrain_rt.export.phantom.pictures import stimuli
from unibrain_rt.export.phantom.scenes import scenes


@pytest.fixture(scope="module")
def shown() -> np.ndarray:
    """Four pictures of the phantom's world, (4, 64, 64, 3)."""
    return stimuli(scenes("test", 4, 3), 64)


def test_perfect_features_identify_everything_and_reversed_ones_nothing() -> None:
    features = np.random.default_rng(0).normal(size=(20, 30))
    assert two_way_identification(features, features).tolist() == [1.0] * 20
    assert two_way_identification(-features, features).max() < 0.05


def test_unrelated_and_shuffled_features_are_at_chance() -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(300, 50))
    shares = two_way_identification(features, rng.normal(size=(300, 50)))
    assert abs(shares.mean() - 0.5) < 0.05
    assert abs(two_way_identification(rng.permutation(features), features).mean() - 0.5) < 0.05


def test_identification_counts_pairs_one_by_one() -> None:
    rng = np.random.default_rng(2)
    references = rng.normal(size=(6, 8))
    features = references + rng.normal(size=(6, 8))
    expected = []
    for i in range(6):
        own = np.corrcoef(features[i], references[i])[0, 1]
        expected.append(
            np.mean([own > np.corrcoef(features[i], references[j])[0, 1] for j in range(6) if j != i])
        )
    np.testing.assert_allclose(two_way_identification(features, references), expected)


def test_ties_count_half() -> None:
    references = np.random.default_rng(3).normal(size=(3, 40)).astype(np.float32)[[0, 0, 1, 2]]
    shares = two_way_identification(references, references)
    np.testing.assert_allclose(shares, [5 / 6, 5 / 6, 1, 1])
    assert two_way_identification(np.ones((4, 40)), references).tolist() == [0.5] * 4


def test_the_same_reconstruction_of_everything_is_at_chance_exactly() -> None:
    rng = np.random.default_rng(4)
    same = np.repeat(rng.normal(size=(1, 25)), 30, axis=0)
    assert two_way_identification(same, rng.normal(size=(30, 25))).mean() == pytest.approx(0.5)


def test_correlations_do_not_depend_on_how_columns_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    a, b = rng.normal(5, 1, size=(2, 10, 3, 7)).astype(np.float32)
    whole = correlation_distance(a, b)
    monkeypatch.setattr(module, "_CHUNK", 4)
    np.testing.assert_allclose(correlation_distance(a, b), whole, atol=1e-12)


def test_correlation_distance_is_scipys() -> None:
    a, b = np.random.default_rng(6).normal(size=(2, 9, 31))
    expected = [correlation(one, other) for one, other in zip(a, b, strict=True)]
    np.testing.assert_allclose(correlation_distance(a, b), expected)


def test_identification_needs_pairs() -> None:
    with pytest.raises(ValueError, match="two pairs"):
        two_way_identification(np.ones((1, 3)), np.ones((1, 3)))
    with pytest.raises(ValueError, match="3 and 4 values"):
        two_way_identification(np.ones((2, 3)), np.ones((2, 4)))


def test_pixcorr_is_pearson_over_resized_pixels(shown: np.ndarray) -> None:
    large = stimuli(scenes("test", 4, 3), 96)[[1, 2, 3, 0]]
    expected = []
    for one, other in zip(shown, large, strict=True):
        pair = [
            np.asarray(Image.fromarray(part).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
            for part in (one, other)
        ]
        expected.append(np.corrcoef(pair[0].ravel(), pair[1].ravel())[0, 1])
    np.testing.assert_allclose(pixel_correlation(shown, large), expected, atol=1e-6)
    np.testing.assert_allclose(pixel_correlation(shown, shown), 1.0)
    np.testing.assert_allclose(pixel_correlation(shown, 255 - shown), -1.0, atol=1e-5)


def test_resizing_is_bilinear_and_leaves_the_fields_own_size_alone() -> None:
    rng = np.random.default_rng(7)
    native = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    np.testing.assert_array_equal(resized(native), native.astype(np.float32) / np.float32(255))
    ramp = np.repeat(np.arange(0, 250, 50, dtype=np.uint8)[None, :, None], 5, axis=0).repeat(3, axis=2)
    wide = resized(ramp, 50)[0, :, 0] * 255
    # Between pixel centres a bilinear enlargement of a ramp is a ramp: 50 levels over 10 pixels.
    np.testing.assert_allclose(np.diff(wide[5:45]), 5.0, atol=1.01)  # whole grey levels
    with pytest.raises(ValueError, match="1 and 2 pictures"):
        pixel_correlation([native], [native, native])


def test_ssim_of_equal_pictures_is_one_and_falls_with_noise(shown: np.ndarray) -> None:
    np.testing.assert_allclose(structure(shown, shown), 1.0, atol=1e-6)
    rng = np.random.default_rng(8)
    noisy = [np.clip(shown + rng.normal(0, sd, shown.shape), 0, 255).astype(np.uint8) for sd in (5, 20, 60)]
    means = [structure(part, shown).mean() for part in noisy]
    assert 1 > means[0] > means[1] > means[2] > 0


def test_ssim_is_the_published_formula(shown: np.ndarray) -> None:
    one, other = (np.asarray(grey(resized(part)), np.float64) for part in shown[:2])

    def blur(values: np.ndarray) -> np.ndarray:
        return gaussian_filter(values, 1.5, truncate=3.5)

    mean_a, mean_b = blur(one), blur(other)
    var_a, var_b = blur(one**2) - mean_a**2, blur(other**2) - mean_b**2
    both = blur(one * other) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    index = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    index /= (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    assert structure(shown[:1], shown[1:2])[0] == pytest.approx(index[5:-5, 5:-5].mean(), abs=1e-4)


def test_grey_is_bt_709() -> None:
    assert grey(np.array([[[1.0, 0.0, 0.0]]], np.float32))[0, 0] == pytest.approx(0.2125)
    assert grey(np.ones((1, 1, 3), np.float32))[0, 0] == pytest.approx(1.0)
