"""What every engine on the CPU does: values, buffers that stay where they are, and errors of one line."""

from __future__ import annotations

import gc
import importlib
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from unibrain_rt.engines import Engine, EngineError, GraphSpec, TensorSpec, create_engine

onnx = pytest.importorskip("onnx")
hand = importlib.import_module("hand_graphs")
F, H, I, Specs, adder, bound, save, walk = (
    getattr(hand, name) for name in ("F", "H", "I", "Specs", "adder", "bound", "save", "walk")
)


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    pytest.importorskip(request.param)
    return create_engine(request.param, threads=1, cache=tmp_path_factory.mktemp("plans"))


# --- Running ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F, H, I])
def test_write_run_read(engine: Engine, tmp_path: Path, dtype: str) -> None:
    session = engine.open(adder(tmp_path, dtype=dtype))
    a, b = np.arange(6).reshape(2, 3).astype(dtype), np.full((2, 3), 10, dtype)
    session.write("a", a)
    session.write("b", b)
    session.run()
    result = session.read("sum")
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, a + b)
    np.testing.assert_array_equal(session.read("a"), a)


def test_values_are_broadcast_and_cast(engine: Engine, tmp_path: Path) -> None:
    session = engine.open(adder(tmp_path))
    session.write("a", np.array([1.0, 2.0, 3.0]))
    session.write("b", 7)
    session.run()
    np.testing.assert_array_equal(session.read("sum"), np.array([[8, 9, 10]] * 2, np.float32))
    session.write("b", np.array([[1], [2]], np.float16))
    session.run()
    np.testing.assert_array_equal(session.read("sum"), np.array([[2, 3, 4], [3, 4, 5]], np.float32))


def test_what_is_not_written_is_zero(engine: Engine, tmp_path: Path) -> None:
    session = engine.open(adder(tmp_path))
    session.write("a", 5)
    session.run()
    np.testing.assert_array_equal(session.read("sum"), np.full((2, 3), 5))


def test_a_result_is_a_copy(engine: Engine, tmp_path: Path) -> None:
    session = engine.open(adder(tmp_path))
    session.write("a", 1)
    session.run()
    first = session.read("sum")
    session.write("a", 2)
    session.run()
    assert first[0, 0] == 1
    assert session.read("sum")[0, 0] == 2


def test_what_is_written_may_change_afterwards(engine: Engine, tmp_path: Path) -> None:
    session = engine.open(adder(tmp_path))
    value = np.ones((2, 3), np.float32)
    session.write("a", value)
    value[:] = 99
    session.run()
    assert session.read("sum")[0, 0] == 1


@pytest.mark.parametrize("free", [1, 2, 37])
def test_free_axes_take_their_size_when_opened(engine: Engine, tmp_path: Path, free: int) -> None:
    session = engine.open(adder(tmp_path, shape=("N", 3)), free=free)
    session.write("a", np.arange(free)[:, None])
    session.run()
    np.testing.assert_array_equal(session.read("sum"), np.repeat(np.arange(free)[:, None], 3, axis=1))
    with pytest.raises(EngineError, match="has shape"):
        session.write("a", np.zeros((free + 1, 3)))


def test_scalars_have_buffers_too(engine: Engine, tmp_path: Path) -> None:
    session = engine.open(adder(tmp_path, shape=()))
    session.write("a", 2.5)
    session.write("b", np.float64(1))
    session.run()
    assert session.read("sum") == np.float32(3.5)


# --- Feedback -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("runs", [1, 2, 3, 7, 8])
def test_outputs_become_the_next_inputs(engine: Engine, tmp_path: Path, runs: int) -> None:
    session = engine.open(walk(tmp_path))
    x, before = np.array([[1.0, -1.0]], np.float32), np.zeros((1, 2), np.float32)
    session.write("x", x)
    session.write("before", before)
    for number in range(runs):
        session.write("row", [number, 1])
        session.run()
        x, before = 2 * x + before + np.array([number, 1], np.float32), x
    np.testing.assert_array_equal(session.read("next_x"), x)
    np.testing.assert_array_equal(session.read("next_before"), before)
    # What was given back is what the next run takes.
    np.testing.assert_array_equal(session.read("x"), x)
    np.testing.assert_array_equal(session.read("before"), before)


