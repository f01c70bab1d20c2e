"""``unibrain-rt bench``."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from unibrain_rt.cli import complain
from unibrain_rt.cli.json_report import JsonCommand, JsonReport, json_option
from unibrain_rt.cli.options import cache_option, low_memory_option, threads_option

_log = logging.getLogger(__name__)

_path = click.Path(path_type=Path)
NAME = "bench"
KIND = "unibrain-rt bench"


@click.command("bench", cls=JsonCommand, short_help="Measure where the time of a decode goes.")
@click.argument("bundle", required=False, type=_path)
@click.option(
    "--engine", "engines", multiple=True, default=("auto",), show_default=True, help="Repeat it for several."
)
@click.option(
    "--preset", "presets", multiple=True, default=("paper",), show_default=True, help="Repeat it for several."
)
@click.option("--subject", help="Whose ridge heads.  [default: the bundle's default or only one]")
@click.option("--scan", type=_path, help="File whose first scan is decoded.  [default: made-up betas]")
@click.option(
    "--batch",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Scans decoded at the same time.",
)
@click.option(
    "--runs", type=click.IntRange(1), default=20, show_default=True, help="Decodes that count, of each."
)
@threads_option
@cache_option
@low_memory_option
@click.option("--startup/--no-startup", default=True, help="Measure the command line's start-up, too.")
@click.option("--out", type=_path, help=f"Folder for {NAME}.json, {NAME}.md and {NAME}.svg.")
@click.option(
    "--compare", nargs=2, type=_path, metavar="OLD NEW", help="Measure nothing: compare two results in JSON."
)
@click.option(
    "--threshold",
    type=click.FloatRange(0, min_open=True),
    default=10.0,
    show_default=True,
    help="Per cent slower that --compare exits with 1 for.",
)
@json_option("one object with everything measured, or compared")
def command(
    bundle: Path | None,
    engines: tuple[str, ...],
    presets: tuple[str, ...],
    subject: str | None,
    scan: Path | None,
    batch: int,
    runs: int,
    threads: int | None,
    cache: Path | None,
    low_memory: bool,
    startup: bool,
    out: Path | None,
    compare: tuple[Path, Path] | None,
    threshold: float,
    json_file: str | None,
) -> None:
    """Time decodes of BUNDLE stage by stage, beside what this device could do at best; the phantom if none is named.

    Every engine and preset is loaded in a process of its own, and they take turns. With --compare OLD NEW, two results
    of --json are compared instead: exit code 1 means that NEW is slower. On a machine with other work, results of
    --threads 1 are the steadiest.
    """
    if compare is not None:
        _compare(compare, threshold / 100, json_file)
        return
    from unibrain_rt.benchmarks.bench import bench_tables as reports
    from unibrain_rt.benchmarks.bench.projections import project
    from unibrain_rt.benchmarks.bench.roofline import roofline, stage_works
    from unibrain_rt.benchmarks.bench.runner import Plan, describe, measure
    from unibrain_rt.benchmarks.processes import WorkerError
    from unibrain_rt.bundle import Bundle
    from unibrain_rt.errors import BundleError

    opened = Bundle.open(bundle)
    for preset in presets:
        opened.preset(preset)
    _check_out(out, opened.folder)
    outputs = [out / f"{NAME}.{ending}" for ending in ("json", "md", "svg")] if out else []
    report = JsonReport(json_file, bundle=opened.folder, inputs=(*([scan] if scan else []), *outputs))
    plan = Plan(
        opened.folder, tuple(dict.fromkeys(engines)), tuple(dict.fromkeys(presets)), subject, scan, threads, cache,
        batch, runs, low_memory,
    )  # fmt: skip
    try:
        started = _startup(plan, opened) if startup else []
        cases = measure(plan)
    except WorkerError as error:
        raise click.exceptions.Exit(_failed(error)) from error
    projections: list[dict[str, Any]] = []
    for case in cases:
        try:
            works = stage_works(opened, case["preset"], case["runs"], case["subject"])
        except BundleError as error:
            _log.info("no limits: %s", error)
            continue
        case["roofline"] = roofline(works, case["stages"], case["peaks"])
        # They depend on the preset, and not on the engine.
        projections = projections or [
            {**one, "preset": case["preset"]} for one in project(opened, case["preset"], works)
        ]
    results = {
        "kind": KIND,
        "command": _command(plan, opened, startup, given=bundle is not None),
        **describe(plan, opened),
        "rounds": len(plan.rounds),
        "startup": started,
        "cases": cases,
        "projections": projections,
    }
    if out is not None:
        _write(out, results)
    report.add(results)
    if not report.on_stdout:
        click.echo(reports.terminal_text(results))
    report.close()


def _startup(plan: Any, bundle: Any) -> list[dict[str, Any]]:
    """Of the first preset with every engine, where a subject is there to decode with."""
    from unibrain_rt.benchmarks.bench.decodes import made_up_scan
    from unibrain_rt.benchmarks.bench.startup import measure_startup

    if not bundle.subjects:
        _log.info("no start-up: the command line decodes with fitted subjects, and the bundle has none")
        return []
    startups = []
    warm, cold = min(plan.runs, 5), min(plan.runs, 2)
    with tempfile.TemporaryDirectory(prefix="unibrain-rt-bench-") as folder:
        scan = plan.scan or made_up_scan(Path(folder), bundle.subject(plan.subject))
        for engine in plan.engines:
            startups.append(
                measure_startup(
                    plan.bundle, scan, engine=engine, preset=plan.presets[0], subject=plan.subject,
                    threads=plan.threads, cache=plan.cache, warm=warm, cold=cold,
                )
            )  # fmt: skip
            _log.info("%s: started %d times", engine, warm + cold)
    return startups


def _compare(paths: tuple[Path, Path], threshold: float, json_file: str | None) -> None:
    from unibrain_rt.benchmarks.bench.compare import HEAD, WHOLE, compare, rows
    from unibrain_rt.cli.tables import table

    report = JsonReport(json_file, inputs=paths)
    old, new = (_read(path) for path in paths)
    comparisons = compare(old, new, threshold)
    slower = [one for one in comparisons if one.verdict == "slower"]
    if not report.on_stdout:
        for line in table([HEAD, *rows(comparisons)], right=range(2, 5)):
            click.echo(line)
        click.echo(
            "Undisturbed medians; ratios are of times over the calibration load's beside them, new over old."
        )
    report.add(
        {"threshold": threshold, "slower": bool(slower), "parts": [asdict(one) for one in comparisons]}
    )
    report.close()
    if slower:
        worst = max(slower, key=lambda one: (one.part == WHOLE, one.ratio))
        complain(f"{paths[1]} is slower: {worst.case}, {worst.part} by {worst.ratio - 1:.0%}")
        raise SystemExit(1)


def _read(path: Path) -> Any:
    from unibrain_rt.errors import input_error
    from unibrain_rt.json_file import Fields

    advice = "give a file that bench --json=FILE wrote"
    return Fields.load(path, lambda where, problem: input_error(where, f"{problem}: {advice}")).raw()


def _check_out(out: Path | None, bundle: Path) -> None:
    from unibrain_rt.errors import input_error

    if out is None:
        return
    if Path(os.path.realpath(out)).is_relative_to(os.path.realpath(bundle)):
        raise input_error(out, "lies in the bundle, which is only read: choose another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise input_error(out, f"cannot be made ({error.strerror}): choose another --out") from error


def _write(out: Path, results: dict[str, Any]) -> None:
    from unibrain_rt.benchmarks.bench.bench_tables import NAMES, footer, label, page
    from unibrain_rt.benchmarks.bench.svg import stacked_bars
    from unibrain_rt.files import write_files

    bars = {
        label(case): {stage: case["stages"][stage]["p50"] for stage in case["stages"] if stage != "time"}
        for case in results["cases"]
    }
    title = f"Where the time of a decode goes: {results['bundle']['name']}, median of each stage"
    write_files(
        {
            out / f"{NAME}.json": json.dumps(results, indent=1) + "\n",
            out / f"{NAME}.md": page(results, f"{NAME}.svg"),
            out / f"{NAME}.svg": stacked_bars(bars, title, labels=NAMES, footer=footer(results)),
        }
    )


def _command(plan: Any, bundle: Any, startup: bool, given: bool) -> str:
    words = ["unibrain-rt", NAME, *([bundle.folder.name] if given else [])]
    words += [word for engine in plan.engines for word in ("--engine", engine)]
    words += [word for preset in plan.presets for word in ("--preset", preset)]
    words += ["--batch", str(plan.batch)] if plan.batch > 1 else []
    words += ["--threads", str(plan.threads)] if plan.threads else []
    words += ["--runs", str(plan.runs), *([] if startup else ["--no-startup"])]
    return " ".join(words)


def _failed(error: Any) -> int:
    complain(str(error))
    return int(error.exit_code)
