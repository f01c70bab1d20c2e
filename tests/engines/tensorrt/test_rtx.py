"""The real TensorRT-RTX compiler, which needs no GPU: every graph of the phantom's fp16 bundle, for three of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unibrain_rt.bundle import Bundle
from unibrain_rt.engines import EngineError, GraphSpec, create_engine, probe
from unibrain_rt.engines.ahead import BuildResult
from unibrain_rt.engines.tensorrt.tensorrt_engine import TensorRtEngine
from unibrain_rt.ridge_graph import ridge_graphs, ridge_tensors
from unibrain_rt.sessions import decode_graphs
from unibrain_rt.subject import Subject
from unibrain_rt.subject_files import GRAPH_FILE, TENSOR_FILE

pytest.importorskip("tensorrt_rtx_bindings", reason="needs TensorRT-RTX")
TARGETS = ("sm86", "sm89", "sm120")
FALLBACK_TARGET = TARGETS[1]


@pytest.fixture(scope="module")
def half(phantom_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The shipped phantom in fp16."""
    for library in ("onnx", "safetensors"):
        pytest.importorskip(library)
    from unibrain_rt.export.bundles.conversion import convert_bundle

    folder = tmp_path_factory.mktemp("half") / "phantom"
    convert_bundle(phantom_bundle, folder, precision="fp16")
    return Bundle.open(folder)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> TensorRtEngine:
    made = create_engine("tensorrt-rtx", cache=tmp_path_factory.mktemp("plans"), targets=TARGETS)
    assert isinstance(made, TensorRtEngine)
    return made


@pytest.fixture(scope="module")
def built(half: Bundle, engine: TensorRtEngine) -> list[BuildResult]:
    """Every graph of a decode, for every target."""
    graphs = decode_graphs(half, ["paper"])
    return [engine.build(graph, free, target) for target in TARGETS for graph, free in graphs]


@pytest.mark.slow
def test_every_graph_of_the_phantom_builds_for_gpus_that_are_not_here(
    built: list[BuildResult], report: Callable[[str], None]
) -> None:
    assert len(built) == 6 * len(TARGETS)
    for result in built:
        assert not result.hit
        assert result.size_bytes > 10_000
    for target in TARGETS:
        mine = [result for result in built if result.target == target]
        seconds, size = sum(result.seconds for result in mine), sum(result.size_bytes for result in mine)
        report(
            f"tensorrt-rtx, phantom fp16, {target}: {len(mine)} plans, {seconds:.0f} s, {size / 1e6:.1f} MB"
        )


@pytest.mark.slow
def test_a_second_build_is_all_hits(built: list[BuildResult], half: Bundle, engine: TensorRtEngine) -> None:
    for graph, free in decode_graphs(half, ["paper"]):
        assert engine.build(graph, free, "sm89").hit


@pytest.mark.slow
def test_plans_for_other_gpus_are_other_plans(built: list[BuildResult]) -> None:
    assert len({result.path for result in built}) == len(built)


@pytest.mark.parametrize("name", ["unet_context", "optimus_decode"])
def test_the_forms_in_fp32_build_too(half: Bundle, engine: TensorRtEngine, name: str) -> None:
    """What a decode falls back to."""
    graph = half.graph(name)
    assert graph.fallback is not None
    twin = replace(graph, path=graph.fallback, fallback=None)
    result = engine.build(twin, target=FALLBACK_TARGET)
    assert not result.hit
    assert result.path != engine.build(graph, target=FALLBACK_TARGET).path


def test_weights_that_are_wider_than_the_arithmetic_build_too(
    phantom_bundle: Path, engine: TensorRtEngine
) -> None:
    """The phantom as it ships: fp16 weights, computed with in fp32."""
    graph = Bundle.open(phantom_bundle).graph("unet_context")
    assert not engine.build(graph, target="sm89").hit


def test_heads_build_for_gpus_that_are_not_here(
    half: Bundle, engine: TensorRtEngine, report: Callable[[str], None]
) -> None:
    graphs = ridge_graphs(half, [half.subject(name) for name in half.subjects])
    assert [graph.name for graph, _ in graphs] == [f"ridge_{name}" for name in half.subjects]
    for graph, free in graphs:
        result = engine.build(graph, free, "sm89")
        assert not result.hit
        report(
            f"tensorrt-rtx, {graph.name} for sm89: {result.seconds:.1f} s, {result.size_bytes / 1e6:.1f} MB"
        )


