"""The errors of the engines."""

from __future__ import annotations

_LINE_CHARACTERS = 200


class EngineError(Exception):
    """A back end cannot be used, cannot load a graph or gave unusable numbers; one line for the user."""

    exit_code = 3


class NotFiniteError(EngineError):
    """Numbers that are not finite came out of one of ``graphs``; in a wider type they might not."""

    def __init__(self, what: str, *graphs: str) -> None:
        super().__init__(f"{what} gave numbers that are not finite; try another engine or precision")
        self.graphs = graphs


def first_line(error: object) -> str:
    """What a library's exception or message says, as one line: the start of the first that it has."""
    lines = str(error).strip().splitlines()
    return lines[0][:_LINE_CHARACTERS] if lines else type(error).__name__
