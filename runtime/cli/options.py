"""Options that commands have in common."""

from __future__ import annotations

import click

engine_option = click.option(
    "--engine", default="auto", show_default=True, help="Back end that runs the graphs."
)
threads_option = click.option("--threads", type=click.IntRange(1, 1024), help="Cores to use.  [default: all]")
