"""Programs on the host: calls in order, tables row by row, and what others and first runs are given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unibrain_rt.engines import Call, EngineError, GraphSpec, Session, TensorSpec
from unibrain_rt.engines.program import HostProgram


def adder(tmp_path: Path, name: str) -> GraphSpec:
    path = tmp_path / f"{name}.onnx"
    path.touch()
    return GraphSpec(
        name,
        path,
        inputs=(TensorSpec("total", "float32", (1, 2)), TensorSpec("row", "float16", (1, 2))),
        outputs=(TensorSpec("next_total", "float32", (1, 2)),),
        feedback={"next_total": "total"},
    )


class AddingSession(Session):
    """total + row, fed back."""

    def __init__(self, graph: GraphSpec, free: int) -> None:
        super().__init__(graph, free)
        self.values = {"total": np.zeros((1, 2), np.float32), "row": np.zeros((1, 2), np.float16)}
        self.events: list[str] = []

    def _run_impl(self) -> None:
        self.events.append("run")
        self.values["total"] = self.values["total"] + self.values["row"].astype(np.float32)

    def rest(self) -> None:
        self.events.append("rest")

    def buffer(self, name: str) -> object:
        return self.values[name]

    def _write_impl(self, name: str, value: np.ndarray[Any, Any]) -> None:
        self.values[name] = np.array(value, dtype=self.graph.tensor(name).dtype)

    def _read_impl(self, name: str) -> np.ndarray[Any, Any]:
        return self.values[self.graph.feedback.get(name, name)].copy()


def test_a_program_runs_its_calls_in_order_row_by_row(tmp_path: Path) -> None:
    first, second = (AddingSession(adder(tmp_path, name), 1) for name in ("a", "b"))
    rows = np.arange(6, dtype=np.float64).reshape(3, 1, 2)
    taken = Call(second, takes={"total": (first, "next_total")}, counted=False)
    program = HostProgram([Call(first, 3, {"row": rows}), taken])
    assert program.calls[0].tables["row"].dtype == np.float16, "cast once, not at every step"
    first.write("total", 10.0)
    second.write("row", 1.0)
    told: list[int] = []
    program.start(told.append)
    program.finish()
    np.testing.assert_array_equal(first.read("next_total"), [[16, 19]])
    np.testing.assert_array_equal(second.read("next_total"), [[17, 20]])
    assert told == [1, 1, 1]
    assert first.events == ["run", "run", "run", "rest"]
    assert len(program.milliseconds) == 2
    assert all(spent >= 0 for spent in program.milliseconds.values())


def test_what_is_fed_back_starts_from_what_another_gave(tmp_path: Path) -> None:
    """In the first run of every start; the other session may be in a program of its own."""
    first, second = (AddingSession(adder(tmp_path, name), 1) for name in ("a", "b"))
    giving = HostProgram([Call(first)])
    program = HostProgram([Call(second, 3, starts={"total": (first, "next_total")})])
    second.write("row", 1.0)
    for start in (10.0, 20.0):
        first.write("total", start)
        giving.start()
        program.start()
        np.testing.assert_array_equal(second.read("next_total"), [[start + 3, start + 3]])
        np.testing.assert_array_equal(first.read("next_total"), [[start, start]])


@pytest.mark.parametrize(
    ("name", "problem"), [("row", "is not of the shape and type"), ("other", "no tensor")]
)
def test_what_another_gives_has_to_fit(tmp_path: Path, name: str, problem: str) -> None:
    first, second = (AddingSession(adder(tmp_path, name), 1) for name in ("a", "b"))
    for given in ("takes", "starts"):
        with pytest.raises(EngineError, match=f"graph b.*{problem}"):
            HostProgram([Call(first), Call(second, **{given: {name: (first, "next_total")}})])


@pytest.mark.parametrize("shape", [(2, 1, 2), (3, 2), (3, 1, 3)])
def test_a_table_without_a_row_for_every_run_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    session = AddingSession(adder(tmp_path, "a"), 1)
    with pytest.raises(EngineError, match=r"graph a: the table of row is .*, not \(3, 1, 2\)"):
        HostProgram([Call(session, 3, {"row": np.zeros(shape)})])


def test_first_runs_are_given_what_is_always_the_same(tmp_path: Path) -> None:
    session = AddingSession(adder(tmp_path, "a"), 1)
    program = HostProgram([Call(session, 2, initial={"total": np.array([[5, 6]])})])
    session.write("row", 1.0)
    for _ in range(2):
        session.write("total", 100.0)
        program.start()
        np.testing.assert_array_equal(session.read("next_total"), [[7, 8]])
    assert program.calls[0].initial["total"].dtype == np.float32


@pytest.mark.parametrize(
    ("name", "shape", "problem"),
    [
        ("row", (1, 2), "row is not fed back"),
        ("total", (2,), r"total has shape \(1, 2\), but \(2,\) was given"),
        ("other", (1, 2), "no tensor"),
    ],
)
def test_what_first_runs_are_given_has_to_fit(
    tmp_path: Path, name: str, shape: tuple[int, ...], problem: str
) -> None:
    session = AddingSession(adder(tmp_path, "a"), 1)
    with pytest.raises(EngineError, match=f"graph a.*{problem}"):
        HostProgram([Call(session, initial={name: np.zeros(shape)})])
