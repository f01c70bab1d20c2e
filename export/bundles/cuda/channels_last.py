"""Feature maps with their channels last, from end to end.

Tensor cores and ONNX Runtime's kernels of ``NhwcConv`` and ``GroupNorm`` want (N, H, W, C), and tokens (N, L, C) are
then the same numbers in the same order. So every node that works on channels-first maps is replaced by one that works
on the others, and what used its output gets a transposition of the new one, most of which nobody uses in the end.

Maps of one axis, (N, C, L) as the text flow has them, go the same way, with (N, L, C).
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from unibrain_rt.export.bundles.cuda.graph_edit import (
    DOMAIN,
    Editor,
    Shape,
    is_kept,
    is_weight,
    known_sizes,
    sizes,
)
from unibrain_rt.export.bundles.cuda.group_norms import DRAFT

_FEWEST_OF_A_PRODUCT = 32
_ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div"})


def put_channels_last(editor: Editor) -> None:
    _ChannelsLast(editor).apply()


class _ChannelsLast:
    """Keeps which value of channels last stands for which of channels first."""

    def __init__(self, editor: Editor) -> None:
        self._editor = editor
        self._last: dict[ir.Value, ir.Value] = {}

    def apply(self) -> None:
        handlers: dict[str, Callable[[ir.Node], ir.Value | None]] = {
            "Conv": self._convolution,
            "GroupNorm": self._group_norm,
            "Resize": self._resize,
            "Concat": self._concat,
            "Expand": self._expand,
            "Reshape": self._reshape,
            "Transpose": self._transpose,
            **dict.fromkeys(_ELEMENTWISE, self._elementwise),
        }
        for node in list(self._editor.graph):
            handler = handlers.get(node.op_type)
            output = node.outputs[0]
            if handler is None or is_kept(node) or sizes(output) is None:
                continue
            last = handler(node)
            if last is None:
                continue
            first = self._editor.transpose(node, last, _to_first(len(known_sizes(last))))
            self._last[first] = last
            self._editor.replace(output, first)
            self._editor.graph.remove(node, safe=True)

    def _get(self, value: ir.Value, before: ir.Node) -> ir.Value:
        if value not in self._last:
            self._last[value] = self._editor.transpose(before, value, _to_last(len(known_sizes(value))))
        return self._last[value]

    def _convolution(self, node: ir.Node) -> ir.Value | None:
        x, weight, *bias = node.inputs
        if x is None or weight is None or not is_weight(weight) or len(known_sizes(weight)) != 4:
            return None
        if node.attributes["group"].as_int() != 1 or node.attributes["auto_pad"].as_string() != "NOTSET":
            return None
        source, shape = self._get(x, node), _last_shape(node.outputs[0])
        if _is_product(node, weight):
            return self._product(node, source, weight, bias[0] if bias else None)
        out_channels, in_channels, height, width = known_sizes(weight)
        kernels = self._editor.one(
            node,
            "Transpose",
            [weight],
            (out_channels, height, width, in_channels),
            attributes={"perm": _to_last(4)},
        )
        attributes = {
            key: node.attributes[key].as_ints() for key in ("kernel_shape", "pads", "strides", "dilations")
        }
        return self._editor.one(
            node,
            "NhwcConv",
            [source, kernels, *bias],
            shape,
            domain=DOMAIN,
            attributes={**attributes, "group": 1},
        )

    def _product(self, node: ir.Node, source: ir.Value, weight: ir.Value, bias: ir.Value | None) -> ir.Value:
        """A convolution of single pixels is a product with the weights (in, out)."""
        out_channels, in_channels = known_sizes(weight)[:2]
        flat = self._editor.one(
            node,
            "Reshape",
            [weight, self._editor.whole((out_channels, in_channels))],
            (out_channels, in_channels),
        )
        turned = self._editor.one(
            node, "Transpose", [flat], (in_channels, out_channels), attributes={"perm": (1, 0)}
        )
        shape = _last_shape(node.outputs[0])
        product = self._editor.one(node, "MatMul", [source, turned], shape)
        return product if bias is None else self._editor.one(node, "Add", [product, bias], shape)

    def _group_norm(self, node: ir.Node) -> ir.Value | None:
        if node.domain != DRAFT:
            return None
        x, scale, bias = node.inputs
        assert x is not None, "a draft has all its inputs"
        shape = known_sizes(x)
        source = x if len(shape) == 2 else self._get(x, node)
        batch, *inner, channels = known_sizes(source)
        image: Shape = (batch, *inner, *(1,) * (2 - len(inner)), channels)
        normed = self._editor.one(
            node,
            "GroupNorm",
            [self._editor.reshape(node, source, image), scale, bias],
            image,
            domain=DOMAIN,
            attributes={
                "groups": node.attributes["groups"].as_int(),
                "epsilon": node.attributes["epsilon"].as_float(),
                "activation": node.attributes["activation"].as_int(),
                "channels_last": 1,
            },
        )
        result = self._editor.reshape(node, normed, known_sizes(source))
        if len(shape) == 2:  # (N, C) has them last already
            self._editor.replace(node.outputs[0], result)
            self._editor.graph.remove(node, safe=True)
            return None
        return result

    def _resize(self, node: ir.Node) -> ir.Value | None:
        x, scales = node.inputs[0], node.inputs[2] if len(node.inputs) > 2 else None
        if x is None or scales is None or scales.const_value is None or len(known_sizes(x)) != 4:
            return None
        factors = scales.const_value.numpy()[list(_to_last(4))]
        name = f"{scales.name}_channels_last"
        moved = self._editor.derived(name, (4,), lambda numbers: numbers[list(_to_last(4))], [scales])
        if factors[-1] != 1:
            return None
        made = self._editor.one(
            node, "Resize", [self._get(x, node), None, moved], _last_shape(node.outputs[0])
        )
        resized = made.producer()
        assert resized is not None, "it was just made"
        resized.attributes.update(node.attributes)
        return made

    def _concat(self, node: ir.Node) -> ir.Value | None:
        rank = len(known_sizes(node.outputs[0]))
        if node.attributes["axis"].as_int() != 1 or rank != 4 or not self._touches(node):
            return None
        parts = [self._get(value, node) for value in node.inputs if value is not None]
        return self._editor.one(
            node, "Concat", parts, _last_shape(node.outputs[0]), attributes={"axis": rank - 1}
        )

    def _expand(self, node: ir.Node) -> ir.Value | None:
        x = node.inputs[0]
        if x is None or x not in self._last or len(known_sizes(x)) != len(known_sizes(node.outputs[0])):
            return None
        shape = _last_shape(node.outputs[0])
        return self._editor.one(node, "Expand", [self._get(x, node), self._editor.whole(shape)], shape)

    def _reshape(self, node: ir.Node) -> ir.Value | None:
        """Between (N, C, H, W) and (N, C, H · W)."""
        x = node.inputs[0]
        if x is None or x not in self._last:
            return None
        before, after = known_sizes(x), known_sizes(node.outputs[0])
        if before[:2] != after[:2] or len(after) not in (3, 4):
            return None
        return self._editor.reshape(node, self._last[x], _last_shape(node.outputs[0]))

    def _transpose(self, node: ir.Node) -> ir.Value | None:
        """Maps of one axis become tokens here, and tokens maps."""
        x, output = node.inputs[0], node.outputs[0]
        if x is None or tuple(node.attributes["perm"].as_ints()) != (0, 2, 1):
            return None
        if x not in self._last:
            self._last[output] = x
            return None
        self._editor.replace(output, self._last[x])
        self._editor.graph.remove(node, safe=True)
        return None

    def _elementwise(self, node: ir.Node) -> ir.Value | None:
        shape = known_sizes(node.outputs[0])
        if len(shape) not in (3, 4) or not self._touches(node):
            return None
        operands = []
        for value in node.inputs:
            have = sizes(value)
            if value is None or have is None:
                return None
            if len(have) == len(shape):
                operands.append(self._get(value, node))
            elif have in ((), (1,)):
                operands.append(value)
            else:
                return None
        return self._editor.one(node, node.op_type, operands, _last_shape(node.outputs[0]))

    def _touches(self, node: ir.Node) -> bool:
        return any(value in self._last for value in node.inputs if value is not None)


def _is_product(node: ir.Node, weight: ir.Value) -> bool:
    _, in_channels, *kernel = known_sizes(weight)
    moves = (
        *node.attributes["pads"].as_ints(),
        *(stride - 1 for stride in node.attributes["strides"].as_ints()),
    )
    return kernel == [1, 1] and not any(moves) and in_channels >= _FEWEST_OF_A_PRODUCT


def _to_last(rank: int) -> Shape:
    return (0, *range(2, rank), 1)


def _to_first(rank: int) -> Shape:
    return (0, rank - 1, *range(1, rank - 1))


def _last_shape(value: ir.Value) -> Shape:
    batch, channels, *inner = known_sizes(value)
    return (batch, *inner, channels)
