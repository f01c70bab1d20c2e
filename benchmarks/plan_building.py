"""What building plans costs: time, size and peak memory of ``unibrain-rt build``, graph by graph.

The command runs as a process of its own, with an empty cache, and is watched from outside; then once more, when
all of it should be there.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

import click

from unibrain_rt.benchmarks import machine
from unibrain_rt.benchmarks.kept_results import result_option, write_results
from unibrain_rt.benchmarks.markdown import machine_line, table
from unibrain_rt.benchmarks.memory import PeakMemory
from unibrain_rt.bundle import Bundle

_COMPILES = re.compile(r"(\S+): \S+ compiles it")
_STARTING = "start"
_TAIL_LINES = 20


def measure_build(
    bundle: Path, engine: str, targets: str, presets: tuple[str, ...], cache: Path
) -> dict[str, Any]:
    """Build all plans of a decode into ``cache`` and report what that took.

    Raises:
        RuntimeError: the build failed; the message ends with its last lines.
    """
    report = cache / "build.json"
    command = [sys.executable, "-m", "unibrain_rt", "build", str(bundle), "--engine", engine]
    command += ["--cache", str(cache), f"--json={report}", *(f"--preset={name}" for name in presets)]
    command += [f"--target={targets}"] if targets else []
    load = machine.load_average()
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    tail = deque[str](maxlen=_TAIL_LINES)
    with PeakMemory(process.pid) as memory:
        memory.stage = _STARTING
        assert process.stderr is not None
        for line in process.stderr:
            tail.append(line)
            if match := _COMPILES.match(line):
                memory.stage = match[1]
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"build exited {process.returncode}:\n{''.join(tail)}")
    plans = json.loads(report.read_text(encoding="utf-8"))["plans"]
    keep = ("graph", "free", "target", "hit", "seconds", "size_bytes")
    return {
        "seconds": time.perf_counter() - begun,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "load_average_before": load,
        "peak_rss_bytes": usage.ru_maxrss * 1024,
        "peak_anonymous_bytes": memory.peak.anonymous,
        "plans": [{key: plan[key] for key in keep} for plan in plans],
        "graphs": {name: peak.to_mapping() for name, peak in memory.stages.items()},
    }


def page(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    first, again = results["first"], results["again"]
    rows = [
        [
            f"{plan['graph']} ({plan['free']})" if plan["free"] > 1 else plan["graph"],
            plan["target"] or "–",
            f"{plan['seconds']:.1f} s",
            f"{plan['size_bytes'] / 1e6:,.1f} MB",
            _gib(first["graphs"].get(plan["graph"], {}).get("total_bytes")),
            _gib(first["graphs"].get(plan["graph"], {}).get("anonymous_bytes")),
        ]
        for plan in first["plans"]
    ]
    hits = sum(plan["hit"] for plan in again["plans"])
    return (
        "\n\n".join(
            [
                "# Building plans",
                f"`python -m unibrain_rt.benchmarks.plan_building`: graphs of "
                f"{results['graphs_bytes'] / 1e9:.2f} GB in {results['precision']}, presets "
                f"{', '.join(results['presets'])}, engine {results['engine']} {results['version']}. "
                "MB is 10⁶ bytes, GiB 2³⁰.",
                machine_line(results["machine"]),
                f"All plans: {first['seconds']:.0f} s ({first['cpu_seconds']:.0f} s of processor time), "
                f"{sum(plan['size_bytes'] for plan in first['plans']) / 1e9:.2f} GB, peak RSS "
                f"{_gib(first['peak_rss_bytes'])}, of it own memory {_gib(first['peak_anonymous_bytes'])}. "
                f"Load average before: {first['load_average_before']}. A second build: {hits} of "
                f"{len(again['plans'])} were there, {again['seconds']:.0f} s (mostly the bundle's SHA-256).",
                table(["graph", "target", "time", "plan", "peak RSS", "peak own"], rows),
                "Peaks are those while that graph was compiled; with several targets, over all of them. RSS includes "
                "pages of the bundle's files, which the kernel drops when it needs room. Nothing was run on a GPU.",
            ]
        )
        + "\n"
    )


def _gib(count: int | None) -> str:
    return "–" if count is None else f"{count / 2**30:.2f} GiB"


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@result_option
@click.option("--engine", default="tensorrt-rtx", show_default=True, help="Back end to build for.")
@click.option("--target", default="sm89", show_default=True, help="GPUs to build for; empty: the one here.")
@click.option("--preset", "presets", multiple=True, default=("paper",), show_default=True)
def main(bundle: Path, out: Path, engine: str, target: str, presets: tuple[str, ...]) -> None:
    """Build every plan that decodes with BUNDLE run, twice, and write what that took."""
    opened = Bundle.open(bundle)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".plans-") as folder:
        runs = [measure_build(bundle, engine, target, presets, Path(folder)) for _ in range(2)]
        about = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(Path(folder).glob("*.json"))]
    results = {
        "machine": machine.collect(),
        "engine": engine,
        "version": next(plan["settings"]["version"] for plan in about if "settings" in plan),
        "precision": opened.precision,
        "graphs_bytes": sum(record.size_bytes for name, record in opened.files.items() if "graphs/" in name),
        "presets": presets,
        "first": runs[0],
        "again": runs[1],
    }
    write_results(out, results, page(results))


if __name__ == "__main__":
    main()
