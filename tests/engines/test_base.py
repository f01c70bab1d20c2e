"""The engines' interface: what every back end is spared, because it is checked before."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unibrain_rt.engines import (
    ENGINES,
    Call,
    Engine,
    EngineError,
    GraphSpec,
    Probe,
    Session,
    Settings,
    TensorSpec,
    catalogue,
    create_engine,
)


class RecordingSession(Session):
    """Keeps what it is given, on no back end at all."""

    def __init__(self, graph: GraphSpec, free: int) -> None:
        super().__init__(graph, free)
        self.written: list[tuple[str, np.ndarray[Any, Any]]] = []
        self.runs = 0

    def _run_impl(self) -> None:
        self.runs += 1

    def buffer(self, name: str) -> object:
        return name

    def _write_impl(self, name: str, value: np.ndarray[Any, Any]) -> None:
        self.written.append((name, value))

    def _read_impl(self, name: str) -> np.ndarray[Any, Any]:
        return np.array([name])


class RecordingEngine(Engine):
    name = "recording"

    def describe(self) -> dict[str, str | int]:
        return {}

    def _open_impl(self, graph: GraphSpec, free: int, shared: Mapping[str, object]) -> Session:
        if graph.name == "large":
            raise MemoryError
        return RecordingSession(graph, free)


def graph(path: Path, name: str = "step") -> GraphSpec:
    path.touch()
    return GraphSpec(
        name,
        path,
        inputs=(
            TensorSpec("latent", "float32", (1, 3)),
            TensorSpec("ids", "int64", ("N", 2)),
            TensorSpec("half", "float16", ("N",)),
        ),
        outputs=(TensorSpec("next_latent", "float32", (1, 3)), TensorSpec("context", "float32", ("N", 2))),
        feedback={"next_latent": "latent"},
    )


@pytest.fixture
def session(tmp_path: Path) -> RecordingSession:
    opened = RecordingEngine().open(graph(tmp_path / "a.onnx"), free=4)
    assert isinstance(opened, RecordingSession)
    return opened


def test_a_free_axis_is_sized() -> None:
    spec = TensorSpec("x", "float32", ("N", 3, "N"))
    assert spec.sized(5) == (5, 3, 5)
    assert TensorSpec("x", "float32", ()).sized(5) == ()


def test_a_graph_knows_its_tensors(tmp_path: Path) -> None:
    spec = graph(tmp_path / "a.onnx")
    assert spec.tensor("ids").dtype == "int64"
    assert spec.tensor("context").shape == ("N", 2)
    with pytest.raises(EngineError, match="graph step has no tensor 'nothing'"):
        spec.tensor("nothing")


class FlavouredEngine(RecordingEngine):
    flavour = "sweet"


def test_an_engine_opens_its_flavour_of_a_graph(tmp_path: Path) -> None:
    plain, sweet, single = graph(tmp_path / "a.onnx"), tmp_path / "a.sweet.onnx", tmp_path / "a.fp32.onnx"
    both = replace(plain, fallback=single, flavours={"sweet": sweet, "sour": tmp_path / "a.sour.onnx"})
    with pytest.raises(EngineError, match=r"a\.sweet\.onnx: the graph's file is missing"):
        FlavouredEngine().open(both)
    for path in (sweet, single):
        path.touch()
    assert FlavouredEngine().open(both).graph.path == sweet
    assert FlavouredEngine().open(plain).graph.path == plain.path
    assert RecordingEngine().open(both).graph.path == plain.path
    # What escapes a type's range has to be fp32, whatever the engine likes best.
    assert FlavouredEngine().open(both.in_fp32()).graph.path == single
    assert plain.in_fp32() is plain
    assert both.flavoured(None) is both
    assert both.flavoured("sweet").fallback == single


@pytest.mark.parametrize(
    ("name", "value", "shape"),
    [
        ("latent", 0.0, (1, 3)),
        ("latent", np.zeros(3), (1, 3)),
        ("latent", np.zeros((1, 3), np.float16), (1, 3)),
        ("latent", np.float32(2), (1, 3)),
        ("latent", 1, (1, 3)),
        ("ids", np.zeros((4, 1), np.int32), (4, 2)),
        ("ids", 7, (4, 2)),
        ("half", np.zeros(4, np.float64), (4,)),
    ],
)
def test_what_fits_is_broadcast(
    session: RecordingSession, name: str, value: Any, shape: tuple[int, ...]
) -> None:
    session.write(name, value)
    written, array = session.written[0]
    assert written == name
    assert array.shape == shape
    np.testing.assert_array_equal(array, np.broadcast_to(value, shape))


def test_a_value_of_the_right_shape_is_not_copied(session: RecordingSession) -> None:
    value = np.zeros((1, 3), np.float32)
    session.write("latent", value)
    assert session.written[0][1] is value


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("latent", np.zeros(4), r"latent has shape \(1, 3\), but \(4,\) was given"),
        ("latent", np.zeros((2, 3)), r"latent has shape \(1, 3\)"),
        ("latent", np.zeros((1, 1, 3)), r"latent has shape \(1, 3\)"),
        ("ids", np.zeros((3, 2), np.int64), r"ids has shape \(4, 2\)"),
        ("ids", 0.5, "ids is int64, but float64 was given"),
        ("latent", 1j, "latent is float32, but complex128 was given"),
        ("latent", np.array(["a"]), "latent is float32, but <U1 was given"),
        ("next_latent", 0.0, "next_latent is an output"),
        ("nothing", 0.0, "no tensor 'nothing'"),
    ],
)
def test_what_does_not_fit_is_refused(session: RecordingSession, name: str, value: Any, problem: str) -> None:
    with pytest.raises(EngineError, match=problem):
        session.write(name, value)
    assert session.written == []


def test_only_tensors_can_be_read(session: RecordingSession) -> None:
    assert session.read("context") == ["context"]
    with pytest.raises(EngineError, match="no tensor"):
        session.read("nothing")


def test_a_missing_file_is_not_opened(tmp_path: Path) -> None:
    spec = graph(tmp_path / "a.onnx")
    spec.path.unlink()
    with pytest.raises(EngineError, match=r"a\.onnx: the graph's file is missing"):
        RecordingEngine().open(spec)
    spec.path.mkdir()
    with pytest.raises(EngineError, match="missing"):
        RecordingEngine().open(spec)


@pytest.mark.parametrize(
    ("name", "problem"),
    [("latent", "fed back"), ("next_latent", "fed back"), ("nothing", "no tensor 'nothing'")],
)
def test_what_cannot_be_shared(tmp_path: Path, name: str, problem: str) -> None:
    with pytest.raises(EngineError, match=problem):
        RecordingEngine().open(graph(tmp_path / "a.onnx"), shared={name: np.zeros((1, 3), np.float32)})


def test_want_of_memory_is_an_engine_error(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="graph large: does not fit in memory"):
        RecordingEngine().open(graph(tmp_path / "a.onnx", name="large"))


@pytest.mark.parametrize("name", ["", "none", "ONNXRUNTIME", "../onnxruntime"])
def test_unknown_engines_are_named_with_the_known(name: str) -> None:
    with pytest.raises(
        EngineError, match=f"unknown engine '{name}'; known are auto, .*onnxruntime"
    ) as caught:
        create_engine(name)
    assert caught.value.exit_code == 3
    assert all(known in str(caught.value) for known in ENGINES)


def test_auto_is_an_engine_that_works_here() -> None:
    pytest.importorskip("onnxruntime")
    assert create_engine("auto").name in ENGINES
    assert create_engine("onnxruntime", threads=1).describe()["threads"] == 1


# --- Observers --------------------------------------------------------------------------------------------


def test_an_observer_is_around_every_run(tmp_path: Path) -> None:
    seen: list[str] = []

    @contextmanager
    def observer(name: str) -> Iterator[None]:
        seen.append(f"before {name}: {session.runs}")
        yield
        seen.append(f"after {name}: {session.runs}")

    engine = RecordingEngine()
    unseen = engine.open(graph(tmp_path / "earlier.onnx"))
    engine.observe(observer)
    session: Any = engine.open(graph(tmp_path / "a.onnx", name="a"))
    engine.program([Call(session, 2)]).start()
    unseen.run()
    assert seen == ["before a: 0", "after a: 1", "before a: 1", "after a: 2"]


# --- The catalogue ------------------------------------------------------------------------------------------


class Unready(RecordingEngine):
    def unready(self, graphs: Any) -> str | None:
        return "no plans yet"


def back_end(monkeypatch: pytest.MonkeyPatch, name: str, found: Probe, engine: Engine | None = None) -> None:
    module = types.SimpleNamespace(probe=lambda: found, create=lambda settings: engine)
    monkeypatch.setitem(sys.modules, f"stand_in_{name}", module)
    monkeypatch.setitem(catalogue.MODULES, name, f"stand_in_{name}")


@pytest.fixture
def three_back_ends(monkeypatch: pytest.MonkeyPatch) -> Engine:
    """One that is not there, one that would have to compile, and one that works."""
    monkeypatch.delenv(catalogue.ENGINE_VARIABLE, raising=False)
    works = RecordingEngine()
    back_end(monkeypatch, "absent", Probe("absent", problem="is not installed", advice="run: pip install it"))
    back_end(monkeypatch, "slow", Probe("slow", "1.0", "gpu"), Unready())
    back_end(monkeypatch, "works", Probe("works", "2.0", "cpu"), works)
    monkeypatch.setattr(catalogue, "ENGINES", ("absent", "slow", "works"))
    return works


def test_auto_takes_the_first_that_works_and_says_why_not_the_others(three_back_ends: Engine) -> None:
    chosen = create_engine("auto")
    assert chosen is three_back_ends
    assert [str(found) for found in chosen.passed_over] == [
        "absent: is not installed; run: pip install it",
        "slow: no plans yet",
    ]


def test_on_little_memory_the_engine_is_wrapped(
    three_back_ends: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps what was passed over, captures nothing, and asks for no plans of graphs for a device."""
    made: list[Settings] = []
    asked: list[int] = []

    class OnDevice(RecordingEngine):
        on_device = True

        def unready(self, graphs: Any) -> str | None:
            asked.append(len(graphs))
            return None

    def create(settings: Settings) -> Engine:
        made.append(settings)
        return OnDevice()

    monkeypatch.setattr(sys.modules["stand_in_works"], "create", create)
    heads: Any = [(None, 1)]
    plain = create_engine("auto", device_graphs=heads)
    frugal = create_engine("auto", device_graphs=heads, low_memory=True)
    assert (plain.on_device, frugal.on_device) == (True, False)
    assert frugal.describe() == {"memory": "low"}
    assert frugal.passed_over == plain.passed_over != ()
    assert [settings.capture for settings in made] == [True, False]
    assert asked == [1, 0]


