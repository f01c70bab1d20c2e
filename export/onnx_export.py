"""One graph to one ONNX file: tracing, tensor names, stored weights.

Weights are streamed to disk one tensor at a time, so exporting needs the checkpoint once in memory at most.
Graphs may share a ``WeightFile``: a tensor that occurs in several of them (the context transformers do in
both step graphs) is stored once.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import ClassVar

import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass
from onnxscript.optimizer import optimize_ir
from transformers import PreTrainedModel

from unibrain_rt.export.folding import fold_views_of_weights
from unibrain_rt.export.graphs import Graph
from unibrain_rt.export.operators import TRANSLATIONS, define_functions
from unibrain_rt.export.precision import Precision, set_precision

OPSET = 18
EXTERNAL_BYTES = 1.5e9
_INLINE_BYTES = 1024
_ALIGNMENT = 4096


class WeightFile:
    """External data that several graphs may refer to; equal tensors are written once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb")
        self._known: dict[tuple[ir.DataType, bytes], int] = {}

    def __enter__(self) -> WeightFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def store(self, tensor: ir.TensorProtocol) -> ir.ExternalTensor:
        """Write the tensor, unless an equal one is there, and return a reference to it."""
        data = tensor.tobytes()
        # TensorRT refuses a place that is read as weights of different counts: zeros of fp16 and of fp32, say.
        key = tensor.dtype, hashlib.sha256(data).digest()
        if key not in self._known:
            # Aligned offsets can be mapped into memory.
            self._file.seek(-(-self._file.tell() // _ALIGNMENT) * _ALIGNMENT)
            self._known[key] = self._file.tell()
            self._file.write(data)
            self._file.flush()
        return ir.ExternalTensor(
            self.path.name,
            self._known[key],
            len(data),
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=tensor.name or "",
            base_dir=self.path.parent,
        )


def export_graph(graph: Graph, folder: Path, precision: Precision, weights: WeightFile | None) -> Path:
    """Trace the graph's module and write ``<folder>/<name>.onnx``.

    Weights go into ``weights`` if given, else into a file beside the graph if they exceed 1.5 GB, else into
    the graph.
    """
    model = trace(graph)
    fold_views_of_weights(model)
    set_precision(model, precision)
    RemoveUnusedNodesPass()(model)
    define_functions(model)
    path = folder / f"{graph.name}.onnx"
    stored = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    if weights is not None:
        _store(model, weights)
    elif stored > EXTERNAL_BYTES:
        with WeightFile(folder / f"{graph.name}.weights") as own:
            _store(model, own)
    ir.save(model, path)
    return path


def trace(graph: Graph) -> ir.Model:
    """The module as an ONNX model with the graph's tensor names, weights still in torch's memory.

    optimum exports transformers' own models (the CLIP towers), torch's exporter all others.
    """
    with _quiet(), torch.no_grad():
        model = _by_optimum(graph) if isinstance(graph.module, PreTrainedModel) else _by_torch(graph)
    model.graph.name = graph.name
    _drop_metadata(model)
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


def _store(model: ir.Model, weights: WeightFile) -> None:
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.nbytes >= _INLINE_BYTES:
            value.const_value = weights.store(tensor)


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
