"""A subject's four heads as one ONNX graph, for engines that run them on a GPU (`unibrain_rt.ridge_graph`).

It takes a scan's z-scored voxels to all that a decode starts from: both latents, noised to where their samplers begin,
and both contexts, the unconditional ones first. What it computes is the formula of `unibrain_rt.subject_files`, and its
weights are the tensors of ``heads.safetensors`` where they lie: the file is named as external data, with offsets.

All arithmetic is fp32 in every bundle. A product with one row is bound by reading the factors, which stay in the type
they are stored in, so fp16 would save little. And the first product sums all of a subject's voxels, 15,724 of them
for instance: fp16 has not the range for such a sum of int8 columns, nor the digits where a kernel also adds in it.
TF32, which TensorRT may take for fp32, has both: it rounds factors and voxels to 11 bits and adds in fp32.

int8 columns are widened by DequantizeLinear, which compilers move into the product: TensorRT-RTX's plan of int8 factors
is as large as they are. A Cast of constants it computes when it builds, so float16 factors take fp32's memory on the
device: int8 is what large heads are stored in, there as on the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from unibrain_rt.flows import FLOWS
from unibrain_rt.ridge_graph import ridge_tensors
from unibrain_rt.subject import Subject
from unibrain_rt.subject_files import GRAPH_FILE, TENSOR_FILE, Head
from unibrain_rt.tensor_file import map_tensors, tensor_offsets

OPSET, IR_VERSION = 18, 8
_FLOAT = TensorProto.FLOAT


def write_ridge_graph(folder: Path) -> None:
    """Write ``ridge.onnx`` beside the heads in a subject's folder; the same heads give the same bytes.

    Raises:
        BundleError: the subject is damaged.
        OSError: the file cannot be written.
    """
    subject = Subject.open(folder)
    built = _Builder(folder / TENSOR_FILE)
    for head in subject.heads.values():
        built.predict(head)
    for flow in FLOWS:
        built.noise(flow)
        built.guide(f"{flow}_context")
    inputs, outputs = ridge_tensors(subject)
    values = [
        [helper.make_tensor_value_info(spec.name, _FLOAT, spec.shape) for spec in specs]
        for specs in (inputs, outputs)
    ]
    graph = helper.make_graph(built.nodes, "ridge", *values, initializer=built.initializers)
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="unibrain-rt",
    )
    (folder / GRAPH_FILE).write_bytes(model.SerializeToString(deterministic=True))


class _Builder:
    """Nodes and initializers of the graph, in the order they are asked for. A head's name is also its output's."""

    def __init__(self, path: Path) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._path = path
        self._stored, self._offsets = map_tensors(path), tensor_offsets(path)

    def predict(self, head: Head) -> None:
        """(1, *shape) from ``voxels``."""
        y = self._product("voxels", f"{head.name}.left")
        if head.rank is not None:
            y = self._product(y, f"{head.name}.right")
        bias, mean, calibration = (
            self._weights(f"{head.name}.{name}") for name in ("bias", "target_mean", "calibration")
        )
        # In the order of `Subject.predict`. The first of these is the engine's to compute once.
        offset = self._node("Sub", [bias, mean], f"{head.name}.offset")
        y = self._node("Add", [y, offset], f"{head.name}.centred")
        y = self._node("Mul", [y, calibration], f"{head.name}.calibrated")
        y = self._node("Add", [y, mean], f"{head.name}.flat")
        shape = self._constant(f"{head.name}.shape", np.array([1, *head.shape], np.int64))
        self._node("Reshape", [y, shape], head.name)

    def noise(self, flow: str) -> None:
        """A flow's predicted latent at the level where its sampler starts."""
        latent = f"{flow}_latent"
        levels = {
            part: self._node(
                "Gather",
                [f"{flow}_start_coefficients", self._constant(f"{flow}.{part}.place", np.int64(place))],
                f"{flow}.{part}",
                axis=0,
            )
            for place, part in enumerate(("signal_level", "noise_level"))
        }
        signal = self._node("Mul", [latent, levels["signal_level"]], f"{flow}.signal")
        noise = self._node("Mul", [f"{flow}_noise", levels["noise_level"]], f"{flow}.noise")
        self._node("Add", [signal, noise], f"noised_{latent}")

    def guide(self, context: str) -> None:
        """A predicted context after the unconditional one, as ``unet_context`` takes them."""
        self._node("Concat", [f"unconditional_{context}", context], f"guiding_{context}", axis=0)

    def _product(self, rows: str, factor: str) -> str:
        matrix = self._weights(factor)
        dtype = self._stored[factor].dtype
        if dtype == np.int8:
            scale = self._weights(f"{factor}_scale")
            matrix = self._node("DequantizeLinear", [matrix, scale], f"{factor}.wide", axis=1)
        elif dtype == np.float16:
            matrix = self._node("Cast", [matrix], f"{factor}.wide", to=_FLOAT)
        return self._node("MatMul", [rows, matrix], f"{factor}.product")

    def _weights(self, name: str) -> str:
        """A tensor of the heads' file."""
        stored = self._stored[name]
        kind = helper.np_dtype_to_tensor_dtype(stored.dtype)
        tensor = onnx.TensorProto(name=name, data_type=kind, dims=stored.shape)
        tensor.data_location = TensorProto.EXTERNAL
        place = {"location": self._path.name, "offset": self._offsets[name], "length": stored.nbytes}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        self.initializers.append(tensor)
        return name

    def _constant(self, name: str, value: NDArray[Any] | np.generic) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def _node(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output
