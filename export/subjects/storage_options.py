"""How heads are stored, as ``fit`` and ``subjects import`` are told."""

from __future__ import annotations

from typing import Any, get_args

import click

from unibrain_rt.export.subjects.ridge.storage import Storage
from unibrain_rt.export.subjects.subject_writer import FIDELITY


def _in_bytes(context: click.Context, option: click.Parameter, max_size: float | None) -> int | None:
    return None if max_size is None else max(1, round(max_size * 1e6))


STORAGE_OPTIONS: tuple[Any, ...] = (
    click.option(
        "--fidelity",
        type=click.FloatRange(0, 1, min_open=True),
        default=FIDELITY,
        show_default=True,
        help="Share of the predictions' variance that the stored factors keep, the mean over heads.",
    ),
    click.option(
        "--max-size",
        "max_bytes",
        type=click.FloatRange(0, min_open=True),
        callback=_in_bytes,
        help="MB that the heads may take: keep no more than fits, whatever the fidelity.",
    ),
    click.option(
        "--storage",
        type=click.Choice(get_args(Storage)),
        default="int8",
        show_default=True,
        help="Type of the stored factors.",
    ),
    click.option("--exact", is_flag=True, help="Store whole weight matrices instead of factors."),
)
