"""What was measured, as tables: for a terminal, and as a page of Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unibrain_rt.benchmarks import markdown as tables
from unibrain_rt.benchmarks.bench.decodes import ONCE, STEP_OF
from unibrain_rt.cli import tables as terminal
from unibrain_rt.cli.tables import size_text

NAMES = {
    "scan_read": "scan read", "ridge": "ridge", "context": "context", "image_loop": "image loop", "autokl": "AutoKL",
    "text_loop": "text loop", "caption": "caption", "png": "PNG and JSON", ONCE: "time, once a schedule",
    "image_step": "· a step", "text_step": "· a step", "token": "· a token",
}  # fmt: skip
_NONE = "–"


@dataclass(frozen=True)
class BenchTable:
    """A title, a note, and rows of cells under a head. The first column is text, the others are numbers."""

    title: str
    head: tuple[str, ...]
    rows: list[list[str]]
    note: str = ""


def all_tables(results: Mapping[str, Any]) -> Iterator[BenchTable]:
    """Every table of a result, in the order in which they are read."""
    for case in results["cases"]:
        yield _stages(case)
    yield _overview(results["cases"])
    for one in results.get("startup", []):
        yield _startup(one)
    if results.get("projections"):
        yield _projections(results["projections"])


def terminal_text(results: Mapping[str, Any]) -> str:
    """The tables in plain text."""
    parts = []
    for each in all_tables(results):
        rows = [list(each.head), *each.rows]
        lines = terminal.table(rows, right=range(1, len(each.head)))
        parts.append("\n".join([each.title, *lines, *([each.note] if each.note else [])]))
    return "\n\n".join(parts)


def page(results: Mapping[str, Any], plot: str | None = None) -> str:
    """The whole as Markdown; ``plot`` is the file of the picture, from where the page lies."""
    bundle, settings = results["bundle"], results["settings"]
    sections = [
        f"# Latency of {bundle['name']}",
        f"Written by `{results['command']}`; every number is in the JSON file of the same name.",
        tables.machine_line(results["machine"]),
        f"unibrain-rt {results['version']}. "
        f"Bundle {bundle['name']} ({bundle['fingerprint']}), {bundle['precision']}, {size_text(bundle['size_bytes'])}; "
        f"{settings['runs']} decodes of one scan after the first in {results['rounds']} rounds that take turns, "
        f"{settings['batch']} at a time; load average {_loads(results['cases'])} meanwhile.",
    ]
    sections += [f"![Where the time of a decode goes]({plot})"] if plot else []
    for each in all_tables(results):
        sections += [f"## {each.title}", tables.table(each.head, each.rows), each.note]
    return "\n\n".join(section for section in sections if section) + "\n"


def footer(results: Mapping[str, Any]) -> list[str]:
    """What a picture has to tell of where it comes from, in lines."""
    bundle, machine = results["bundle"], results["machine"]
    engines = {f"{case['engine']['engine']} {case['engine']['version']}" for case in results["cases"]}
    devices = ", ".join(machine.get("gpus", [])) or f"{machine['cpu']}, {machine['cores']} cores"
    return [
        f"{devices}; {machine['os']}, {machine['kernel']}, Python {machine['python']}",
        f"unibrain-rt {results['version']}, {', '.join(sorted(engines))}; "
        f"bundle {bundle['name']} {bundle['fingerprint']}",
    ]


def label(case: Mapping[str, Any]) -> str:
    """Engine, precision and preset of a case."""
    engine = case["engine"]
    precision = f" {engine['precision']}" if "precision" in engine else ""
    return f"{engine['engine']}{precision}, {case['preset']}"


def ms(value: float) -> str:
    """Milliseconds in three digits."""
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms"


def _stages(case: Mapping[str, Any]) -> BenchTable:
    limits, quiet = case.get("roofline", {}), case["undisturbed_p50"]
    rows = []
    for stage, spread in case["stages"].items():
        limit = limits.get(stage)
        rows.append(
            [
                NAMES[stage],
                *(ms(spread[name]) for name in ("p50", "p90", "p99")),
                ms(quiet[stage]) if stage in quiet else _NONE,
                *([ms(limit["limit_ms"]), f"{limit['share']:.0%}", limit["bound"]] if limit else [_NONE] * 3),
            ]
        )
        if STEP_OF.get(stage) in case["steps"]:
            step = case["steps"][STEP_OF[stage]]
            each = [ms(limit["limit_ms"] / limit["runs"])] if limit else [_NONE]
            rows.append(
                [
                    NAMES[STEP_OF[stage]],
                    *(ms(step[name]) for name in ("p50", "p90", "p99")),
                    _NONE,
                    *each,
                    _NONE,
                    _NONE,
                ]
            )
    whole, limit = case["end_to_end"], limits.get("all")
    rows.append(
        [
            "end to end",
            *(ms(whole[name]) for name in ("p50", "p90", "p99")),
            ms(quiet["end_to_end"]),
            *([ms(limit["limit_ms"]), f"{limit['share']:.0%}", _NONE] if limit else [_NONE] * 3),
        ]
    )
    engine = case["engine"]
    shares = ", ".join(f"{STAGE_OF[step]} {share:.1%}" for step, share in case["host_share"].items())
    notes = [
        f"{engine['engine']} {engine['version']} on {engine['device']}"
        + (f", {engine['threads']} threads" if "threads" in engine else ""),
        f"host between runs: {shares}" if shares else "the device runs the loops by itself",
    ]
    if "peaks" in case:
        peaks = case["peaks"]
        notes.append(
            f"limit at {peaks['flops_per_s'] / 1e9:,.0f} GFLOP/s of a matrix product and "
            f"{peaks['bytes_per_s'] / 1e9:.1f} GB/s of a copy, measured in this process"
        )
    head = ("stage", "p50", "p90", "p99", "p50 undisturbed", "limit", "reached", "by")
    return BenchTable(label(case), head, rows, "; ".join(notes) + ".")


def _overview(cases: Sequence[Mapping[str, Any]]) -> BenchTable:
    rows = [
        [
            label(case),
            ms(case["load_ms"]["total"]),
            ms(case["first_ms"]["end_to_end"]),
            ms(case["end_to_end"]["p50"]),
            ms(case["undisturbed_p50"]["end_to_end"]),
            f"{case['scans_per_second']:.3g}",
            size_text(case["memory"]["peak_own_bytes"]),
            size_text(case["memory"]["peak_rss_bytes"]),
            _NONE if case["memory"]["device_bytes"] is None else size_text(case["memory"]["device_bytes"]),
        ]
        for case in cases
    ]
    head = ("", "load", "first decode", "decode", "undisturbed", "scans/s", "own memory", "RSS", "device")
    note = "Undisturbed: without the time in which the decoding thread was ready and other programs had the cores."
    return BenchTable("Load, steady state and memory", head, rows, note)


def _startup(one: Mapping[str, Any]) -> BenchTable:
    cold = one["cold_ms"]
    rows = [
        [part, ms(value), f"{value / sum(one['parts_ms'].values()):.0%}"]
        for part, value in one["parts_ms"].items()
    ]
    note = (
        f"Whole process, warm: p50 {ms(one['warm_ms']['p50'])}, p90 {ms(one['warm_ms']['p90'])} of "
        f"{one['warm_ms']['n']}" + (f"; cold: p50 {ms(cold['p50'])} of {cold['n']}." if cold else ".")
    )
    title = f"Start-up of unibrain-rt decode, {one['engine']}, {one['preset']}"
    return BenchTable(title, ("part", "p50", "share"), rows, note)


def _projections(projections: Sequence[Mapping[str, Any]]) -> BenchTable:
    rows = [
        [
            one["device"],
            *(
                ms(one["stages_ms"].get(stage, 0.0))
                for stage in ("image_loop", "autokl", "text_loop", "caption")
            ),
            ms(one["limit_ms"]),
            size_text(one["memory_bytes"]),
            size_text(one["low_memory_bytes"]),
            one["fits"],
        ]
        for one in projections
    ]
    note = (
        f"Projections, not measurements: what preset {projections[0]['preset']} takes at least at each "
        "device's published fp16 "
        "peaks (sources: benchmarks/bench/projections.py). Memory: weights, buffers and, where it is "
        "shared, ridge heads."
    )
    head = (
        "device",
        "image loop",
        "AutoKL",
        "text loop",
        "caption",
        "at least",
        "memory",
        "low memory",
        "fits",
    )
    return BenchTable("Projections in fp16", head, rows, note)


def _loads(cases: Sequence[Mapping[str, Any]]) -> str:
    averages = [
        one["load_average"] for case in cases for one in case["rounds"] if one["load_average"] is not None
    ]
    return f"{min(averages):.1f} to {max(averages):.1f}" if averages else "unknown"


STAGE_OF = {step: NAMES[stage] for stage, step in STEP_OF.items()}
