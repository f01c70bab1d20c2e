"""What a command says of its work: `-v`, `--quiet` and `--log-file`, over the standard ``logging``.

Every module logs to a logger of its own name. Here is the one handler of what a user sees, on stderr, and the one of a
log file; both are there while a command runs. INFO is what a user wants to know unasked, such as that something takes
minutes; DEBUG is each step.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from unibrain_rt.errors import input_error, one_line

ROOT = "unibrain_rt"
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class Command(click.Command):
    """A command with the options of this module, which it heeds while it runs."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.params += [
            click.Option(["-v", "--verbose"], is_flag=True, help="Tell of every step."),
            click.Option(["-q", "--quiet"], is_flag=True, help="Say nothing on stderr but what is wrong."),
            click.Option(
                ["--log-file"],
                type=click.Path(path_type=Path),
                help="Add what is done, with times, and what goes wrong to this file.",
            ),
        ]

    def invoke(self, ctx: click.Context) -> Any:
        verbose, quiet, path = (ctx.params.pop(name) for name in ("verbose", "quiet", "log_file"))
        if verbose and quiet:
            raise click.UsageError("--verbose and --quiet cannot go together", ctx)
        level = logging.DEBUG if verbose else logging.ERROR if quiet else logging.INFO
        with handling(_Stderr(level)), _logging_to(path):
            return super().invoke(ctx)


def shows_progress() -> bool:
    """Whether a progress bar has somebody to see it: a terminal, and no ``--quiet``."""
    quiet = any(
        isinstance(handler, _Stderr) and handler.level > logging.INFO
        for handler in logging.getLogger(ROOT).handlers
    )
    return sys.stderr.isatty() and not quiet


class _Stderr(logging.Handler):
    """One line a message. What an engine says of each of several graphs in the same words is said once."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        line = one_line(record.getMessage(), 400)
        if record.name.startswith(f"{ROOT}.engines"):
            if line in self._said:
                return
            self._said.add(line)
        click.echo(line, err=True)  # a pipe that broke ends the command, as everywhere


@contextmanager
def handling(handler: logging.Handler) -> Iterator[None]:
    """Let a handler hear the package, down to its own level, while the block runs."""
    logger = logging.getLogger(ROOT)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(min(one.level for one in logger.handlers))
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        handler.close()


@contextmanager
def _logging_to(path: Path | None) -> Iterator[None]:
    """Add all messages to a file, and the error that ends the command with its traceback."""
    if path is None:
        yield
        return
    try:
        handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise input_error(path, f"cannot be written ({error.strerror}): name another --log-file") from error
    handler.setLevel(logging.DEBUG)
    handler.setFormatter(logging.Formatter(_FORMAT))
    with handling(handler):
        try:
            yield
        except Exception as error:
            record = logging.LogRecord(
                f"{ROOT}.cli", logging.ERROR, __file__, 0, one_line(str(error), 400) or type(error).__name__, None,
                sys.exc_info(),
            )  # fmt: skip
            handler.handle(record)
            raise
