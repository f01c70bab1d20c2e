"""Which operators an ONNX file's graph holds, read without the onnx library."""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from unibrain_rt.engines.errors import EngineError

_GRAPH, _NODE, _OPERATOR = 7, 1, 4  # field numbers in ONNX's ModelProto, GraphProto and NodeProto
_BYTES_OF = {1: 8, 5: 4}  # of the wire types of fixed width
_VARINT, _DELIMITED = 0, 2


def count_nodes(path: Path) -> Counter[str]:
    """How many nodes of each operator the graph has; those within functions and branches do not count.

    Raises:
        EngineError: the file is damaged.
    """
    found: Counter[str] = Counter()
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for start, end in _fields(content, 0, len(content), _GRAPH):
                for node in _fields(content, start, end, _NODE):
                    found.update(content[a:b].decode() for a, b in _fields(content, *node, _OPERATOR))
    except (IndexError, ValueError, OSError) as error:
        raise EngineError(f"{path.name}: this is no ONNX file; export the bundle again") from error
    return found


def _fields(content: mmap.mmap, start: int, end: int, wanted: int) -> Iterator[tuple[int, int]]:
    """Where the values of a field of variable length lie, in a protobuf message from ``start`` to ``end``."""
    while start < end:
        key, start = _varint(content, start)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            _, start = _varint(content, start)
            continue
        if kind == _DELIMITED:
            length, start = _varint(content, start)
        elif kind in _BYTES_OF:
            length = _BYTES_OF[kind]
        else:
            raise ValueError(f"wire type {kind}")
        if start + length > end:
            raise ValueError("a field ends after its message")
        if number == wanted and kind == _DELIMITED:
            yield start, start + length
        start += length


def _varint(content: mmap.mmap, start: int) -> tuple[int, int]:
    """A number of seven bits a byte, and where it ends."""
    value = shift = 0
    while True:
        byte = content[start]
        value |= (byte & 0x7F) << shift
        start, shift = start + 1, shift + 7
        if byte < 0x80:
            return value, start
