"""Tensor files: mapped as they were written, and every damaged one refused in one line."""

from __future__ import annotations

import json
import os
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unibrain_rt.tensor_file import map_tensors, tensor_offsets, type_name

TYPES = {
    "F64": "f8",
    "F32": "f4",
    "F16": "f2",
    "I64": "i8",
    "I32": "i4",
    "I16": "i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}
ENTRY = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}


def put(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    """A file with a header of one's own words."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def refused(path: Path, problem: str) -> None:
    with pytest.raises(ValueError, match=".") as caught:
        map_tensors(path)
    message = str(caught.value)
    assert problem in message
    assert "\n" not in message
    assert len(message) < 300


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.safetensors"


def test_what_the_library_writes_is_read(path: Path) -> None:
    library = pytest.importorskip("safetensors.numpy")
    rng = np.random.default_rng(0)
    tensors = {f"of {name}": (rng.normal(size=(3, 5)) * 50).astype(kind) for name, kind in TYPES.items()}
    tensors |= {
        "scalar": np.array(2.5, "f4"),
        "nothing": np.zeros((0, 7), "i4"),
        "Ünïcode 犬": np.ones(3, "u1"),
    }
    library.save_file(tensors, path, metadata={"format": "numpy"})
    found = map_tensors(path)
    assert found.keys() == tensors.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, tensors[name], strict=True)
        if name.startswith("of "):
            assert type_name(array.dtype) == name[3:]


def test_what_is_accepted_the_library_reads_alike(path: Path) -> None:
    library = pytest.importorskip("safetensors.numpy")
    rng = np.random.default_rng(1)
    good = library.save({"a": np.ones((3, 4), "f4"), "b": np.ones(8, "f2"), "c": np.ones(3, "u1")})
    accepted = 0
    for _ in range(1500):
        raw = bytearray(good)
        for place in rng.integers(8, good.index(b"}}"), rng.integers(1, 4)):
            raw[place] = rng.choice(list(b'0123456789abcFIU,:"[]{} '))
        path.write_bytes(raw)
        try:
            found = map_tensors(path)
        except ValueError:
            continue
        accepted += 1
        wanted = library.load(bytes(raw))
        assert found.keys() == wanted.keys()
        for name, array in found.items():
            np.testing.assert_array_equal(array, wanted[name], strict=True)
    assert accepted > 10


def test_tensors_are_mapped_and_cannot_be_written(path: Path) -> None:
    size_bytes = 1 << 40  # sparse; nobody could read it
    header = {"x": {"dtype": "F16", "shape": [size_bytes // 2], "data_offsets": [0, size_bytes]}}
    put(path, header)
    with open(path, "r+b") as stream:
        stream.truncate(path.stat().st_size + size_bytes)
    begun = time.perf_counter()
    (array,) = map_tensors(path).values()
    assert time.perf_counter() - begun < 1
    assert isinstance(array.base.base, np.memmap)
    assert array[-1] == 0
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


def test_offsets_are_where_the_data_lie(path: Path) -> None:
    arrays = {"wide": np.arange(6, dtype="f4"), "narrow": np.arange(5, dtype="i1"), "none": np.zeros(0, "f2")}
    begins = {"wide": 0, "narrow": 24, "none": 29}
    types = {"wide": "F32", "narrow": "I8", "none": "F16"}
    header = {
        name: {
            "dtype": types[name],
            "shape": [array.size],
            "data_offsets": [begins[name], begins[name] + array.nbytes],
        }
        for name, array in arrays.items()
    }
    put(path, header, b"".join(array.tobytes() for array in arrays.values()))
    raw = path.read_bytes()
    offsets = tensor_offsets(path)
    assert offsets.keys() == arrays.keys()
    for name, array in arrays.items():
        assert raw[offsets[name] : offsets[name] + array.nbytes] == array.tobytes()
    path.write_bytes(raw[:-1])
    with pytest.raises(ValueError, match="the header describes 29 bytes of data, but the file has 28"):
        tensor_offsets(path)


def test_a_map_outlives_its_name(path: Path) -> None:
    (array,) = map_tensors(put(path, {"x": ENTRY}, bytes(16))).values()
    path.unlink()
    np.testing.assert_array_equal(array, np.zeros(4, "f4"))


def test_data_may_begin_anywhere_and_the_header_be_padded(path: Path) -> None:
    for padding in range(1, 9):
        raw = json.dumps({"x": ENTRY, "__metadata__": {"a": "b"}}).encode() + b" " * padding
        (array,) = map_tensors(put(path, raw, np.arange(4, dtype="<f4").tobytes())).values()
        np.testing.assert_array_equal(array, [0, 1, 2, 3])
    assert map_tensors(put(path, {})) == {}


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"", "0 bytes, too few"),
        (bytes(7), "7 bytes, too few"),
        (bytes(8), "does not begin with {"),
        (struct.pack("<Q", 100) + b"{}", "a header of 100 bytes in a file of 10"),
        (struct.pack("<Q", 2**63) + b"{}", "more than the 100,000,000 of the format"),
    ],
)
def test_what_has_no_header(path: Path, raw: bytes, problem: str) -> None:
    path.write_bytes(raw)
    refused(path, problem)


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        (b" {}", "does not begin with {"),
        (b"[]", "does not begin with {"),
        (b"{", "not JSON"),
        (b"{} {}", "not JSON"),
        (b"{\xff}", "not UTF-8"),
        (b'{"a":' * 50_000, "nested too deep"),
        (b'{"a": 1' + b"0" * 5000 + b"}", ""),
        (b'{"x": {}, "y": {}, "x": {}}', "the header has x twice"),
        (b'{"x": {"dtype": "F32", "dtype": "F32"}}', "the header has dtype twice"),
        ({"__metadata__": {"a": 1}}, "__metadata__"),
        ({"__metadata__": []}, "__metadata__"),
    ],
)
def test_headers_that_are_none(path: Path, header: Any, problem: str) -> None:
    refused(put(path, header), problem)


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        (None, "not described by"),
        ([], "not described by"),
        ({"dtype": "F32", "shape": [4]}, "not described by"),
        ({**ENTRY, "more": 1}, "not described by"),
        (
            {**ENTRY, "dtype": "BF16"},
            "type BF16, not F64, F32, F16, I64, I32, I16, I8, U8, BOOL; store it as F32 or F16",
        ),
        ({**ENTRY, "dtype": "F31"}, "type F31, not F64"),
        ({**ENTRY, "dtype": ["F32"]}, "not F64"),
        ({**ENTRY, "dtype": None}, "not F64"),
        ({**ENTRY, "shape": 4}, "shape of"),
        ({**ENTRY, "shape": [4.0]}, "shape of"),
        ({**ENTRY, "shape": [True]}, "shape of"),
        ({**ENTRY, "shape": [-4]}, "shape of"),
        ({**ENTRY, "shape": ["4"]}, "shape of"),
        ({**ENTRY, "shape": [4] + [1] * 32}, "shape of"),
        ({**ENTRY, "shape": [2**40, 2**40]}, "larger than any file"),
        ({**ENTRY, "shape": [2**40, 2**40, 0], "data_offsets": [0, 0]}, "larger than any file"),
        ({**ENTRY, "shape": [10**400]}, "larger than any file"),
        ({**ENTRY, "shape": [5]}, "16 bytes are given for t, but F32 (5,) has 20"),
        ({**ENTRY, "dtype": "F64"}, "but F64 (4,) has 32"),
        ({**ENTRY, "data_offsets": [16, 0]}, "-16 bytes"),
        ({**ENTRY, "data_offsets": [-16, 0]}, "data_offsets of"),
        ({**ENTRY, "data_offsets": [0]}, "data_offsets of"),
        ({**ENTRY, "data_offsets": [0, 16, 32]}, "data_offsets of"),
        ({**ENTRY, "data_offsets": [0.0, 16.0]}, "data_offsets of"),
        ({**ENTRY, "data_offsets": None}, "data_offsets of"),
        ({**ENTRY, "data_offsets": [4, 20]}, "leaves a gap before it"),
        ({**ENTRY, "data_offsets": [10**15, 10**15 + 16]}, "leaves a gap before it"),
        ({"dtype": "BOOL", "shape": [16], "data_offsets": [0, 16]}, "is BOOL, but has values up to 7"),
        (
            {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]},
            "describes 12 bytes of data, but the file has 16",
        ),
        (
            {"dtype": "F32", "shape": [5], "data_offsets": [0, 20]},
            "describes 20 bytes of data, but the file has 16",
        ),
    ],
)
def test_tensors_that_are_none(path: Path, entry: Any, problem: str) -> None:
    refused(put(path, {"t": entry}, bytes(15) + b"\7"), problem)


def test_data_belong_to_one_tensor_each(path: Path) -> None:
    refused(put(path, {"x": ENTRY, "y": ENTRY}, bytes(16)), "y begins at byte 0 of the data and overlaps")
    second = {**ENTRY, "data_offsets": [12, 28]}
    refused(put(path, {"y": second, "x": ENTRY}, bytes(28)), "y begins at byte 12 of the data and overlaps")
    refused(put(path, {}, bytes(1)), "describes 0 bytes of data, but the file has 1")


@pytest.mark.parametrize("name", ["", "x" * 10_000, "a\nb\x1b[2J", "\ud800"])
def test_names_of_any_kind_stay_on_one_line(path: Path, name: str) -> None:
    refused(put(path, {name: None}), "not described by")
    assert list(map_tensors(put(path, {name: ENTRY}, bytes(16)))) == [name]


def test_what_is_no_regular_file(path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        map_tensors(path)
    with pytest.raises(OSError, match="directory"):
        map_tensors(path.parent)
    os.mkfifo(path)
    refused(path, "not a regular file")  # and nobody waits for what comes through it
