"""Rounds of decodes, each variant once a round: their times, and how far their results are from one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from unibrain_rt.benchmarks.gpu.device import Gpu
from unibrain_rt.benchmarks.whole_decodes import FLOWS, Decoded, Scan, Variant

WORKS = ("decode", "caption")
RATIOS = (
    ("decode", "over torch eager", "torch eager", "cuda"),
    ("decode", "over torch.compile", "torch.compile", "cuda"),
    ("decode", "CUDA graphs", "cuda, no graphs", "cuda"),
    ("caption", "CUDA graphs, caption flow", "cuda, no graphs", "cuda"),
)
"""Of which work, name, slower, faster."""


def measure(
    variants: Mapping[str, Variant], gpu: Gpu, scan: Scan, rounds: int
) -> list[dict[str, dict[str, float]]]:
    """Milliseconds by work and variant, a round at a time. Everything was run before."""
    measured = []
    for number in range(rounds):
        names = list(variants) if number % 2 == 0 else list(variants)[::-1]
        one: dict[str, dict[str, float]] = {work: {} for work in WORKS}
        for name in names:
            for work in WORKS:
                gpu.wait()
                begun = perf_counter()
                getattr(variants[name], work)(scan)
                gpu.wait()
                one[work][name] = (perf_counter() - begun) * 1000
        measured.append(one)
    return measured


def compare(found: Decoded, wanted: Decoded) -> dict[str, float | bool]:
    """How far a decode is from another: PSNR of the pictures, relative L2 distances of latents, equality of tokens."""
    error = float(np.mean((found.image.clip(0, 1).astype(np.float64) - wanted.image.clip(0, 1)) ** 2))
    return {
        # Infinity is no JSON.
        "psnr_db": min(200.0, -10 * float(np.log10(error))) if error else 200.0,
        **{f"{flow}_latent_error": _distance(found.latents[flow], wanted.latents[flow]) for flow in FLOWS},
        "same_tokens": found.tokens == wanted.tokens,
    }


def _distance(found: Any, wanted: Any) -> float:
    difference = found.astype(np.float64) - wanted
    return float(np.linalg.norm(difference) / np.linalg.norm(wanted))


def summarise(rounds: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """Median, smallest and largest of every variant's milliseconds, and of every ratio within a round."""
    times = {
        work: {name: _spread([one[work][name] for one in rounds]) for name in rounds[0][work]}
        for work in WORKS
    }
    ratios = {
        name: _spread([one[work][slow] / one[work][fast] for one in rounds])
        for work, name, slow, fast in RATIOS
        if {slow, fast} <= rounds[0][work].keys()
    }
    return {"milliseconds": times, "ratios": ratios}


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}
