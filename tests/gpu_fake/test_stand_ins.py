"""The stand-ins refuse what CUDA refuses, and count what they are given: else nothing here would prove anything."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

LOST = 901
"""``cudaErrorStreamCaptureInvalidated``."""
SOUND = {"nothing", "fill", "wait for another"}


def test_what_cuda_refuses_during_a_capture_loses_it(watched: Callable[..., Any]) -> None:
    told, parts = watched("refused.py")
    for name, found in told.items():
        assert (found["answer"] == 0) == (found["end"] == 0) == (name in SOUND), name
        assert found["end"] in (0, LOST), name
    journal = parts[""]
    assert journal.refused == [
        "cudaMalloc",
        "cudaFree",
        "cudaMemcpy",
        "cudaStreamSynchronize",
        "cudaDeviceSynchronize",
        "fill",
    ]
    assert [graph["operations"] for graph in journal.graphs.values()] == [{}, {"fill": 1}, {}]


def test_the_device_is_as_large_as_it_is_said_to_be(run: Callable[..., Any]) -> None:
    for size in (8 << 30, 24 << 30):
        ran = run("doctor", "--json", memory_bytes=size)
        assert json.loads(ran.out)["platform"]["gpus"]["devices"][0]["total_bytes"] == size
