"""What TensorRT-RTX compiles on the GPU, from one process to the next: each made by an engine of its own here."""

from __future__ import annotations

import gc
import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unibrain_rt.engines import Call, EngineError, Settings, probe
from unibrain_rt.engines.on_demand import OnDemandEngine
from unibrain_rt.engines.tensorrt.library import NATIVE, RTX, Library
from unibrain_rt.engines.tensorrt.tensorrt_engine import TensorRtEngine

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
standin = importlib.import_module("standin")
fake_tensorrt = importlib.import_module("fake_tensorrt")
Process = Callable[..., Any]


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    """A process on the same machine; all are checked for leaks."""
    made = []

    def start(kind: Any = RTX) -> Any:
        made.append(standin.StandIn(tmp_path / "cache", kind))
        return made[-1]

    yield start
    for each in made:
        each.engine = None
    gc.collect()
    for each in made:
        each.fake.check()


def run(stand: Any, graph: Any, runs: int = 1) -> None:
    session = stand.engine.open(graph)
    for _ in range(runs):
        session.write("value", 3)
        session.run()
        np.testing.assert_array_equal(session.read("twice"), [[6, 6]])


def kernels(folder: Path) -> Path:
    """The one file of kernels."""
    (described,) = (
        path for path in (folder / "cache").glob("*.json") if '"kernels"' in path.read_text("utf-8")
    )
    return described.with_suffix(".plan")


def test_what_one_process_compiled_the_next_one_does_not(process: Process, tmp_path: Path) -> None:
    graph = standin.doubler(tmp_path)
    first = process()
    run(first, graph)
    assert first.library.jitted == ["doubler"]
    kept = kernels(tmp_path).stat()
    run(second := process(), graph)
    assert second.library.jitted == []
    assert second.told == []
    assert kernels(tmp_path).stat().st_mtime_ns == kept.st_mtime_ns, "nothing is new, nothing is written"


def test_they_are_kept_as_soon_as_a_run_was_begun(process: Process, tmp_path: Path) -> None:
    """What is killed afterwards has not compiled in vain."""
    graph = standin.doubler(tmp_path)
    session = process().engine.open(graph)
    assert len(list((tmp_path / "cache").glob("*.plan"))) == 1
    session.run()
    assert kernels(tmp_path).exists()
    run(process(), graph)


def test_a_program_keeps_them_too(process: Process, tmp_path: Path) -> None:
    graph = standin.walk(tmp_path)
    for jitted in (["walk"], []):
        stand = process()
        session = stand.engine.open(graph)
        program = stand.engine.program([Call(session, 3, {"row": np.zeros((3, 2), np.float32)})])
        for _ in range(3):
            session.rewind()
            program.start()
            program.finish()
        assert any(replay._graph is not None for replay in program._replays.values())
        assert stand.library.jitted == jitted


def test_what_is_compiled_late_is_kept_at_the_end(process: Process, tmp_path: Path) -> None:
    graph = standin.doubler(tmp_path)
    for jitted in (["doubler", "doubler.late"], []):
        stand = process()
        stand.library.late = 2
        run(stand, graph, runs=2)
        gc.collect()
        assert stand.library.jitted == jitted