def test_a_last_resort_is_taken_where_nothing_else_works(
    three_back_ends: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = RecordingEngine()
    back_end(monkeypatch, "last", Probe("last", "1.0", "cpu", last_resort=True), last)
    monkeypatch.setattr(catalogue, "ENGINES", ("last", "slow", "works"))
    chosen = create_engine("auto")
    assert chosen is three_back_ends
    # It works, so there is nothing to be told of it.
    assert [str(found) for found in chosen.passed_over] == ["slow: no plans yet"]
    monkeypatch.setattr(catalogue, "ENGINES", ("last", "slow", "absent"))
    assert create_engine("auto") is last


def test_an_engine_that_was_asked_for_is_not_passed_over(three_back_ends: Engine) -> None:
    assert isinstance(create_engine("slow"), Unready)
    with pytest.raises(EngineError, match=r"^engine absent: is not installed; run: pip install it$"):
        create_engine("absent")


def test_a_variable_says_what_auto_means(three_back_ends: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(catalogue.ENGINE_VARIABLE, "slow")
    assert isinstance(create_engine("auto"), Unready)
    assert create_engine("works") is three_back_ends
    monkeypatch.setenv(catalogue.ENGINE_VARIABLE, "absent")
    with pytest.raises(EngineError, match="engine absent: is not installed"):
        create_engine("auto")


def test_where_nothing_works_one_reason_is_told(
    three_back_ends: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "ENGINES", ("slow", "absent"))
    with pytest.raises(EngineError, match="no engine works here: absent: is not installed") as caught:
        create_engine("auto")
    assert "doctor" in str(caught.value)
