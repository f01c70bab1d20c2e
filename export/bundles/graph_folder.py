"""A bundle's ``graphs/`` as it is written: ONNX files, their weights, their twins, and what the manifest says of them.

Weights are streamed to disk one tensor at a time. Graphs may share a ``WeightFile``: a tensor that occurs in several
of them (the context transformers do in both step graphs, an fp16 graph's in its twin) is stored once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import onnx_ir as ir

from unibrain_rt.export.bundles.costs import count_costs, operator_counts
from unibrain_rt.export.bundles.cuda import CUDA, cuda_flavour
from unibrain_rt.export.bundles.precision import FP32_GRAPHS, Precision, set_precision
from unibrain_rt.export.bundles.twins import make_twin, share_weights

GRAPHS = "graphs"
UNET_WEIGHTS = "unet.weights"
EXTERNAL_BYTES = 1.5e9
DECODED_WITH = frozenset(
    {
        "unet_context",
        "unet_time",
        "unet_image_step",
        "unet_text_step",
        "autokl_decode",
        "optimus_decode",
    }
)
"""What a decode runs: in fp16 it could leave that type's range in the middle of a scan, so it has a twin."""
FLAVOURED = frozenset({"unet_image_step", "unet_text_step", "autokl_decode", "optimus_decode"})
"""What a decode runs again and again, or for long: in fp16 it has a flavour for the engine ``cuda``."""
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
        if isinstance(tensor, ir.ExternalTensor) and Path(tensor.path) == self.path:
            return tensor
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


class GraphFolder:
    """The new folder ``graphs/`` of a bundle. ``records`` is what the manifest says of each graph in it."""

    def __init__(self, folder: Path, precision: Precision) -> None:
        folder.mkdir(parents=True)
        self.records: dict[str, dict[str, Any]] = {}
        self._folder, self._precision = folder, precision
        self._unet = WeightFile(folder / UNET_WEIGHTS)

    def __enter__(self) -> GraphFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._unet.__exit__(kind, error, trace)

    def add(self, model: ir.Model, feedback: Mapping[str, str]) -> None:
        """Write an fp32 model in the folder's precision as ``<its graph's name>.onnx``, with its twin and its flavour
        if it has them.

        The model is changed in place. Weights of the UNet's graphs go into one file that they share, those of other
        graphs with a twin into one beside them.
        """
        name = model.graph.name
        assert name is not None, "graphs have the names of the manifest"
        doubled = self._precision == "fp16" and name in DECODED_WITH - FP32_GRAPHS
        twin = model.clone() if doubled else None
        flavour = cuda_flavour(model) if doubled and name in FLAVOURED else None
        set_precision(model, self._precision)
        with self._weights(name, doubled) as weights:
            stored = save_graph(model, self._folder / f"{name}.onnx", weights)
            record = describe(model, feedback, stored)
            if twin is not None:
                make_twin(twin, model)
                save_graph(twin, self._folder / f"{name}.fp32.onnx", weights)
                record["fallback"] = f"{GRAPHS}/{name}.fp32.onnx"
            if flavour is not None:
                share_weights(flavour, model)
                save_graph(flavour, self._folder / f"{name}.{CUDA}.onnx", weights)
                record["flavours"] = {CUDA: f"{GRAPHS}/{name}.{CUDA}.onnx"}
                record["flavour_operators"] = {CUDA: operator_counts(flavour)}
        self.records[name] = record

    @contextmanager
    def _weights(self, name: str, doubled: bool) -> Iterator[WeightFile | None]:
        if name.startswith("unet_"):
            yield self._unet
        elif doubled:
            with WeightFile(self._folder / f"{name}.weights") as own:
                yield own
        else:
            yield None


def save_graph(model: ir.Model, path: Path, weights: WeightFile | None = None) -> list[str]:
    """Write an ONNX file. Returns the names of the weight files that it needs beside it.

    Weights go into ``weights`` if given, else into a file beside the graph if they exceed 1.5 GB, else into
    the graph.
    """
    tensors = [value.const_value for value in model.graph.initializers.values()]
    if weights is None and sum(tensor.nbytes for tensor in tensors if tensor is not None) > EXTERNAL_BYTES:
        with WeightFile(path.with_suffix(".weights")) as own:
            return save_graph(model, path, own)
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None:
            continue
        if weights is not None and tensor.nbytes >= _INLINE_BYTES:
            value.const_value = weights.store(tensor)
        elif isinstance(tensor, ir.ExternalTensor):  # of another folder
            value.const_value = ir.tensor(tensor.numpy().copy(), name=value.name)
    ir.save(model, path)
    kept = (value.const_value for value in model.graph.initializers.values())
    return sorted({str(tensor.location) for tensor in kept if isinstance(tensor, ir.ExternalTensor)})


def describe(model: ir.Model, feedback: Mapping[str, str], weights: list[str]) -> dict[str, Any]:
    """What the manifest says of a graph; ``weights`` are its files beside it."""

    def tensors(values: Any) -> list[dict[str, Any]]:
        return [
            {
                "name": value.name,
                "dtype": value.dtype.numpy().name,
                "shape": [size if isinstance(size, int) else size.value for size in value.shape],
            }
            for value in values
        ]

    return {
        "file": f"{GRAPHS}/{model.graph.name}.onnx",
        "inputs": tensors(model.graph.inputs),
        "outputs": tensors(model.graph.outputs),
        "feedback": dict(feedback),
        "weights": [f"{GRAPHS}/{name}" for name in weights],
        "costs": asdict(count_costs(model)),
    }
