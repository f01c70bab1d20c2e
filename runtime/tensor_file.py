"""Tensor files: named arrays in the safetensors format, mapped into memory and not read.

A file is the length of its header (8 bytes, little-endian), the header (JSON: name -> ``dtype``, ``shape``,
``data_offsets`` within the data; ``__metadata__`` is free text), and the data, of which every byte belongs to
exactly one tensor. They are read here and not by the safetensors package, so that a decode needs no more
libraries than numpy.
"""

from __future__ import annotations

import json
import math
import os
import stat
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.errors import one_line

_TYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}
_METADATA = "__metadata__"
_LENGTH_BYTES = 8
_LONGEST_HEADER = 100_000_000  # bytes; the limit of the format itself
_MOST_AXES = 32  # numpy 1 has no more
_MOST_ELEMENTS = 2**48


def map_tensors(path: Path) -> dict[str, NDArray[Any]]:
    """Every tensor of a file as a read-only memory map, by name.

    The whole header is checked; of the data nothing is read but tensors of BOOL, in which only 0 and 1 may stand.
    The maps stay valid when the file is replaced by another; copy what must outlive a change within the file.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is not a regular file, or damaged; one line says how.
    """
    with open(path, "rb", opener=_without_waiting) as file:
        begin, places = _places(file)
        # A plain array: numpy runs Python code for every view of a memmap.
        mapped = np.asarray(np.memmap(file, np.uint8, "r", shape=(os.fstat(file.fileno()).st_size,)))
    tensors: dict[str, NDArray[Any]] = {}
    for name, place in places.items():
        raw = mapped[begin + place.start : begin + place.stop]
        if place.dtype == np.bool_ and int(raw.max(initial=0)) > 1:
            raise ValueError(f"{_shown(name)} is BOOL, but has values up to {int(raw.max())}")
        tensors[name] = raw.view(place.dtype).reshape(place.shape)
    return tensors


def tensor_offsets(path: Path) -> dict[str, int]:
    """Where in a file each tensor's data begin, in bytes, by name. Raises as `map_tensors` does."""
    with open(path, "rb", opener=_without_waiting) as file:
        begin, places = _places(file)
    return {name: begin + place.start for name, place in places.items()}


def type_name(dtype: np.dtype[Any]) -> str:
    """What the format calls a type that `map_tensors` gives: F32, U8, ..."""
    return _NAMES[dtype]


def _without_waiting(path: str, flags: int) -> int:
    """Open a pipe at once, too: what is no regular file is refused."""
    return os.open(path, flags | os.O_NONBLOCK)


class _Place:
    """Where a tensor lies: ``start`` and ``stop`` in bytes from the beginning of the data."""

    def __init__(self, name: str, entry: object) -> None:
        name = _shown(name)
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"{name} is not described by dtype, shape and data_offsets")
        kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(kind, str) or kind not in _TYPES:
            advice = "; store it as F32 or F16" if kind == "BF16" else ""
            raise ValueError(f"{name} is of type {one_line(str(kind), 20)}, not {', '.join(_TYPES)}{advice}")
        if not _whole_numbers(shape) or len(shape) > _MOST_AXES:
            raise ValueError(f"shape of {name} is not a list of up to {_MOST_AXES} sizes")
        # Of an empty tensor, the other sizes count too: numpy multiplies them.
        if math.prod(max(1, size) for size in shape) > _MOST_ELEMENTS:
            raise ValueError(f"shape of {name} is larger than any file")
        if not _whole_numbers(offsets) or len(offsets) != 2:
            raise ValueError(f"data_offsets of {name} are not a beginning and an end")
        self.dtype = _TYPES[kind]
        self.shape = tuple(shape)
        self.start, self.stop = offsets
        size_bytes = math.prod(self.shape) * self.dtype.itemsize
        if self.stop - self.start != size_bytes:
            problem = f"{self.stop - self.start:,} bytes are given for {name}"
            raise ValueError(f"{problem}, but {kind} {self.shape} has {size_bytes:,}")


def _places(file: BinaryIO) -> tuple[int, dict[str, _Place]]:
    """Where the data begin, and where each tensor lies in them; the whole header is checked."""
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("not a regular file")
    begin = _LENGTH_BYTES + _header_bytes(file, status.st_size)
    header = _parsed(file.read(begin - _LENGTH_BYTES))
    places = {name: _Place(name, entry) for name, entry in header.items()}
    _check_cover(places, status.st_size - begin)
    return begin, places


def _header_bytes(file: BinaryIO, size_bytes: int) -> int:
    """Length of the header, after which the file stands at its beginning."""
    raw = file.read(_LENGTH_BYTES)
    if len(raw) < _LENGTH_BYTES:
        raise ValueError(f"{len(raw)} bytes, too few for a safetensors file")
    length = int(struct.unpack("<Q", raw)[0])
    if length > _LONGEST_HEADER:
        raise ValueError(f"a header of {length:,} bytes, more than the {_LONGEST_HEADER:,} of the format")
    if length > size_bytes - _LENGTH_BYTES:
        raise ValueError(f"a header of {length:,} bytes in a file of {size_bytes:,}")
    return length


def _parsed(raw: bytes) -> dict[str, Any]:
    """The header's entries without the metadata."""
    if not raw.startswith(b"{"):
        raise ValueError("the header does not begin with {")
    try:
        header: dict[str, Any] = json.loads(raw.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except UnicodeDecodeError as error:
        raise ValueError("the header is not UTF-8") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"the header is not JSON: {error}") from error
    except RecursionError as error:
        raise ValueError("the header is nested too deep") from error
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError(f"{_METADATA} in the header is not names and texts")
    return header


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for name, value in pairs:
        if name in entries:  # readers differ in which of the two they take
            raise ValueError(f"the header has {_shown(name)} twice")
        entries[name] = value
    return entries


def _check_cover(places: Mapping[str, _Place], size_bytes: int) -> None:
    """Raise unless the tensors cover the data from beginning to end, none of it twice."""
    end = 0
    for name, place in sorted(places.items(), key=lambda item: (item[1].start, item[1].stop)):
        if place.start != end:
            problem = "overlaps another tensor" if place.start < end else "leaves a gap before it"
            raise ValueError(f"{_shown(name)} begins at byte {place.start:,} of the data and {problem}")
        end = place.stop
    if end != size_bytes:
        raise ValueError(f"the header describes {end:,} bytes of data, but the file has {size_bytes:,}")


def _shown(name: str) -> str:
    return one_line(name, 60) or "a tensor without a name"


def _whole_numbers(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