@pytest.mark.parametrize("runs", [1, 2])
def test_a_loop_starts_anew_wherever_it_stopped(engine: Engine, tmp_path: Path, runs: int) -> None:
    session = engine.open(walk(tmp_path))
    for _ in range(runs):
        session.run()
    for _ in range(2):  # the second time from the other turn, or after two runs from the same
        session.write("x", 3)
        session.write("before", 0)
        session.write("row", 0)
        session.run()
        np.testing.assert_array_equal(session.read("next_x"), [[6, 6]])
        np.testing.assert_array_equal(session.read("next_before"), [[3, 3]])


def test_two_buffers_take_turns(engine: Engine, tmp_path: Path) -> None:
    session = engine.open(walk(tmp_path))
    session.write("x", 1)
    before = bound(session)
    contents = {name: session.buffer(name) for name in ("x", "next_x")}
    session.run()
    assert contents["next_x"][0, 0] == 2  # type: ignore[index]
    session.run()
    assert contents["x"][0, 0] == 5  # type: ignore[index]  # 2·2 + 1: written where the first run read
    session.run()
    assert contents["next_x"][0, 0] == 12  # type: ignore[index]
    assert bound(session) == before


# --- Buffers ------------------------------------------------------------------------------------------------


def test_a_shared_buffer_needs_no_copy(engine: Engine, tmp_path: Path) -> None:
    producer = engine.open(adder(tmp_path))
    doubler = save(
        tmp_path / "doubler.onnx",
        [("Add", ["sum", "sum"], ["twice"])],
        {"sum": (F, (2, 3))},
        {"twice": (F, (2, 3))},
    )
    consumers = [engine.open(doubler, shared={"sum": producer.buffer("sum")}) for _ in range(2)]
    for value in (1, 5):
        producer.write("a", value)
        producer.run()
        for consumer in consumers:
            assert consumer.buffer("sum") is producer.buffer("sum")
            consumer.run()
            np.testing.assert_array_equal(consumer.read("twice"), np.full((2, 3), 2 * value))


@pytest.mark.parametrize(
    "buffer",
    [np.zeros((3, 2), np.float32), np.zeros((2, 3)), [0.0] * 6, None],
    ids=["shape", "type", "list", "none"],
)
def test_a_shared_buffer_has_to_fit(engine: Engine, tmp_path: Path, buffer: object) -> None:
    with pytest.raises(EngineError, match="the shared buffer of a has another shape or type"):
        engine.open(adder(tmp_path), shared={"a": buffer})


def test_a_run_binds_nothing_anew(engine: Engine, tmp_path: Path) -> None:
    session = engine.open(walk(tmp_path))
    before = bound(session)
    assert len(set(before.values())) == len(before)
    for number in range(20):
        session.write("row", number)
        session.run()
    assert bound(session) == before


def test_a_run_leaves_no_memory_behind(engine: Engine, tmp_path: Path) -> None:
    session = engine.open(walk(tmp_path))
    row = np.ones(2, np.float32)

    def loop(runs: int) -> None:
        for _ in range(runs):
            session.write("x", 1.0)
            session.write("row", row)
            session.run()

    loop(10)
    tracemalloc.start()
    loop(1)
    after_one = tracemalloc.get_traced_memory()[0]
    loop(300)
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - after_one
    tracemalloc.stop()
    assert grown < 2000, f"{grown} bytes in 300 runs"


# --- Errors -------------------------------------------------------------------------------------------------


def test_no_file_no_session(engine: Engine, tmp_path: Path) -> None:
    spec = adder(tmp_path)
    spec.path.unlink()
    with pytest.raises(EngineError, match=r"adder\.onnx: the graph's file is missing"):
        engine.open(spec)


@pytest.mark.parametrize("kept", [0, 1, 20, 0.5, 0.9])
def test_a_truncated_file_is_refused(engine: Engine, tmp_path: Path, kept: float) -> None:
    spec = adder(tmp_path)
    raw = spec.path.read_bytes()
    spec.path.write_bytes(raw[: int(kept if kept >= 1 else kept * len(raw))])
    check_line(engine, spec, "adder.onnx: ")


@pytest.mark.parametrize("raw", [b"\0" * 100, b"not a graph", b"\xff" * 5000])
def test_noise_is_refused(engine: Engine, tmp_path: Path, raw: bytes) -> None:
    spec = adder(tmp_path)
    spec.path.write_bytes(raw)
    check_line(engine, spec, f"adder.onnx: {engine.name} cannot load it")


