"""What the stand-in of TensorRT asks of whoever reads and computes graphs for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class Tensor:
    """Of a graph; a size of -1 is a free axis."""

    dtype: str
    shape: tuple[int, ...]


class Graph(Protocol):
    """What a file computes: tensors by name, and outputs, in their order, of inputs."""

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]

    def run(self, feeds: Mapping[str, np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]: ...


class Graphs(Protocol):
    """Reads files of graphs: ``operators`` are (operator, node's name) of each node."""

    def operators(self, path: str) -> Iterable[tuple[str, str]]: ...

    def open(self, path: str) -> Graph: ...
