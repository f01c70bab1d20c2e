"""Runs until an output says that it is enough: the same on every kind of engine, however many a device is given at a time."""

from __future__ import annotations

import gc
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unibrain_rt.engines import Engine, EngineError, GraphSpec, Settings, create_engine
from unibrain_rt.engines.on_demand import OnDemandEngine

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
hand = importlib.import_module("hand_graphs")
START = {"token": np.array([1]), "total": np.full((1, 2), 10.0, np.float32)}


def cuda_engine(refuses: str | None = None, capture: bool = True) -> Engine:
    from unibrain_rt.engines.onnxruntime_cuda import CudaEngine

    library = importlib.import_module("cuda_as_cpu").Library(refuses)
    return CudaEngine(Settings(capture=capture), onnxruntime=library)


@pytest.fixture(
    params=["host", "on demand", "cuda", "cuda, eager", "cuda, refused", "tensorrt", "tensorrt, eager"]
)
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Engine, Any]:
    """An engine, and the counter in it."""
    graph: GraphSpec = hand.counter(tmp_path)
    kind = request.param
    if kind.startswith("tensorrt"):
        stand = importlib.import_module("standin").StandIn(tmp_path / "cache", capture=kind == "tensorrt")
        return stand.engine, stand.open(graph)
    engine = {
        "host": lambda: create_engine("onnxruntime"),
        "on demand": lambda: OnDemandEngine(create_engine("onnxruntime")),
        "cuda": cuda_engine,
        "cuda, eager": lambda: cuda_engine(capture=False),
        "cuda, refused": lambda: cuda_engine("capturing"),
    }[kind]()
    return engine, engine.open(graph)


@pytest.mark.parametrize("until", [2, 4, 5, 6, 9, 10, 14])
def test_it_ends_when_the_output_says_so(opened: tuple[Engine, Any], until: int) -> None:
    engine, session = opened
    again = engine.repetition(session, "next_token", until=until, at_most=12, initial=START)
    session.write("step", 1)
    for _ in range(4):  # plain, captured, replayed
        found = again.run()
        assert found == list(range(2, min(until, 13) + 1))


@pytest.mark.parametrize("at_most", [0, 1, 3, 4, 5, 7, 8, 9, 11])
def test_it_ends_at_the_last_when_the_output_never_does(opened: tuple[Engine, Any], at_most: int) -> None:
    engine, session = opened
    again = engine.repetition(session, "next_token", until=-1, at_most=at_most, initial=START)
    for step in (1, 2, 1):
        session.write("step", step)
        tokens = [1 + step * (number + 1) for number in range(at_most)]
        assert again.run() == tokens
        if at_most:
            # What is not given run by run is that of the last one.
            total = 10 + sum([1, *tokens[:-1]])
            np.testing.assert_array_equal(session.read("next_total"), np.full((1, 2), total))
            np.testing.assert_array_equal(session.read("double"), np.full((1, 2), 2 * total))


def test_single_runs_are_as_before(opened: tuple[Engine, Any]) -> None:
    engine, session = opened
    again = engine.repetition(session, "next_token", until=-1, at_most=6, initial=START)
    session.write("step", 1)
    for _ in range(3):
        session.rewind()
        session.write("token", 40)
        session.write("total", 0.0)
        session.run()
        session.run()
        assert session.read("next_token")[0] == 42
        assert session.read("next_total")[0, 0] == 81
        assert again.run() == [2, 3, 4, 5, 6, 7]


def test_an_output_that_is_not_fed_back_may_end_it_too(tmp_path: Path) -> None:
    graph = hand.save(
        tmp_path / "apart.onnx",
        [
            ("Add", ["count", "one"], ["next_count"]),
            ("Add", ["count", "count"], ["double"]),
        ],
        {"count": ("int64", (1,))},
        {"next_count": ("int64", (1,)), "double": ("int64", (1,))},
        {"one": np.array([1])},
        {"next_count": "count"},
    )
    for engine in (create_engine("onnxruntime"), cuda_engine()):
        again = engine.repetition(
            engine.open(graph), "double", until=10, at_most=9, initial={"count": np.array([0])}
        )
        assert again.run() == again.run() == [0, 2, 4, 6, 8, 10]


@pytest.mark.parametrize(
    ("output", "initial", "problem"),
    [
        ("step", START, "step is not an output of one number"),
        ("double", START, "double is not an output of one number"),
        ("other", START, "has no tensor 'other'"),
        ("next_token", {"step": np.array([1])}, "step is not fed back"),
        ("next_token", {"total": np.zeros(2)}, r"total has shape \(1, 2\), but \(2,\) was given"),
    ],
)
def test_what_does_not_fit_is_refused(
    opened: tuple[Engine, Any], output: str, initial: dict[str, Any], problem: str
) -> None:
    engine, session = opened
    with pytest.raises(EngineError, match=f"graph counter.*{problem}"):
        engine.repetition(session, output, until=1, at_most=3, initial=initial)


def test_a_session_of_another_engine_is_refused(tmp_path: Path) -> None:
    session = create_engine("onnxruntime").open(hand.counter(tmp_path))
    stand = importlib.import_module("standin").StandIn(tmp_path / "cache")
    for engine in (cuda_engine(), stand.engine):
        with pytest.raises(EngineError, match="graph counter: its session is of another engine"):
            engine.repetition(session, "next_token", until=1, at_most=3, initial=START)


def test_a_gpu_is_waited_for_once_a_block(tmp_path: Path) -> None:
    from unibrain_rt.engines.onnxruntime_cuda import CudaEngine

    library = importlib.import_module("cuda_as_cpu").Library()
    engine = CudaEngine(Settings(), onnxruntime=library)
    session = engine.open(hand.counter(tmp_path))
    again = engine.repetition(session, "next_token", until=12, at_most=20, initial=START)
    session.write("step", 1)
    again.run()
    library.runs.clear()
    library.copies.clear()
    assert len(again.run()) == 11
    kinds, waits = ([run[place] for run in library.runs] for place in (1, 3))
    assert kinds == ["replay"] * 12
    assert waits == [False, False, False, True] * 3
    assert len({run[2] for run in library.runs}) == 8, "the first block, and another that is used again"
    assert library.copies == ["from device"] * 3


def test_a_block_is_one_graph_of_tensorrt(tmp_path: Path) -> None:
    stand = importlib.import_module("standin").StandIn(tmp_path / "cache")
    session = stand.open(hand.counter(tmp_path))
    again = stand.engine.repetition(session, "next_token", until=-1, at_most=8, initial=START)
    session.write("step", 1)
    for _ in range(2):
        again.run()
    place = len(stand.fake.trace)
    assert again.run() == list(range(2, 10))
    names = [name for name, _ in stand.since(place)]
    assert names.count("cudaGraphLaunch") == 2
    fake = stand.fake
    del session, again, stand
    gc.collect()
    fake.check()  # nothing is left on the device
