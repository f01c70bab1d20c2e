"""What decodes show where a region of the brain is active alone, and where one is silenced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.benchmarks.experiments.blocks import table_of
from unibrain_rt.benchmarks.experiments.experiments import PREFERRED, Activation
from unibrain_rt.benchmarks.experiments.laboratory import KIND, Participant, Result
from unibrain_rt.benchmarks.quality.intervals import Interval, interval
from unibrain_rt.benchmarks.quality.page import Block, Picture, Pictures, Section, Text

ACTIVE_SHOWN = 6


def activation(activations: Sequence[Activation]) -> Section:
    """Regions active alone."""
    blocks: list[Block] = [
        Text(
            "A scan in which one category region is up and every other voxel at its mean, as strong as "
            f"moves the four predictions as far as real scans do; {len(activations[0].decoded)} seeds of noise "
            "for each region and subject. Whether a picture is of the region's kind is judged by the "
            "nearest kind's mean features of the judge (chance 0.1)."
        )
    ]
    rows: dict[str, dict[str, Interval | float | str]] = {
        f"{one.subject}, {one.region}": {
            "kind": PREFERRED[one.region],
            "strength (sd)": one.strength,
            "captions of its kind": interval(one.kind_in_caption),
            "pictures of its kind": interval(one.kind_in_picture),
        }
        for one in activations
    }
    columns = ("kind", "strength (sd)", "captions of its kind", "pictures of its kind")
    blocks.append(table_of("Each region active", "subject and region", rows, columns))
    first = activations[0].subject
    for one in activations:
        if one.subject == first:
            shown = [
                Picture(
                    decoded.image, decoded.caption or "", f"decoded with {one.region} active, seed {seed}"
                )
                for seed, decoded in enumerate(one.decoded[:ACTIVE_SHOWN])
            ]
            blocks.append(Pictures(f"{first}: {one.region} active", tuple((picture,) for picture in shown)))
    return Section("Regions: one active", tuple(blocks))


def lesion(participant: Participant, rows: NDArray[np.bool_], silenced: Mapping[str, Result]) -> Section:
    """Regions silenced."""
    kinds = [scene.kind for scene, wanted in zip(participant.shown, rows, strict=True) if wanted]
    table = {}
    for name, one in silenced.items():
        by_kind = one.captions.by(kinds)
        table[name] = {
            **{measure: interval(one.images[measure]) for measure in ("CLIP", "Judge", "PixCorr")},
            KIND: interval(one.captions[KIND]),
            **{f"{kind}: {KIND}": by_kind[kind][KIND] for kind in PREFERRED.values() if kind in by_kind},
        }
    columns = tuple(next(iter(table.values())))
    return Section(
        "Regions: one silenced",
        (
            Text(
                f"The {int(rows.sum())} held-out scans of {participant.name} that show a face, a word, a place "
                "or a body, with a region set to its training mean. Early visual cortex carries where and "
                "in which colour; the category regions carry what."
            ),
            table_of("What is left", "silenced", table, columns),
        ),
    )
