"""What CUDA does not do while a stream captures, asked of the runtime that is there; what it answered, by name."""

from __future__ import annotations

import ctypes
import json
from typing import Any

GLOBAL, THREAD_LOCAL = 0, 1
runtime: Any = ctypes.CDLL("libcudart.so.13")
SIZE = ctypes.c_size_t


def stream() -> ctypes.c_void_p:
    made = ctypes.c_void_p()
    assert runtime.cudaStreamCreate(ctypes.byref(made)) == 0
    return made


def capture(mode: int, work: Any) -> dict[str, int]:
    """What ``work`` of the capturing stream answered, and what the end of the capture did."""
    capturing, graph = stream(), ctypes.c_void_p()
    assert runtime.cudaStreamBeginCapture(capturing, mode) == 0
    answer = work(capturing)
    return {"answer": answer, "end": runtime.cudaStreamEndCapture(capturing, ctypes.byref(graph))}


place = ctypes.c_void_p()
assert runtime.cudaMalloc(ctypes.byref(place), SIZE(64)) == 0
other = stream()
host = ctypes.create_string_buffer(64)
WORK = {
    "nothing": lambda _: 0,
    "fill": lambda mine: runtime.cudaMemsetAsync(place, 0, SIZE(64), mine),
    "allocate": lambda _: runtime.cudaMalloc(ctypes.byref(ctypes.c_void_p()), SIZE(8)),
    "release": lambda _: runtime.cudaFree(place),
    "copy and wait": lambda _: runtime.cudaMemcpy(place, host, SIZE(64), 1),
    "wait for itself": lambda mine: runtime.cudaStreamSynchronize(mine),
    "wait for another": lambda _: runtime.cudaStreamSynchronize(other),
    "wait for all": lambda _: runtime.cudaDeviceSynchronize(),
    "fill in the legacy stream": lambda _: runtime.cudaMemsetAsync(place, 0, SIZE(64), None),
}
print(json.dumps({name: capture(GLOBAL, work) for name, work in WORK.items()}))
