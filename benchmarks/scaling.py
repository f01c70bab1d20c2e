"""How latency and memory grow: with scans decoded at a time, scans in a file, threads, and the size of the image.

The first three are measured with ``unibrain-rt bench``'s own runner on any bundle. For the size of the image, bundles
with random weights are made of the phantom's sizes with larger pictures, so that the latent grows and nothing else
does; that needs the extra ``export``. Beside each time stands the work (FLOPs counted from the graphs, or scans), and
how both grow from one size to the next as exponents of it: time that grows faster than work is marked, with what it
is.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from math import log
from pathlib import Path
from typing import Any

import click
import numpy as np

from unibrain_rt.benchmarks import machine
from unibrain_rt.benchmarks.bench.bench_tables import NAMES, ms
from unibrain_rt.benchmarks.bench.runner import Plan, measure
from unibrain_rt.benchmarks.bench.svg import stacked_bars
from unibrain_rt.benchmarks.kept_results import KeptResults, out_option, write_results
from unibrain_rt.benchmarks.markdown import machine_line, table
from unibrain_rt.benchmarks.memory import PeakMemory
from unibrain_rt.bundle import Bundle
from unibrain_rt.cli.messages import Command
from unibrain_rt.cli.tables import size_text
from unibrain_rt.engines.host import usable_cores
from unibrain_rt.graph_size import costs_of
from unibrain_rt.samplers import seeded_noise

NAME = "scaling"
BATCHES = (1, 2, 4)
SCANS = (1, 4, 16, 64)
IMAGE_SIDES = (64, 128, 256)
FASTER_THAN_WORK = 0.15
"""By how much an exponent of time may be above the work's before it is told."""
WHYS = {
    "batch": "a batch is so many processes, each with its share of the cores: where there are fewer "
    "cores than processes they "
    "wait for each other, and where there are enough they share caches and memory",
    "scans": "scans of a file are decoded one after another, each on its own: only loading is shared",
    "threads": "small graphs are many operators of microseconds, and at the end of each all threads "
    "wait for the slowest; "
    "where other programs use the cores, that wait is for the scheduler",
    "image": "attention among the latent's own tokens takes their square, which the count of FLOPs "
    "has; what it has not is "
    "that scores and activations outgrow the caches, one after another",
}


def batches(bundle: Path, engine: str, preset: str, runs: int) -> list[dict[str, Any]]:
    """By number of scans decoded at a time."""
    return [
        _row(size, size, measure(Plan(bundle, (engine,), (preset,), batch=size, runs=runs))[0])
        for size in BATCHES
    ]


def threads(bundle: Path, engine: str, preset: str, runs: int) -> list[dict[str, Any]]:
    """By number of threads, up to the cores that this process may use."""
    counts = [count for count in (1, 2, 4, 8, 16, 32) if count <= usable_cores()]
    # The work stays, and is shared by more.
    return [
        _row(count, 1 / count, measure(Plan(bundle, (engine,), (preset,), threads=count, runs=runs))[0])
        for count in counts
    ]


def scans(bundle: Path, engine: str, preset: str, work: Path) -> list[dict[str, Any]]:
    """By number of scans in one file: the command line, from its start to its end."""
    subject = Bundle.open(bundle, verify=False).subject()
    rows = []
    for count in SCANS:
        path = work / f"scans-{count}.npy"
        np.save(path, seeded_noise(0, 0, (count, subject.voxels)))
        words = [
            sys.executable,
            "-m",
            "unibrain_rt",
            "decode",
            str(path),
            "--bundle",
            str(bundle),
            "--preset",
            preset,
        ]
        words += ["--engine", engine, "--out", str(work / "decoded"), "--overwrite", "--json"]
        begun = time.perf_counter() * 1000
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        with PeakMemory(process.pid) as memory:
            printed, _ = process.communicate()
        spent = time.perf_counter() * 1000 - begun
        if process.returncode:
            raise click.ClickException(f"decoding {count} scans ended with {process.returncode}")
        totals = [json.loads(line)["timings_ms"]["total"] for line in printed.splitlines()]
        rows.append(
            {
                "size": count,
                "work": count,
                "ms": spent,
                "stages": {"decodes": sum(totals), "all else": spent - sum(totals)},
                "memory_bytes": memory.peak.anonymous,
                "scans_per_second": 1000 * count / spent,
            }
        )
    shutil.rmtree(work / "decoded", ignore_errors=True)
    return rows


def images(engine: str, preset: str, runs: int, work: Path) -> list[dict[str, Any]]:
    """By side of the picture in pixels."""
    rows = []
    for side in IMAGE_SIDES:
        bundle = _bundle_of(side, work)
        opened = Bundle.open(bundle)
        (case,) = measure(Plan(bundle, (engine,), (preset,), runs=runs))
        step, decode = (costs_of(opened, name).flops for name in ("unet_image_step", "autokl_decode"))
        row = _row(side, case["runs"]["image_loop"] * step + decode, case)
        parts = {stage: case["stages"][stage]["p50"] for stage in ("image_loop", "autokl")}
        rows.append({**row, "ms": sum(parts.values()), "stages": parts})
    return rows


