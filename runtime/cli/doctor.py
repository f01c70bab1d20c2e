"""``unibrain-rt doctor``."""

from __future__ import annotations

from pathlib import Path

import click

from unibrain_rt.cli.json_report import JsonCommand, JsonReport, json_option
from unibrain_rt.cli.options import cache_option
from unibrain_rt.diagnosis import PROBLEM, WARNING, diagnose
from unibrain_rt.engines import EngineError
from unibrain_rt.errors import one_line


@click.command("doctor", cls=JsonCommand, short_help="Tell what works on this machine, and what does not.")
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@cache_option
@json_option("one object with all of it")
def command(bundle: Path | None, cache: Path | None, json_file: str | None) -> None:
    """Look at this machine: its engines and what to install for them, its memory against what BUNDLE needs, plans.

    BUNDLE is the shipped phantom where none is named. Exits 3 if no engine works, or the bundle is broken.
    """
    report = JsonReport(json_file, bundle=bundle)
    diagnosis = diagnose(bundle, cache)
    if not report.on_stdout:
        name_width = max(len(check.name) for check in diagnosis.checks)
        for check in diagnosis.checks:
            click.echo(f"{check.state:<7}  {check.name:<{name_width}}  {one_line(check.text, 400)}")
            if check.cure is not None:
                click.echo(f"{'':<7}  {'':<{name_width}}  → {check.cure}")
        states = [check.state for check in diagnosis.checks]
        click.echo(f"{states.count(PROBLEM)} problems, {states.count(WARNING)} warnings")
    report.add(diagnosis.record())
    report.close()
    if not diagnosis.ok:
        raise SystemExit(EngineError.exit_code)
