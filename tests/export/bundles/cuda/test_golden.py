"""Flavours agree with what was recorded of the bundles, on the plain CPU engine: by what their operators mean."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from unibrain_rt.bundle import Bundle
from unibrain_rt.engines import create_engine
from unibrain_rt.export.bundles.conversion import convert_bundle
from unibrain_rt.export.bundles.cuda.flavour import CUDA, fuse
from unibrain_rt.export.bundles.graph_folder import FLAVOURED
from unibrain_rt.verification import RTOL, Row, load_golden, verify

flavours = importlib.import_module("flavours")
HALF_RTOL = 1e-2


def compared(bundle: Bundle, graphs: dict[str, Path], golden: Path, rtol: float) -> list[Row]:
    """With these graphs in the place of the bundle's."""
    changed = {
        name: replace(graph, path=graphs[name], flavours={}, fallback=None) if name in graphs else graph
        for name, graph in bundle.graphs.items()
    }
    engine = create_engine("onnxruntime")
    return list(verify(replace(bundle, graphs=changed), load_golden(golden), engine, rtol))


def by_meaning(model: ir.Model, path: Path) -> Path:
    onnx.save(flavours.by_meaning(model), path)
    return path


def test_in_fp32_they_are_within_the_tolerance_of_the_graphs(
    recorded_bundle: tuple[Path, Path], tmp_path: Path, report: Callable[[str], None]
) -> None:
    bundle, golden = recorded_bundle
    opened, graphs = Bundle.open(bundle), {}
    for name in FLAVOURED:
        model = flavours.read(opened.graph(name).path)
        fuse(model)
        graphs[name] = by_meaning(model, tmp_path / f"{name}.onnx")
    rows = compared(opened, graphs, golden, RTOL)
    worst = max(rows, key=lambda row: row.error)
    report(f"flavours of {bundle.name} in fp32, golden vectors: {worst.error:.1e} of {worst.name} at most")
    assert all(row.ok for row in rows), [row for row in rows if not row.ok]


@pytest.mark.slow
def test_in_fp16_they_are_as_near_as_the_plain_graphs(
    recorded_bundle: tuple[Path, Path], tmp_path: Path, report: Callable[[str], None]
) -> None:
    bundle, golden = recorded_bundle
    convert_bundle(bundle, tmp_path / "half", precision="fp16")
    opened, graphs = Bundle.open(tmp_path / "half"), {}
    for name in FLAVOURED:
        model = ir.load(opened.graph(name).flavours[CUDA])
        ir.external_data.load_to_model(model)
        graphs[name] = by_meaning(model, tmp_path / f"{name}.onnx")
    own, plain = (compared(opened, some, golden, HALF_RTOL) for some in (graphs, {}))
    for row, other in zip(own, plain, strict=True):
        assert row.name == other.name
        assert row.error < 2 * other.error + 1e-4, (row, other)
    worst = max(own, key=lambda row: row.error)
    report(f"flavours of {bundle.name} in fp16, golden vectors: {worst.error:.1e} of {worst.name} at most")
