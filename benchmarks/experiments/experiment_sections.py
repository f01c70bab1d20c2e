"""What the report says of each experiment, in words, tables and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.benchmarks.experiments.blocks import (
    CAPTION_MEASURES,
    IMAGE_MEASURES,
    meteor_note,
    pairs,
    table_of,
)
from unibrain_rt.benchmarks.experiments.experiments import Agreement
from unibrain_rt.benchmarks.experiments.laboratory import COLOUR, KIND, Participant, Result
from unibrain_rt.benchmarks.quality.intervals import interval
from unibrain_rt.benchmarks.quality.page import Block, Picture, Pictures, Section, Text
from unibrain_rt.contact_sheet import Tile, contact_sheet
from unibrain_rt.export.phantom.phrases import captions

EXAMPLES = 12
EXTREMES = 6
SHEET = 18


def examples(participant: Participant, result: Result) -> Section:
    """The first held-out scans, and the best, middling and worst of all."""
    blocks: list[Block] = [
        Text(
            f"Left what was shown, right what was decoded from the scan of {participant.name}, for the first "
            f"{EXAMPLES} held-out scans; below each the decoded caption."
        ),
        Pictures("the first scans", pairs(participant, result, range(min(EXAMPLES, len(participant))))),
    ]
    # Identification alone has many ties at the top.
    order = np.lexsort((result.images["PixCorr"], result.images["Judge"]))
    middle = len(order) // 2
    count = min(EXTREMES, len(order) // 3)
    for name, rows in (
        ("best", order[::-1][:count]),
        ("median", order[middle - count // 2 : middle - count // 2 + count]),
        ("worst", order[:count]),
    ):
        blocks.append(
            Pictures(
                f"{name}, by the judge's identification, then by PixCorr", pairs(participant, result, rows)
            )
        )
    return Section("What was seen, and what was decoded", tuple(blocks))


def contact_sheet_of(participant: Participant, result: Result, preset: str) -> NDArray[np.uint8]:
    """The first held-out scans as one picture (H, W, 3)."""
    tiles = [
        Tile((stimulus, decoded.image), decoded.caption or "")
        for stimulus, decoded in list(zip(participant.stimuli, result.decoded, strict=True))[:SHEET]
        if decoded.image is not None
    ]
    header = [
        "what was shown, and what was decoded from the scan",
        f"the first {len(tiles)} held-out scans of {participant.name}, preset {preset}",
    ]
    return contact_sheet(tiles, columns=6, header=header, labels=("shown", "decoded"))


def scores(participants: Sequence[Participant], results: Mapping[str, Result]) -> Section:
    """Every measure of every subject, and by kind for the first."""
    pooled_shown = [scene.kind for scene in participants[0].shown]
    first = participants[0].name
    image_kinds, caption_kinds = (
        part.by(pooled_shown) for part in (results[first].images, results[first].captions)
    )
    kinds = {
        kind: {**image_kinds[kind], KIND: caption_kinds[kind][KIND], COLOUR: caption_kinds[kind][COLOUR]}
        for kind in image_kinds
    }
    return Section(
        "How good the decodes are",
        (
            Text(
                f"{len(participants[0])} held-out scenes, the same for every subject, each scan the mean of "
                "three repeats. Identification (chance 0.5): how often a decode's features correlate more "
                "with its own stimulus' than with another's. CLIP guides the decoder and so cannot be the "
                "only judge; the judge is a classifier trained apart from everything the decoder uses. "
                "Brackets hold 95 % bootstrap intervals over scans."
            ),
            table_of(
                "Pictures",
                "subject",
                {name: one.images.summary() for name, one in results.items()},
                IMAGE_MEASURES,
            ),
            table_of(
                "Captions",
                "subject",
                {name: one.captions.summary() for name, one in results.items()},
                CAPTION_MEASURES,
                note=meteor_note(results[first]),
            ),
            table_of(f"By kind, {first}", "kind", kinds, ("CLIP", "Judge", "PixCorr", KIND, COLOUR)),
        ),
    )


def agreement(
    participants: Sequence[Participant], results: Mapping[str, Result], agreements: Sequence[Agreement]
) -> Section:
    """The same stimuli through every subject."""
    table = {
        f"{one.one} and {one.other}": {
            "PixCorr": interval(one.pictures),
            "identification by the judge": interval(one.identification),
            "ROUGE-L": interval(one.captions),
            "same kind named": interval(one.kinds),
        }
        for one in agreements
    }
    rows = []
    for place in range(min(6, len(participants[0]))):
        first = Picture(participants[0].stimuli[place], captions(participants[0].shown[place])[0], "shown")
        others = (
            Picture(one.decoded[place].image, one.decoded[place].caption or "", f"decoded from {name}")
            for name, one in results.items()
        )
        rows.append((first, *others))
    return Section(
        "Across subjects",
        (
            Text(
                "The same scenes through each subject's own brain and heads: how alike the decodes of two "
                "subjects are. Identification: one subject's picture finds the other's among all (chance "
                "0.5)."
            ),
            table_of("Agreement of two subjects", "subjects", table, tuple(next(iter(table.values())))),
            Pictures(f"shown, then {', '.join(results)}", tuple(rows)),
        ),
    )


def controls(controlled: Mapping[str, Result]) -> Section:
    """What comes out where nothing goes in."""
    table = {
        name: {
            **{measure: interval(one.images[measure]) for measure in IMAGE_MEASURES},
            "captions: CLIP": interval(one.captions["CLIP"]),
            KIND: interval(one.captions[KIND]),
            COLOUR: interval(one.captions[COLOUR]),
        }
        for name, one in controlled.items()
    }
    pictures = [
        Pictures(
            name, tuple((Picture(d.image, d.caption or "", f"control: {name}"),) for d in one.decoded[:6])
        )
        for name, one in controlled.items()
    ]
    off = [
        f"{name} ({measure} {cell.text()})"
        for name, row in table.items()
        for measure, cell in row.items()
        if measure in ("CLIP", "Judge", "Pixels", "captions: CLIP") and not cell.low <= 0.5 <= cell.high
    ]
    verdict = (
        "Every identification is within chance (0.5)."
        if not off
        else f"Not within chance (0.5): {'; '.join(off)}."
    )
    return Section(
        "Controls",
        (
            Text(
                "A generative model always draws something. Decoded here are scans that say nothing of the "
                "stimulus: voxels shuffled within the scan, noise with each voxel's own mean and spread, "
                f"and the mean training scan. {verdict} Kinds are named by chance in 0.10, colours in "
                "0.125."
            ),
            table_of("Controls", "control", table, tuple(next(iter(table.values())))),
            *pictures,
        ),
    )