def test_what_is_compiled_late_is_kept_when_the_process_ends_with_its_sessions(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib, numpy; from unibrain_rt.engines.tensorrt.library import RTX; import standin\n"
        "folder = pathlib.Path(sys.argv[1]); made = standin.StandIn(folder / 'cache', RTX); made.library.late = 2\n"
        "session = made.engine.open(standin.doubler(folder)); session.run(); session.run()\n"
        "print(*made.library.jitted)\n"
    )
    places = os.pathsep.join([str(Path(standin.__file__).parent), *sys.path])
    for jitted in ("doubler doubler.late", ""):
        done = subprocess.run(
            [sys.executable, "-c", script, tmp_path],
            env={**os.environ, "PYTHONPATH": places},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.strip() == jitted


def test_on_little_memory_they_are_compiled_once(process: Process, tmp_path: Path) -> None:
    stand, graph = process(), standin.doubler(tmp_path)
    session = OnDemandEngine(stand.engine).open(graph)
    for _ in range(3):
        session.write("value", 1)
        session.run()
        session.rest()
    assert stand.library.jitted == ["doubler"]


# --- When they do not fit -----------------------------------------------------------------------------------


def test_another_gpu_has_kernels_of_its_own(process: Process, tmp_path: Path) -> None:
    """The plan is for all of its compute capability: it is the same."""
    graph = standin.doubler(tmp_path)
    run(process(), graph)
    for jitted in (["doubler"], []):
        stand = process()
        stand.fake.name = "Another GPU"
        run(stand, graph)
        assert stand.library.jitted == jitted
        assert stand.told == []
    run(back := process(), graph)
    assert back.library.jitted == [], "the first one's are still there"
    assert len(back.engine.cache.plans()) == 3


@pytest.mark.parametrize("change", ["version", "plan"])
def test_another_version_or_plan_has_kernels_of_its_own(
    process: Process, tmp_path: Path, change: str
) -> None:
    graph = standin.doubler(tmp_path)
    run(process(), graph)
    stand = process()
    if change == "version":
        stand.library.__version__ = "1.8"
        stand.engine._library = Library(RTX, stand.library)
    else:
        graph = standin.doubler(tmp_path, 2, "doubler")
        graph.path.write_bytes(graph.path.read_bytes() + b"\x12\x00")  # the producer's name, which is empty
    run(stand, graph)
    assert stand.library.jitted == ["doubler"]
    assert len(stand.told) == 1, "the line of the build"
    assert len(stand.engine.cache.plans()) == 4


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "flipped":
        content[-3] ^= 1
    else:
        content[:] = b"x" * len(content)
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["flipped", "other"])
def test_a_damaged_file_is_told_of_and_replaced(process: Process, tmp_path: Path, how: str) -> None:
    graph = standin.doubler(tmp_path)
    run(process(), graph)
    damage(kernels(tmp_path), how)
    run(second := process(), graph)
    assert second.library.jitted == ["doubler"]
    assert second.told == [
        "doubler: TensorRT-RTX does not take the kernels of an earlier run (their file is damaged); it compiles "
        "them again"
    ]
    run(third := process(), graph)
    assert (third.library.jitted, third.told) == ([], [])


def test_a_file_that_was_cut_off_counts_as_none(process: Process, tmp_path: Path) -> None:
    graph = standin.doubler(tmp_path)
    run(process(), graph)
    os.truncate(kernels(tmp_path), 40)
    run(second := process(), graph)
    run(third := process(), graph)
    assert (second.library.jitted, third.library.jitted) == (["doubler"], [])


def test_kernels_that_the_library_refuses_are_told_of_and_replaced(process: Process, tmp_path: Path) -> None:
    """An older driver, for one, which no key knows."""
    graph = standin.doubler(tmp_path)
    run(process(), graph)
    for jitted, told in ((["doubler"], 1), ([], 0)):
        stand = process()
        stand.library.driver = "535.0"
        run(stand, graph)
        assert stand.library.jitted == jitted
        assert len(stand.told) == told
        assert all("([runtimeCache.cpp::deserialize::7] another environment)" in line for line in stand.told)


def test_what_they_failed_by_is_not_blamed_for_later_failures(process: Process, tmp_path: Path) -> None:
    graph = standin.doubler(tmp_path)
    run(process(), graph)
    stand = process()
    stand.library.driver = "535.0"
    session = stand.engine.open(graph)
    assert session._log.problem == ""


