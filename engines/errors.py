"""The error of the engines."""

from __future__ import annotations


class EngineError(Exception):
    """A back end cannot be used, cannot load a graph or gave unusable numbers; one line for the user."""

    exit_code = 3
