"""Quantiles, shares and bootstrap intervals of what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.benchmarks.bench.decodes import ONCE, STAGES, STEP_OF

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
COVERAGE = 0.95
RESAMPLES = 1000
Rounds = Sequence[NDArray[np.float64]]
"""Values (N,) of each round."""


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p90 and p99 (interpolated), and how many there are."""
    values_at = np.quantile(np.asarray(values, np.float64), list(QUANTILES.values()))
    return {**dict(zip(QUANTILES, map(float, values_at), strict=True)), "n": len(values)}


def summarise(
    records: Sequence[Mapping[str, Any]], time_ms: Sequence[float], batch: int = 1
) -> dict[str, Any]:
    """Of decodes' records: quantiles of stages, steps and the whole in milliseconds, shares, scans per second.

    ``host_share`` is what the host spends between the runs of a loop, of the loop's undisturbed time.
    """
    stages = {
        stage: quantiles([record["stages"][stage] for record in records])
        for stage in STAGES
        if stage in records[0]["stages"]
    }
    whole = quantiles([record["end_to_end"] for record in records])
    steps = {
        step: quantiles([value for record in records for value in record["steps"][step]])
        for step in STEP_OF.values()
        if step in records[0]["steps"]
    }
    shares = {
        step: float(np.median([record["host"][step] / record["undisturbed"][stage] for record in records]))
        for stage, step in STEP_OF.items()
        if step in records[0]["host"]
    }
    return {
        "stages": {**stages, ONCE: quantiles(time_ms)},
        "steps": steps,
        "end_to_end": whole,
        "undisturbed_p50": {
            name: float(np.median([record["undisturbed"][name] for record in records]))
            for name in records[0]["undisturbed"]
        },
        "cpu_p50": float(np.median([record["cpu"] for record in records])),
        "host_share": shares,
        "scans_per_second": batch * 1000 / float(np.mean([record["end_to_end"] for record in records])),
        "caption": records[0]["caption"],
    }


def resampled_medians(rounds: Rounds, seed: int = 0) -> NDArray[np.float64]:
    """Medians of values drawn anew (RESAMPLES,): whole rounds, then within each (Davison and Hinkley 1997, 3.8).

    Values of one round were measured within seconds, and say less than as many of different rounds. Of rounds that are
    not equally long, as many are drawn as the longest has.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, 2]))
    counts = np.array([len(one) for one in rounds])
    table = np.zeros((len(rounds), counts.max()))
    for row, one in zip(table, rounds, strict=True):
        row[: len(one)] = one
    drawn = rng.integers(len(rounds), size=(RESAMPLES, len(rounds), 1))
    within = rng.random((RESAMPLES, len(rounds), counts.max())) * counts[drawn]
    values = table[drawn, within.astype(np.int64)]
    return np.asarray(np.median(values.reshape(RESAMPLES, -1), axis=1), np.float64)


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """The limits between which `COVERAGE` of ``values`` lie."""
    low, high = np.quantile(values, ((1 - COVERAGE) / 2, (1 + COVERAGE) / 2))
    return float(low), float(high)
