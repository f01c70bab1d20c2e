"""ONNX Runtime on a GPU: which runs are captured and replayed, what is copied when, and what is said where it fails."""

from __future__ import annotations

import importlib
import tempfile
import threading
from concurrent.futures import wait
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unibrain_rt import Decoder
from unibrain_rt.bundle import Bundle
from unibrain_rt.captions import CaptionOptions
from unibrain_rt.engines import Call, EngineError, Settings, create_engine
from unibrain_rt.engines.graph_costs import GraphCosts
from unibrain_rt.engines.onnxruntime_cuda import GRAPHS_VARIABLE, CudaEngine

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
hand = importlib.import_module("hand_graphs")
standin = importlib.import_module("cuda_as_cpu")
LogLines: Any = importlib.import_module("log_lines").LogLines


def walked(runs: int, x: float = 1.0) -> tuple[Any, Any]:
    """What ``walk`` gives after so many runs with rows (i, 1)."""
    at, before = np.full((1, 2), x, np.float32), np.zeros((1, 2), np.float32)
    for number in range(runs):
        at, before = 2 * at + before + np.array([number, 1], np.float32), at
    return at, before


def rows(runs: int) -> dict[str, Any]:
    return {"row": np.array([[number, 1] for number in range(runs)])}


def load(session: Any, x: float = 1.0) -> None:
    session.rewind()
    session.write("x", x)
    session.write("before", 0)


# --- Numbers ------------------------------------------------------------------------------------------------


def test_write_run_read(device: Any, tmp_path: Path) -> None:
    session = device.engine.open(hand.adder(tmp_path, shape=("N", 3)), free=2)
    for value in (1, 5):
        session.write("a", value)
        session.write("b", np.arange(3))
        session.run()
        np.testing.assert_array_equal(session.read("sum"), value + np.arange(3) * np.ones((2, 1)))


@pytest.mark.parametrize("runs", [1, 2, 3, 8])
def test_single_runs_feed_back(device: Any, tmp_path: Path, runs: int) -> None:
    session = device.engine.open(hand.walk(tmp_path))
    for _ in range(2):
        load(session)
        for number in range(runs):
            session.write("row", [number, 1])
            session.run()
        np.testing.assert_array_equal(session.read("next_x"), walked(runs)[0])
        np.testing.assert_array_equal(session.read("next_before"), walked(runs)[1])


@pytest.mark.parametrize("runs", [1, 2, 5])
def test_a_program_runs_through_its_table(device: Any, tmp_path: Path, runs: int) -> None:
    session = device.engine.open(hand.walk(tmp_path))
    program = device.engine.program([Call(session, runs, rows(runs))])
    for x in (1.0, 3.0, 1.0):
        load(session, x)
        program.start()
        program.finish()
        np.testing.assert_array_equal(session.read("next_x"), walked(runs, x)[0])
    assert len(program.milliseconds) == 1
    # From the other turn, too: nobody has to rewind.
    session.write("x", 1)
    session.write("before", 0)
    program.start()
    program.finish()
    np.testing.assert_array_equal(session.read("next_x"), walked(runs)[0])


@pytest.mark.parametrize("runs", [2, 3])
def test_a_call_takes_what_another_gave(device: Any, tmp_path: Path, runs: int) -> None:
    walk = device.engine.open(hand.walk(tmp_path))
    after = device.engine.open(hand.adder(tmp_path, shape=(1, 2)))
    program = device.engine.program(
        [Call(walk, runs, rows(runs)), Call(after, takes={"a": (walk, "next_x")}, counted=False)]
    )
    counted: list[int] = []
    after.write("b", 100)
    for x in (1.0, 2.0):
        load(walk, x)
        program.start(counted.append)
        program.finish()
        np.testing.assert_array_equal(after.read("sum"), walked(runs, x)[0] + 100)
    assert counted == [1] * (2 * runs)
    assert len(program.milliseconds) == 2


@pytest.mark.parametrize("runs", [1, 2, 3])
def test_what_is_fed_back_starts_from_what_another_gave(device: Any, tmp_path: Path, runs: int) -> None:
    giver = device.engine.open(hand.adder(tmp_path, shape=(1, 2)))
    walk = device.engine.open(hand.walk(tmp_path))
    program = device.engine.program([Call(giver), Call(walk, runs, rows(runs), starts={"x": (giver, "sum")})])
    giver.write("b", 1)
    for x in (1.0, 2.0, 5.0):
        giver.write("a", x)
        walk.rewind()
        walk.write("before", 0)
        device.library.copies.clear()
        program.start()
        program.finish()
        if x > 1:
            assert device.library.copies == []
        np.testing.assert_array_equal(walk.read("next_x"), walked(runs, x + 1)[0])


