"""Presets by measurement: every sampler setting on the phantom, how long it takes and what is lost.

A cell is a sampler, a number of steps that run, a strength and an interval of guidance. Each decodes the same
held-out scans with the same seeds; pictures and captions are scored against what was shown, by the measures of
``evaluate`` and of ``phantom report``, and against the decodes of the preset ``paper``. A cell's scores are kept in
the work folder, so that a run can be stopped and go on, and can be given a time. Needs the extra ``export``.

Of what `choice` picks among many, the best is partly luck: the chosen are decoded again, beside ``paper``, on
scans that the sweep never saw.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from unibrain_rt import Decoder
from unibrain_rt.benchmarks import machine
from unibrain_rt.benchmarks.bench.svg import scatter
from unibrain_rt.benchmarks.bench.thread_clock import ThreadClock
from unibrain_rt.benchmarks.experiments.laboratory import (
    COLOUR,
    KIND,
    names_colour,
    names_kind,
)
from unibrain_rt.benchmarks.experiments.report import shipped_judge
from unibrain_rt.benchmarks.kept_results import KeptResults, out_option, write_results
from unibrain_rt.benchmarks.markdown import machine_line, table
from unibrain_rt.benchmarks.presets.choice import (
    BEARABLE,
    LIKE,
    PAPER,
    TELLING,
    Cell,
    cells,
    choose,
    frontier,
    judge,
)
from unibrain_rt.benchmarks.quality.decoding import captions_of, pictures_of
from unibrain_rt.benchmarks.quality.image_measures import pixel_correlation, structure
from unibrain_rt.benchmarks.quality.scores import CaptionJudge, ImageJudge
from unibrain_rt.bundle import Bundle
from unibrain_rt.cli.messages import Command
from unibrain_rt.engines import create_engine
from unibrain_rt.export.judges.features import open_extractors
from unibrain_rt.export.phantom.people import SCENE_SEED, held_out
from unibrain_rt.export.phantom.phrases import captions
from unibrain_rt.presets import PRESETS
from unibrain_rt.reconstruction import Reconstruction
from unibrain_rt.samplers import SAMPLERS

_log = logging.getLogger(__name__)

NAME = "presets"
SUBJECT = "sub-01"
CHOSEN = ("fast", "realtime")
_OTHER_SCENES = SCENE_SEED + 1


class Bench:
    """Held-out scans of one subject, a decoder for them, and what decodes are scored by."""

    def __init__(self, engine: str, scans: int, scene_seed: int) -> None:
        bundle = Bundle.open()
        runner = create_engine(engine, 1)
        self.decoder = Decoder.open(bundle, subject=SUBJECT, engine=engine, threads=1)
        size = int(bundle.architecture["autokl"]["image_size"])
        self.shown, stimuli, self.betas = held_out(SUBJECT, scans, size, scene_seed)
        self._images = ImageJudge(stimuli, open_extractors(bundle, [shipped_judge()], runner))
        self._captions = CaptionJudge([captions(scene) for scene in self.shown], bundle, runner)
        self._clock = ThreadClock()

    def decode(self, cell: Cell) -> tuple[list[Reconstruction], list[float]]:
        """All scans, and the milliseconds of each, without the wait for a core."""
        decoder, results, spent = self.decoder.sampling(cell.preset, cell.name), [], []
        decoder.decode(self.betas[0])
        for seed, betas in enumerate(self.betas):
            begun = self._clock.now()
            result = decoder.decode(betas, seed=seed)
            spent.append(self._clock.now().undisturbed_since(begun))
            results.append(result)
        return results, spent

    def score(self, decoded: list[Reconstruction]) -> dict[str, list[float]]:
        """Every measure, scan by scan; pictures' and captions' CLIP apart."""
        told = captions_of(decoded)
        pictures, texts = self._images.score(pictures_of(decoded)).values, self._captions.score(told).values
        named = {KIND: names_kind(told, self.shown), COLOUR: names_colour(told, self.shown)}
        every = {**pictures, **{f"{name} of captions": value for name, value in texts.items()}, **named}
        return {name: [round(float(value), 6) for value in values] for name, values in every.items()}


def measure_cell(
    bench: Bench, cell: Cell, paper: list[Reconstruction] | None
) -> tuple[dict[str, Any], list[Reconstruction]]:
    """A cell's record, and its decodes."""
    decoded, spent = bench.decode(cell)
    record: dict[str, Any] = {
        "preset": cell.preset.to_mapping(),
        "title": cell.title,
        "running": cell.running,
        "decode_ms": float(np.median(spent)),
        "scores": bench.score(decoded),
    }
    if paper is not None:
        pairs = pictures_of(decoded), pictures_of(paper)
        same = [one.caption == other.caption for one, other in zip(decoded, paper, strict=True)]
        record["against_paper"] = {
            "PixCorr": float(pixel_correlation(*pairs).mean()),
            "SSIM": float(structure(*pairs).mean()),
            "same caption": float(np.mean(same)),
        }
    return record, decoded


