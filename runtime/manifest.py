"""Typed reading of JSON objects from outside: a value is checked where it is taken, and named when wrong."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from unibrain_rt.errors import BundleError

T = TypeVar("T")
_LARGEST_MANIFEST = 16 * 2**20
_DEEPEST = 32


class Fields:
    """A JSON object whose values are taken by name and type; ``where`` names its place in errors."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise BundleError(
                f"{where}: an object is expected, found {_kind(value)}; export the bundle again"
            )
        self._value: dict[str, Any] = value
        self.where = where

    @classmethod
    def load(cls, path: Path) -> Fields:
        """Read a JSON file.

        Raises:
            BundleError: it is missing, unreadable, too large, not JSON or not an object.
        """
        try:
            found = path.stat()
            if not stat.S_ISREG(found.st_mode):
                raise BundleError(f"{path}: not a plain file; is this a bundle?")
            if found.st_size > _LARGEST_MANIFEST:
                raise BundleError(f"{path}: larger than a manifest can be; export the bundle again")
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise BundleError(f"{path}: cannot be read ({error.strerror}); is this a bundle?") from error
        except UnicodeDecodeError as error:
            raise BundleError(f"{path}: not UTF-8 text; export the bundle again") from error
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{path}: not valid JSON ({error}); export the bundle again") from error
        if _depth(value) > _DEEPEST:
            raise BundleError(f"{path}: nested deeper than a manifest is; export the bundle again")
        return cls(value, str(path))

    def take(self, name: str, kind: type[T]) -> T:
        """The value called ``name``, which must be there, of type ``kind``; whole numbers pass as floats.

        Raises:
            BundleError: it is missing or of another type.
        """
        if name not in self._value:
            raise BundleError(f"{self.where}: {name} is missing; export the bundle again")
        value = self._value[name]
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            try:
                value = float(value)
            except OverflowError as error:
                problem = "is larger than any number that makes sense"
                raise BundleError(f"{self.where}: {name} {problem}; export the bundle again") from error
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise BundleError(
                f"{self.where}: {name} must be {kind.__name__}, found {_kind(value)}; export the bundle again"
            )
        return value

    def optional(self, name: str, kind: type[T]) -> T | None:
        """As ``take``, or None where the value is missing or null."""
        return None if self._value.get(name) is None else self.take(name, kind)

    def object(self, name: str) -> Fields:
        """A nested object."""
        return Fields(self.take(name, dict), f"{self.where}: {name}")

    def objects(self, name: str) -> Iterator[tuple[str, Fields]]:
        """The members of a nested object, each an object itself."""
        for key, value in self.take(name, dict).items():
            yield key, Fields(value, f"{self.where}: {name}.{key}")

    def list_of_objects(self, name: str) -> Iterator[Fields]:
        """The items of a list, each an object."""
        for place, value in enumerate(self.take(name, list)):
            yield Fields(value, f"{self.where}: {name}[{place}]")

    def raw(self) -> dict[str, Any]:
        """The object itself."""
        return self._value


def _depth(value: object) -> int:
    """How many objects and lists lie within each other; without recursion, which depth itself would break."""
    depth, level = 0, [value]
    while level:
        nested = [item for item in level if isinstance(item, (dict, list))]
        level = [part for item in nested for part in (item.values() if isinstance(item, dict) else item)]
        depth += bool(nested)
    return depth


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__
