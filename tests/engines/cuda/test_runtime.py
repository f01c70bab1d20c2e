"""CUDA's runtime, called: errors of one line, captures that leave nothing behind, memory freed once."""

from __future__ import annotations

import importlib
import inspect
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from unibrain_rt.engines import EngineError, TensorSpec
from unibrain_rt.engines.cuda import runtime
from unibrain_rt.engines.cuda.device_memory import DeviceBuffer, DeviceMemory, DeviceTable
from unibrain_rt.engines.cuda.runtime import Cuda, load_bindings
from unibrain_rt.engines.cuda.stream import CapturedGraph, Event, Stream

fake_cuda = importlib.import_module("fake_cuda")
Error = fake_cuda.Error


@pytest.fixture
def fake() -> Any:
    """A stand-in that is checked for leaks after the test."""
    made = fake_cuda.FakeCuda()
    yield made
    made.check()


@pytest.fixture
def cuda(fake: Any) -> Cuda:
    return Cuda(fake)


def spec(*shape: int, dtype: str = "float32") -> TensorSpec:
    return TensorSpec("x", dtype, shape)


# --- Calls --------------------------------------------------------------------------------------------------


def test_the_device_says_what_it_is(cuda: Cuda) -> None:
    device = cuda.device()
    assert (device.name, device.capability, device.target) == ("Stand-in GPU", "8.9", "sm89")
    assert device.free_bytes == device.memory_bytes == 8 << 30
    assert not device.integrated
    assert cuda.device_count() == 1


def test_an_error_is_one_line_with_its_name(fake: Any, cuda: Cuda) -> None:
    fake.fail("cudaStreamCreateWithFlags", Error.cudaErrorUnknown)
    with pytest.raises(EngineError, match="^CUDA: cudaErrorUnknown in cudaStreamCreateWithFlags$"):
        cuda.stream()
    cuda.clear_error()


def test_want_of_memory_says_what_to_do_and_is_forgotten(cuda: Cuda) -> None:
    with pytest.raises(EngineError, match="out of memory; close other programs, or decode with --low-memory"):
        DeviceBuffer(cuda, (1 << 32,), "float32")


def test_without_a_driver_the_error_has_its_name() -> None:
    fake = fake_cuda.FakeCuda()
    fake.driver = False
    with pytest.raises(EngineError, match="cudaErrorInsufficientDriver"):
        Cuda(fake).device_count()


def test_bindings_that_find_no_driver_are_one_line() -> None:
    class Bindings:
        def cudaGetDeviceCount(self) -> Any:  # noqa: N802
            raise RuntimeError("Failed to dlopen libcuda.so.1\nand more")

    with pytest.raises(EngineError, match="^CUDA: Failed to dlopen libcuda.so.1$"):
        Cuda(Bindings()).device_count()


@pytest.mark.parametrize("layout", ["newer", "older", "none"])
def test_both_layouts_of_the_bindings_are_known(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package, bindings, found = ModuleType("cuda"), ModuleType("cuda.bindings"), ModuleType("found")
    monkeypatch.setitem(sys.modules, "cuda", package)
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings if layout == "newer" else None)
    if layout == "newer":
        bindings.runtime = found  # type: ignore[attr-defined]
    if layout == "older":
        package.cudart = found  # type: ignore[attr-defined]
    if layout == "none":
        with pytest.raises(EngineError, match=r'not installed; run: pip install "cuda-python>=12.6"'):
            load_bindings()
    else:
        assert load_bindings() is found


def test_the_installed_bindings_have_all_that_is_called() -> None:
    """The stand-in is no proof that a function is there."""
    real = pytest.importorskip("cuda.bindings.runtime")
    called = {name for name in dir(fake_cuda.FakeCuda) if name.startswith("cuda")}
    used = {name for name in called if name in inspect.getsource(runtime) or name[-7:] in {"Destroy"}}
    assert len(used) > 15
    assert not {name for name in called if not hasattr(real, name)}
    assert int(real.cudaStreamNonBlocking) == runtime._NON_BLOCKING
    assert int(real.cudaEventDisableTiming) == runtime._NO_TIMING
    assert int(real.cudaEventRecordExternal) == runtime._EXTERNAL
    assert int(real.cudaError_t.cudaErrorMemoryAllocation) == runtime._OUT_OF_MEMORY
    for error in Error:
        assert int(getattr(real.cudaError_t, error.name)) == error


# --- Memory -------------------------------------------------------------------------------------------------


def test_a_buffer_is_written_and_read(cuda: Cuda) -> None:
    memory = DeviceMemory(cuda)
    value = np.arange(6, dtype=np.float32).reshape(2, 3)
    buffer = memory.allocate(spec(2, 3))
    np.testing.assert_array_equal(memory.read(buffer), np.zeros((2, 3)))
    memory.write(buffer, value)
    value[:] = 99
    np.testing.assert_array_equal(memory.read(buffer), np.arange(6).reshape(2, 3))
    memory.write(buffer, np.broadcast_to(np.float64(2), (2, 3)))
    assert memory.read(buffer).dtype == np.float32
    assert memory.read(buffer)[1, 2] == 2


@pytest.mark.parametrize("shape", [(), (0,), (3,), (3 << 20,)])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "bool"])
def test_arrays_of_every_size_come_back(cuda: Cuda, shape: tuple[int, ...], dtype: str) -> None:
    """The largest is copied in pieces."""
    memory = DeviceMemory(cuda)
    buffer = memory.allocate(spec(*shape, dtype=dtype))
    value = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    memory.write(buffer, np.asarray(value))
    np.testing.assert_array_equal(memory.read(buffer), value)


