"""ONNX Runtime on the CPU: what is its own; tests/engines/test_host.py has the rest."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from unibrain_rt.engines import Engine, EngineError, create_engine
from unibrain_rt.engines.host import usable_cores
from unibrain_rt.engines.onnxruntime import OnnxRuntimeEngine

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
hand = importlib.import_module("hand_graphs")


@pytest.fixture
def engine() -> Engine:
    return OnnxRuntimeEngine(threads=1)


def test_a_failing_run_is_one_line(engine: Engine, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    spec = hand.save(
        tmp_path / "pick.onnx",
        [("Gather", ["table", "index"], ["picked"])],
        {"index": (hand.I, (1,))},
        {"picked": (hand.F, (1,))},
        {"table": np.arange(3, dtype=np.float32)},
    )
    session = engine.open(spec)
    session.write("index", 5)
    with pytest.raises(EngineError, match="graph pick: onnxruntime failed") as caught:
        session.run()
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", ""), "onnxruntime's own log would be a second line"
    session.write("index", 2)
    session.run()
    assert session.read("picked") == [2]


# --- Cores --------------------------------------------------------------------------------------------------


def test_the_engine_says_what_it_is() -> None:
    described = create_engine("onnxruntime").describe()
    assert described["engine"] == "onnxruntime"
    assert described["device"] == "cpu"
    assert described["threads"] == usable_cores()
    assert described["version"]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs CPU affinity")
def test_cores_that_are_taken_away_are_not_used() -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert usable_cores() == 1
        assert OnnxRuntimeEngine().threads == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_without_onnxruntime_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineError, match=r'pip install "unibrain-rt\[cpu\]"'):
        create_engine("auto")