def run(
    work: Path,
    engine: str,
    scans: int,
    most: int | None,
    minutes: float | None,
    most_steps: int | None,
) -> dict[str, Any]:
    """Measure the cells that are missing, as far as the time goes, and judge all that are there."""
    ends = None if minutes is None else time.monotonic() + 60 * minutes
    todo, kept = cells()[:most], KeptResults(work)
    missing = [
        cell
        for cell in todo
        if not kept.there(cell.name) and (most_steps is None or cell.running <= most_steps)
    ]
    if missing:
        bench = Bench(engine, scans, SCENE_SEED)
        record, paper = measure_cell(bench, todo[0], None)
        kept.keep(todo[0].name, record)
        for number, cell in enumerate(missing, start=1):
            if ends is not None and time.monotonic() > ends:
                _log.info("out of time: %d cells are left", len(missing) - number + 1)
                break
            if cell != todo[0]:
                kept.keep(cell.name, measure_cell(bench, cell, paper)[0])
            _log.info("%d of %d: %s", number, len(missing), cell.title)
    records = {cell.name: kept.read(cell.name) for cell in todo if kept.there(cell.name)}
    if any(len(next(iter(one["scores"].values()))) != scans for one in records.values()):
        raise click.UsageError(
            f"--work: holds cells of another number of scans than {scans}; take another folder"
        )
    for record in records.values():
        record["judged"] = judge(record, records[todo[0].name])
    chosen = choose(records)
    return {
        "machine": machine.collect(),
        "fingerprint": Bundle.open().fingerprint(),
        "engine": engine,
        "scans": scans,
        "cells": {name: summary(record) for name, record in records.items()},
        "cells_planned": len(todo),
        "complete_to_steps": _complete_to(todo, records),
        "frontier": frontier(records),
        "chosen": chosen,
        "confirmed": _confirm(kept, engine, scans, chosen),
    }


