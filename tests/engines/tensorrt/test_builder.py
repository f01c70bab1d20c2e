"""Building plans and opening them, probing, and the one line that each failure becomes."""

from __future__ import annotations

import importlib
import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unibrain_rt.engines import EngineError, GraphSpec, Settings, TensorSpec, create_engine, probe
from unibrain_rt.engines.cuda.runtime import Cuda
from unibrain_rt.engines.tensorrt import builder, library
from unibrain_rt.engines.tensorrt import tensorrt_engine as engine
from unibrain_rt.engines.tensorrt.library import NATIVE, RTX, Library
from unibrain_rt.engines.tensorrt.tensorrt_engine import TensorRtEngine

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
standin = importlib.import_module("standin")
fake_cuda = importlib.import_module("fake_cuda")
fake_tensorrt = importlib.import_module("fake_tensorrt")
onnx_graphs = importlib.import_module("onnx_graphs")


def stand(folder: Path, kind: library.Kind = NATIVE, **options: Any) -> Any:
    return standin.StandIn(folder / "cache", kind, **options)


# --- Building -----------------------------------------------------------------------------------------------


def test_a_network_is_strongly_typed_and_its_workspace_capped(tmp_path: Path) -> None:
    made = stand(tmp_path)
    made.fake.memory = 4 << 30
    made.engine.build(standin.doubler(tmp_path))
    assert made.library.flags == [1 << 1]
    assert made.library.builds[0]["workspace"] == 1 << 30
    assert made.library.builds[0]["targets"] == {}
    assert made.library.builds[0]["shapes"] == {}


def test_where_every_network_is_strongly_typed_there_is_no_flag(tmp_path: Path) -> None:
    made = stand(tmp_path)
    made.library.NetworkDefinitionCreationFlag = object()
    made.engine.build(standin.doubler(tmp_path))
    assert made.library.flags == [0]


def test_free_axes_are_fixed(tmp_path: Path) -> None:
    made = stand(tmp_path)
    made.engine.build(standin.doubler(tmp_path, "N"), 5)
    assert made.library.builds[0]["shapes"] == {"value": (5, 2)}


def test_a_plan_is_found_again_and_missed_with_a_reason(tmp_path: Path) -> None:
    made, graph = stand(tmp_path), standin.doubler(tmp_path, "N")
    assert not made.engine.build(graph, 5).hit
    assert made.engine.build(graph, 5).hit
    assert made.engine.build(graph, 6).reason == "built with free 5, not 6"
    made.library.__version__ = "10.4.0"
    newer = TensorRtEngine(Library(NATIVE, made.library), Settings(cache=tmp_path / "cache"), cuda=made.fake)
    assert newer.build(graph, 5).reason == "built with TensorRT 10.3.0.26, this is 10.4.0"
    with pytest.raises(
        EngineError, match=r"no plan for tensorrt \(.*\); run: unibrain-rt build BUNDLE --engine tensorrt"
    ):
        newer.open(graph, free=7)
    assert "1 of 1 plans are missing" in str(newer.unready([(graph, 7)]))


def test_plans_of_the_library_that_times_kernels_are_for_one_model_of_gpu(tmp_path: Path) -> None:
    made, graph = stand(tmp_path), standin.doubler(tmp_path)
    assert made.engine.key(graph).settings == {
        "version": "10.3.0.26",
        "target": "sm89",
        "device": "Stand-in GPU",
    }
    assert stand(tmp_path, RTX).engine.key(graph).settings == {"version": "10.3.0.26", "target": "sm89"}


@pytest.mark.parametrize("target", ["sm75", "sm80", "sm86", "sm89", "sm120", "sm121"])
def test_rtx_builds_for_gpus_that_are_not_here(tmp_path: Path, target: str) -> None:
    made = stand(tmp_path, RTX)
    made.fake.driver = False
    made.engine.build(standin.doubler(tmp_path), target=target)
    assert made.library.builds[0]["targets"] == {0: target.upper()}
    assert made.library.builds[0]["workspace"] == 1 << 30


@pytest.mark.parametrize("target", ["sm87", "sm90", "sm61"])
def test_rtx_refuses_other_gpus(tmp_path: Path, target: str) -> None:
    known = "sm75, sm80, sm86, sm89, sm120, sm121"
    with pytest.raises(
        EngineError,
        match=f"^TensorRT-RTX does not compile for {target}, but for {known}; use --engine tensorrt",
    ):
        stand(tmp_path, RTX).engine.build(standin.doubler(tmp_path), target=target)


