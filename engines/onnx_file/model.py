"""Models, graphs, nodes and functions in ONNX files."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Union

from unibrain_rt.engines.engine_errors import EngineError
from unibrain_rt.engines.onnx_file.protobuf import Message
from unibrain_rt.engines.onnx_file.tensor import Tensor, ValueInfo, read_tensor, read_value_info

_STANDARD = "ai.onnx"  # another name of the domain ""


@dataclass(frozen=True)
class Reference:
    """Within a function: the value of the attribute of that name, of the node that calls it."""

    name: str


AttributeValue = Union[
    float, int, str, bytes, Tensor, "Graph", Reference, None,
    tuple[float, ...], tuple[int, ...], tuple["str | bytes", ...], tuple[Tensor, ...], tuple["Graph", ...],
]  # fmt: skip
"""Bytes where they are no UTF-8; None for what is not read."""


@dataclass(frozen=True)
class Node:
    """An operator, or the call of a function. Inputs that are left out are empty names."""

    op_type: str
    domain: str
    overload: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, AttributeValue]

    @property
    def subgraphs(self) -> tuple[Graph, ...]:
        """Branches and bodies of loops."""
        values = [value if isinstance(value, tuple) else (value,) for value in self.attributes.values()]
        return tuple(graph for value in values for graph in value if isinstance(graph, Graph))


@dataclass(frozen=True)
class Graph:
    """Nodes in the order in which they can run. ``values`` are what is known of tensors in between."""

    name: str
    nodes: tuple[Node, ...]
    initializers: tuple[Tensor, ...]
    inputs: tuple[ValueInfo, ...]
    outputs: tuple[ValueInfo, ...]
    values: tuple[ValueInfo, ...]

    def walk(self) -> Iterator[Node]:
        """Every node, those in branches and loops after the one that holds them."""
        for node in self.nodes:
            yield node
            for graph in node.subgraphs:
                yield from graph.walk()


@dataclass(frozen=True)
class Function:
    """A node's body. ``attributes`` have to be given, ``defaults`` may be."""

    name: str
    domain: str
    overload: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: tuple[str, ...]
    defaults: Mapping[str, AttributeValue]
    nodes: tuple[Node, ...]
    opsets: Mapping[str, int]


@dataclass(frozen=True)
class Model:
    """A whole file. ``opsets`` are the versions of operators by domain; the standard domain is an empty text."""

    ir_version: int
    opsets: Mapping[str, int]
    graph: Graph
    functions: tuple[Function, ...]

    def function(self, node: Node) -> Function | None:
        """The body that the file has for a node, if any."""
        wanted = (node.domain, node.op_type, node.overload)
        found = (one for one in self.functions if (one.domain, one.name, one.overload) == wanted)
        return next(found, None)


def read_onnx(path: Path) -> Model:
    """Read a file, without its weights.

    Raises:
        EngineError: it cannot be read, or is no ONNX file, or a damaged one.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _model(Message(content, [(0, len(content))]))
    except (OSError, ValueError, RecursionError) as error:
        why = (isinstance(error, OSError) and error.strerror) or error
        raise EngineError(f"{path.name}: cannot be read as ONNX ({why}); export the bundle again") from error


def _model(message: Message) -> Model:
    if 7 not in message:
        raise ValueError("it holds no graph")
    functions = tuple(_function(one) for one in message.messages(25))
    return Model(message.integer(1), _opsets(message.messages(8)), _graph(message.message(7)), functions)


def _graph(message: Message) -> Graph:
    return Graph(
        name=message.text(2),
        nodes=tuple(_node(one) for one in message.messages(1)),
        initializers=tuple(read_tensor(one) for one in message.messages(5)),
        inputs=tuple(read_value_info(one) for one in message.messages(11)),
        outputs=tuple(read_value_info(one) for one in message.messages(12)),
        values=tuple(read_value_info(one) for one in message.messages(13)),
    )


def _function(message: Message) -> Function:
    return Function(
        name=message.text(1),
        domain=_domain(message.text(10)),
        overload=message.text(13),
        inputs=message.texts(4),
        outputs=message.texts(5),
        attributes=message.texts(6),
        defaults=dict(_attribute(one) for one in message.messages(11)),
        nodes=tuple(_node(one) for one in message.messages(7)),
        opsets=_opsets(message.messages(9)),
    )


def _node(message: Message) -> Node:
    if 4 not in message:
        raise ValueError("a node has no operator")
    return Node(
        op_type=message.text(4),
        domain=_domain(message.text(7)),
        overload=message.text(8),
        name=message.text(3),
        inputs=message.texts(1),
        outputs=message.texts(2),
        attributes=dict(_attribute(one) for one in message.messages(5)),
    )


def _opsets(messages: list[Message]) -> dict[str, int]:
    return {_domain(one.text(1)): one.integer(2) for one in messages}


def _domain(name: str) -> str:
    return "" if name == _STANDARD else name


_READERS: Mapping[int, tuple[int, Callable[[Message, int], AttributeValue]]] = {
    1: (2, Message.number),
    2: (3, Message.integer),
    3: (4, lambda message, number: _text(message.raw(number))),
    4: (5, lambda message, number: read_tensor(message.message(number))),
    5: (6, lambda message, number: _graph(message.message(number))),
    6: (7, Message.numbers),
    7: (8, Message.integers),
    8: (9, lambda message, number: tuple(_text(raw) for raw in message.raws(number))),
    9: (10, lambda message, number: tuple(read_tensor(one) for one in message.messages(number))),
    10: (11, lambda message, number: tuple(_graph(one) for one in message.messages(number))),
}
"""By ``AttributeProto.type``: the field of the value, and what reads it."""


def _attribute(message: Message) -> tuple[str, AttributeValue]:
    name, kind = message.text(1), message.integer(20)
    if 21 in message:
        return name, Reference(message.text(21))
    if not kind:  # files of before 2018 do not say it
        kind = next((kind for kind, (number, _) in _READERS.items() if number in message), 0)
    if kind not in _READERS:
        return name, None
    number, read = _READERS[kind]
    return name, read(message, number)


def _text(raw: bytes) -> str | bytes:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw
