"""Ranks of several heads: the fewest bytes for a fidelity, as an exhaustive search finds them."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from unibrain_rt.export.subjects.ridge.ranks import share_out


def curves(seed: int) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Concave shares of three heads that reach 1, and what a component of each takes."""
    rng = np.random.default_rng(seed)
    shares = {}
    for name in "abc":
        added = np.sort(rng.exponential(1.0, 7))[::-1] ** 2
        shares[name] = np.cumsum(added) / added.sum()
    return shares, dict(zip("abc", (5, 30, 90), strict=True))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("fidelity", [0.5, 0.9, 0.99])
def test_no_smaller_ranks_keep_as_much(seed: int, fidelity: float) -> None:
    shares, sizes = curves(seed)
    ranks = share_out(shares, sizes, fidelity)

    def kept(ranks: dict[str, int]) -> float:
        return float(np.mean([shares[name][rank - 1] for name, rank in ranks.items()]))

    def size(ranks: dict[str, int]) -> int:
        return sum(sizes[name] * rank for name, rank in ranks.items())

    assert kept(ranks) >= fidelity
    # Whole components in falling order of worth: what takes less, keeps less than the ranks without their last step.
    smaller = [dict(zip("abc", each, strict=True)) for each in product(range(1, 8), repeat=3)]
    last_step = max(sizes.values())
    assert all(kept(each) <= kept(ranks) for each in smaller if size(each) <= size(ranks) - last_step)


def test_a_size_is_kept_to() -> None:
    shares, sizes = curves(0)
    for most in (200, 300, 500):
        ranks = share_out(shares, sizes, 1.0, most)
        assert most - max(sizes.values()) < sum(sizes[name] * rank for name, rank in ranks.items()) <= most
    assert share_out(shares, sizes, 1.0, 1) == {"a": 1, "b": 1, "c": 1}, "no head without a component"


def test_everything_where_it_is_not_enough() -> None:
    shares = {"a": np.array([0.5, 0.9]), "b": np.array([0.7])}
    assert share_out(shares, {"a": 1, "b": 1}, 0.99) == {"a": 2, "b": 1}


def test_a_component_that_adds_nothing_by_chance_does_not_stop_the_next() -> None:
    """Of unseen scans, shares rise unevenly, or fall."""
    shares = {"a": np.array([0.5, 0.49, 0.99, 1.0])}
    assert share_out(shares, {"a": 1}, 0.9) == {"a": 3}
    assert share_out(shares, {"a": 1}, 0.4) == {"a": 1}
