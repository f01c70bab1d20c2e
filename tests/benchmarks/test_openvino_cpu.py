"""The comparison of OpenVINO with ONNX Runtime: that it measures decodes that are alike, and its page."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("openvino")
pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

from unibrain_rt.benchmarks import openvino_cpu
from unibrain_rt.benchmarks.peers.peer import Source
from unibrain_rt.benchmarks.peers.registry import PEERS
from unibrain_rt.benchmarks.peers.rounds import relative_errors


def test_phantom_decodes_are_compared_on_one_page(monkeypatch):
    monkeypatch.setattr(openvino_cpu, "PRESETS", ("realtime",))
    found = json.loads(json.dumps(openvino_cpu.phantom(2), allow_nan=False))
    rows = found["presets"]["realtime"]
    assert len(rows) == 2
    assert all(row["psnr_db"] > 35 and row["same_caption"] for row in rows)
    one = {name: {"seconds": 1.5, "process_cpu_seconds": 2.0} for name in openvino_cpu.ENGINES}
    machine = {
        "cpu": "a processor",
        "vector_extensions": [],
        "cores": 2,
        "memory_gib": 8,
        "os": "an OS",
        "kernel": "Linux",
        "python": "3.11",
        "packages": {},
    }
    page = openvino_cpu.page({"machine": machine, "phantom": found, "start-up": {"rounds": [one]}}, "A note.")
    assert "| realtime | 2 |" in page
    assert "| openvino | 1.50 s | 1.50 s | 2.00 s |" in page
    assert "A note." in page


@pytest.mark.parametrize("flow", ["image", "text"])
def test_openvino_computes_the_same_step(flow, golden_bundle):
    outputs = {}
    for name in ("onnxruntime", "openvino"):
        peer = PEERS[name](Source(flow, 1, bundle=golden_bundle))
        peer.load()
        peer.step("partitioned")
        outputs[name] = peer.output()
    assert relative_errors(outputs)["openvino"] < 1e-5