def test_zeros_need_no_copy(fake: Any, cuda: Cuda) -> None:
    memory = DeviceMemory(cuda)
    buffer = memory.allocate(spec(1000))
    memory.write(buffer, np.ones(1000))
    before = fake.kinds().count("cudaMemcpyAsync")
    memory.write(buffer, np.zeros(1000))
    assert fake.kinds().count("cudaMemcpyAsync") == before
    assert not memory.read(buffer).any()


def test_rows_of_a_table_are_aligned(fake: Any, cuda: Cuda) -> None:
    memory = DeviceMemory(cuda)
    rows = np.arange(15, dtype=np.float32).reshape(5, 3)
    table = DeviceTable(memory, rows)
    memory.stream.synchronize()
    for number in range(5):
        assert table.row(number) % 256 == 0
        np.testing.assert_array_equal(fake.array(table.row(number), (3,), np.float32), rows[number])


def test_memory_is_freed_once_and_with_the_last_reference(fake: Any, cuda: Cuda) -> None:
    buffer = DeviceBuffer(cuda, (4,), "float32")
    other = buffer
    del buffer
    assert fake.used == 16
    del other
    assert fake.used == 0


# --- Capture ------------------------------------------------------------------------------------------------


def fill(stream: Stream, buffer: DeviceBuffer, value: int) -> None:
    stream.cuda.fill(buffer.address, value, buffer.nbytes, stream.handle)


def test_what_is_captured_is_done_at_every_launch_only(fake: Any, cuda: Cuda) -> None:
    stream, buffer = Stream(cuda), DeviceBuffer(cuda, (4,), "uint8")
    fill(stream, buffer, 1)
    graph = CapturedGraph(stream, lambda: fill(stream, buffer, 7), buffer)
    stream.synchronize()
    assert fake.array(buffer.address, (4,), np.uint8).tolist() == [1] * 4
    graph.launch()
    stream.synchronize()
    assert fake.array(buffer.address, (4,), np.uint8).tolist() == [7] * 4
    assert graph.nodes == 1
    assert ("cudaStreamBeginCapture", {"stream": 1, "mode": "cudaStreamCaptureModeThreadLocal"}) in fake.trace


@pytest.mark.parametrize("what", ["synchronize", "allocate", "wait", "event"])
def test_what_cannot_be_captured_ends_the_capture(fake: Any, cuda: Cuda, what: str) -> None:
    stream, event, buffer = Stream(cuda), Event(cuda), DeviceBuffer(cuda, (4,), "uint8")
    event.record(stream)
    forbidden = {
        "synchronize": stream.synchronize,
        "allocate": lambda: DeviceBuffer(cuda, (4,), "uint8"),
        "wait": lambda: stream.wait(event),
        "event": event.synchronize,
    }
    with pytest.raises(EngineError, match="cudaErrorStreamCapture(Unsupported|Isolation)"):
        CapturedGraph(stream, forbidden[what], None)
    # The stream works as before, and the next call does not report the error.
    fill(stream, buffer, 3)
    stream.synchronize()
    assert cuda.call("cudaGetLastError") == ()


def test_an_error_that_was_swallowed_breaks_the_capture_all_the_same(fake: Any, cuda: Cuda) -> None:
    stream = Stream(cuda)

    def careless() -> None:
        fake.cudaStreamSynchronize(stream.handle)

    with pytest.raises(EngineError, match="cudaErrorStreamCaptureInvalidated in cudaStreamEndCapture"):
        CapturedGraph(stream, careless, None)
    stream.synchronize()


def test_any_exception_ends_the_capture(cuda: Cuda) -> None:
    stream = Stream(cuda)

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        CapturedGraph(stream, interrupted, None)
    stream.synchronize()


def test_what_is_let_go_during_a_capture_is_freed_after_it(fake: Any, cuda: Cuda) -> None:
    """The collector may run at any moment, and freeing memory would break the capture."""
    stream, kept = Stream(cuda), DeviceBuffer(cuda, (4,), "uint8")
    garbage = [DeviceBuffer(cuda, (400,), "uint8")]

    def work() -> None:
        garbage.clear()
        fill(stream, kept, 1)

    graph = CapturedGraph(stream, work, kept)
    assert graph.nodes == 1
    assert fake.used == 4


@pytest.mark.parametrize(
    "step", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate", "cudaGraphGetNodes"]
)
def test_a_failure_at_any_step_leaves_nothing(fake: Any, cuda: Cuda, step: str) -> None:
    stream, buffer = Stream(cuda), DeviceBuffer(cuda, (4,), "uint8")
    fake.fail(step, Error.cudaErrorUnknown)
    with pytest.raises(EngineError, match=f"cudaErrorUnknown in {step}"):
        CapturedGraph(stream, lambda: fill(stream, buffer, 1), None)
    stream.synchronize()
    cuda.clear_error()


def test_a_graph_goes_before_its_stream(fake: Any, cuda: Cuda) -> None:
    def captured() -> CapturedGraph:
        stream, buffer = Stream(cuda), DeviceBuffer(cuda, (4,), "uint8")
        return CapturedGraph(stream, lambda: fill(stream, buffer, 1), buffer)

    graph = captured()
    assert fake.used == 4, "what a graph uses lives as long as it"
    del graph
    order = [kind for kind in fake.kinds() if "Destroy" in kind or "Free" in kind]
    assert order[:2] == ["cudaGraphExecDestroy", "cudaGraphDestroy"]
    assert set(order[2:]) == {"cudaStreamDestroy", "cudaFree"}
