from __future__ import annotations

import numpy as np

from unibrain_rt.export.metrics import pixel_correlation, two_way_identification


def test_perfect_features_identify_everything_and_reversed_ones_nothing() -> None:
    features = np.random.default_rng(0).normal(size=(20, 30))
    assert two_way_identification(features, features).tolist() == [1.0] * 20
    assert two_way_identification(-features, features).max() < 0.05


def test_unrelated_features_are_at_chance() -> None:
    rng = np.random.default_rng(1)
    shares = two_way_identification(rng.normal(size=(300, 50)), rng.normal(size=(300, 50)))
    assert abs(shares.mean() - 0.5) < 0.05


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


def test_pixel_correlation_is_pearson_over_all_values() -> None:
    rng = np.random.default_rng(3)
    images, references = rng.integers(0, 256, size=(2, 4, 5, 5, 3), dtype=np.uint8)
    expected = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(images, references, strict=True)]
    np.testing.assert_allclose(pixel_correlation(images, references), expected)
