"""``unibrain-rt phantom report``: what measures the phantom, beside the commands that make it."""

from __future__ import annotations

from pathlib import Path

import click

from unibrain_rt.cli.messages import Command
from unibrain_rt.cli.options import engine_option
from unibrain_rt.export.phantom.cli import command
from unibrain_rt.export.progress import Watch
from unibrain_rt.outputs import write_png


@command.command("report", cls=Command)
@click.option(
    "--bundle", type=click.Path(path_type=Path), help="Bundle folder.  [default: the shipped phantom]"
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("phantom-report"),
    show_default=True,
    help="Folder for report.html, .md, .json and examples.png.",
)
@click.option(
    "--scans",
    type=click.IntRange(10, 2000),
    default=200,
    show_default=True,
    help="Held-out scans of each subject.",
)
@click.option("--preset", default="paper", show_default=True, help="Sampling preset of the bundle.")
@click.option(
    "--judge",
    type=click.Path(path_type=Path),
    help="Feature network's JSON file.  [default: the shipped one]",
)
@engine_option
@click.option("--workers", type=click.IntRange(1), help="Decoding processes.  [default: one a core]")
@click.option("--overwrite", is_flag=True, help="Replace a report that is there.")
def report(
    bundle: Path | None,
    out: Path,
    scans: int,
    preset: str,
    judge: Path | None,
    engine: str,
    workers: int | None,
    overwrite: bool,
) -> None:
    """Run every experiment of the paper on the phantom and write one page about them.

    Held-out scans of every subject, both ablations beside the paper's own, regions active and silenced,
    agreement of subjects, and controls, each with numbers of scans and 95 % intervals.
    """
    from unibrain_rt.benchmarks.experiments.report import run
    from unibrain_rt.benchmarks.quality.page import HTML, check_report, write_report

    watch = Watch()
    check_report(out, overwrite=overwrite)
    page, sheet = run(
        bundle, scans=scans, preset=preset, engine=engine, workers=workers, judge=judge, say=watch.say
    )
    write_report(out, page, overwrite=overwrite)
    write_png(out / "examples.png", sheet)
    click.echo(f"{out / HTML}: written in {watch.elapsed:.0f} s")
