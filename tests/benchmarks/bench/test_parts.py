"""The small parts: ticks, intervals, the clock, what a tap sees, graphs of one operator."""

from __future__ import annotations

import time
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from unibrain_rt.benchmarks.bench.peaks import negation, product
from unibrain_rt.benchmarks.bench.statistics import RESAMPLES, interval, quantiles, resampled_medians
from unibrain_rt.benchmarks.bench.svg import stacked_bars, ticks
from unibrain_rt.benchmarks.bench.tap import Tap, between, spans
from unibrain_rt.benchmarks.bench.thread_clock import ThreadClock
from unibrain_rt.engines import Call, create_engine


def test_ticks_are_round_and_within() -> None:
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert ticks(0.31, 0.34)[0] == pytest.approx(0.31)
    assert all(-3 <= tick <= 7 for tick in ticks(-3, 7))


def test_bars_are_as_long_as_what_they_show() -> None:
    drawn = stacked_bars({"one <": {"a": 30.0, "b": 10.0}}, "A & B")
    bars = [each for each in ElementTree.fromstring(drawn).iter() if each.tag.endswith("rect") and len(each)]
    widths = [float(bar.attrib["width"]) for bar in bars]
    assert widths[0] == pytest.approx(3 * widths[1], rel=1e-2)
    assert "one &lt;" in drawn
    assert "A &amp; B" in drawn


def test_an_interval_is_wider_where_rounds_differ() -> None:
    rng = np.random.default_rng(0)
    alike = [10 + rng.standard_normal(8) for _ in range(10)]
    apart = [one + 3 * rng.standard_normal() for one in alike]
    widths = []
    for rounds in (alike, apart):
        drawn = resampled_medians(rounds)
        assert drawn.shape == (RESAMPLES,)
        low, high = interval(drawn)
        assert low < np.median(np.concatenate(rounds)) < high
        widths.append(high - low)
    assert widths[1] > 1.5 * widths[0]


def test_rounds_need_not_be_equally_long() -> None:
    drawn = resampled_medians([np.full(3, 1.0), np.full(1, 2.0)])
    assert set(np.unique(drawn)) <= {1.0, 1.5, 2.0}


def test_quantiles_of_known_numbers() -> None:
    found = quantiles([float(n) for n in range(101)])
    assert (found["p50"], found["p90"], found["p99"], found["n"]) == (50, 90, 99, 101)


def test_sleep_is_no_disturbance() -> None:
    clock = ThreadClock()
    begun = clock.now()
    time.sleep(0.05)
    ended = clock.now()
    assert ended.milliseconds_since(begun) >= 50
    # All but the wait for a core after waking up.
    assert 45 <= ended.undisturbed_since(begun) <= ended.milliseconds_since(begun)


@pytest.fixture
def engine() -> Any:
    return create_engine("onnxruntime", 1)


def test_graphs_of_one_operator_are_what_they_are_called(engine: Any) -> None:
    session = engine.open(product(1024))
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 1024, 1024), np.float32)
    session.write("a", a)
    session.write("b", b)
    session.run()
    np.testing.assert_allclose(session.read("y"), a @ b, rtol=1e-5)
    session = engine.open(negation())
    session.write("a", 3.0)
    session.run()
    assert (session.read("y") == -3).all()
    onnx = pytest.importorskip("onnx")
    for graph in (product(1024), product(2048), negation()):
        onnx.checker.check_model(onnx.load(graph.path), full_check=True)


def test_a_tap_sees_every_run_and_what_lies_between(engine: Any) -> None:
    graph = negation()
    tap = Tap(engine, ThreadClock())
    session = engine.open(graph)
    table = np.ones((5, *graph.inputs[0].sized(1)), np.float32)
    engine.program([Call(session, 5, {"a": table})]).start()
    runs = tap.take()["negation"]
    assert len(runs) == 5
    whole = runs[-1].ended.milliseconds_since(runs[0].begun)
    assert sum(spans(runs)) == pytest.approx(whole)
    assert 0 < between(runs) < whole
    assert tap.take() == {}
