"""Options that commands have in common."""

from __future__ import annotations

from pathlib import Path

import click

from unibrain_rt.engines.catalogue import ENGINES

engine_option = click.option(
    "--engine",
    default="auto",
    show_default=True,
    help=f"Back end that runs the graphs: {', '.join(ENGINES)}; auto is the first of them that works here.",
)
threads_option = click.option("--threads", type=click.IntRange(1, 1024), help="Cores to use.  [default: all]")
cache_option = click.option(
    "--cache", type=click.Path(path_type=Path), help="Folder of compiled plans.  [default: the user's]"
)
low_memory_option = click.option(
    "--low-memory", is_flag=True, help="Load each graph when its stage begins, and let it go after it."
)
