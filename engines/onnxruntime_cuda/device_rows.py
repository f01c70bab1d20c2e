"""Rows of a table on the device, in one piece of memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from unibrain_rt.engines.graph_spec import Array
from unibrain_rt.engines.onnxruntime_cuda.provider import on_device, to_host

_ALIGNMENT = 256
"""Bytes between addresses that any kernel takes: what the device's allocator gives."""


@dataclass(frozen=True, eq=False)
class DeviceRow:
    """A place on the device that a tensor of this shape and type can be bound to. It keeps its memory."""

    memory: Any
    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class DeviceRows:
    """Rows (rows, *shape), each at an address that a kernel takes."""

    def __init__(self, onnxruntime: Any, rows: Array, what: str) -> None:
        """``rows`` are copied; they are ``what`` in an error. Raises EngineError."""
        self._what, self._shape, self._dtype = what, rows.shape, rows.dtype
        self._bytes = rows[0].nbytes
        self._stride = -(-max(self._bytes, 1) // _ALIGNMENT) * _ALIGNMENT
        padded = np.zeros((len(rows), self._stride), np.uint8)
        padded[:, : self._bytes] = np.ascontiguousarray(rows).reshape(len(rows), -1).view(np.uint8)
        self._memory = on_device(onnxruntime, padded, what)

    def __getitem__(self, number: int) -> DeviceRow:
        address = self._memory.data_ptr() + number * self._stride
        return DeviceRow(self._memory, address, self._shape[1:], self._dtype)

    def read(self) -> Array:
        """All rows, as a copy on the host. Raises EngineError."""
        padded = to_host(self._memory, self._what)
        return np.ascontiguousarray(padded[:, : self._bytes]).view(self._dtype).reshape(self._shape)


def device_row(onnxruntime: Any, value: Array, what: str) -> DeviceRow:
    """A copy of ``value`` on the device, which is ``what`` in an error. Raises EngineError."""
    return DeviceRows(onnxruntime, value[None], what)[0]
