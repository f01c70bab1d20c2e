"""Vectors cut so that ONNX Runtime needs nothing of the host to do it."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import pytest

from unibrain_rt.export.bundles.cuda.graph_edit import Editor
from unibrain_rt.export.bundles.cuda.pieces import cut

flavours = importlib.import_module("flavours")
FLOAT = ir.DataType.FLOAT
PUBLISHED = (320, 320, 640, 640, *(1280,) * 12, *(640,) * 3, *(320,) * 3)


@pytest.mark.parametrize(
    "widths",
    [
        (3,),
        (2, 2),
        (2, 3),
        (5,) * 40,
        (1, 2, 3, 4),
        (1, 2, 3, 4, 5),
        (1, 2, 2, 3, 4, 4, 4, 5, 6, 7, 7),
        PUBLISHED,
    ],
)
def test_pieces_are_what_they_were_cut_from(widths: Sequence[int]) -> None:
    whole = np.arange(sum(widths), dtype=np.float32)
    vector = ir.Value(name="vector", shape=ir.Shape([len(whole)]), type=ir.TensorType(FLOAT))
    last = ir.Node("", "Identity", [vector], num_outputs=1)
    last.outputs[0].name, last.outputs[0].type = "copy", vector.type
    graph = ir.Graph([vector], list(last.outputs), nodes=[last], opset_imports={"": 18}, name="cut")
    pieces = cut(Editor(graph), last, vector, widths)
    for node in list(graph)[:-1]:
        lengths = [tuple(output.shape or ()) for output in node.outputs]
        assert len(lengths) <= 4 or (len(set(lengths)) == 1 and len(lengths) <= 32)
    for place, piece in enumerate(pieces):
        named = ir.Node("", "Identity", [piece], num_outputs=1)
        named.outputs[0].name, named.outputs[0].type = f"piece_{place}", ir.TensorType(FLOAT)
        graph.append(named)
        graph.outputs.append(named.outputs[0])
    found = flavours.run(ir.Model(graph, ir_version=10), {"vector": whole})
    wanted = np.split(whole, np.cumsum(widths)[:-1])
    assert len(pieces) == len(widths)
    for place, part in enumerate(wanted):
        np.testing.assert_array_equal(found[f"piece_{place}"], part)
