"""Tables and rows of pictures that several sections of the report are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.benchmarks.experiments.laboratory import COLOUR, KIND, Participant, Result
from unibrain_rt.benchmarks.quality.intervals import Interval
from unibrain_rt.benchmarks.quality.page import Picture, Table
from unibrain_rt.export.phantom.phrases import captions

IMAGE_MEASURES = ("CLIP", "Judge", "Pixels", "PixCorr", "SSIM")
CAPTION_MEASURES = ("METEOR", "ROUGE-1", "ROUGE-L", "BLEU", "CLIP", KIND, COLOUR)


def pairs(participant: Participant, result: Result, rows: Sequence[int] | NDArray[np.int64] | range) -> tuple:
    return tuple(
        (
            Picture(participant.stimuli[row], captions(participant.shown[row])[0], "shown"),
            Picture(result.decoded[row].image, result.decoded[row].caption or "", "decoded"),
        )
        for row in rows
    )


def table_of(
    title: str,
    first: str,
    rows: Mapping[str, Mapping[str, Interval | float | str]],
    columns: Sequence[str],
    note: str = "",
    best: Mapping[str, bool] | None = None,
) -> Table:
    """One row a key; measures that a row lacks stay empty. ``best`` is of `Table`."""
    return Table(
        title,
        (first, *columns),
        tuple((name, *(row.get(column, "") for column in columns)) for name, row in rows.items()),
        note,
        best or {},
    )


def meteor_note(result: Result) -> str:
    if result.captions.notes.get("meteor_synonyms"):
        return "METEOR matches words, stems and WordNet's synonyms."
    return "METEOR without synonyms: WordNet is not installed here, so that words match as they are or by their stems."
