"""Typed reading of JSON from outside: a value is checked where it is taken, and named when wrong.

Whoever reads says what its errors are, by a `Complaint`: of a place and a problem it makes the error with what to do.
"""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from unibrain_rt.errors import UnibrainError, one_line

T = TypeVar("T")
Complaint = Callable[[str, str], UnibrainError]
"""Takes where something is wrong, such as ``bundle.json: graphs.unet``, and what."""
LARGEST_BYTES = 16 * 2**20
_DEEPEST = 32
_MOST = 2**40


def read_json(path: Path, complain: Complaint, *, largest_bytes: int = LARGEST_BYTES) -> Any:
    """What a file holds, an object or anything else.

    Raises:
        UnibrainError: as ``complain`` makes it: the file is missing, unreadable, too large, or not JSON.
    """
    where = str(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise complain(where, "not a plain file")
        if status.st_size > largest_bytes:
            raise complain(where, f"{status.st_size:,} bytes, larger than such a file can be")
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise complain(where, f"cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise complain(where, "not UTF-8 text, and so not valid JSON") from error
    except (ValueError, RecursionError) as error:
        raise complain(where, f"not valid JSON ({one_line(str(error), 90)})") from error
    if _depth(value) > _DEEPEST:
        raise complain(where, "nested deeper than such a file is")
    return value


class Fields:
    """A JSON object whose values are taken by name and type; ``where`` names its place in errors.

    Every method raises what ``complain`` makes where a value is missing or not what is asked for.
    """

    def __init__(self, value: object, where: str, complain: Complaint) -> None:
        if not isinstance(value, dict):
            raise complain(where, f"an object is expected, found {_kind(value)}")
        self._value: dict[str, Any] = value
        self.where, self.complain = where, complain

    @classmethod
    def load(cls, path: Path, complain: Complaint, *, largest_bytes: int = LARGEST_BYTES) -> Fields:
        """The object in a file; see `read_json`."""
        return cls(read_json(path, complain, largest_bytes=largest_bytes), str(path), complain)

    def __contains__(self, name: str) -> bool:
        """Whether there is such a value, and it is not null."""
        return self._value.get(name) is not None

    def take(self, name: str, kind: type[T]) -> T:
        """The value called ``name``, which must be there, of type ``kind``; whole numbers pass as floats."""
        if name not in self._value:
            raise self.complain(self.where, f"{name} is missing")
        value = self._value[name]
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            try:
                value = float(value)
            except OverflowError as error:
                problem = f"{name} is larger than any number that makes sense"
                raise self.complain(self.where, problem) from error
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.wrong(name, kind.__name__, _kind(value))
        return value

    def optional(self, name: str, kind: type[T]) -> T | None:
        """As ``take``, or None where the value is missing or null."""
        return self.take(name, kind) if name in self else None

    def text(self, name: str) -> str:
        """A text of printable characters, not all of them blank."""
        value = self._present(name)
        if not isinstance(value, str) or not value.strip() or not value.isprintable():
            raise self.wrong(name, "a text", _shown(value))
        return value

    def one_of(self, name: str, known: Sequence[str]) -> Any:
        """One of these texts."""
        value = self._present(name)
        if value not in known:
            raise self.wrong(name, f"one of {', '.join(known)}", _shown(value))
        return value

    def whole(self, name: str, most: int = _MOST) -> int:
        """A whole number from 1 to ``most``."""
        return self._whole(name, self._present(name), most)

    def wholes(self, name: str, most: int = _MOST) -> tuple[int, ...]:
        """A list of 1 to 8 whole numbers, such as a shape."""
        values = self._present(name)
        if not isinstance(values, list) or not 1 <= len(values) <= 8:
            raise self.wrong(name, "a list of 1 to 8 numbers", _shown(values))
        return tuple(self._whole(name, value, most) for value in values)

    def number(self, name: str, least: float = -math.inf, most: float = math.inf) -> float:
        """A finite number."""
        return self._number(name, self._present(name), least, most)

    def numbers(self, name: str, count: int) -> tuple[float, ...]:
        """A list of ``count`` finite numbers."""
        values = self._present(name)
        if not isinstance(values, list) or len(values) != count:
            raise self.wrong(name, f"a list of {count} numbers", _shown(values))
        return tuple(self._number(name, value, -math.inf, math.inf) for value in values)

    def object(self, name: str) -> Fields:
        """A nested object."""
        return Fields(self._present(name), f"{self.where}: {name}", self.complain)

    def objects(self, name: str) -> Iterator[tuple[str, Fields]]:
        """The members of a nested object, each an object itself."""
        for key, value in self.take(name, dict).items():
            yield key, Fields(value, f"{self.where}: {name}.{key}", self.complain)

    def list_of_objects(self, name: str) -> Iterator[Fields]:
        """The items of a list, each an object."""
        for place, value in enumerate(self.take(name, list)):
            yield Fields(value, f"{self.where}: {name}[{place}]", self.complain)

    def raw(self) -> dict[str, Any]:
        """The object itself."""
        return self._value

    def wrong(self, name: str, wanted: str, found: str) -> UnibrainError:
        """That a value is not what it must be."""
        return self.complain(self.where, f"{name} must be {wanted}, found {found}")

    def _present(self, name: str) -> Any:
        if name not in self._value:
            raise self.complain(self.where, f"{name} is missing")
        return self._value[name]

    def _whole(self, name: str, value: Any, most: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise self.wrong(name, f"whole, from 1 to {most}", _shown(value))
        return value

    def _number(self, name: str, value: Any, least: float, most: float) -> float:
        try:
            numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
            number = float(value) if numeric else math.nan
        except OverflowError:
            number = math.nan
        if not (math.isfinite(number) and least <= number <= most):
            limits = ""
            if most < math.inf:
                limits = f" from {least:g} to {most:g}"
            elif least > -math.inf:
                limits = f" of at least {least:g}"
            raise self.wrong(name, f"a finite number{limits}", _shown(value))
        return number


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


def _shown(value: object) -> str:
    if isinstance(value, (list, dict)):
        return f"a {type(value).__name__} of {len(value):,}"
    return "null" if value is None else one_line(repr(value), 30)
