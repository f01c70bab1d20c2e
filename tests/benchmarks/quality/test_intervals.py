from __future__ import annotations

import numpy as np
import pytest

from unibrain_rt.benchmarks.quality.intervals import Interval, difference, interval


def test_covers_a_known_mean_at_about_the_nominal_rate() -> None:
    rng = np.random.Generator(np.random.Philox(7))
    samples = rng.exponential(1.0, size=(300, 60))
    found = [interval(sample, resamples=400, seed=seed) for seed, sample in enumerate(samples)]
    covered = np.mean([part.low <= 1.0 <= part.high for part in found])
    assert 0.90 <= covered <= 0.98


def test_width_is_that_of_the_standard_error() -> None:
    values = np.random.Generator(np.random.Philox(1)).normal(3.0, 2.0, 400)
    found = interval(values)
    assert found.mean == pytest.approx(values.mean())
    assert found.n == 400
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.08)


def test_is_seeded_and_does_not_depend_on_how_draws_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(30.0) ** 2
    first = interval(values, resamples=100)
    assert interval(values, resamples=100) == first
    assert interval(values, resamples=100, seed=1) != first
    monkeypatch.setattr("unibrain_rt.benchmarks.quality.intervals._BLOCK", 64)
    assert interval(values, resamples=100) == first


def test_pairs_see_a_difference_that_the_items_hide() -> None:
    rng = np.random.Generator(np.random.Philox(2))
    items = rng.normal(0, 10, 100)
    better = items + 0.5 + rng.normal(0, 0.2, 100)
    assert difference(better, items).low > 0.4
    assert interval(better).low < interval(items).high
    assert difference(items, better).mean == pytest.approx(-difference(better, items).mean)


def test_groups_are_drawn_whole() -> None:
    rng = np.random.Generator(np.random.Philox(3))
    labels = np.repeat(np.arange(10), 50)
    values = rng.normal(size=10)[labels] + 0.01 * rng.normal(size=500)
    alone, grouped = interval(values), interval(values, groups=labels)
    assert grouped.mean == alone.mean
    assert grouped.n == 500
    # Ten group means tell as much as ten values, not as much as five hundred.
    assert (grouped.high - grouped.low) / (alone.high - alone.low) == pytest.approx(50**0.5, rel=0.15)
    assert interval(values, groups=[str(label) for label in labels]) == grouped


def test_groups_of_one_are_items() -> None:
    values = np.arange(12.0)
    assert interval(values, groups=range(12)) == interval(values)


@pytest.mark.parametrize(
    ("values", "problem"),
    [([], "at least 1"), ([1.0, np.nan], "1 of 2 values are not finite"), ([[1.0]], "not of shape")],
)
def test_refuses_what_has_no_mean(values: list[float], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        interval(values)


def test_refuses_what_does_not_pair() -> None:
    with pytest.raises(ValueError, match="3 and 2"):
        difference([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="1 group labels"):
        interval([1, 2, 3], groups=["a"])


def test_text_and_record() -> None:
    found = Interval(0.92345678, 0.9, 0.95, 12)
    assert found.text() == "0.923 [0.900, 0.950]"
    assert Interval(-0.0001, -0.2, 0.2, 3).text() == "0.000 [-0.200, 0.200]"
    assert found.text(1) == "0.9 [0.9, 0.9]"
    assert found.record() == {"mean": 0.923457, "low": 0.9, "high": 0.95, "n": 12}