def test_rtx_without_a_gpu_asks_for_a_target(tmp_path: Path) -> None:
    made = stand(tmp_path, RTX)
    made.fake.driver = False
    with pytest.raises(
        EngineError,
        match=r"TensorRT-RTX finds no GPU here \(.*\); name what to compile for with --target, of sm75",
    ):
        made.engine.build(standin.doubler(tmp_path))


def test_rtx_does_not_compile_for_the_gpu_here_if_it_has_no_kernels_for_it(tmp_path: Path) -> None:
    made = stand(tmp_path, RTX)
    made.fake.capability = (9, 0)
    with pytest.raises(EngineError, match="does not compile for sm90"):
        made.engine.build(standin.doubler(tmp_path))


def test_tensorrt_compiles_for_the_gpu_here_alone(tmp_path: Path) -> None:
    made, graph = stand(tmp_path), standin.doubler(tmp_path)
    with pytest.raises(
        EngineError, match="TensorRT compiles for the GPU here alone, which is sm89; for sm86, build there"
    ):
        made.engine.build(graph, target="sm86")
    assert not made.engine.build(graph, target="sm89").hit
    assert made.engine.build(graph).hit, "the same plan"


def test_an_operator_that_is_not_taken_is_named(tmp_path: Path) -> None:
    made = stand(tmp_path)
    made.library.refuse = {"Add"}
    with pytest.raises(
        EngineError, match=r"^graph doubler: TensorRT cannot read it \(at Add : no importer\)$"
    ):
        made.engine.build(standin.doubler(tmp_path))
    assert made.engine.cache.plans() == []


def test_a_build_that_fails_says_why(tmp_path: Path) -> None:
    made = stand(tmp_path)
    made.library.compiles = False
    with pytest.raises(
        EngineError,
        match=r"^graph doubler: TensorRT cannot compile it \(\[builder.cpp::build::42\] something is odd\)$",
    ):
        made.engine.build(standin.doubler(tmp_path))


def test_a_builder_that_cannot_be_made_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = stand(tmp_path)

    def fail(log: Any) -> Any:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(made.library, "Builder", fail)
    with pytest.raises(EngineError, match="graph doubler: TensorRT cannot compile it .*nullptr"):
        made.engine.build(standin.doubler(tmp_path))


def test_progress_is_told_every_few_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = stand(tmp_path)
    made.engine.build(standin.doubler(tmp_path))
    assert len(made.told) == 1, "a build of a moment needs no progress"
    monkeypatch.setattr(builder, "_SECONDS_BETWEEN_LINES", 0)
    made.engine.build(standin.doubler(tmp_path), anew=True)
    assert [line for line in made.told if "%" in line] == [
        f"doubler: Building engine {percent} %" for percent in (25, 50, 75, 100)
    ]


def test_who_listens_can_end_a_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "_SECONDS_BETWEEN_LINES", 0)
    made = stand(tmp_path)

    def hang_up(record: logging.LogRecord) -> None:
        if "%" in record.getMessage():
            raise BrokenPipeError

    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", hang_up)
    monkeypatch.setattr(builder._log, "handlers", [handler])
    with pytest.raises(BrokenPipeError):
        made.engine.build(standin.doubler(tmp_path))
    assert made.engine.cache.plans() == []


# --- Opening ------------------------------------------------------------------------------------------------


def test_rtx_builds_what_is_missing(tmp_path: Path) -> None:
    made = stand(tmp_path, RTX)
    session = made.engine.open(standin.doubler(tmp_path))
    session.write("value", 2)
    session.run()
    np.testing.assert_array_equal(session.read("twice"), [[4, 4]])
    assert made.told == ["doubler: tensorrt-rtx compiles it (never built)"]


def test_a_plan_that_does_not_load_says_why(tmp_path: Path) -> None:
    made, graph = stand(tmp_path), standin.doubler(tmp_path)
    made.engine.build(graph)
    made.library.loads = False
    with pytest.raises(
        EngineError, match=r"^graph doubler: TensorRT does not load its plan \(.* is odd\); build it anew"
    ):
        made.engine.open(graph)


@pytest.mark.parametrize(
    ("inputs", "outputs", "odd"),
    [
        ([("value", "float16", (1, 2))], [("twice", "float32", (1, 2))], "value"),
        ([("value", "float32", (1, 3))], [("twice", "float32", (1, 2))], "value"),
        ([("value", "float32", (2,))], [("twice", "float32", (1, 2))], "value"),
        ([("value", "float32", (1, 2))], [("more", "float32", (1, 2))], "more"),
        ([], [("twice", "float32", (1, 2)), ("value", "float32", (1, 2))], "value"),
    ],
)
def test_a_plan_that_is_not_the_manifests_is_refused(
    tmp_path: Path, inputs: Any, outputs: Any, odd: str
) -> None:
    made, graph = stand(tmp_path), standin.doubler(tmp_path)
    told = GraphSpec(
        "doubler", graph.path, tuple(TensorSpec(*t) for t in inputs), tuple(TensorSpec(*t) for t in outputs)
    )
    made.engine.build(graph)
    with pytest.raises(EngineError, match=f"doubler.onnx: tensor '{odd}' is not as the manifest says"):
        made.engine.open(told)


