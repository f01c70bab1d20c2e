"""``unibrain-rt build``: compiles a bundle's graphs ahead of time, and keeps the folder of what was compiled."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from unibrain_rt.bundle import Bundle
from unibrain_rt.cli import complain
from unibrain_rt.cli.json_report import JsonCommand, JsonReport, json_option
from unibrain_rt.cli.options import cache_option
from unibrain_rt.cli.tables import size_text, table
from unibrain_rt.diagnosis import slow_graphs
from unibrain_rt.engines import ENGINES, Engine, EngineError, GraphSpec, create_engine
from unibrain_rt.engines.ahead import AheadEngine, BuildResult
from unibrain_rt.engines.catalogue import ENGINE_VARIABLE
from unibrain_rt.engines.plans import PlanCache, PlanRecord, size_from_text
from unibrain_rt.errors import BundleError, InputError, one_line
from unibrain_rt.ridge_graph import ridge_graph
from unibrain_rt.sessions import decode_graphs
from unibrain_rt.subject_files import GRAPH_FILE

_log = logging.getLogger(__name__)

_TARGET = re.compile(r"sm\d{2,3}[a-z]?")


def _size(ctx: click.Context, option: click.Parameter, text: str | None) -> int | None:
    try:
        return None if text is None else size_from_text(text)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, option) from error


def _targets(ctx: click.Context, option: click.Parameter, text: str) -> tuple[str, ...]:
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    for name in names:
        if not _TARGET.fullmatch(name):
            raise click.BadParameter(f"{name!r} is no compute capability such as sm89", ctx, option)
    return tuple(dict.fromkeys(names))


@click.command("build", cls=JsonCommand, short_help="Compile a bundle's graphs for a GPU engine.")
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option(
    "--engine", metavar="NAME", help=f"Back end to compile for: {', '.join(ENGINES)}.  [required for a build]"
)
@click.option("--preset", "presets", multiple=True, help="Preset to build for.  [default: all of the bundle]")
@click.option(
    "--subject", "names", multiple=True, help="Subject whose heads to build.  [default: all of the bundle]"
)
@click.option(
    "--target",
    "targets",
    callback=_targets,
    metavar="SM,...",
    default="",
    help="GPUs to compile for, such as sm86,sm89.  [default: the one here]",
)
@cache_option
@click.option("--fallbacks", is_flag=True, help="Also the fp32 forms of graphs in half precision.")
@click.option("--force", is_flag=True, help="Compile again what is there.")
@click.option("--list", "listing", is_flag=True, help="Show the cache, and build nothing.")
@click.option("--prune", is_flag=True, help="Make the cache smaller, and build nothing.")
@click.option(
    "--older-than", type=click.FloatRange(0), metavar="DAYS", help="Prune what was not used for DAYS."
)
@click.option(
    "--keep", callback=_size, metavar="SIZE", help="Prune the longest unused down to SIZE, as in 10GB."
)
@click.option("--all", "everything", is_flag=True, help="Prune all.")
@json_option("one object with all of it")
def command(
    bundle: Path | None,
    engine: str | None,
    presets: tuple[str, ...],
    names: tuple[str, ...],
    targets: tuple[str, ...],
    cache: Path | None,
    fallbacks: bool,
    force: bool,
    listing: bool,
    prune: bool,
    older_than: float | None,
    keep: int | None,
    everything: bool,
    json_file: str | None,
) -> None:
    """Compile every graph that decodes with BUNDLE run, so that none has to wait for it.

    For a GPU, each subject's ridge heads are one of them.

    BUNDLE is the shipped phantom where none is named. What is compiled already is not compiled again; a row tells
    for each graph whether it was there, and else why not. With an engine that compiles nothing ahead (cuda), every
    graph is opened to see that no kernel is missing. --list shows what the cache holds; --prune makes it as small
    as its limit (40 GB, or UNIBRAIN_RT_CACHE_LIMIT), or smaller, and what was not used for longest goes first.
    """
    building = bundle is not None or engine is not None or presets or names or targets or fallbacks or force
    if (listing or prune) and (building or (listing and prune)):
        raise click.UsageError("--list and --prune stand alone, with --cache and --json")
    if not prune and (older_than is not None or keep is not None or everything):
        raise click.UsageError("--older-than, --keep and --all go with --prune")
    if listing or prune:
        plans = PlanCache(cache)
        report = JsonReport(json_file)
        if listing:
            _show(plans, report)
        else:
            _prune(plans, report, older_than, keep, everything)
        report.close()
        return
    engine = engine or os.environ.get(ENGINE_VARIABLE)
    if engine is None or engine == "auto":
        raise click.UsageError(f"name the engine to build for with --engine: {', '.join(ENGINES)}")
    opened = Bundle.open(bundle)
    graphs = _graphs(opened, presets or tuple(opened.presets), fallbacks)
    for name in names:
        if name not in opened.subjects:
            raise InputError(f"no subject {name!r} in this bundle; it has {', '.join(opened.subjects)}")
    running = create_engine(engine, cache=cache, targets=targets)
    heads, broken = _heads(opened, names or opened.subjects) if running.on_device else ([], False)
    report = JsonReport(json_file, bundle=opened.folder)
    failed = _build(running, graphs + heads, targets or (None,), force, report, str(opened.folder))
    report.close()
    if failed or broken:
        raise SystemExit(EngineError.exit_code)


def _graphs(bundle: Bundle, presets: Sequence[str], fallbacks: bool) -> list[tuple[GraphSpec, int]]:
    """What to build, and the size of its free axes; fp32 forms last. Raises InputError, BundleError."""
    graphs = decode_graphs(bundle, presets)
    twins = [(graph.in_fp32(), free) for graph, free in graphs if fallbacks and graph.fallback is not None]
    return graphs + twins


def _heads(bundle: Bundle, names: Sequence[str]) -> tuple[list[tuple[GraphSpec, int]], bool]:
    """Graphs of these subjects' heads, and whether a subject is broken, which keeps no other from being built."""
    graphs, broken = [], False
    for name in names:
        try:
            graph = ridge_graph(bundle, bundle.subject(name))
        except BundleError as error:
            complain(str(error))
            broken = True
            continue
        if graph is not None:
            graphs.append((graph, 1))
        else:
            _log.info(
                "%s: has no %s: its heads are applied on the host; fit or import it again", name, GRAPH_FILE
            )
    return graphs, broken


