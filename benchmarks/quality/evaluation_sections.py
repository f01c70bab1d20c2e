"""What the report of an evaluation says: its sections, in words, tables and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unibrain_rt import __version__
from unibrain_rt.benchmarks.quality.ablations import FULL, PAPER_CAPTIONS, PAPER_IMAGES
from unibrain_rt.benchmarks.quality.evaluator import DECODED, Condition, Evaluator
from unibrain_rt.benchmarks.quality.intervals import Interval
from unibrain_rt.benchmarks.quality.page import Block, Cell, Picture, Pictures, Section, Table, Text
from unibrain_rt.benchmarks.quality.scores import Scores
from unibrain_rt.reconstruction import Reconstruction, fallback_note

SHOWN = 6
PAPER = "the paper, subject 1"
_IDENTIFICATION = "CLIP"
_WITHOUT_SYNONYMS = (
    "METEOR is without synonyms, and so too low: WordNet is not installed here, and words match as they are or by "
    "their stems."
)


def examples(evaluator: Evaluator, full: Condition) -> Section:
    """The best, the middling and the worst decodes beside what was shown."""
    # Identification alone has many ties at the top.
    order = np.lexsort((full.images["PixCorr"], full.images[_IDENTIFICATION]))
    count = min(SHOWN, len(order) // 3)
    start = (len(order) - count) // 2
    groups = {
        "best": order[::-1][:count],
        "median": order[start : start + count],
        "worst": order[:count],
    }
    ranking = f"by identification with {_IDENTIFICATION}, then by PixCorr"
    blocks: list[Block] = [
        Text(
            "Left what was shown, right what was decoded from the scan; below them the stimulus' first caption and "
            "the decoded one."
        )
    ]
    blocks += [
        Pictures(f"The {name} {count}, {ranking}", tuple(_pair(evaluator, full, row) for row in rows))
        for name, rows in groups.items()
    ]
    return Section("What was seen, and what was decoded", tuple(blocks))


def scores(full: Condition, *, published: bool) -> Section:
    """Every measure; with ``published``, beside the paper's figures."""
    blocks: list[Block] = [
        Text(
            f"{len(full.images)} test scans. In brackets stand 95 % intervals: the scans are resampled. ↑ higher is "
            "better, ↓ lower is."
        )
    ]
    for title, own, paper in _both(full):
        rows = {DECODED: own.summary()}
        blocks.append(_table(title, "", rows, own, {PAPER: paper[FULL.name]} if published else {}))
    return Section("How good the decodes are", tuple(blocks))


def kinds(full: Condition, labels: Sequence[str] | NDArray[Any]) -> Section:
    """Every measure by the stimuli's kinds."""
    blocks: list[Block] = [Text("In identification, the others stay the stimuli of all kinds.")]
    for title, own, _ in _both(full):
        blocks.append(_table(title, "kind", own.by(labels), own, counts=True))
    return Section("By kind", tuple(blocks))


def controls(full: Condition, controlled: Mapping[str, Condition]) -> Section:
    """What comes out where nothing goes in, and whether it is within chance."""
    checked = [
        (f"{name} ({title.lower()}, {measure} {interval.text()})", interval.low <= chance <= interval.high)
        for name, condition in controlled.items()
        for title, part, _ in _both(condition)
        for measure, interval in part.summary().items()
        if (chance := part.metrics[measure].chance) is not None
    ]
    off = [what for what, within in checked if not within]
    verdict = f"Of {len(checked)} intervals of the controls' identification, {len(off)} do not hold chance"
    verdict += f": {'; '.join(off)}" if off else ""
    blocks: list[Block] = [
        Text(
            "A generative model always draws something. Decoded here are scans that say nothing of the stimulus: "
            "voxels shuffled within the scan, noise with each voxel's own mean and spread, and the mean training "
            f"scan. {verdict}. Of intervals of 95 %, one in twenty is expected not to."
        ),
        *_conditions("control", {DECODED: full, **controlled}),
    ]
    for name, condition in controlled.items():
        pictures = tuple((_decoded(one, name),) for one in condition.decoded[:SHOWN])
        blocks.append(Pictures(name, pictures))
    return Section("Controls", tuple(blocks))


def ablations(full: Condition, ablated: Mapping[str, Condition]) -> Section:
    """The paper's two tables, ours and its own, and what each variant lacks."""
    blocks: list[Block] = [
        Text(
            "Z is the latent, C_I the image and C_T the text context. Without Z the loop starts from noise; Z alone "
            "has nothing to guide it and goes straight to its decoder."
        ),
        *_conditions("variant", {FULL.name: full, **ablated}, best=True),
    ]
    for place, (title, own, paper) in enumerate(_both(full)):
        lead = {f"full against {name}": own.against(_part(one, place)) for name, one in ablated.items()}
        blocks += [
            _table(f"{title}: full model minus variant, scan by scan", "comparison", lead, own),
            Table(
                f"{title}: {PAPER} of NSD (arXiv 2308.07428)",
                ("variant", *paper[FULL.name]),
                tuple((name, *row.values()) for name, row in paper.items()),
            ),
        ]
    return Section("Ablations", tuple(blocks))


