"""A vector cut into pieces, by kernels that need nothing of the host.

ONNX Runtime's ``Split`` copies the places of its pieces to the device at every run, unless there are at most four of
them, or at most 32 of one width: then they are arguments of the kernel (seen in 1.31.1). Slices are no way out, because
its optimiser makes one ``Split`` of those that lie beside each other.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import onnx_ir as ir

from unibrain_rt.export.bundles.cuda.graph_edit import Editor

MOST_EQUAL = 32
_MOST_UNEQUAL = 4


def cut(editor: Editor, before: ir.Node, vector: ir.Value, widths: Sequence[int]) -> list[ir.Value]:
    """Pieces (width,) of a vector, in its order."""
    groups = [some for _, group in itertools.groupby(widths) for some in _batches(list(group))]
    return _cut(editor, before, vector, groups)


def _cut(editor: Editor, before: ir.Node, vector: ir.Value, groups: list[list[int]]) -> list[ir.Value]:
    if len(groups) == 1:
        return _equal(editor, before, vector, groups[0])
    alone = groups[: _MOST_UNEQUAL - 1] if len(groups) > _MOST_UNEQUAL else groups
    rest = groups[len(alone) :]
    lengths = [sum(group) for group in alone] + ([sum(map(sum, rest))] if rest else [])
    parts = editor.node(
        before,
        "Split",
        [vector, editor.whole(lengths)],
        [(length,) for length in lengths],
        attributes={"axis": 0},
    )
    pieces = [
        piece
        for part, group in zip(parts, alone, strict=False)
        for piece in _equal(editor, before, part, group)
    ]
    return pieces + (_cut(editor, before, parts[-1], rest) if rest else [])


def _equal(editor: Editor, before: ir.Node, vector: ir.Value, group: list[int]) -> list[ir.Value]:
    if len(group) == 1:
        return [vector]
    return editor.node(
        before,
        "Split",
        [vector],
        [(width,) for width in group],
        attributes={"axis": 0, "num_outputs": len(group)},
    )


def _batches(widths: list[int]) -> list[list[int]]:
    return [widths[start : start + MOST_EQUAL] for start in range(0, len(widths), MOST_EQUAL)]
