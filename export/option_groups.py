"""Options of the command line that belong together, as one argument."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import wraps
from typing import Any

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def grouped(options: Sequence[Decorator], group: type, name: str) -> Decorator:
    """Give a command these click options, which it takes as one argument ``name``.

    ``group`` is a dataclass with a field for each option: ``--max-size`` becomes ``max_size``.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(command)
        def taken(**given: Any) -> Any:
            values = {field.name: given.pop(field.name) for field in fields(group)}
            return command(**given, **{name: group(**values)})

        grouped_command: Callable[..., Any] = taken
        for option in reversed(options):
            grouped_command = option(grouped_command)
        return grouped_command

    return decorate
