"""What the package logs while something is measured, as lines."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from unibrain_rt.cli.messages import handling


class _Lines(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__(logging.INFO)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(record.getMessage())


@contextmanager
def logged_lines() -> Iterator[list[str]]:
    """The lines so far, while the block runs; see `unibrain_rt.cli.messages` for what is logged as INFO."""
    lines: list[str] = []
    with handling(_Lines(lines)):
        yield lines
