"""Sessions and programs on a device: a plain run, a capture that is checked, and replays."""

from __future__ import annotations

import gc
import importlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unibrain_rt.engines import Call, EngineError
from unibrain_rt.engines.on_demand import OnDemandEngine

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
standin = importlib.import_module("standin")
Error = importlib.import_module("fake_cuda").Error
RUNS = 5


@pytest.fixture
def stand(tmp_path: Path) -> Any:
    """A stand-in that is checked for leaks after the test."""
    made = standin.StandIn(tmp_path / "cache")
    yield made
    fake = made.fake
    del made.engine
    gc.collect()
    fake.check()


def walked(x: float, rows: Any, before: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """What `standin.walk` gives."""
    now, then = np.full((1, 2), x, np.float32), np.full((1, 2), before, np.float32)
    for row in rows:
        now, then = 2 * now + then + row, now
    return now, then


def rows_of(seed: int, runs: int = RUNS) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((runs, 2)).astype(np.float32)


def load(session: Any, x: float) -> None:
    session.rewind()
    session.write("x", x)
    session.write("before", 0.0)


# --- Sessions -----------------------------------------------------------------------------------------------


def captured(program: Any) -> bool:
    """Whether a start like an earlier one is a single launch."""
    return any(replay._graph is not None for replay in program._replays.values())


def test_a_session_is_run_captured_and_replayed(stand: Any, tmp_path: Path) -> None:
    """In each of its turns."""
    session = stand.open(standin.walk(tmp_path))
    for x in range(1, 4):
        load(session, x)
        for number, row in enumerate(rows_of(x)):
            session.write("row", row)
            session.run()
            now, then = walked(x, rows_of(x)[: number + 1])
            np.testing.assert_array_equal(session.read("next_x"), now)
            np.testing.assert_array_equal(session.read("next_before"), then)
            np.testing.assert_array_equal(session.read("x"), now)
    # Two plain runs and two captures, each with a replay that is compared; the other eleven are launches.
    assert stand.fake.kinds().count("cudaStreamBeginCapture") == 2
    assert stand.fake.kinds().count("cudaGraphLaunch") == 2 + 3 * RUNS - 4
    assert not [line for line in stand.told if "CUDA graph" in line]


def test_without_capture_every_run_is_a_plain_one(tmp_path: Path) -> None:
    stand = standin.StandIn(tmp_path / "cache", capture=False)
    session = stand.open(standin.walk(tmp_path))
    program = stand.engine.program([Call(session, RUNS, {"row": rows_of(1)})])
    for x in range(4):
        load(session, x)
        program.start()
        program.finish()
        np.testing.assert_array_equal(session.read("next_x"), walked(x, rows_of(1))[0])
    assert "cudaStreamBeginCapture" not in stand.fake.kinds()
    del session, program, stand.engine
    stand.fake.check()


def test_a_shared_buffer_is_read_where_it_lies(stand: Any, tmp_path: Path) -> None:
    giver = stand.open(standin.doubler(tmp_path, name="giver"))
    taker = stand.open(standin.doubler(tmp_path, name="taker"), shared={"value": giver.buffer("twice")})
    for value in (1.0, -3.0, 5.0):
        giver.write("value", value)
        giver.run()
        taker.run()
        np.testing.assert_array_equal(taker.read("twice"), [[4 * value, 4 * value]])


@pytest.mark.parametrize("wrong", ["shape", "type", "array"])
def test_a_shared_buffer_has_to_fit(stand: Any, tmp_path: Path, wrong: str) -> None:
    buffers = {
        "shape": lambda: stand.open(standin.doubler(tmp_path, 3, "three")).buffer("twice"),
        "type": lambda: stand.engine.allocate(standin.TensorSpec("x", "float16", (1, 2))),
        "array": lambda: np.zeros((1, 2), np.float32),
    }
    with pytest.raises(EngineError, match="graph doubler: the shared buffer of value"):
        stand.open(standin.doubler(tmp_path), shared={"value": buffers[wrong]()})


def test_free_axes_have_the_size_that_was_built(stand: Any, tmp_path: Path) -> None:
    session = stand.open(standin.doubler(tmp_path, "N"), free=7)
    session.write("value", 3)
    session.run()
    np.testing.assert_array_equal(session.read("twice"), np.full((7, 2), 6))


def test_want_of_memory_names_the_graph(stand: Any, tmp_path: Path) -> None:
    graph = standin.doubler(tmp_path)
    stand.engine.build(graph)
    stand.fake.memory = 0
    with pytest.raises(EngineError, match="graph doubler: the device is out of memory; close other programs"):
        stand.engine.open(graph)


def test_what_overflows_is_still_there_to_be_found(stand: Any, tmp_path: Path) -> None:
    """Numbers that are not finite are no reason to distrust a replay."""
    session = stand.open(standin.doubler(tmp_path))
    for _ in range(4):
        session.write("value", np.array([[1e38, 3e38]]))
        session.run()
        np.testing.assert_array_equal(np.isfinite(session.read("twice")), [[True, False]])
    assert not [line for line in stand.told if "CUDA graph" in line]


# --- Programs -----------------------------------------------------------------------------------------------


def test_a_program_is_run_captured_and_replayed(stand: Any, tmp_path: Path) -> None:
    session, after = stand.open(standin.walk(tmp_path)), stand.open(standin.doubler(tmp_path))
    rows = rows_of(0)
    program = stand.engine.program(
        [Call(session, RUNS, {"row": rows}), Call(after, takes={"value": (session, "next_x")}, counted=False)]
    )
    counted: list[int] = []
    for start in range(1, 6):
        place = len(stand.fake.trace)
        load(session, start)
        program.start(counted.append)
        program.finish()
        trace = stand.since(place)
        now, then = walked(start, rows)
        np.testing.assert_array_equal(session.read("next_x"), now)
        np.testing.assert_array_equal(session.read("next_before"), then)
        np.testing.assert_array_equal(after.read("twice"), 2 * now)
        assert captured(program) == (start > 1)
        assert len(program.milliseconds) == 2
        assert all(spent > 0 for spent in program.milliseconds.values())
    assert counted == [RUNS] * 5
    assert [kind for kind, _ in trace].count("cudaGraphLaunch") == 1
    assert next(details["nodes"] for kind, details in trace if kind == "cudaGraphLaunch") == RUNS + 1 + 3
    assert not [line for line in stand.told if "CUDA graph" in line]


@pytest.mark.parametrize("runs", [1, 2, 3, 4])
def test_results_lie_where_they_are_looked_for_after_any_number_of_runs(
    stand: Any, tmp_path: Path, runs: int
) -> None:
    session, after = stand.open(standin.walk(tmp_path)), stand.open(standin.doubler(tmp_path))
    calls = [
        Call(session, runs, {"row": rows_of(0, runs)}),
        Call(after, takes={"value": (session, "next_before")}),
    ]
    program = stand.engine.program(calls)
    for start in range(1, 5):
        load(session, start)
        program.start()
        program.finish()
        now, then = walked(start, rows_of(0, runs))
        np.testing.assert_array_equal(session.read("next_x"), now)
        np.testing.assert_array_equal(after.read("twice"), 2 * then)


def test_a_program_that_goes_on_where_it_stopped_is_captured_for_each_turn(
    stand: Any, tmp_path: Path
) -> None:
    """After an odd number of runs the buffers have swapped roles: a graph of the other turn would be stale."""
    session = stand.open(standin.walk(tmp_path))
    program = stand.engine.program([Call(session, 3, {"row": rows_of(0, 3)})])
    load(session, 1)
    now, then = walked(1, [])
    for _ in range(7):
        program.start()
        program.finish()
        for row in rows_of(0, 3):
            now, then = 2 * now + then + row, now
        np.testing.assert_allclose(session.read("next_x"), now, rtol=1e-6)
    assert stand.fake.kinds().count("cudaStreamEndCapture") == 2


def test_nothing_is_done_by_the_host_between_runs(tmp_path: Path) -> None:
    """Not even without a graph: rows advance, what is fed back alternates, and nobody copies or waits."""
    stand = standin.StandIn(tmp_path / "cache", capture=False)
    session = stand.open(standin.walk(tmp_path))
    program = stand.engine.program([Call(session, RUNS, {"row": rows_of(0)})])
    program.start()  # the first run of a context may allocate
    program.finish()
    load(session, 1)
    place = len(stand.fake.trace)
    program.start()
    begun = [kind for kind, _ in stand.since(place)]
    forbidden = ("cudaMemcpy", "cudaMemset", "cudaMalloc", "cudaStreamSync", "cudaEventSync", "done")
    assert not [kind for kind in begun if kind.startswith(forbidden)]
    program.finish()
    kernels = [details["addresses"] for kind, details in stand.since(place) if kind == "done:kernel"]
    assert len(kernels) == RUNS
    rows = [addresses["row"] for addresses in kernels]
    assert np.diff(rows).tolist() == [256] * (RUNS - 1)
    for earlier, later in pairwise(kernels):
        assert later["x"] == earlier["next_x"]
        assert later["before"] == earlier["next_before"]
        assert later["next_x"] == earlier["x"]


def test_programs_run_beside_each_other(stand: Any, tmp_path: Path) -> None:
    sessions = [stand.open(standin.walk(tmp_path, name)) for name in ("one", "two")]
    programs = [stand.engine.program([Call(s, RUNS, {"row": rows_of(k)})]) for k, s in enumerate(sessions)]
    for start in range(1, 5):
        for session, program in zip(sessions, programs, strict=True):
            load(session, start)
            program.start()
        for number in (1, 0):
            programs[number].finish()
            expected = walked(start, rows_of(number))[0]
            np.testing.assert_array_equal(sessions[number].read("next_x"), expected)
    streams = {details["stream"] for kind, details in stand.fake.trace if kind == "done:kernel"}
    assert len(streams) == 2


def test_a_program_waits_for_what_ran_before_it(stand: Any, tmp_path: Path) -> None:
    """On the device: the giver's run was only begun when the program starts."""
    giver, taker = (stand.open(standin.doubler(tmp_path, name="giver")), None)
    taker = stand.open(standin.doubler(tmp_path, name="taker"), shared={"value": giver.buffer("twice")})
    program = stand.engine.program([Call(taker)])
    for value in range(1, 6):
        giver.write("value", value)
        giver.run()
        program.start()
        # The next value may not overtake the program that still reads the last one.
        giver.write("value", 100)
        giver.run()
        program.finish()
        np.testing.assert_array_equal(taker.read("twice"), [[4 * value, 4 * value]])


def test_reading_waits_for_the_program(stand: Any, tmp_path: Path) -> None:
    session = stand.open(standin.walk(tmp_path))
    program = stand.engine.program([Call(session, RUNS, {"row": rows_of(0)})])
    for start in range(1, 5):
        load(session, start)
        program.start()
        np.testing.assert_array_equal(session.read("next_x"), walked(start, rows_of(0))[0])
    # It was started again each time without being finished.
    program.finish()
    program.finish()


def test_what_still_runs_may_be_dropped(stand: Any, tmp_path: Path) -> None:
    """A decode may fail in one program while another runs; the check finds memory that is freed too early."""
    session = stand.open(standin.walk(tmp_path))
    for _ in range(3):
        program = stand.engine.program([Call(session, RUNS, {"row": rows_of(0)})])
        program.start()
        del program
    program = stand.engine.program([Call(session, RUNS, {"row": rows_of(0)})])
    program.start()
    del session, program


def test_only_what_an_earlier_call_gives_is_taken(stand: Any, tmp_path: Path) -> None:
    session, after = stand.open(standin.walk(tmp_path)), stand.open(standin.doubler(tmp_path))
    with pytest.raises(EngineError, match="graph doubler: takes what no earlier call gives"):
        stand.engine.program([Call(after, takes={"value": (session, "next_x")})])


@pytest.mark.parametrize("runs", [1, 2, 3])
def test_what_is_fed_back_starts_from_what_another_gave(stand: Any, tmp_path: Path, runs: int) -> None:
    """The first run reads it where it lies, all others their own; nothing is copied, also not in the graph."""
    giver, session = stand.open(standin.doubler(tmp_path)), stand.open(standin.walk(tmp_path))
    calls = [Call(giver), Call(session, runs, {"row": rows_of(0, runs)}, starts={"x": (giver, "twice")})]
    program = stand.engine.program(calls)
    for value in range(1, 6):
        session.rewind()
        session.write("before", 0.5)
        giver.write("value", value)
        place = len(stand.fake.trace)
        program.start()
        program.finish()
        now, then = walked(2 * value, rows_of(0, runs), before=0.5)
        np.testing.assert_array_equal(session.read("next_x"), now)
        np.testing.assert_array_equal(session.read("next_before"), then)
        np.testing.assert_array_equal(giver.read("twice"), [[2 * value, 2 * value]])
    trace = stand.since(place)
    launched = [details["nodes"] for kind, details in trace if kind == "cudaGraphLaunch"]
    assert launched == [1 + runs + 3]
    kernels = [details["addresses"] for kind, details in trace if kind == "done:kernel"]
    assert kernels[1]["x"] == kernels[0]["twice"]
    assert kernels[0]["twice"] not in [addresses["x"] for addresses in kernels[2:]]
    assert not [line for line in stand.told if "CUDA graph" in line]


def test_a_program_waits_for_the_call_it_needs_and_no_other(stand: Any, tmp_path: Path) -> None:
    """Of a program that was started before: captured or not, the call's place in it is what is waited for."""
    giver = stand.open(standin.doubler(tmp_path, name="giver"))
    long, short = (stand.open(standin.walk(tmp_path, name)) for name in ("long", "short"))
    first = stand.engine.program([Call(giver), Call(long, RUNS, {"row": rows_of(0)})])
    second = stand.engine.program([Call(short, 2, {"row": rows_of(1, 2)}, starts={"x": (giver, "twice")})])
    for value in range(1, 6):
        giver.write("value", value)
        load(long, value)
        short.rewind()
        short.write("before", 0.0)
        place = len(stand.fake.trace)
        first.start()
        second.start()
        second.finish()
        np.testing.assert_array_equal(short.read("next_x"), walked(2 * value, rows_of(1, 2))[0])
        done = [details["name"] for kind, details in stand.since(place) if kind == "done:kernel"]
        if value != 2:  # when both are captured, everything is awaited
            assert done == ["giver", "short", "short"]
        first.finish()
        np.testing.assert_array_equal(long.read("next_x"), walked(value, rows_of(0))[0])


def test_what_a_program_still_reads_is_not_overwritten(stand: Any, tmp_path: Path) -> None:
    """Also where it is what an earlier call of it wrote."""
    giver = stand.open(standin.doubler(tmp_path, name="giver"))
    taker = stand.open(standin.doubler(tmp_path, name="taker"))
    other = stand.open(standin.doubler(tmp_path, name="other"), shared={"twice": giver.buffer("twice")})
    session = stand.open(standin.walk(tmp_path))
    taking = Call(taker, takes={"value": (giver, "twice")})
    program = stand.engine.program([Call(giver), Call(session, RUNS, {"row": rows_of(0)}), taking])
    other.write("value", 100)
    for value in range(1, 6):
        giver.write("value", value)
        load(session, 1)
        program.start()
        other.run()
        np.testing.assert_array_equal(giver.read("twice"), [[200, 200]])
        program.finish()
        np.testing.assert_array_equal(taker.read("twice"), [[4 * value, 4 * value]])


def test_what_cannot_be_started_from_is_refused(stand: Any, tmp_path: Path) -> None:
    session, giver = stand.open(standin.walk(tmp_path)), stand.open(standin.doubler(tmp_path))
    other = stand.open(standin.doubler(tmp_path, 3, "three"))
    rows = {"row": rows_of(0, 1)}
    with pytest.raises(EngineError, match="graph walk: row is not fed back"):
        stand.engine.program(
            [Call(giver), Call(session, starts={"row": (stand.open(vector(tmp_path)), "twice")})]
        )
    with pytest.raises(EngineError, match="graph walk: x is not of the shape and type of twice"):
        stand.engine.program([Call(other), Call(session, 1, rows, starts={"x": (other, "twice")})])
    with pytest.raises(EngineError, match="graph walk: takes what no earlier call gives"):
        stand.engine.program([Call(session, 1, rows, starts={"x": (giver, "twice")}), Call(giver)])


def vector(folder: Path) -> Any:
    """A graph whose output is shaped as `standin.walk`'s row."""
    nodes = [standin.helper.make_node("Add", ["value", "value"], ["twice"])]
    record = standin.save_graph(
        folder / "vector.onnx", nodes, {"value": ("float32", (2,))}, {"twice": ("float32", (2,))}
    )
    return standin.spec_of(folder, "vector", record)


def test_on_little_memory_one_graph_is_loaded_at_a_time(stand: Any, tmp_path: Path) -> None:
    graphs = [standin.walk(tmp_path), standin.doubler(tmp_path)]
    for graph in graphs:
        stand.engine.build(graph)
    engine = OnDemandEngine(stand.engine)
    session, after = (engine.open(graph) for graph in graphs)
    program = engine.program(
        [Call(session, 3, {"row": rows_of(0, 3)}), Call(after, takes={"value": (session, "next_x")})]
    )
    for start in (1, 2):
        load(session, start)
        program.start()
        program.finish()
        np.testing.assert_array_equal(after.read("twice"), 2 * walked(start, rows_of(0, 3))[0])
    scratch = [size for size in (len(block) for block in stand.fake._blocks.values()) if size == 1024]
    assert not scratch, "no context is left"


# --- When a graph goes wrong --------------------------------------------------------------------------------


def broken(stand: Any, how: str) -> None:
    """Let capturing go wrong."""
    fake, library = stand.fake, stand.library
    if how in {"deaf", "stale", "lossy"}:
        setattr(fake, how, True)
    elif how == "refused":
        library.during_capture = lambda: False
    elif how == "synchronizes":
        library.during_capture = lambda: fake.cudaStreamSynchronize(fake._streams[-1])[0] == 0 or True
    elif how == "allocates":
        library.during_capture = lambda: fake.cudaMalloc(64)[0] == 0
    else:
        fake.fail(how, Error.cudaErrorUnknown)


WAYS = {
    "deaf": "kernels are missing from it; does the engine run on another device?",
    "stale": "its results are not those of a run without it",
    "lossy": "its results are not those of a run without it",
    "refused": "graph walk: TensorRT failed (cannot be captured)",
    "synchronizes": "graph walk: TensorRT failed",
    "allocates": "graph walk: TensorRT failed",
    "cudaStreamBeginCapture": "CUDA: cudaErrorUnknown in cudaStreamBeginCapture",
    "cudaStreamEndCapture": "CUDA: cudaErrorUnknown in cudaStreamEndCapture",
    "cudaGraphInstantiate": "CUDA: cudaErrorUnknown in cudaGraphInstantiate",
    "cudaGraphLaunch": "CUDA: cudaErrorUnknown in cudaGraphLaunch",
    "cudaEventRecordWithFlags": "CUDA: cudaErrorUnknown in cudaEventRecordWithFlags",
}


@pytest.mark.parametrize("how", WAYS)
def test_a_program_without_a_graph_gives_the_same(stand: Any, tmp_path: Path, how: str) -> None:
    session = stand.open(standin.walk(tmp_path))
    program = stand.engine.program([Call(session, RUNS, {"row": rows_of(0)})])
    for start in range(1, 6):
        load(session, start)
        if start == 2:
            broken(stand, how)
        program.start()
        program.finish()
        now, then = walked(start, rows_of(0))
        np.testing.assert_array_equal(session.read("next_x"), now)
        np.testing.assert_array_equal(session.read("next_before"), then)
    assert not captured(program)
    assert len(stand.told) == 2, "the line of the build, and one of the graph"
    assert stand.told[1].startswith("walk: no CUDA graph, every kernel is launched by itself (")
    assert WAYS[how] in stand.told[1]
    assert stand.fake.kinds().count("cudaStreamBeginCapture") <= 1, "it is tried once"


def test_a_replay_that_writes_nothing_is_not_saved_by_an_equal_scan(stand: Any, tmp_path: Path) -> None:
    """What the plain run left is just what the replay should give: it has to be wiped first."""
    session = stand.open(standin.doubler(tmp_path))
    stand.fake.stale = True
    for _ in range(3):
        session.write("value", 3)
        session.run()
        np.testing.assert_array_equal(session.read("twice"), [[6, 6]])
    assert "its results are not those" in stand.told[1]


def test_a_device_that_fails_is_an_error_of_one_line(tmp_path: Path) -> None:
    stand = standin.StandIn(tmp_path / "cache")
    session = stand.open(standin.walk(tmp_path))
    program = stand.engine.program([Call(session, RUNS, {"row": rows_of(0)})])
    program.start()
    stand.fake._sticky = Error.cudaErrorIllegalAddress
    with pytest.raises(EngineError, match="^CUDA: cudaErrorIllegalAddress in cudaEventSynchronize$"):
        program.finish()
    with pytest.raises(EngineError, match="cudaErrorIllegalAddress"):
        session.read("next_x")