def regions(
    full: Condition, active: Mapping[str, Sequence[Reconstruction]], silenced: Mapping[str, Condition]
) -> Section:
    """One region active, and one silenced."""
    blocks: list[Block] = [
        Text(
            "Active: a scan in which one region is up and every other voxel at its training mean, as strong as moves "
            "the predictions as far as real scans do. Each picture is of another seed."
        )
    ]
    blocks += [
        Pictures(name, tuple((_decoded(one, name),) for one in decoded)) for name, decoded in active.items()
    ]
    blocks.append(Text("Silenced: the test scans with one region at its training mean."))
    return Section("Regions", (*blocks, *_conditions("silenced", {"none": full, **silenced})))


def method(evaluator: Evaluator, full: Condition, fallbacks: Mapping[str, int], seconds: float) -> Section:
    """What the measures mean, and what was run; ``fallbacks`` are `decoding.fallbacks_of` all that was decoded."""
    subject, bundle = evaluator.subject, evaluator.bundle
    rows = [
        (
            f"{title[:-1].lower()}: {name}",
            metric.about,
            metric.arrow,
            "–" if metric.chance is None else metric.chance,
        )
        for title, own, _ in _both(full)
        for name in own.values
        for metric in [own.metrics[name]]
    ]
    return Section(
        "How this was made",
        (
            Table("Measures", ("measure", "what it is", "better", "chance"), tuple(rows)),
            Text(
                "CLIP guides the decoder, so it cannot be the only judge of what was decoded. Intervals take scans "
                "for independent; identification compares them with each other, and its own are a little too narrow."
            ),
            Text(
                f"unibrain-rt {__version__}, bundle {bundle.name} ({bundle.fingerprint()}), subject {subject.name} "
                f"with {subject.voxels:,} voxels, preset {evaluator.preset}, seed {evaluator.seed}, engine "
                f"{evaluator.engine.name}, {seconds:.0f} s."
            ),
            *(Text(f"{fallback_note([graph])}, in {count:,} decodes.") for graph, count in fallbacks.items()),
        ),
    )


def _both(condition: Condition) -> list[tuple[str, Scores, Mapping[str, Mapping[str, float]]]]:
    """Scores of pictures and, if there are any, of captions, with a title and the paper's table."""
    both: list[tuple[str, Scores, Mapping[str, Mapping[str, float]]]] = [
        ("Pictures", condition.images, PAPER_IMAGES)
    ]
    if condition.captions is not None:
        both.append(("Captions", condition.captions, PAPER_CAPTIONS))
    return both


def _part(condition: Condition, place: int) -> Scores:
    return _both(condition)[place][1]


def _conditions(first: str, conditions: Mapping[str, Condition], *, best: bool = False) -> list[Block]:
    """A table of pictures and one of captions, a row a condition."""
    example = next(iter(conditions.values()))
    return [
        _table(
            title,
            first,
            {name: _part(one, place).summary() for name, one in conditions.items()},
            scored,
            best=best,
        )
        for place, (title, scored, _) in enumerate(_both(example))
    ]


def _table(
    title: str,
    first: str,
    rows: Mapping[Any, Mapping[str, Interval]],
    scored: Scores,
    foreign: Mapping[str, Mapping[str, float]] | None = None,
    *,
    best: bool = False,
    counts: bool = False,
) -> Table:
    """A row a key, a column a measure of ``scored``; ``foreign`` rows have what they have of them."""
    names = list(scored.values)
    columns = {name: f"{name} {scored.metrics[name].arrow}" for name in names}
    cells: list[tuple[Cell, ...]] = []
    for key, row in rows.items():
        count: tuple[Cell, ...] = (next(iter(row.values())).n,) if counts else ()
        cells.append((str(key), *count, *(row[name] for name in names)))
    for key, published in (foreign or {}).items():
        cells.append((key, *(published.get(name, "–") for name in names)))
    return Table(
        title,
        (first, *(("n",) if counts else ()), *columns.values()),
        tuple(cells),
        _WITHOUT_SYNONYMS if scored.notes.get("meteor_synonyms") is False else "",
        {columns[name]: scored.metrics[name].higher_is_better for name in names} if best else {},
    )


def _pair(evaluator: Evaluator, full: Condition, row: int) -> tuple[Picture, Picture]:
    said = evaluator.dataset.captions[row][0]
    return (
        Picture(evaluator.stimuli[row], said, f"stimulus of scan {row}: {said}"),
        _decoded(full.decoded[row], f"decoded from scan {row}"),
    )


def _decoded(one: Reconstruction, what: str) -> Picture:
    return Picture(one.image, one.caption or "", f"{what}: {one.caption}" if one.caption else what)
