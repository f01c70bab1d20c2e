"""One graph to one ONNX model: tracing, tensor names, nothing of the machine it was made on."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass
from onnxscript.optimizer import optimize_ir
from transformers import PreTrainedModel

from unibrain_rt.export.bundles.folding import fold_views_of_weights
from unibrain_rt.export.bundles.graph_folder import save_graph
from unibrain_rt.export.bundles.graphs import Graph
from unibrain_rt.export.bundles.operators import TRANSLATIONS, define_functions
from unibrain_rt.export.bundles.precision import Precision, set_precision

OPSET = 18


def export_graph(graph: Graph, folder: Path, precision: Precision) -> Path:
    """Trace the graph's module and write ``<folder>/<name>.onnx``, as `save_graph` does."""
    model = trace(graph)
    set_precision(model, precision)
    path = folder / f"{graph.name}.onnx"
    save_graph(model, path)
    return path


def trace(graph: Graph) -> ir.Model:
    """The module as an fp32 ONNX model with the graph's tensor names, weights still in torch's memory.

    optimum exports transformers' own models (the CLIP towers), torch's exporter all others.
    """
    with _quiet(), torch.no_grad():
        model = _by_optimum(graph) if isinstance(graph.module, PreTrainedModel) else _by_torch(graph)
    model.graph.name = graph.name
    _drop_metadata(model)
    fold_views_of_weights(model)
    RemoveUnusedNodesPass()(model)
    define_functions(model)
    return model


def _by_torch(graph: Graph) -> ir.Model:
    dynamic = None
    if graph.batch:
        axis = torch.export.Dim("N", min=1, max=2**20)
        dynamic = tuple({0: axis} for _ in graph.example)
    program = torch.onnx.export(
        graph.module.eval(),
        tuple(graph.example.values()),
        input_names=list(graph.example),
        output_names=list(graph.outputs),
        dynamic_shapes=dynamic,
        opset_version=OPSET,
        custom_translation_table=TRANSLATIONS,
        dynamo=True,
        verbose=False,
        optimize=True,
    )
    assert program is not None
    return program.model


def _by_optimum(graph: Graph) -> ir.Model:
    from optimum.exporters.onnx import export
    from optimum.exporters.onnx.model_configs import CLIPTextOnnxConfig, CLIPVisionModelOnnxConfig

    base = CLIPVisionModelOnnxConfig if "pixel_values" in graph.example else CLIPTextOnnxConfig

    class Tensors(base):  # type: ignore[misc, valid-type]
        inputs: ClassVar[dict[str, dict[int, str]]] = {name: {0: "N"} for name in graph.example}
        outputs: ClassVar[dict[str, dict[int, str]]] = {name: {0: "N"} for name in graph.outputs}

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        # optimum makes up inputs of its own; their length is traced into what looks free.
        lengths = (
            {"sequence_length": graph.example["input_ids"].shape[1]} if "input_ids" in graph.example else None
        )
        tensors = Tensors(graph.module.config, task="feature-extraction")
        export(graph.module.eval(), tensors, path, opset=OPSET, input_shapes=lengths)
        model = ir.load(path)
        ir.external_data.load_to_model(model)
        for value in model.graph.initializers.values():
            assert value.const_value is not None, "initializers of a file hold tensors"
            # Out of the file, which goes.
            value.const_value = ir.tensor(value.const_value.numpy().copy(), name=value.name)
    optimize_ir(model)
    ShapeInferencePass()(model)
    for value, example in zip(model.graph.inputs, graph.example.values(), strict=True):
        if [size for size in value.shape or [] if isinstance(size, int)] != list(example.shape[1:]):
            raise RuntimeError(
                f"{graph.name}: {value.name} was traced as {value.shape}, not as {example.shape}"
            )
    for value, example in zip(model.graph.outputs, [graph.module(**graph.example)], strict=True):
        value.shape = ir.Shape(["N", *example.shape[1:]])
    return model


def _drop_metadata(model: ir.Model) -> None:
    # The exporter notes the Python source of every node, with the paths of the machine it ran on.
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph:
        scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes")
        node.metadata_props.clear()
        node.doc_string = None
        if scopes:
            node.metadata_props["scope"] = scopes
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's chatter about optional packages and its own deprecations."""
    loggers = [
        logging.getLogger(name)
        for name in (
            "torch.onnx",
            "torch.onnx._internal.exporter._registration",
            "onnxscript.optimizer._constant_folding",
        )
    ]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