def test_the_engine_says_what_it_is(tmp_path: Path) -> None:
    assert stand(tmp_path).engine.describe() == {
        "engine": "tensorrt",
        "version": "10.3.0.26",
        "device": "Stand-in GPU",
        "compute": "8.9",
    }


# --- Probing ------------------------------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A machine with both libraries and a GPU, to take things away from."""
    fake = fake_cuda.FakeCuda()
    for kind in (NATIVE, RTX):
        made = fake_tensorrt.FakeTensorRt(fake, onnx_graphs.OnnxGraphs())
        monkeypatch.setitem(sys.modules, kind.modules[0], made)
    monkeypatch.setattr(engine, "Cuda", lambda bindings=None: Cuda(fake))
    monkeypatch.setattr(library, "is_jetson", lambda: False)
    return fake


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_what_works_is_usable(machine: Any, name: str, tmp_path: Path) -> None:
    found = probe(name)
    assert found.usable
    assert (found.version, found.device) == ("10.3.0.26", "Stand-in GPU (sm89)")
    assert create_engine(name, cache=tmp_path).name == name


def test_a_library_that_is_missing_comes_with_an_extra(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*NATIVE.modules, *RTX.modules):
        monkeypatch.setitem(sys.modules, name, None)
    assert str(probe("tensorrt")) == (
        'tensorrt: TensorRT is not installed; run: pip install "unibrain-rt[tensorrt]"'
    )
    assert 'pip install "unibrain-rt[tensorrt-rtx]"' in str(probe("tensorrt-rtx"))
    monkeypatch.setattr(library, "is_jetson", lambda: True)
    assert "comes with JetPack: make the virtual environment with --system-site-packages" in str(
        probe("tensorrt")
    )
    assert "no kernels for a Jetson: use --engine tensorrt" in str(probe("tensorrt-rtx"))


def test_a_library_whose_own_libraries_are_missing_says_so(
    machine: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delitem(sys.modules, "tensorrt")
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / "tensorrt" / "__init__.py").write_text(
        'raise OSError("libnvinfer.so.10: cannot open\\nshared object")'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    found = probe("tensorrt")
    assert found.problem == "TensorRT does not load (libnvinfer.so.10: cannot open)"
    assert not found.usable


def test_without_a_driver_rtx_still_compiles(machine: Any, tmp_path: Path) -> None:
    machine.driver = False
    native, rtx = probe("tensorrt"), probe("tensorrt-rtx")
    assert native.problem == "no NVIDIA driver"
    assert rtx.problem == "can compile here, but not run: no NVIDIA driver"
    assert "name --target" in str(rtx.advice)
    with pytest.raises(EngineError, match="engine tensorrt-rtx: can compile here, but not run"):
        create_engine("tensorrt-rtx", cache=tmp_path)
    made = create_engine("tensorrt-rtx", cache=tmp_path, targets=["sm86"])
    assert isinstance(made, TensorRtEngine)
    assert not made.build(standin.doubler(tmp_path), target="sm86").hit


def test_a_machine_without_a_device(machine: Any) -> None:
    machine.devices = 0
    assert "no GPU (CUDA: cudaErrorNoDevice" in str(probe("tensorrt").problem)


def test_a_gpu_that_rtx_has_no_kernels_for(machine: Any) -> None:
    machine.capability = (9, 0)
    assert str(probe("tensorrt-rtx")) == (
        "tensorrt-rtx: has no kernels for Stand-in GPU (sm90); use --engine tensorrt"
    )
    assert probe("tensorrt").usable


def test_without_cuda_python(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(bindings: Any = None) -> Cuda:
        raise EngineError('cuda-python is not installed; run: pip install "cuda-python>=12.6"')

    monkeypatch.setattr(engine, "Cuda", missing)
    assert 'pip install "cuda-python>=12.6"' in str(probe("tensorrt"))


def test_a_library_that_is_too_old(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["tensorrt"], "__version__", "8.6.1")
    assert probe("tensorrt").problem == "is older than 10.3"


def test_plans_can_be_read_by_the_stand_in(tmp_path: Path) -> None:
    """What the tests above rest on: the file in the cache is the builder's own."""
    made, graph = stand(tmp_path), standin.doubler(tmp_path)
    plan = json.loads(made.engine.build(graph).path.read_bytes())
    assert plan["path"] == str(graph.path)
