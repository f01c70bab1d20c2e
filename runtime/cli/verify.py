"""``unibrain-rt verify``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from unibrain_rt.bundle import Bundle
from unibrain_rt.cli import complain
from unibrain_rt.cli.json_report import JsonCommand, JsonReport, json_option
from unibrain_rt.cli.options import engine_option, threads_option
from unibrain_rt.engines import create_engine
from unibrain_rt.verification import RTOL, Row, load_golden, verify


@click.command("verify", cls=JsonCommand, short_help="Compare a bundle with recorded outputs.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--golden", type=click.Path(path_type=Path), required=True, help="Recorded outputs (.safetensors)."
)
@engine_option
@click.option(
    "--rtol",
    type=click.FloatRange(0, min_open=True),
    default=RTOL,
    show_default=True,
    help="Largest relative L2 error of one pass; a sampling loop may reach twice that.",
)
@threads_option
@json_option("one object with a row a tensor")
def command(
    bundle: Path, golden: Path, engine: str, rtol: float, threads: int | None, json_file: str | None
) -> None:
    """Run every graph of BUNDLE through an engine and compare it with recorded outputs of the reference.

    A row a tensor: relative L2 error and the largest error of an element, in units of the tensor's RMS, each
    with its limit. Exits 1 if any is off.
    """
    recorded = load_golden(golden)
    opened = Bundle.open(bundle)
    running = create_engine(engine, threads)
    report = JsonReport(json_file, bundle=opened.folder, inputs=(golden,))
    rows: list[Row] = []
    _print(report, f"{'tensor':<44} {'error':>9} {'limit':>8} {'element':>9} {'limit':>8}")
    for row in verify(opened, recorded, running, rtol):
        rows.append(row)
        _print(
            report,
            f"{row.name:<44} {row.error:>9.1e} {row.limit:>8.0e} {row.element_error:>9.1e} "
            f"{row.element_limit:>8.0e}  {'ok' if row.ok else 'OFF'}",
        )
    off = [row.name for row in rows if not row.ok]
    _print(report, f"{len(rows) - len(off)} of {len(rows)} tensors agree")
    report.add(
        {
            "bundle": str(bundle),
            "fingerprint": opened.fingerprint(),
            "golden": str(golden),
            "engine": running.describe(),
            "rtol": rtol,
            "ok": not off,
            "tensors": [{**asdict(row), "ok": row.ok} for row in rows],
        }
    )
    report.close()
    if off:
        complain(f"{bundle} differs from the reference in {', '.join(off)}")
        raise SystemExit(1)


def _print(report: JsonReport, line: str) -> None:
    if not report.on_stdout:
        click.echo(line)
