"""Two results of the same work on the same machine: is the second slower?

The two were measured at different times, and the machine's speed wanders with what else runs on it. So what is compared
is the undisturbed time of a decode over the time that the calibration load took beside it, which no change of a build
touches (`calibration`, `clock`). The ratio is that of the medians, with a bootstrap interval over rounds and decodes.

A part is slower when the whole interval lies above half the threshold and the ratio itself above the threshold; between
those, what was measured is too little to say. Parts that take less than a tenth of a decode are shown and not judged:
their noise is larger than what they matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.benchmarks.bench.bench_tables import NAMES, label
from unibrain_rt.benchmarks.bench.statistics import interval, resampled_medians
from unibrain_rt.errors import InputError

THRESHOLD = 0.1
WHOLE = "end_to_end"
JUDGED_SHARE = 0.1
_SAME = ("name", "fingerprint")
Verdict = Literal["slower", "faster", "same", "not judged"]


@dataclass(frozen=True)
class Comparison:
    """``ratio`` is new over old, above 1 where the new one is slower, between ``low`` and ``high``."""

    case: str
    part: str
    old_ms: float
    new_ms: float
    ratio: float
    low: float
    high: float
    verdict: Verdict


def compare(old: Mapping[str, Any], new: Mapping[str, Any], threshold: float = THRESHOLD) -> list[Comparison]:
    """Every part of every case that both have.

    Raises:
        InputError: they are no results of ``bench``, or are of other bundles, machines or settings.
    """
    _check(old, new)
    pairs = [(one, other) for one in old["cases"] for other in new["cases"] if label(one) == label(other)]
    if not pairs:
        raise InputError("the two results have no engine and preset in common")
    return [comparison for one, other in pairs for comparison in _cases(one, other, threshold)]


def _cases(one: Mapping[str, Any], other: Mapping[str, Any], threshold: float) -> list[Comparison]:
    quiet = one["undisturbed_p50"]
    comparisons = []
    for part in (*(name for name in quiet if name != WHOLE), WHOLE):
        if part not in other["undisturbed_p50"]:
            continue
        rounds = [_normalised(case["rounds"], part) for case in (one, other)]
        old_drawn, new_drawn = (resampled_medians(values, seed) for seed, values in enumerate(rounds))
        ratio = float(np.median(np.concatenate(rounds[1])) / np.median(np.concatenate(rounds[0])))
        low, high = interval(new_drawn / old_drawn)
        judged = part == WHOLE or quiet[part] >= JUDGED_SHARE * quiet[WHOLE]
        comparisons.append(
            Comparison(
                label(one),
                part,
                quiet[part],
                other["undisturbed_p50"][part],
                ratio,
                low,
                high,
                _verdict(ratio, low, high, threshold) if judged else "not judged",
            )
        )
    return comparisons


def _verdict(ratio: float, low: float, high: float, threshold: float) -> Verdict:
    if ratio > 1 + threshold and low > 1 + threshold / 2:
        return "slower"
    if ratio < 1 / (1 + threshold) and high < 1 / (1 + threshold / 2):
        return "faster"
    return "same"


def _normalised(rounds: Sequence[Mapping[str, Any]], part: str) -> list[NDArray[np.float64]]:
    """By round, each decode's undisturbed time of a part in units of the calibration beside it."""
    return [
        np.array([record["undisturbed"][part] / record["calibration"] for record in one["records"]])
        for one in rounds
    ]


def _check(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    for one in (old, new):
        if one.get("kind") != "unibrain-rt bench" or not isinstance(one.get("cases"), list):
            raise InputError("not a result of unibrain-rt bench; make one with --json=FILE")
    if any(old["bundle"][name] != new["bundle"][name] for name in _SAME):
        raise InputError("the two results are of different bundles; measure the same one")
    if old["machine"]["cpu"] != new["machine"]["cpu"] or old["machine"]["cores"] != new["machine"]["cores"]:
        raise InputError("the two results are of different machines; measure both on one")
    for name in ("threads", "batch"):
        if old["settings"][name] != new["settings"][name]:
            raise InputError(f"the two results were measured with another --{name}; measure both alike")


def rows(comparisons: Sequence[Comparison]) -> list[list[str]]:
    """For a table: part, old, new, ratio with its interval, verdict."""
    return [
        [
            one.case,
            NAMES.get(one.part, "end to end"),
            f"{one.old_ms:.2f} ms",
            f"{one.new_ms:.2f} ms",
            f"{one.ratio:.3f}",
            f"{one.low:.3f} to {one.high:.3f}",
            one.verdict,
        ]
        for one in comparisons
    ]


HEAD = ["case", "part", "old", "new", "ratio", "interval", "verdict"]
