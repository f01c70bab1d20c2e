"""Graphs that were exported without weights compute what torch does, once the weights are drawn."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from flavours import distance, inputs, run

from unibrain_rt.benchmarks.gpu import filling
from unibrain_rt.benchmarks.gpu.correct import steps
from unibrain_rt.benchmarks.gpu.hollow import Part, Term, _terms
from unibrain_rt.benchmarks.gpu.modules import random_modules
from unibrain_rt.bundle import Bundle
from unibrain_rt.errors import BundleError
from unibrain_rt.export.bundles.architecture import Architecture


def test_every_graph_is_as_torch_has_it(pack: Path, tmp_path: Path) -> None:
    steps(pack, tmp_path, device="cpu", variants=("torch eager", "onnxruntime"))
    found = json.loads((tmp_path / "steps.json").read_text("utf-8"))
    assert set(found) == {"torch fp32", "torch eager", "onnxruntime"}
    for name, one in found.items():
        assert "error" not in one, (name, one)
        # Torch computes in fp32 here, the graphs in half.
        assert max(one["errors"].values()) < (1e-2 if name == "onnxruntime" else 1e-6), (name, one["errors"])
        assert min(one["spread"].values()) > 1e-3, "or the numbers would tell nothing"


def test_the_flavour_has_the_weights_of_the_plain_graph(pack: Path, tmp_path: Path) -> None:
    """Also those that it stores as sums of others."""
    folder = tmp_path / "filled"
    sizes = Architecture.from_mapping(filling.architecture(pack / "published"))
    with pytest.raises(BundleError, match=r"weights: cannot be read"):
        Bundle.open(pack / "published")
    filling.fill(pack / "published", folder, random_modules(sizes, "cpu"))
    bundle = filling.open_filled(folder)
    flavoured = [graph for graph in bundle.graphs.values() if graph.flavours]
    assert {graph.name for graph in flavoured} == {
        *("unet_image_step", "unet_text_step", "autokl_decode", "optimus_decode")
    }
    summed = set()
    for graph in flavoured:
        plain, own = (ir.load(path) for path in (graph.path, graph.flavours["cuda"]))
        summed |= {name for name in own.graph.initializers if "_plus_" in name or "_to_image" in name}
        for model in (plain, own):
            ir.external_data.load_to_model(model)
        given = inputs(plain)
        assert distance(run(own, given), run(plain, given)) < 5e-3, graph.name
    assert {name.removesuffix("_half").rpartition("_")[2] for name in summed} >= {"image"}


def test_weights_are_the_same_in_every_process(tiny_config: Path) -> None:
    sizes = Architecture.load(tiny_config)
    one, other = (random_modules(sizes, "cpu") for _ in range(2))
    for name, module in one.items():
        for key, value in module.named_parameters():
            assert value.equal(dict(other[name].named_parameters())[key])
            assert value.isfinite().all()
            assert value.float().std() > 0 or value.numel() == 1


def test_a_sum_is_told_by_its_name() -> None:
    parts = {name: Part(name, 0, 4, False) for name in ("unet.text.a", "unet.image.a", "b")}
    text, image, b = (Term(parts[name]) for name in ("unet.text.a", "unet.image.a", "b"))
    assert _terms("b", parts) == (b,)
    assert _terms("b_flat", parts) == (b,)
    assert _terms("b_plus_unet.text.a", parts) == (b, text)
    assert _terms("unet.text.a_to_image", parts) == (image, Term(text.part, -1))
    assert _terms("val_3", parts) is None
    assert _terms("b_plus_val_3", parts) is None


def test_what_is_computed_of_parameters_is_noticed(pack: Path, tmp_path: Path) -> None:
    from unibrain_rt.benchmarks.gpu.hollow import HollowFile, save_hollow

    value = ir.Value(name="odd", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.FLOAT))
    value.const_value = ir.tensor(np.array([4_000_001.5], np.float32), name="odd")
    graph = ir.Graph([], [], nodes=[], initializers=[value], opset_imports={"": 18})
    with pytest.raises(ValueError, match="odd is computed of parameters"):
        save_hollow(ir.Model(graph, ir_version=9), {}, tmp_path / "x.onnx", HollowFile(tmp_path / "w"))


def test_a_file_of_weights_that_is_not_done_is_not_taken(pack: Path, tmp_path: Path) -> None:
    folder: Any = shutil.copytree(pack / "published", tmp_path / "filled")
    assert not filling.is_filled(folder)