def test_int8_factors_are_not_widened_in_a_plan(engine: TensorRtEngine, tmp_path: Path) -> None:
    """It computes in fp32, and holds them as they are stored; heads in every other type build, too."""
    from unibrain_rt.export.subjects.ridge import fit_heads
    from unibrain_rt.export.subjects.subject_writer import write_subject

    rng = np.random.default_rng(0)
    shapes = {
        "image_latent": (4, 8, 8),
        "text_latent": (16,),
        "image_context": (9, 16),
        "text_context": (4, 16),
    }
    targets = {name: rng.standard_normal((150, *shape)) for name, shape in shapes.items()}
    fits = fit_heads(rng.standard_normal((150, 4000)), targets, alphas=(10.0,))
    plans, stored = {}, {}
    for name, form in {
        "int8": {"storage": "int8"},
        "float16": {"storage": "float16"},
        "float32": {"storage": "float32"},
        "exact": {"exact": True},
    }.items():
        folder = tmp_path / name
        write_subject(folder, "sub-01", fits, beta_scale=1.0, **form)  # type: ignore[arg-type]
        subject = Subject.open(folder)
        graph = GraphSpec(f"ridge_{name}", folder / GRAPH_FILE, *ridge_tensors(subject))
        plans[name] = engine.build(graph, target="sm89").size_bytes
        stored[name] = sum(subject.size_bytes(head) for head in subject.heads)
    assert stored["float32"] - stored["int8"] > 2_000_000, "large enough to be told from the kernels"
    assert plans["float32"] - plans["int8"] > 0.75 * (stored["float32"] - stored["int8"])


def test_damaged_heads_are_one_line(half: Bundle, engine: TensorRtEngine, tmp_path: Path) -> None:
    folder = half.folder / "subjects" / half.subjects[0]
    ((graph, _),) = ridge_graphs(half, [half.subject(half.subjects[0])])
    for name, raw in {
        GRAPH_FILE: (folder / GRAPH_FILE).read_bytes()[:300],
        TENSOR_FILE: (folder / TENSOR_FILE).read_bytes()[:100_000],
    }.items():
        broken = Path(shutil.copytree(folder, tmp_path / name))
        (broken / name).write_bytes(raw)
        spec = replace(graph, path=broken / GRAPH_FILE, files={})
        with pytest.raises(EngineError, match=f"^graph {graph.name}: TensorRT-RTX cannot read it") as caught:
            engine.build(spec, target="sm89")
        assert "\n" not in str(caught.value)


def test_a_graph_that_is_none_is_one_line(half: Bundle, engine: TensorRtEngine, tmp_path: Path) -> None:
    path = tmp_path / "unet_context.onnx"
    path.write_bytes(b"\xff" * 300)
    graph = replace(half.graph("unet_context"), path=path, files={})
    with pytest.raises(EngineError, match="^graph unet_context: TensorRT-RTX cannot read it") as caught:
        engine.build(graph, target="sm89")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_an_operator_that_the_compiler_does_not_have_is_named(
    tiny: Any, half: Bundle, engine: TensorRtEngine, tmp_path: Path
) -> None:
    from onnx import helper

    record = ({"a": ("float32", (1,))}, {"b": ("float32", (1,))})
    tiny.save_graph(tmp_path / "odd.onnx", [helper.make_node("Frobnicate", ["a"], ["b"])], *record)
    graph = replace(half.graph("unet_context"), name="odd", path=tmp_path / "odd.onnx", files={})
    with pytest.raises(EngineError, match="^graph odd: TensorRT-RTX cannot read it .*Frobnicate"):
        engine.build(graph, target="sm89")


@pytest.mark.parametrize("target", ["sm87", "sm90", "sm100"])
def test_gpus_that_it_has_no_kernels_for(half: Bundle, engine: TensorRtEngine, target: str) -> None:
    """No Orin, no H100."""
    with pytest.raises(
        EngineError, match=f"does not compile for {target}, but for sm75, sm80, sm86, sm89, sm120, sm121"
    ):
        engine.build(half.graph("unet_context"), target=target)


def test_without_a_gpu_it_says_so() -> None:
    found = probe("tensorrt-rtx")
    assert found.version is not None
    if found.usable:
        pytest.skip("there is a GPU")
    assert "\n" not in str(found)
    assert "tensorrt-rtx: " in str(found)
