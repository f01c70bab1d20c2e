"""Captions of NSD's pictures: they were cut from COCO's, whose annotations tell five or more phrasings of each."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unibrain_rt.errors import InputError, input_error, one_line

SPLITS = ("train2017", "val2017")
_COLUMNS = ("nsdId", "cocoId", "cocoSplit")


def coco_captions(info: Path, folder: Path, stimuli: Sequence[int]) -> dict[int, tuple[str, ...]]:
    """Captions of stimuli (0-based numbers), in the order in which COCO numbers them.

    Args:
        info: NSD's ``nsd_stim_info_merged.csv``, which names the COCO picture of each stimulus.
        folder: COCO's ``annotations``, with ``captions_train2017.json`` and ``captions_val2017.json``; only those
            that the stimuli come from are read.

    Raises:
        InputError: a file is missing or damaged, or a stimulus has no caption.
    """
    sources = _sources(info, frozenset(stimuli))
    if missing := sorted(set(stimuli) - sources.keys()):
        raise input_error(info, f"stimulus {missing[0]} (nsdId) is not in it: copy the file again")
    said: dict[str, dict[int, tuple[str, ...]]] = {}
    for split in sorted({split for split, _ in sources.values()}):
        wanted = frozenset(picture for place, picture in sources.values() if place == split)
        said[split] = _captions(folder / f"captions_{split}.json", wanted)
    return {stimulus: said[split][picture] for stimulus, (split, picture) in sources.items()}


def _sources(path: Path, wanted: frozenset[int]) -> dict[int, tuple[str, int]]:
    """Stimulus -> the split and the number of its COCO picture."""
    sources = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            if not set(_COLUMNS) <= set(rows.fieldnames or ()):
                raise input_error(path, f"no columns {', '.join(_COLUMNS)}: copy NSD's file again")
            for row in rows:
                stimulus, picture, split = int(row["nsdId"]), int(row["cocoId"]), row["cocoSplit"]
                if stimulus in wanted:
                    if split not in SPLITS:
                        raise input_error(path, f"stimulus {stimulus} is of no split of COCO: copy it again")
                    sources[stimulus] = (split, picture)
    except OSError as error:
        raise input_error(path, f"cannot be read ({error.strerror}): copy NSD's file there") from error
    except (ValueError, TypeError, csv.Error) as error:  # not UTF-8 is a ValueError, too
        raise input_error(path, f"damaged ({one_line(str(error), 90)}): copy NSD's file again") from error
    return sources


def _captions(path: Path, wanted: frozenset[int]) -> dict[int, tuple[str, ...]]:
    """Picture -> its captions, by their own numbers."""
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        each = [
            (int(entry["image_id"]), int(entry["id"]), entry["caption"]) for entry in content["annotations"]
        ]
        numbered: dict[int, list[tuple[int, str]]] = {picture: [] for picture in wanted}
        for picture, number, caption in each:
            if picture in wanted and (text := " ".join(caption.split())):
                numbered[picture].append((number, text))
    except OSError as error:
        advice = "put COCO's annotations_trainval2017 there, or name their folder"
        raise input_error(path, f"cannot be read ({error.strerror}): {advice}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        problem = f"no captions as COCO publishes them ({one_line(repr(error), 90)})"
        raise input_error(path, f"{problem}: copy the file again") from error
    if missing := sorted(picture for picture, captions in numbered.items() if not captions):
        raise InputError(f"{path}: picture {missing[0]} has no caption: copy the file again")
    return {picture: tuple(text for _, text in sorted(captions)) for picture, captions in numbered.items()}
