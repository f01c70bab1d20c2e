"""Which kernels a graph was made for, and what is said and done where some are missing."""

from __future__ import annotations

import importlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from unibrain_rt.bundle import Bundle
from unibrain_rt.engines import EngineError, GraphSpec, create_engine
from unibrain_rt.engines.onnxruntime_cuda import fused_kernels as kernels
from unibrain_rt.engines.onnxruntime_cuda.fused_kernels import kernels_in, shortfall
from unibrain_rt.sessions import decode_graphs

hand = importlib.import_module("hand_graphs")


@pytest.fixture
def step(phantom_bundle: Path) -> GraphSpec:
    return Bundle.open(phantom_bundle).graph("unet_image_step")


@pytest.fixture
def without_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no kernel were named after attention."""
    monkeypatch.setattr(kernels, "FUSED", kernels.FUSED - {"Attention", "MultiHeadAttention"})


def nodes(graph: GraphSpec) -> Counter[str]:
    assert graph.costs is not None
    return Counter(graph.costs.operators)


def test_every_graph_of_a_decode_has_its_kernels(
    make_device: Any, phantom_bundle: Path, tmp_path: Path
) -> None:
    device = make_device()
    bundle = Bundle.open(phantom_bundle)
    attention = 0
    for graph, free in decode_graphs(bundle, ["paper"]):
        session = device.engine._session(graph.flavoured(device.engine.flavour), free, {}, tmp_path)
        wanted, found = nodes(graph), session.count_kernels()
        assert found["MultiHeadAttention"] == wanted["MultiHeadAttention"]
        assert found["LayerNormalization"] + found["SkipLayerNormalization"] == wanted["LayerNormalization"]
        attention += found["MultiHeadAttention"]
        device.engine.check(graph, free)
    assert attention > 0
    assert device.told == []


def test_a_decode_goes_on_and_a_check_tells(
    make_device: Any, step: GraphSpec, without_attention: None
) -> None:
    device = make_device()
    device.engine.open(step).run()
    assert device.told == []
    with pytest.raises(EngineError) as caught:
        device.engine.check(step)
    line = str(caught.value)
    promised = nodes(step)["MultiHeadAttention"]
    assert line.startswith(
        f"unet_image_step: only 0 of {promised} attention nodes have a kernel in this onnx"
    )
    assert line.endswith("and the others are slower; run: pip install --upgrade onnxruntime-gpu")


def test_a_check_refuses(make_device: Any, step: GraphSpec, without_attention: None) -> None:
    device = make_device()
    with pytest.raises(
        EngineError, match=r"^unet_image_step: only 0 of \d+ attention nodes .*--upgrade"
    ) as caught:
        device.engine.check(step)
    assert "\n" not in str(caught.value)
    assert device.told == []


def test_a_check_of_another_engine_looks_for_nothing(tmp_path: Path) -> None:
    create_engine("onnxruntime").check(hand.walk(tmp_path))


def test_what_is_put_together_further_counts(step: GraphSpec) -> None:
    wanted = nodes(step)
    attention, norms = wanted["MultiHeadAttention"], wanted["LayerNormalization"]
    fused = {"Attention": attention + 8, "SkipLayerNormalization": norms - 1, "LayerNormalization": 1}
    assert shortfall(wanted, fused) is None
    short = shortfall(wanted, {"MultiHeadAttention": 1})
    assert (
        short == f"only 1 of {attention} attention nodes and 0 of {norms} layer normalisations have a kernel"
    )


def test_a_flavours_own_operators_are_counted(phantom_bundle: Path, tmp_path: Path) -> None:
    """Attention comes as either of two operators, norms with what is added before them."""
    pytest.importorskip("onnx_ir")
    from unibrain_rt.export.bundles.conversion import convert_bundle

    convert_bundle(phantom_bundle, tmp_path / "half", precision="fp16")
    plain = Bundle.open(tmp_path / "half").graph("unet_image_step")
    flavour = plain.flavoured("cuda")
    wanted = nodes(flavour)
    assert wanted["Attention"] > 0 < wanted["SkipLayerNormalization"]
    assert shortfall(wanted, wanted) is None
    lacking = wanted - Counter({"Attention": 1})
    attention = wanted["Attention"] + wanted["MultiHeadAttention"]
    assert shortfall(wanted, lacking) == f"only {attention - 1} of {attention} attention nodes have a kernel"
    lacking = wanted - Counter({"SkipLayerNormalization": 2})
    short = shortfall(wanted, lacking)
    assert short is not None
    assert "layer normalisations" in short


def test_a_graph_without_either_wants_nothing() -> None:
    assert shortfall({"MatMul": 1}, {}) is None


def test_kernels_of_the_gpu_are_counted_once(tmp_path: Path) -> None:
    def event(name: str, operator: str, provider: str = "CUDAExecutionProvider") -> dict[str, Any]:
        return {"cat": "Node", "name": name, "args": {"op_name": operator, "provider": provider}}

    profile = tmp_path / "profile.json"
    events = [
        {"cat": "Session", "name": "load"},
        {"cat": "Node", "name": "fence", "args": {"op_name": "Gelu"}},
        event("a", "Gelu"),
        event("a", "Gelu"),
        event("b", "Gelu"),
        event("c", "Gelu", "CPUExecutionProvider"),
        event("d", "Add"),
    ]
    profile.write_text(json.dumps(events))
    assert kernels_in(profile) == {"Gelu": 2}
