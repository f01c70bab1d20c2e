"""Errors a user can cause: each is one line that says what is wrong and what to do."""

from __future__ import annotations

import os


class UnibrainError(Exception):
    """Base of every error shown to a user; ``str(error)`` is the one line that is printed."""

    exit_code = 1


class InputError(UnibrainError):
    """The input given (scan, option, file name) cannot be used."""

    exit_code = 2


class BundleError(UnibrainError):
    """The bundle is broken, incomplete or not one this version can run."""

    exit_code = 3


def one_line(text: str, limit: int = 300) -> str:
    """``text`` on one line of printable characters, cut in the middle to at most ``limit`` of them."""
    line = "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
    if len(line) <= limit:
        return line
    tail = limit // 2
    return f"{line[: limit - tail - 1]}…{line[-tail:]}"


def input_error(path: str | os.PathLike[str], problem: str) -> InputError:
    """An `InputError` of one line, at most 300 characters, that names the file."""
    return InputError(one_line(f"{one_line(os.fspath(path), 100)}: {problem}"))
