"""``--json [FILE]``: the machine-readable form of what a command prints, on stdout or in a file.

FILE may be left out, and scans and bundles are words of their own, so the word after ``--json`` could be
either. It is taken as FILE only if it can be nothing else: ``-`` (stdout), or a name that ends in ``.json``
or ``.jsonl``. A file of another name is given in one word, ``--json=FILE``.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from unibrain_rt.cli.messages import Command

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
SUFFIXES = (".json", ".jsonl")
STDOUT = "-"


class JsonCommand(Command):
    """A command whose option ``--json`` takes the next word only if that is clearly its FILE."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _joined(args))


def json_option(what: str) -> Callable[[Decorated], Decorated]:
    """The option ``--json``, for a `JsonCommand`; it gives the command ``json_file``."""
    text = (
        f"Print {what} as JSON, or write it to FILE (a name in .json or .jsonl; --json=FILE for any other)."
    )
    return click.option("--json", "json_file", metavar="[FILE]", help=text)


class JsonReport:
    """Where a command's JSON goes: nowhere, to stdout as it comes, or to a file, written at the end."""

    def __init__(
        self, target: str | None, *, bundle: Path | None = None, inputs: Iterable[Path] = ()
    ) -> None:
        """``bundle`` and ``inputs`` are what the command reads: a report never replaces any of it.

        Raises:
            InputError: ``target`` is one of them, or an existing file that is no report.
        """
        self.on_stdout = target == STDOUT
        self._path = None if target is None or self.on_stdout else Path(target)
        self._lines: list[str] = []
        if self._path is not None:
            _check(self._path, bundle, inputs)

    def add(self, record: Mapping[str, Any]) -> None:
        """One JSON object, on a line of its own; what is not finite becomes null: JSON has no such number."""
        if not self.on_stdout and self._path is None:
            return
        line = json.dumps(_finite(record), allow_nan=False)
        if self.on_stdout:
            click.echo(line)
        else:
            self._lines.append(line)

    def close(self) -> None:
        """Write the file, if there is one, whole or not at all. Raises `InputError`."""
        if self._path is not None:
            from unibrain_rt.files import write_files

            write_files({self._path: "".join(f"{line}\n" for line in self._lines)})


def _joined(words: list[str]) -> list[str]:
    """``words`` with ``--json`` and its FILE, or stdout, as one word; words after ``--`` are no options."""
    joined = list(words)
    end = joined.index("--") if "--" in joined else len(joined)
    for place in reversed(range(end)):
        if joined[place] == "--json":
            following = joined[place + 1] if place + 1 < end else ""
            option = following.startswith("-") and following != STDOUT
            named = not option and (following == STDOUT or following.lower().endswith(SUFFIXES))
            joined[place : place + 1 + named] = [f"--json={following if named else STDOUT}"]
    return joined


def _check(path: Path, bundle: Path | None, inputs: Iterable[Path]) -> None:
    from unibrain_rt.errors import input_error

    if not path.name:
        raise input_error(path, "cannot be a file's name: give another to --json")
    real = os.path.realpath(path)
    if bundle is not None and Path(real).is_relative_to(os.path.realpath(bundle)):
        raise input_error(path, "lies in the bundle, which is only read: write the JSON elsewhere")
    if real in {os.path.realpath(given) for given in inputs}:
        raise input_error(path, "is among the files to read: write the JSON elsewhere")
    if path.is_dir():
        raise input_error(path, "a folder: name a file for the JSON")
    if os.path.lexists(path) and not path.name.lower().endswith(SUFFIXES):
        raise input_error(path, "exists and does not look like a report: remove it, or name a .json file")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