def _build(
    engine: Engine,
    graphs: Sequence[tuple[GraphSpec, int]],
    targets: Sequence[str | None],
    force: bool,
    report: JsonReport,
    bundle: str,
) -> bool:
    """Build all, a row each as it is done; whether any failed."""
    rows: list[dict[str, Any]] = []
    name, failed = engine.name, False
    if isinstance(engine, AheadEngine):
        for target in targets:
            for graph, free in graphs:
                row = _row(engine, graph, free, target, force)
                rows.append(row)
                _print(report, _row_text(row))
        built = [row for row in rows if row["hit"] is False]
        seconds, size_bytes = sum(row["seconds"] for row in built), sum(row["size_bytes"] for row in rows)
        hits = sum(row["hit"] is True for row in rows)
        total = f"{len(built)} built in {seconds:.1f} s, {hits} were there; {size_text(size_bytes)}"
        _print(report, f"{total} in {engine.cache.folder}")
        failed = any(row["error"] is not None for row in rows)
    # What another GPU runs, nobody can see here.
    elif slow := list(slow_graphs(engine, graphs if None in targets else ())):
        failed = True
        for line in slow:
            complain(line)
        _print(report, f"{name} compiles nothing ahead of time, and does not run every graph as it should")
    else:
        _print(report, f"{name} compiles nothing ahead of time: decode at once")
    folder = str(engine.cache.folder) if isinstance(engine, AheadEngine) else None
    report.add({"bundle": bundle, "engine": name, "cache": folder, "ok": not failed, "plans": rows})
    return failed