def test_a_folder_that_cannot_be_written_costs_a_line(
    process: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand, graph = process(), standin.doubler(tmp_path)
    stand.engine.build(graph)
    stand.told.clear()
    monkeypatch.setattr(stand.engine.cache._files, "write", refuse)
    for _ in range(2):
        run(stand, graph)
    assert len(stand.told) == 1
    assert stand.told[0].startswith(
        "TensorRT-RTX compiles kernels again in every process, for they cannot be kept (plan cache "
    )
    assert "Read-only file system" in stand.told[0]


def refuse(*arguments: object) -> Path:
    raise OSError(30, "Read-only file system")


def test_a_library_that_makes_no_cache_runs_without(process: Process, tmp_path: Path) -> None:
    stand, graph = process(), standin.doubler(tmp_path)
    stand.engine.build(graph)
    stand.told.clear()
    stand.library.caches = False
    run(stand, graph)
    assert len(stand.told) == 1
    assert stand.told[0].endswith("cannot be kept ([builder.cpp::build::42] something is odd)")


def test_a_library_of_before_runs_without(
    process: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(fake_tensorrt.FakeTensorRt, "IRuntimeCache")
    stand = process()
    run(stand, standin.doubler(tmp_path))
    assert len(stand.engine.cache.plans()) == 1
    assert len(stand.told) == 1, "the line of the build"


def test_tensorrt_has_its_kernels_in_the_plan(process: Process, tmp_path: Path) -> None:
    stand, graph = process(NATIVE), standin.doubler(tmp_path)
    stand.engine.build(graph)
    run(stand, graph)
    assert len(stand.engine.cache.plans()) == 1


# --- In the cache of plans ----------------------------------------------------------------------------------


def test_they_count_and_are_pruned_as_plans_are(process: Process, tmp_path: Path) -> None:
    stand, graph = process(), standin.doubler(tmp_path)
    run(stand, graph)
    cache = stand.engine.cache
    found = {record.key.holds: record for record in cache.plans()}
    assert found.keys() == {"plan", "kernels"}
    kept = found["kernels"]
    assert (kept.key.graph, kept.key.settings["target"]) == ("doubler", "sm89")
    assert kept.size_bytes == kernels(tmp_path).stat().st_size
    os.utime(kept.path.with_suffix(".json"), (0, 0))
    together = sum(record.size_bytes for record in found.values())
    assert [record.key.holds for record in cache.prune(limit_bytes=together - 1)] == ["kernels"]
    run(process(), graph)
    assert len(cache.prune(everything=True)) == 2


def test_they_are_no_reason_for_a_plan_to_be_missing(process: Process, tmp_path: Path) -> None:
    stand, graph = process(), standin.doubler(tmp_path)
    run(stand, graph)
    key = stand.engine.key(graph)
    for record in stand.engine.cache.plans():
        if record.key.holds == "plan":
            record.path.unlink()
            record.path.with_suffix(".json").unlink()
    assert stand.engine.cache.why_missing(key) == "never built"


# --- The library itself -------------------------------------------------------------------------------------


def test_the_installed_library_is_called_as_it_is() -> None:
    """What is asked of the stand-in above, the real one has."""
    real = pytest.importorskip("tensorrt_rtx_bindings", reason="needs TensorRT-RTX")
    assert Library(RTX).keeps_kernels
    for name in ("IRuntimeCache", "IRuntimeConfig"):
        ours = {method for method in vars(getattr(fake_tensorrt, name)) if not method.startswith("_")} - {
            "kernels"
        }
        assert ours <= set(dir(getattr(real, name)))
    assert "runtime_config: " in real.ICudaEngine.create_execution_context.__doc__
    assert hasattr(real.ICudaEngine, "create_runtime_config")
    assert hasattr(real.IHostMemory, "nbytes")
    # Nobody but a plan's engine makes one, and without a GPU no plan is loaded.
    for name in ("IRuntimeCache", "IRuntimeConfig"):
        with pytest.raises(TypeError):
            getattr(real, name)()


def test_without_a_gpu_a_plan_of_the_installed_library_does_not_load(tmp_path: Path) -> None:
    """Kernels of the real library cannot be had here: this is as far as it goes, and it ends in one line."""
    pytest.importorskip("tensorrt_rtx_bindings", reason="needs TensorRT-RTX")
    if probe("tensorrt-rtx").usable:
        pytest.skip("there is a GPU")
    made = standin.StandIn(tmp_path / "cache", RTX)
    engine = TensorRtEngine(Library(RTX), Settings(cache=tmp_path / "cache"), cuda=made.fake)
    with pytest.raises(
        EngineError, match="^graph doubler: TensorRT-RTX does not load its plan .*CUDA driver"
    ) as caught:
        engine.open(standin.doubler(tmp_path))
    assert "\n" not in str(caught.value)
