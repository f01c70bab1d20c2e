"""What evaluation and experiments make of a pool's results: all of them, their pictures and their captions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from unibrain_rt import DecoderPool, Reconstruction, Request
from unibrain_rt.errors import InputError
from unibrain_rt.export.progress import by_shares
from unibrain_rt.reconstruction import fallback_note


def decode_all(
    pool: DecoderPool, requests: Sequence[Request], what: str, say: Callable[[str], None], *, lines: int = 4
) -> list[Reconstruction]:
    """Decode every request, in their order, without what no measure looks at: predictions and latents.

    Args:
        what: what is decoded, the beginning of each line about how far it is.
        say: told about ``lines`` times how far it is, and of each graph that had to be computed in fp32.

    Raises:
        InputError, BundleError, EngineError: a request cannot be decoded.
    """
    report = by_shares(lambda done, total: say(f"{what}: {done:,} of {total:,}"), lines)
    results: list[Reconstruction] = []
    fallen_back: set[str] = set()
    for result in pool.decode(requests):
        if isinstance(result, InputError):
            raise result
        # Of thousands of decodes, predictions would fill more memory than pictures do.
        results.append(replace(result, predictions={}, latents={}))
        if new := sorted(set(result.fallbacks) - fallen_back):
            fallen_back.update(new)
            say(fallback_note(new))
        report(len(results), len(requests))
    return results


def pictures_of(decoded: Sequence[Reconstruction]) -> NDArray[np.uint8]:
    """(N, S, S, 3)."""
    return np.stack([one.image for one in decoded])


def captions_of(decoded: Sequence[Reconstruction]) -> list[str]:
    return [one.caption or "" for one in decoded]


def fallbacks_of(decoded: Sequence[Reconstruction]) -> dict[str, int]:
    """The graphs that had to be computed in fp32, and for how many of the decodes."""
    counts: dict[str, int] = {}
    for graph in sorted(graph for one in decoded for graph in one.fallbacks):
        counts[graph] = counts.get(graph, 0) + 1
    return counts