def test_a_program_waits_for_the_call_it_needs_and_no_other(capturing: Any, tmp_path: Path) -> None:
    """The other one is started before, and held up after that call."""
    (tmp_path / "short").mkdir()
    giver = capturing.engine.open(hand.adder(tmp_path, shape=(1, 2)))
    long, short = (capturing.engine.open(hand.walk(folder)) for folder in (tmp_path, tmp_path / "short"))
    first = capturing.engine.program([Call(giver), Call(long, 3, rows(3))])
    second = capturing.engine.program([Call(short, 2, rows(2), starts={"x": (giver, "sum")})])
    giver.write("b", 0)
    for x in (1.0, 2.0, 3.0):
        giver.write("a", x)
        load(long)
        load(short)
        held, let_go = threading.Event(), threading.Event()
        if x > 1:  # at first, everything waits for the capture
            long.in_thread(partial(let_go.wait, 20))
            giver.in_thread(partial(held.wait, 20))
        first.start()
        second.start()
        if x > 1:
            wait([second._running], timeout=0.2)
            waited = not second._running.done()
            held.set()
            assert waited
            second.finish()
            np.testing.assert_array_equal(short.read("next_x"), walked(2, x)[0])
            assert not first._running.done()
            let_go.set()
        first.finish()
        second.finish()
        np.testing.assert_array_equal(short.read("next_x"), walked(2, x)[0])
        np.testing.assert_array_equal(long.read("next_x"), walked(3)[0])


