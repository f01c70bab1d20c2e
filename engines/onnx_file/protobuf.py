"""The wire format of protocol buffers: messages of numbered fields, read without their library.

Source: https://protobuf.dev/programming-guides/encoding/. Groups, which are older than ONNX, are not read.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Sequence

Content = bytes | mmap.mmap
Span = tuple[int, int]
"""Where a text, a submessage or packed numbers begin and end."""
_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5
_VARINT_BITS = 70  # of ten bytes, which are enough for 64 bits


class Message:
    """The fields of one message, by number. Methods raise ValueError where a field is of another kind.

    A field that is missing is 0, an empty text or nothing; of a single one that comes several times the last counts,
    and submessages are merged: as the libraries do it.
    """

    def __init__(self, content: Content, spans: Sequence[Span]) -> None:
        """Raises ValueError: what lies in ``spans`` of ``content``, one part of the message each, is no message."""
        self._content = content
        self._fields: dict[int, list[int | bytes | Span]] = {}
        for start, end in spans:
            self._scan(start, end)

    def __contains__(self, number: int) -> bool:
        return number in self._fields

    def integer(self, number: int) -> int:
        """Of 64 bits, with a sign."""
        return (self.integers(number) or (0,))[-1]

    def integers(self, number: int) -> tuple[int, ...]:
        """One after another, or packed into one field."""
        found: list[int] = []
        for value in self._fields.get(number, ()):
            if isinstance(value, int):
                found.append(_signed(value))
            elif isinstance(value, tuple):
                place, end = value
                while place < end:
                    one, place = _varint(self._content, place, end)
                    found.append(_signed(one))
            else:
                raise ValueError(f"field {number} is no integer")
        return tuple(found)

    def number(self, number: int) -> float:
        """Of single precision."""
        return (self.numbers(number) or (0.0,))[-1]

    def numbers(self, number: int, code: str = "f") -> tuple[float, ...]:
        """One after another, or packed into one field; of single precision, or ``d``, double."""
        pattern = struct.Struct(f"<{code}")
        found: list[float] = []
        for value in self._fields.get(number, ()):
            raw = self._content[slice(*value)] if isinstance(value, tuple) else value
            if isinstance(raw, int) or len(raw) % pattern.size:
                raise ValueError(f"field {number} is no number of {pattern.size} bytes")
            found.extend(one for (one,) in pattern.iter_unpack(raw))
        return tuple(found)

    def spans(self, number: int) -> list[Span]:
        """Where the values lie, which are bytes of some kind."""
        found = [value for value in self._fields.get(number, ()) if isinstance(value, tuple)]
        if len(found) != len(self._fields.get(number, ())):
            raise ValueError(f"field {number} is no text and no message")
        return found

    def raw(self, number: int) -> bytes:
        return (self.raws(number) or [b""])[-1]

    def raws(self, number: int) -> list[bytes]:
        return [self._content[start:end] for start, end in self.spans(number)]

    def text(self, number: int) -> str:
        return self.raw(number).decode()

    def texts(self, number: int) -> tuple[str, ...]:
        return tuple(raw.decode() for raw in self.raws(number))

    def message(self, number: int) -> Message:
        return Message(self._content, self.spans(number))

    def messages(self, number: int) -> list[Message]:
        return [Message(self._content, [span]) for span in self.spans(number)]

    def _scan(self, place: int, end: int) -> None:
        content, fields = self._content, self._fields
        while place < end:
            tag, place = _varint(content, place, end)
            number, kind = tag >> 3, tag & 7
            value: int | bytes | Span
            if kind == _VARINT:
                value, place = _varint(content, place, end)
            elif kind == _DELIMITED:
                length, place = _varint(content, place, end)
                value = (place, place + length)
                place += length
            elif kind in (_FIXED32, _FIXED64):
                length = 4 if kind == _FIXED32 else 8
                value = content[place : place + length]
                place += length
            else:
                raise ValueError(f"no field is of kind {kind}")
            if place > end:
                raise ValueError("a field ends after its message")
            if number == 0:
                raise ValueError("no field has the number 0")
            fields.setdefault(number, []).append(value)


def _varint(content: Content, place: int, end: int) -> tuple[int, int]:
    """A number of seven bits a byte, and where it ends."""
    if place < end and (byte := content[place]) < 0x80:  # as nearly all are
        return byte, place + 1
    value = shift = 0
    while place < end:
        byte = content[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
        if shift >= _VARINT_BITS:
            raise ValueError("a number has too many bytes")
    raise ValueError("a number ends after its message")


def _signed(value: int) -> int:
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value