def summary(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as the page needs it: of the scores, which the work folder keeps of every scan, only the means."""
    judged = {name: value for name, value in record["judged"].items() if name != "differences"}
    scores = {name: round(float(np.mean(values)), 6) for name, values in record["scores"].items()}
    return {**record, "judged": judged, "scores": scores}


def _complete_to(planned: Sequence[Cell], records: Mapping[str, Any]) -> int:
    """The number of steps up to which every cell was measured."""
    missing = [cell.running for cell in planned if cell.name not in records]
    return min(missing) - 1 if missing else max(cell.running for cell in planned)


def _confirm(kept: KeptResults, engine: str, scans: int, chosen: Mapping[str, str]) -> dict[str, Any]:
    """The chosen cells beside ``paper``, on scans of other scenes."""
    before: dict[str, Any] | None = kept.read("confirmed")
    if before is not None and before["chosen"] == dict(chosen):
        return before
    bench = Bench(engine, scans, _OTHER_SCENES)
    by_name = {cell.name: cell for cell in cells()}
    paper, decoded = measure_cell(bench, by_name[Cell(PRESETS[PAPER]).name], None)
    confirmed: dict[str, Any] = {"chosen": dict(chosen), PAPER: paper}
    for preset, name in chosen.items():
        record, _ = measure_cell(bench, by_name[name], decoded)
        confirmed[preset] = {**record, "judged": judge(record, paper)}
    kept.keep("confirmed", confirmed)
    return confirmed


def page(results: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    records, chosen, confirmed = results["cells"], results["chosen"], results["confirmed"]
    paper = records[Cell(PRESETS[PAPER]).name]
    quick = [[_row_title(name, chosen, records), *_row(records[name])] for name in results["frontier"]]
    head = ["cell", "decode", "quality", "most lost", "in", "PixCorr to paper", "same caption"]
    checks = []
    for preset in CHOSEN:
        one = confirmed[preset]
        worst = sorted(one["judged"]["differences"].items(), key=lambda each: each[1]["mean"])[:3]
        told = "; ".join(f"{name} {d['mean']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}]" for name, d in worst)
        significant = ", ".join(one["judged"]["significant"]) or "none"
        faster = confirmed[PAPER]["decode_ms"] / one["decode_ms"]
        checks.append(
            [preset, one["title"], f"{one['decode_ms']:.0f} ms", f"{faster:.2f}", told, significant]
        )
    return (
        "\n\n".join(
            [
                "# Presets by measurement",
                "Written by `python -m unibrain_rt.benchmarks.presets.sweep`; every cell is in "
                f"`{NAME}.json`. {len(records)} of "
                f"{results['cells_planned']} cells, {results['scans']} held-out scans of the phantom's {SUBJECT} each, "
                f"{results['engine']} on one thread. `paper` takes {paper['decode_ms']:.0f} ms. All cells that run "
                f"{results['complete_to_steps']} steps or fewer are there.",
                machine_line(results["machine"]),
                f"![Time of a decode and what is left of paper's quality]({NAME}.svg)",
                "Quality: what is left of what `paper` has above chance, averaged over all measures. "
                "An interval of guidance "
                "changes what comes out and not how long it takes: both branches are computed in every step.",
                "## The frontier: cells that no quicker one reaches",
                table(head, quick),
                "## The chosen, on scans that the sweep never saw",
                table(
                    [
                        "preset",
                        "cell",
                        "decode",
                        "times faster",
                        "lowest differences to paper",
                        "significant losses",
                    ],
                    checks,
                ),
                "`fast`: the fewest steps with which no measure is significantly below `paper`'s, none lost more than "
                f"{TELLING:.0%}, and pictures correlate with `paper`'s own by {LIKE} or more; `realtime`: with which "
                f"none lost more than {BEARABLE:.0%}. Of as many steps, the best.",
            ]
        )
        + "\n"
    )


def picture(results: Mapping[str, Any]) -> str:
    """Time against quality, the frontier as a line."""
    records = results["cells"]
    samplers = list(SAMPLERS)

    def place(name: str) -> tuple[float, float]:
        return records[name]["decode_ms"], records[name]["judged"]["quality"]

    points = [
        (*place(name), one["title"], samplers.index(one["preset"]["sampler"]))
        for name, one in records.items()
    ]
    marked = {preset: place(name) for preset, name in results["chosen"].items()}
    marked[PAPER] = place(Cell(PRESETS[PAPER]).name)
    axes = ("milliseconds of a decode, one thread", "quality, paper = 1")
    title = f"Sampler settings on the phantom, {results['scans']} scans"
    line, where = [place(name) for name in results["frontier"]], results["machine"]
    footer = [
        f"{where['cpu']}, {where['cores']} cores; {results['engine']}; the phantom {results['fingerprint']}"
    ]
    return scatter(points, title, axes, samplers, line, marked, footer)


def _row(one: Mapping[str, Any]) -> list[str]:
    worst = max(one["judged"]["lost"], key=one["judged"]["lost"].get)
    against = one.get("against_paper", {"PixCorr": 1.0, "same caption": 1.0})
    return [
        f"{one['decode_ms']:.0f} ms",
        f"{one['judged']['quality']:.3f}",
        f"{max(0.0, one['judged']['lost'][worst]):.1%}",
        worst,
        f"{against['PixCorr']:.3f}",
        f"{against['same caption']:.0%}",
    ]


def _row_title(name: str, chosen: Mapping[str, str], records: Mapping[str, Any]) -> str:
    marks = [preset for preset, cell in chosen.items() if cell == name]
    return records[name]["title"] + (f" (**{', '.join(marks)}**)" if marks else "")


@click.command(cls=Command)
@click.option(
    "--work", type=click.Path(path_type=Path), required=True, help="Keeps a file a cell, to go on from there."
)
@out_option
@click.option(
    "--scans", type=click.IntRange(3), default=200, show_default=True, help="Held-out scans a cell."
)
@click.option("--cells", "most", type=click.IntRange(1), help="Only the first so many cells.")
@click.option(
    "--most-steps", type=click.IntRange(1), help="Measure only cells that run so many steps or fewer."
)
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="Begin no cell after so long.")
@click.option("--engine", default="onnxruntime", show_default=True)
def main(
    work: Path,
    out: Path,
    scans: int,
    most: int | None,
    most_steps: int | None,
    minutes: float | None,
    engine: str,
) -> None:
    """Sweep the sampler's settings on the shipped phantom and tell which are worth their time."""
    results = run(work, engine, scans, most, minutes, most_steps)
    write_results(out / NAME, results, page(results), picture(results))
    for preset, name in results["chosen"].items():
        click.echo(f"{preset}: {json.dumps(results['cells'][name]['preset'])}")


if __name__ == "__main__":
    main()