def test_nobody_waits_for_a_call_that_failed(
    capturing: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    giver = capturing.engine.open(hand.adder(tmp_path, shape=(1, 2)))
    walk = capturing.engine.open(hand.walk(tmp_path))
    first = capturing.engine.program([Call(giver)])
    second = capturing.engine.program([Call(walk, 2, rows(2), starts={"x": (giver, "sum")})])
    for program in (first, second):
        program.start()
        program.finish()

    def fail(*arguments: Any) -> None:
        raise EngineError("graph adder: onnxruntime failed")

    monkeypatch.setattr(giver, "launch", fail)
    first.start()
    second.start()
    with pytest.raises(EngineError, match="graph adder: onnxruntime failed"):
        first.finish()
    second.finish()


def test_a_decode_is_that_of_the_cpu(device: Any, tiny: Any, tiny_template: Path) -> None:
    bundle = Bundle.open(tiny_template)
    cpu = Decoder(bundle, bundle.subject(), create_engine("onnxruntime", 1), "paper", CaptionOptions())
    gpu = Decoder(bundle, bundle.subject(), device.engine, "paper", CaptionOptions())
    for number in range(3):
        want, have = (decoder.decode(tiny.scan(number), seed=number) for decoder in (cpu, gpu))
        check_same(have, want)
        assert have.engine == "cuda"
    other = gpu.sampling(bundle.preset("fast"), "fast")
    check_same(other.decode(tiny.scan()), cpu.sampling(bundle.preset("fast"), "fast").decode(tiny.scan()))
    ran = {name for name, *_ in device.library.runs}
    assert {"ridge", "unet_context", "unet_image_step", "unet_text_step"} <= ran


def check_same(found: Any, expected: Any) -> None:
    """Alike but for the order in which the heads' sums are added up: it moves single pixels by a level of 256."""
    assert np.abs(found.image.astype(int) - expected.image).max() <= 1
    assert found.tokens == expected.tokens
    for name, values in expected.predictions.items():
        np.testing.assert_allclose(found.predictions[name], values, rtol=1e-4, atol=1e-4)


def test_of_a_decode_voxels_and_noise_go_to_the_device(
    capturing: Any, tiny: Any, tiny_template: Path
) -> None:
    """And back come tokens, image and, at the end, what the heads predicted."""
    bundle = Bundle.open(tiny_template)
    gpu = Decoder(bundle, bundle.subject(), capturing.engine, "fast", CaptionOptions())
    for number in range(2):
        capturing.library.copies.clear()
        gpu.decode(tiny.scan(number))
    # Voxels and two noises; then the text flow's latent, which is checked, before anything else comes back.
    first = capturing.library.copies.index("from device")
    assert capturing.library.copies[:first] == ["to device"] * 3
    kinds = [kind for name, kind in capturing.kinds() if name == "ridge"]
    assert kinds[-1] == "replay"


# --- Captures -----------------------------------------------------------------------------------------------


def test_every_run_has_a_graph_and_only_the_last_waits(capturing: Any, tmp_path: Path) -> None:
    session = capturing.engine.open(hand.walk(tmp_path))
    assert capturing.kinds() == [], "nothing is run to open it"
    program = capturing.engine.program([Call(session, 4, rows(4))])
    load(session)
    program.start()
    program.finish()
    assert capturing.kinds() == [("walk", "capture")] * 4 + [("walk", "replay")] * 4
    for _ in range(2):
        load(session)
        program.start()
        program.finish()
        numbers = [number for _, _, number, _ in capturing.library.runs]
        assert len(set(numbers)) == 4
        assert [waits for _, _, _, waits in capturing.library.runs] == [False, False, False, True]
        assert capturing.kinds() == [("walk", "replay")] * 4


def test_nothing_is_copied_between_steps(capturing: Any, tmp_path: Path) -> None:
    session = capturing.engine.open(hand.walk(tmp_path))
    after = capturing.engine.open(hand.adder(tmp_path, shape=(1, 2)))
    program = capturing.engine.program(
        [Call(session, 5, rows(5)), Call(after, takes={"a": (session, "next_x")})]
    )
    for _ in range(2):
        load(session)
        capturing.library.copies.clear()
        program.start()
        program.finish()
    assert capturing.library.copies == []


def test_two_programs_of_one_session_do_not_meet(capturing: Any, tmp_path: Path) -> None:
    session = capturing.engine.open(hand.walk(tmp_path))
    short, long = (capturing.engine.program([Call(session, runs, rows(runs))]) for runs in (2, 5))
    for program, runs in ((short, 2), (long, 5), (short, 2)):
        load(session)
        program.start()
        program.finish()
        np.testing.assert_array_equal(session.read("next_x"), walked(runs)[0])


def test_programs_run_beside_each_other(capturing: Any, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    sessions = [capturing.engine.open(hand.walk(folder)) for folder in (tmp_path, tmp_path / "other")]
    programs = [capturing.engine.program([Call(session, 6, rows(6))]) for session in sessions]
    assert capturing.engine.concurrent
    for _ in range(3):
        for session, program in zip(sessions, programs, strict=True):
            load(session)
            program.start()
        for session, program in zip(sessions, programs, strict=True):
            program.finish()
            np.testing.assert_array_equal(session.read("next_x"), walked(6)[0])


@pytest.mark.parametrize("refuses", [None, "loading", "capturing"])
def test_no_run_is_profiled(
    make_device: Any, refuses: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a session that was loaded anew."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    session = make_device(refuses).engine.open(hand.walk(tmp_path))
    for _ in range(3):
        load(session)
        session.run()
    options = session._options(graphs=refuses is None)
    assert options.enable_profiling is False
    assert options.enable_mem_pattern is not (refuses is None), "what is captured asks for memory once"
    del session
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.parametrize("refuses", ["loading", "capturing"])
def test_a_refused_capture_is_told_in_one_line(make_device: Any, refuses: str, tmp_path: Path) -> None:
    device = make_device(refuses)
    session = device.engine.open(hand.walk(tmp_path))
    for _ in range(2):
        load(session)
        session.run()
    assert len(device.told) == 1
    assert device.told[0].startswith("walk: runs without CUDA graphs (")
    assert "\n" not in device.told[0]


def test_the_environment_can_do_without_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    library = standin.Library()
    assert CudaEngine(Settings(), onnxruntime=library).graphs
    assert not CudaEngine(Settings(capture=False), onnxruntime=library).graphs
    monkeypatch.setenv(GRAPHS_VARIABLE, "0")
    engine = CudaEngine(Settings(), onnxruntime=library)
    assert not engine.graphs
    assert engine.describe()["graphs"] == "none"


def test_an_older_version_is_not_captured(tmp_path: Path) -> None:
    """Before 1.31, what a captured Split reads at a replay may be another one's."""
    told = LogLines()
    library = standin.Library(version="1.23.2")
    engine = CudaEngine(Settings(), onnxruntime=library)
    assert told == [
        "onnxruntime-gpu 1.23.2: runs without CUDA graphs, whose replays are not sound before 1.31; "
        "install that, which needs Python 3.11"
    ]
    session = engine.open(hand.walk(tmp_path))
    load(session)
    session.run()
    assert {kind for _, kind, _, _ in library.runs} == {"run"}
    assert {options["enable_cuda_graph"] for options in library.options} == {"0"}
    assert engine.describe()["graphs"] == "none"
    assert engine.flavour is None, "whose operators were tried with newer ones alone"
    assert CudaEngine(Settings(), onnxruntime=standin.Library(version="1.31.1")).flavour == "cuda"
    for version, capture in (("1.23.2", False), ("1.31.0", True), ("1.32", True), ("2.0.0+cu14", True)):
        told.clear()
        CudaEngine(Settings(capture=capture), onnxruntime=standin.Library(version=version))
        assert told == [], "nobody asked for graphs, or they are sound"


def test_a_single_run_is_captured_when_nothing_else_runs(capturing: Any, tmp_path: Path) -> None:
    """Another thread that calls CUDA would break the capture."""
    (tmp_path / "other").mkdir()
    busy, single = (capturing.engine.open(hand.walk(folder)) for folder in (tmp_path, tmp_path / "other"))
    program = capturing.engine.program([Call(busy, 2, rows(2))])
    load(busy)
    program.start()
    program.finish()
    load(busy)
    load(single)
    let_go = threading.Event()
    busy.in_thread(partial(let_go.wait, 20))
    program.start()
    running = threading.Thread(target=single.run)
    capturing.library.runs.clear()
    running.start()
    running.join(0.2)
    assert running.is_alive()
    assert capturing.library.runs == []
    let_go.set()
    running.join()
    program.finish()
    kinds = capturing.kinds()
    assert kinds.index(("walk", "capture")) == 2, "after both replays"
    # Captured already, it need not wait.
    load(busy)
    let_go.clear()
    busy.in_thread(partial(let_go.wait, 20))
    single.rewind()
    program.start()
    single.run()
    assert not program._running.done()
    let_go.set()
    program.finish()


def test_sessions_say_nothing(capturing: Any) -> None:
    assert capturing.library.severity == 4


# --- Errors -------------------------------------------------------------------------------------------------


def test_a_shared_buffer_has_to_fit(capturing: Any, tmp_path: Path) -> None:
    graph = hand.adder(tmp_path)
    given = capturing.engine.open(graph).buffer("sum")
    assert capturing.engine.open(graph, shared={"a": given}).buffer("a") is given
    small = capturing.engine.open(hand.adder(tmp_path, shape=(1, 3))).buffer("a")
    for wrong in (np.zeros((2, 3), np.float32), None, small):
        with pytest.raises(EngineError, match="the shared buffer of a has another shape or type"):
            capturing.engine.open(hand.adder(tmp_path), shared={"a": wrong})


def test_a_failing_run_is_one_line(capturing: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = capturing.engine.open(hand.walk(tmp_path))
    program = capturing.engine.program([Call(session, 2, rows(2))])
    load(session)
    program.start()
    program.finish()

    def fail(*arguments: Any) -> None:
        raise RuntimeError("CUDA failure 700: an illegal memory access\nat somewhere")

    monkeypatch.setattr(standin.InferenceSession, "run_with_iobinding", fail)
    program.start()
    with pytest.raises(EngineError, match="graph walk: onnxruntime failed") as caught:
        program.finish()
    assert "\n" not in str(caught.value)
    program.finish()


def test_sessions_of_another_engine_are_refused(capturing: Any, tmp_path: Path) -> None:
    session = create_engine("onnxruntime").open(hand.walk(tmp_path))
    with pytest.raises(EngineError, match="its session is of another engine"):
        capturing.engine.program([Call(session)])


@pytest.mark.parametrize(
    ("full", "told"),
    [
        ("allocating", "graph walk, x"),
        ("loading", "walk.onnx: onnxruntime cannot load it"),
    ],
)
def test_a_device_that_is_full_when_opening_is_one_line(
    device: Any, tmp_path: Path, full: str, told: str
) -> None:
    device.library.full = full
    with pytest.raises(EngineError) as caught:
        device.engine.open(hand.walk(tmp_path))
    advice = "the device is out of memory; close other programs, or decode with --low-memory"
    assert str(caught.value) in (f"{told}: {advice}", f"{told} ({advice})")


def test_a_device_that_is_full_later_is_one_line(device: Any, tmp_path: Path) -> None:
    session = device.engine.open(hand.walk(tmp_path))
    spec, buffer = session.graph.inputs[0], session.buffer("x")
    program = device.engine.program([Call(session, 2, rows(2))])

    def decode() -> None:
        program.start()
        program.finish()

    does = {
        "allocating": (
            partial(device.engine.allocate, spec),
            partial(device.engine.program, [Call(session, 2, rows(2))]),
        ),
        "to device": (partial(session.write, "x", 1),),
        "from device": (partial(session.read, "next_x"), partial(device.engine.fetch, buffer)),
        "running": (session.run, decode),
    }
    for full, calls in does.items():
        for call in calls:
            device.library.full = full
            with pytest.raises(EngineError, match="the device is out of memory; close other") as caught:
                call()
            assert "\n" not in str(caught.value)
    device.library.full = None
    load(session)
    decode()
    np.testing.assert_array_equal(session.read("next_x"), walked(2)[0])


def test_no_profile_is_left_behind(capturing: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    costs = GraphCosts(1, 1, 1, 4, bytes_per_number=4, operators={"MatMul": 1})
    graph = replace(hand.walk(tmp_path), costs=costs)
    capturing.engine.check(graph)
    capturing.library.full = "running"
    with pytest.raises(EngineError, match="out of memory"):
        capturing.engine.check(graph)
    assert [path.name for path in tmp_path.iterdir()] == ["walk.onnx"]
