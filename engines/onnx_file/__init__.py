"""What an ONNX file says: nodes, weights, shapes and functions, read without the onnx library.

Weights stay where they are: of a tensor we keep its type, its shape and where it lies, and its values only where they
are few, as axes, shapes and scalars are. Not read are sparse tensors, training and documentation. The names are ONNX's
own (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto), and so are the numbers of the fields.
"""

from __future__ import annotations

from unibrain_rt.engines.onnx_file.model import Function, Graph, Model, Node, Reference, read_onnx
from unibrain_rt.engines.onnx_file.tensor import External, Tensor, ValueInfo

__all__ = ["External", "Function", "Graph", "Model", "Node", "Reference", "Tensor", "ValueInfo", "read_onnx"]
