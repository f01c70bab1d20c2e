"""Which sampler settings are tried, what each loses beside the preset ``paper``, and which become presets.

``fast`` is the quickest cell that loses nothing that can be told, and whose pictures are those of ``paper``: of no
measure does the 95 % interval of the paired difference to ``paper`` lie below 0, no mean is lower by more than
`TELLING` of what ``paper`` has above chance, and pictures correlate with ``paper``'s own by `LIKE` or more.
``realtime`` is the quickest that loses no more than `BEARABLE` of it in any measure.

How quick a cell is, its number of steps tells: they all cost the same, and measured times of as many steps differ by
noise alone. Of cells with as many steps, the better one goes first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import numpy as np

from unibrain_rt.benchmarks.experiments.laboratory import METRICS as NAMING
from unibrain_rt.benchmarks.quality.intervals import difference
from unibrain_rt.benchmarks.quality.scores import METRICS
from unibrain_rt.presets import PRESETS, Preset

STEPS: dict[str, tuple[int, ...]] = {
    # The grid of ddim is whole strides of the schedule, so it is given steps of the whole of it.
    "ddim": (5, 10, 20, 25, 50),
    "dpm-solver++2m": (3, 4, 5, 6, 8, 11, 15, 20),
}
STRENGTHS = (0.74, 0.6, 0.5, 0.9)
INTERVALS: tuple[tuple[float, float] | None, ...] = (None, (0.2, 1.0), (0.0, 0.6), (0.2, 0.6))
TELLING, BEARABLE, LIKE = 0.02, 0.03, 0.95
PAPER = "paper"


@dataclass(frozen=True)
class Cell:
    """A sampler setting. ``name`` is its file's, too."""

    preset: Preset

    @property
    def name(self) -> str:
        one = self.preset
        limits = (
            "all" if one.guidance_interval is None else "-".join(f"{end:g}" for end in one.guidance_interval)
        )
        return f"{one.sampler.replace('+', 'p')}_{one.steps}_{one.strength:g}_{limits}"

    @property
    def title(self) -> str:
        one = self.preset
        guided = (
            "" if one.guidance_interval is None else " guided {:g} to {:g}".format(*one.guidance_interval)
        )
        return f"{one.sampler}, {self.running} steps, strength {one.strength:g}{guided}"

    @property
    def running(self) -> int:
        return int(self.preset.steps * self.preset.strength)


def cells() -> list[Cell]:
    """All cells, ``paper`` first, then coarse before fine: an early end has seen every sampler and number of steps."""
    planned = [Cell(PRESETS[PAPER])]
    for interval in INTERVALS:
        for strength in STRENGTHS:
            for sampler, counts in STEPS.items():
                for count in counts:
                    if sampler == "ddim":
                        # The published strength, of which dpm-solver++ at 0.74 starts at the same noise.
                        share, steps = (0.75 if strength == 0.74 else strength), count
                    else:
                        share, steps = strength, ceil(count / strength)
                    if int(steps * share) > 0:
                        preset = replace(
                            PRESETS[PAPER],
                            sampler=sampler,
                            steps=steps,
                            strength=share,
                            guidance_interval=interval,
                        )
                        planned.append(Cell(preset))
    return list(dict.fromkeys(planned))


def judge(record: Mapping[str, Any], paper: Mapping[str, Any]) -> dict[str, Any]:
    """A cell's losses: by measure the paired difference to ``paper`` with its interval, and as a share of what it
    has above chance; ``quality`` is what is left on average of all measures.
    """
    losses, shares = {}, {}
    for name, values in record["scores"].items():
        metric = {**METRICS, **NAMING}.get(name.removesuffix(" of captions"))
        sign = -1 if metric is not None and not metric.higher_is_better else 1
        compared = difference(sign * np.array(values), sign * np.array(paper["scores"][name]))
        # A network apart from the known ones is compared by two-way identification, too.
        chance = 0.5 if metric is None else metric.chance or 0.0
        losses[name] = compared.record()
        shares[name] = -compared.mean / max(abs(float(np.mean(paper["scores"][name])) - chance), 1e-9)
    return {
        "differences": losses,
        "lost": shares,
        "significant": [name for name, one in losses.items() if one["high"] < 0],
        "quality": 1 - float(np.mean(list(shares.values()))),
    }


def choose(records: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The cells of ``fast`` and ``realtime``, by the rules above; ``paper`` where none is quicker."""
    paper = Cell(PRESETS[PAPER]).name

    def first(allowed: Callable[[Mapping[str, Any]], bool]) -> str:
        return next((name for name in quickest(records) if name != paper and allowed(records[name])), paper)

    def like_paper(one: Mapping[str, Any]) -> bool:
        judged = one["judged"]
        lossless = not judged["significant"] and max(judged["lost"].values()) <= TELLING
        return lossless and one["against_paper"]["PixCorr"] >= LIKE

    return {
        "fast": first(like_paper),
        "realtime": first(lambda one: max(one["judged"]["lost"].values()) <= BEARABLE),
    }


def quickest(records: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names by number of steps, the best of as many first."""
    return sorted(records, key=lambda name: (records[name]["running"], -records[name]["judged"]["quality"]))


def frontier(records: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names of cells that no quicker cell reaches in quality, the quickest first."""
    names: list[str] = []
    best = -np.inf
    for name in quickest(records):
        if records[name]["judged"]["quality"] > best:
            names.append(name)
            best = records[name]["judged"]["quality"]
    return names