def growth(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """From each size to the next: the exponents with which time and work grow."""
    exponents = []
    for one, other in pairwise(rows):
        step = log(other["size"] / one["size"])
        exponents.append({what: log(other[what] / one[what]) / step for what in ("ms", "work")})
    return exponents


def page(results: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    sections = [
        "# How time and memory grow",
        f"Written by `python -m unibrain_rt.benchmarks.{NAME}`. {results['engine']}, preset {results['preset']}, "
        f"{results['runs']} decodes of each size. Growth is the exponent of the size from the row "
        "before: 1 is in proportion.",
        machine_line(results["machine"]),
    ]
    titles = {
        "batch": "Scans at a time", "scans": "Scans in a file", "threads": "Threads", "image": "Side "
        "of the picture in pixels",
    }  # fmt: skip
    for part, rows in results["parts"].items():
        exponents = [None, *growth(rows)]
        cells = [
            [
                str(row["size"]),
                ms(row["ms"]),
                f"{row['scans_per_second']:.3g}",
                size_text(row["memory_bytes"]),
                *(["–", "–"] if each is None else [f"{each['ms']:+.2f}", f"{each['work']:+.2f}"]),
                *(
                    ["–"]
                    if each is None
                    else ["yes" if each["ms"] > each["work"] + FASTER_THAN_WORK else "no"]
                ),
            ]
            for row, each in zip(rows, exponents, strict=True)
        ]
        head = [
            titles[part].lower(),
            "time",
            "scans/s",
            "own memory",
            "time grows",
            "work grows",
            "faster than work",
        ]
        sections += [f"## {titles[part]}", table(head, cells)]
        if any(each is not None and each["ms"] > each["work"] + FASTER_THAN_WORK for each in exponents):
            sections.append(f"Why time grows faster than work: {WHYS[part]}.")
    return "\n\n".join(sections) + "\n"


def _row(size: int, work: float, case: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "size": size,
        "work": work,
        "ms": case["end_to_end"]["p50"],
        "stages": {stage: spread["p50"] for stage, spread in case["stages"].items() if stage != "time"},
        "memory_bytes": case["memory"]["peak_own_bytes"],
        "scans_per_second": case["scans_per_second"],
    }


def _bundle_of(side: int, work: Path) -> Path:
    """A bundle of the phantom's sizes with pictures of so many pixels a side, made once."""
    from unibrain_rt.benchmarks.published import Published

    folder = work / f"side-{side}"
    folder.mkdir(parents=True, exist_ok=True)
    sizes = json.loads(json.dumps(dict(Bundle.open(verify=False).architecture)))
    sizes["autokl"]["image_size"] = side
    config = folder / "sizes.json"
    config.write_text(json.dumps(sizes), encoding="utf-8")
    made = Published(folder, config, 1, None)
    made.run(("checkpoint",))
    made.export("fp32")
    return folder / "fp32"


@click.command(cls=Command)
@click.option("--bundle", type=click.Path(path_type=Path), help="[default: the shipped phantom]")
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    required=True,
    help="Keeps what was measured, to go on from there.",
)
@out_option
@click.option("--engine", default="onnxruntime", show_default=True)
@click.option("--preset", default="fast", show_default=True)
@click.option("--runs", type=click.IntRange(1), default=20, show_default=True)
@click.option(
    "--part", "parts", type=click.Choice(list(WHYS)), multiple=True, default=tuple(WHYS), show_default=True
)
def main(
    bundle: Path | None, work: Path, out: Path, engine: str, preset: str, runs: int, parts: Iterable[str]
) -> None:
    """Run the parts that are missing and write the results of all that are there."""
    folder = Bundle.open(bundle).folder
    kept = KeptResults(work, f"{NAME}-")
    every: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "batch": partial(batches, folder, engine, preset, runs),
        "scans": partial(scans, folder, engine, preset, work),
        "threads": partial(threads, folder, engine, preset, runs),
        "image": partial(images, engine, preset, runs, work),
    }
    parts_measured = {}
    for part, run in every.items():
        if part in parts or kept.there(part):
            parts_measured[part] = kept.once(part, run)
    results = {
        "machine": machine.collect(),
        "engine": engine,
        "preset": preset,
        "runs": runs,
        "parts": parts_measured,
    }
    picture = None
    if "image" in parts_measured:
        bars = {f"{row['size']} x {row['size']}": row["stages"] for row in parts_measured["image"]}
        picture = stacked_bars(bars, "Time by the side of the picture", labels=NAMES)
    write_results(out / NAME, results, page(results), picture)


if __name__ == "__main__":
    main()
