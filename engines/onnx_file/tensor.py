"""Tensors in ONNX files: their types, shapes and places."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

import numpy as np

from unibrain_rt.engines.base import Array
from unibrain_rt.engines.onnx_file.protobuf import Message

_KEPT_BYTES = 4096
"""Values of tensors up to this size are kept."""
_TYPES = (
    *(None, "float32", "uint8", "int8", "uint16", "int16", "int32", "int64", "string", "bool", "float16"),
    *("float64", "uint32", "uint64", "complex64", "complex128", "bfloat16", "float8e4m3fn", "float8e4m3fnuz"),
    *("float8e5m2", "float8e5m2fnuz", "uint4", "int4", "float4e2m1", "float8e8m0", "uint2", "int2"),
    *("float6e2m3", "float6e3m2"),
)
"""Names of the element types, by number: numpy's, where it has them."""
_FLOAT8 = ("float8e4m3fn", "float8e4m3fnuz", "float8e5m2", "float8e5m2fnuz", "float8e8m0")
_BITS = {
    "bfloat16": 16, **dict.fromkeys(_FLOAT8, 8), "float6e2m3": 6, "float6e3m2": 6, "float4e2m1": 4,
    "uint4": 4, "int4": 4, "uint2": 2, "int2": 2,
}  # fmt: skip
"""Of an element, where numpy does not have the type."""
_INT32_DATA, _RAW_DATA = 5, 9
_TYPED_DATA = {
    "float32": 4, "complex64": 4, "float64": 10, "complex128": 10,
    "string": 6, "int64": 7, "uint32": 11, "uint64": 11,
}  # fmt: skip
"""Field in which values of a type lie that are not raw bytes; of the others it is ``int32_data``."""


@dataclass(frozen=True)
class External:
    """A tensor's values in another file, ``location`` from the folder of the ONNX file; bytes."""

    location: str
    offset: int
    length: int


@dataclass(frozen=True)
class Tensor:
    """An initializer, or a value of an attribute.

    ``size_bytes`` is what its elements take, packed where they have less than 8 bits; ``inline_bytes`` of them lie in
    the file itself. ``value`` is None for tensors that are large, external or of a type that numpy does not have.
    """

    name: str
    dtype: str
    dims: tuple[int, ...]
    size_bytes: int
    inline_bytes: int
    external: External | None = None
    value: Array | None = field(default=None, compare=False)


@dataclass(frozen=True)
class ValueInfo:
    """Type and shape of a graph's input, output or value in between.

    A size is a number, a name, or None where nothing is known; so is ``shape`` where even the rank is unknown.
    ``dtype`` is None for what is no tensor.
    """

    name: str
    dtype: str | None
    shape: tuple[int | str | None, ...] | None


def read_value_info(message: Message) -> ValueInfo:
    """Of a ``ValueInfoProto``. Raises ValueError: it is damaged."""
    tensor = message.message(2).message(1)
    shape: tuple[int | str | None, ...] | None = None
    if 2 in tensor:
        shape = tuple(
            size.integer(1) if 1 in size else size.text(2) or None for size in tensor.message(2).messages(1)
        )
    return ValueInfo(message.text(1), _dtype(tensor.integer(1)), shape)


def read_tensor(message: Message) -> Tensor:
    """Of a ``TensorProto``. Raises ValueError: it is damaged."""
    name, dtype, dims = message.text(8), _dtype(message.integer(2)), message.integers(1)
    if dtype is None or min(dims, default=0) < 0:
        raise ValueError(f"tensor {name!r} has no type, or a negative size")
    if dtype == "string":
        size_bytes = sum(end - start for start, end in message.spans(_TYPED_DATA[dtype]))
        return Tensor(name, dtype, dims, size_bytes, size_bytes)
    bits = _BITS.get(dtype) or 8 * np.dtype(dtype).itemsize
    size_bytes = (prod(dims) * bits + 7) // 8
    if message.integer(14):
        return Tensor(name, dtype, dims, size_bytes, 0, _external(message, name, size_bytes))
    value = None
    if size_bytes <= _KEPT_BYTES and dtype not in _BITS:
        flat = _values(message, dtype)
        found, value = flat.nbytes, (flat.reshape(dims) if flat.size == prod(dims) else None)
    elif _RAW_DATA in message:
        start, end = message.spans(_RAW_DATA)[-1]
        found = end - start
    else:  # many numbers, which are not read to be counted
        found = size_bytes if _TYPED_DATA.get(dtype, _INT32_DATA) in message else 0
    if found != size_bytes:
        raise ValueError(f"tensor {name!r} has {found} bytes, and its shape wants {size_bytes}")
    return Tensor(name, dtype, dims, size_bytes, size_bytes, value=value)


def _external(message: Message, name: str, size_bytes: int) -> External:
    entries = {one.text(1): one.text(2) for one in message.messages(13)}
    offset, length = int(entries.get("offset", 0)), int(entries.get("length", size_bytes))
    if not entries.get("location") or offset < 0 or length < 0:
        raise ValueError(f"tensor {name!r} does not say where its values lie")
    return External(entries["location"], offset, length)


def _values(message: Message, dtype: str) -> Array:
    """The values of a tensor that lie in the file, one after another."""
    number = _TYPED_DATA.get(dtype, _INT32_DATA)
    if _RAW_DATA in message:
        return np.frombuffer(message.raw(_RAW_DATA), np.dtype(dtype).newbyteorder("<"))
    if dtype in {"float32", "complex64"}:
        return np.array(message.numbers(number), np.float32).view(dtype)
    if dtype in {"float64", "complex128"}:
        return np.array(message.numbers(number, "d"), np.float64).view(dtype)
    integers = np.array(message.integers(number), np.int64)
    # Of half precision they are the bits.
    return integers.astype(np.uint16).view(dtype) if dtype == "float16" else integers.astype(dtype)


def _dtype(number: int) -> str | None:
    if not 0 <= number < len(_TYPES):
        raise ValueError(f"no type of elements has the number {number}")
    return _TYPES[number]
