"""Graphs and their flavours on the CPU: read, rewritten, and run by what their operators mean."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import inliner

from unibrain_rt.export.bundles.precision import undo_half_weights

Arrays = dict[str, np.ndarray]
TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}


def read(path: Path) -> ir.Model:
    """A graph of an fp32 bundle, in fp32, with its weights in memory."""
    model = ir.load(path)
    ir.external_data.load_to_model(model)
    undo_half_weights(model)
    return model


def by_meaning(model: ir.Model) -> onnx.ModelProto:
    """With the functions of the model's operators in the place of them: standard ONNX."""
    inlined = inliner.inline_local_functions(ir.to_proto(model))
    assert {node.domain for node in inlined.graph.node} == {""}
    return inlined


def inputs(model: ir.Model) -> Arrays:
    """Numbers for every input, the same for a graph and its flavour."""
    random = np.random.default_rng(0)
    found: Arrays = {}
    for value in model.graph.inputs:
        shape = [size if isinstance(size, int) else 3 for size in value.shape or ()]
        whole = value.dtype == ir.DataType.INT64
        number = np.full(shape, 2) if whole else random.standard_normal(shape).astype(np.float16)
        # Coefficients of a sampler are a few tenths.
        found[value.name or ""] = number * (0.3 if value.name == "coefficients" else 1)
    return found


def run(model: ir.Model, given: Arrays) -> Arrays:
    """Outputs by name, of ONNX Runtime on the CPU."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        proto = by_meaning(model) if model.functions else ir.to_proto(model)
        onnx.save(proto, path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 2
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        feeds = {node.name: given[node.name].astype(TYPES[node.type]) for node in session.get_inputs()}
        names = [node.name for node in session.get_outputs()]
        return dict(zip(names, session.run(None, feeds), strict=True))


def distance(found: Arrays, wanted: Arrays) -> float:
    """The largest relative distance of an output."""
    assert found.keys() == wanted.keys()
    apart = []
    for name, want in wanted.items():
        assert (found[name].shape, np.isfinite(found[name]).all()) == (want.shape, True)
        difference = found[name].astype(np.float64) - want
        apart.append(np.linalg.norm(difference) / np.linalg.norm(want.astype(np.float64)))
    return float(max(apart))
