"""What is told of trials: how often a slowdown was caught and noise passed."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("onnxruntime")

from unibrain_rt.benchmarks import sensitivity
from unibrain_rt.benchmarks.bench.runner import Plan
from unibrain_rt.bundle import Bundle


def parts(ratio: float, verdict: str) -> list[dict[str, Any]]:
    return [
        {"part": "end_to_end", "ratio": ratio, "low": ratio - 0.05, "high": ratio + 0.05, "verdict": verdict}
    ]


def test_trials_are_counted() -> None:
    trials = [
        {"same": parts(1.0, "same"), "slowed": parts(1.2, "slower"), "load_average": [0.1, 2.0]},
        {"same": parts(1.12, "slower"), "slowed": parts(1.08, "same"), "load_average": [0.1, 2.0]},
    ]
    machine = {
        "cpu": "a processor", "vector_extensions": [], "cores": 2, "memory_gib": 8, "os": "an OS", "kernel": "Linux",
        "python": "3.11", "packages": {},
    }  # fmt: skip
    settings = {"runs": 40, "threads": 1}
    page = sensitivity.page({"settings": settings, "machine": machine, "slowdown": 0.2, "trials": trials})
    assert "A slowdown of 20% was caught **1 of 2** times; the same build passed **1 of 2** times." in page


def test_a_slowdown_of_a_half_is_caught() -> None:
    bundle = Bundle.open(None)
    plan = Plan(bundle.folder, ("onnxruntime",), ("realtime",), threads=1, runs=8)
    trial = sensitivity.run_trial(plan, bundle, 0.5)
    assert sensitivity.called_slower(trial["slowed"])
