"""``unibrain-rt verify``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from unibrain_rt.bundle import Bundle
from unibrain_rt.engines import create_engine
from unibrain_rt.verify import RTOL, Row, load_golden, verify


@click.command("verify", short_help="Compare a bundle's graphs with recorded reference outputs.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--golden", type=click.Path(path_type=Path), required=True, help="Recorded outputs (.safetensors).")
@click.option("--engine", default="auto", show_default=True, help="Back end that runs the graphs.")
@click.option("--rtol", type=click.FloatRange(0, min_open=True), default=RTOL, show_default=True,
              help="Largest relative L2 error of one pass; a sampling loop may reach ten times that.")  # fmt: skip
@click.option("--threads", type=click.IntRange(1), help="Cores to use.  [default: all]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a tensor.")
def command(
    bundle: Path, golden: Path, engine: str, rtol: float, threads: int | None, as_json: bool
) -> None:
    """Run every graph of BUNDLE through an engine and compare it with outputs of the reference implementation.

    A row a tensor: relative L2 error and the largest error of an element, in units of the tensor's RMS, each with
    its limit. Exits 1 if any is off.
    """
    recorded = load_golden(golden)
    opened = Bundle.open(bundle)
    rows: list[Row] = []
    if not as_json:
        click.echo(f"{'tensor':<44} {'error':>9} {'limit':>8} {'element':>9} {'limit':>8}")
    for row in verify(opened, recorded, create_engine(engine, threads), rtol):
        rows.append(row)
        if as_json:
            click.echo(json.dumps({**asdict(row), "ok": row.ok}))
        else:
            click.echo(
                f"{row.name:<44} {row.error:>9.1e} {row.limit:>8.0e} {row.element_error:>9.1e} "
                f"{row.element_limit:>8.0e}  {'ok' if row.ok else 'OFF'}"
            )
    off = [row.name for row in rows if not row.ok]
    if not as_json:
        click.echo(f"{len(rows) - len(off)} of {len(rows)} tensors agree")
    if off:
        click.echo(f"unibrain-rt: {bundle} differs from the reference in {', '.join(off)}", err=True)
        raise SystemExit(1)
