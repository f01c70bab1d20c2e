"""Weights stored the way they are used, where that is only cut or transposed.

torch keeps (out, in), MatMul wants (in, out); gated layers use the halves of one weight. The views are made
when a weight is written, one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import onnx_ir as ir


class View(NamedTuple):
    """A weight seen in another way: what its name gains, its shape, and how to make it."""

    suffix: str
    shape: list[int]
    make: Callable[[np.ndarray], np.ndarray]


def fold_views_of_weights(model: ir.Model) -> None:
    """Replace every transposition and split of an initializer by initializers of its result."""
    for node in list(model.graph):
        source = node.inputs[0] if node.op_type in ("Transpose", "Split") else None
        if source is None or source.const_value is None or source.is_graph_input():
            continue
        sizes = list(source.const_value.shape.numpy())
        views = _transposition(node, sizes) if node.op_type == "Transpose" else _parts(node, sizes)
        for output, view in zip(node.outputs, views, strict=True):
            ir.convenience.replace_all_uses_with(output, _initializer(model.graph, source, view))
        model.graph.remove(node, safe=True)
        if not source.uses():
            assert source.name is not None, "initializers are registered by name"
            del model.graph.initializers[source.name]


def _transposition(node: ir.Node, sizes: list[int]) -> Iterator[View]:
    order = node.attributes["perm"].as_ints()
    suffix = "transposed_" + "".join(map(str, order))
    yield View(suffix, [sizes[axis] for axis in order], partial(np.transpose, axes=order))


def _parts(node: ir.Node, sizes: list[int]) -> Iterator[View]:
    axis = node.attributes["axis"].as_int() % len(sizes)
    given = node.inputs[1] if len(node.inputs) > 1 else None
    if given is not None and given.const_value is not None:
        lengths = [int(length) for length in given.const_value.numpy()]
    else:  # equal parts, the last one smaller if it must be
        length = -(-sizes[axis] // len(node.outputs))
        lengths = [min(length, sizes[axis] - start) for start in range(0, sizes[axis], length)]
    start = 0
    for length in lengths:
        shape = [*sizes[:axis], length, *sizes[axis + 1 :]]
        yield View(f"from_{start}", shape, partial(np.take, indices=range(start, start + length), axis=axis))
        start += length


def _initializer(graph: ir.Graph, source: ir.Value, view: View) -> ir.Value:
    name = f"{source.name}_{view.suffix}"
    if name not in graph.initializers:
        tensor = source.const_value
        assert tensor is not None, "only constants are folded"
        shape = ir.Shape(view.shape)
        folded = ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype))
        folded.const_value = ir.LazyTensor(
            partial(_viewed, tensor, view), dtype=tensor.dtype, shape=shape, name=name
        )
        graph.register_initializer(folded)
    return graph.initializers[name]


def _viewed(tensor: ir.TensorProtocol, view: View) -> ir.TensorProtocol:
    return ir.tensor(np.ascontiguousarray(view.make(tensor.numpy())))
