"""The engines' interface: what every back end is spared, because it is checked before."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unibrain_rt.engines import ENGINES, Engine, EngineError, GraphSpec, Session, TensorSpec, create_engine


class RecordingSession(Session):
    """Keeps what it is given, on no back end at all."""

    def __init__(self, graph: GraphSpec, free: int) -> None:
        super().__init__(graph, free)
        self.written: list[tuple[str, np.ndarray[Any, Any]]] = []

    def run(self) -> None: ...

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
    with pytest.raises(EngineError, match=f"unknown engine '{name}'; known are auto, onnxruntime") as caught:
        create_engine(name)
    assert caught.value.exit_code == 3
    assert all(known in str(caught.value) for known in ENGINES)


def test_auto_is_an_engine_that_works_here() -> None:
    pytest.importorskip("onnxruntime")
    assert create_engine("auto").name in ENGINES
    assert create_engine("onnxruntime", threads=1).describe()["threads"] == 1