def test_an_unknown_operator_is_refused(engine: Engine, tmp_path: Path) -> None:
    spec = save(tmp_path / "odd.onnx", [("Frobnicate", ["a"], ["b"])], {"a": (F, (1,))}, {"b": (F, (1,))})
    check_line(engine, spec, f"odd.onnx: {engine.name} cannot load it")


def test_missing_weights_are_refused(engine: Engine, tmp_path: Path) -> None:
    spec = adder(tmp_path)
    model = onnx.load(spec.path)
    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[2, 3])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights")
    model.graph.initializer.append(tensor)
    model.graph.node[0].input[1] = "w"
    del model.graph.input[1]
    spec.path.write_bytes(model.SerializeToString())
    spec = GraphSpec("adder", spec.path, spec.inputs[:1], spec.outputs)
    check_line(engine, spec, f"adder.onnx: {engine.name} cannot load it")
    (tmp_path / "weights").write_bytes(np.ones(3, np.float32).tobytes())
    check_line(engine, spec, f"adder.onnx: {engine.name} cannot load it")
    (tmp_path / "weights").write_bytes(np.ones(6, np.float32).tobytes())
    session = engine.open(spec)
    session.run()
    np.testing.assert_array_equal(session.read("sum"), np.ones((2, 3)))


@pytest.mark.parametrize(
    ("part", "specs", "problem"),
    [
        ("inputs", {"a": (F, (2, 3))}, "input 'b'"),
        ("inputs", {"a": (F, (2, 3)), "b": (F, (2, 3)), "c": (F, (1,))}, "input 'c'"),
        ("inputs", {"a": (F, (2, 3)), "b": (H, (2, 3))}, "input 'b'"),
        ("inputs", {"a": (F, (2, 3)), "b": (F, (2, 4))}, "input 'b'"),
        ("inputs", {"a": (F, (2, 3)), "b": (F, (2, 3, 1))}, "input 'b'"),
        ("outputs", {"total": (F, (2, 3))}, "output 'sum'"),
        ("outputs", {"sum": (I, (2, 3))}, "output 'sum'"),
        ("outputs", {}, "output 'sum'"),
    ],
)
def test_a_file_that_is_not_the_manifests_is_refused(
    engine: Engine, tmp_path: Path, part: str, specs: Specs, problem: str
) -> None:
    spec = adder(tmp_path)
    told = {"inputs": spec.inputs, "outputs": spec.outputs}
    told[part] = tuple(TensorSpec(name, dtype, shape) for name, (dtype, shape) in specs.items())
    with pytest.raises(EngineError, match=f"{problem} is not as the manifest says"):
        engine.open(GraphSpec("adder", spec.path, told["inputs"], told["outputs"]))


def test_the_order_of_tensors_is_free(engine: Engine, tmp_path: Path) -> None:
    spec = save(tmp_path / "minus.onnx", [("Sub", ["a", "b"], ["c"])],
                {"a": (F, (3,)), "b": (F, (1,))}, {"c": (F, (3,))})  # fmt: skip
    session = engine.open(GraphSpec("minus", spec.path, spec.inputs[::-1], spec.outputs))
    session.write("a", 3)
    session.write("b", 1)
    session.run()
    np.testing.assert_array_equal(session.read("c"), [2, 2, 2])


def test_types_the_manifest_does_not_know_are_refused(engine: Engine, tmp_path: Path) -> None:
    spec = adder(tmp_path, dtype="float64")
    told = tuple(TensorSpec(tensor.name, F, tensor.shape) for tensor in spec.inputs)
    with pytest.raises(EngineError, match="input 'a' is not as the manifest says"):
        engine.open(GraphSpec("adder", spec.path, told, spec.outputs))


def test_a_result_of_another_shape_is_refused(engine: Engine, tmp_path: Path) -> None:
    """An axis is free in the file and fixed in the manifest: only the run can tell."""
    spec = adder(tmp_path, shape=("N", 3))
    outputs = (TensorSpec("sum", F, (5, 3)),)
    with pytest.raises(EngineError):
        engine.open(GraphSpec("adder", spec.path, spec.inputs, outputs), free=4).run()


def check_line(engine: Engine, spec: GraphSpec, start: str) -> None:
    with pytest.raises(EngineError) as caught:
        engine.open(spec)
    assert str(caught.value).startswith(start)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