def _row(engine: AheadEngine, graph: GraphSpec, free: int, target: str | None, force: bool) -> dict[str, Any]:
    """What became of one graph; one that cannot be compiled does not keep the others from it."""
    row: dict[str, Any] = {
        "graph": graph.name,
        "file": graph.path.name,
        "free": free,
        "target": target,
        "hit": None,
        "reason": None,
        "seconds": 0.0,
        "size_bytes": 0,
        "path": None,
        "error": None,
    }
    try:
        result: BuildResult = engine.build(graph, free, target, anew=force)
    except EngineError as error:
        complain(str(error))
        return {**row, "error": one_line(str(error))}
    return {**row, **asdict(result), "seconds": round(result.seconds, 3), "path": str(result.path)}


def _row_text(row: dict[str, Any]) -> str:
    """A row, in columns that are wide enough for every graph of a bundle."""
    file = row["file"].removesuffix(".onnx")
    # All subjects' heads are in files of one name.
    label = row["graph"] if row["file"] == GRAPH_FILE else file
    label = label if row["free"] == 1 else f"{label} ({row['free']})"
    if row["error"] is not None:
        done = "failed"
    else:
        done = "hit" if row["hit"] else f"built in {row['seconds']:.1f} s"
    size = size_text(row["size_bytes"]) if row["size_bytes"] else ""
    return f"{label:<24}  {row['target'] or 'here':<6}  {done:<18}  {size:>8}  {row['reason'] or ''}".rstrip()


def _show(plans: PlanCache, report: JsonReport) -> None:
    records = plans.plans()
    if records:
        for line in table(_listing(records), right={5, 6}):
            _print(report, line)
    total = size_text(sum(record.size_bytes for record in records))
    limit = size_text(plans.limit_bytes)
    _print(report, f"{_count(records)}, {total} of at most {limit}, in {plans.folder}")
    facts = {"cache": str(plans.folder), "limit_bytes": plans.limit_bytes}
    report.add({**facts, "plans": [_plan(record) for record in records]})


def _prune(
    plans: PlanCache, report: JsonReport, older_than: float | None, keep: int | None, everything: bool
) -> None:
    removed = plans.prune(limit_bytes=keep, unused_for_days=older_than, everything=everything)
    if removed:
        for line in table(_listing(removed), right={5, 6}):
            _print(report, line)
    freed = size_text(sum(record.size_bytes for record in removed))
    left = plans.plans()
    kept = size_text(sum(record.size_bytes for record in left))
    _print(report, f"removed {_count(removed)}, {freed}; {_count(left)} are left, {kept}, in {plans.folder}")
    facts = {"cache": str(plans.folder), "removed": [_plan(record) for record in removed]}
    report.add({**facts, "plans": [_plan(record) for record in left]})


def _count(records: Sequence[PlanRecord]) -> str:
    """How many plans; what a back end compiled when it ran them is told of where there is any."""
    plans = sum(record.key.is_plan for record in records)
    kernels = len(records) - plans
    return f"{plans} plans and the kernels of {kernels}" if kernels else f"{plans} plans"


def _listing(records: Sequence[PlanRecord]) -> list[list[str]]:
    rows = [
        [
            record.key.engine,
            record.key.settings.get("version", "?"),
            record.key.graph,
            record.key.holds,
            record.key.settings.get("target", "–"),
            size_text(record.size_bytes),
            f"{record.seconds:.1f} s",
            _time_text(record.built),
            _time_text(record.used),
        ]
        for record in records
    ]
    return [["engine", "version", "graph", "holds", "target", "size", "took", "built", "used"], *rows]


def _plan(record: PlanRecord) -> dict[str, Any]:
    return {**asdict(record.key), "path": str(record.path), "size_bytes": record.size_bytes,
            "seconds": record.seconds, "built": _time_text(record.built), "used": _time_text(record.used)}  # fmt: skip


def _time_text(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "minutes")[:16]


def _print(report: JsonReport, line: str) -> None:
    if not report.on_stdout:
        click.echo(line)
