"""An engine on the stand-ins for CUDA and TensorRT, and small graphs to run on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from fake_cuda import FakeCuda
from fake_tensorrt import FakeTensorRt
from log_lines import LogLines
from onnx import helper
from onnx_graphs import OnnxGraphs
from tiny import Specs, save_graph

from unibrain_rt.engines import GraphSpec, Settings, TensorSpec
from unibrain_rt.engines.tensorrt.library import NATIVE, Kind, Library
from unibrain_rt.engines.tensorrt.tensorrt_engine import TensorRtEngine


class StandIn:
    """``fake`` is the device, ``library`` what compiles, ``told`` the lines of text that the engine had to say."""

    def __init__(self, cache: Path, kind: Kind = NATIVE, **options: Any) -> None:
        self.fake = FakeCuda()
        self.library = FakeTensorRt(self.fake, OnnxGraphs())
        self.told = LogLines()
        settings = Settings(cache=cache, **options)
        self.engine = TensorRtEngine(Library(kind, self.library), settings, cuda=self.fake)

    def open(self, graph: GraphSpec, free: int = 1, **options: Any) -> Any:
        """A session, its plan compiled before."""
        self.engine.build(graph, free)
        return self.engine.open(graph, free=free, **options)

    def since(self, place: int) -> list[tuple[str, dict[str, Any]]]:
        """The trace from ``place`` on."""
        return list(self.fake.trace[place:])


def spec_of(folder: Path, name: str, record: dict[str, Any]) -> GraphSpec:
    """A graph as ``save_graph`` recorded it."""
    tensors = [
        tuple(TensorSpec(t["name"], t["dtype"], tuple(t["shape"])) for t in record[part])
        for part in ("inputs", "outputs")
    ]
    return GraphSpec(name, folder / f"{name}.onnx", tensors[0], tensors[1], record["feedback"])


def walk(folder: Path, name: str = "walk") -> GraphSpec:
    """(x, before) → (2 x + before + row, x), fed back: what a step graph does, small enough to follow by hand."""
    nodes = [
        helper.make_node("Mul", ["x", "two"], ["double"]),
        helper.make_node("Add", ["double", "before"], ["sum"]),
        helper.make_node("Add", ["sum", "row"], ["next_x"]),
        helper.make_node("Identity", ["x"], ["next_before"]),
    ]
    inputs: Specs = {"x": ("float32", (1, 2)), "before": ("float32", (1, 2)), "row": ("float32", (2,))}
    outputs: Specs = {"next_x": ("float32", (1, 2)), "next_before": ("float32", (1, 2))}
    feedback = {"next_x": "x", "next_before": "before"}
    record = save_graph(folder / f"{name}.onnx", nodes, inputs, outputs, {"two": np.float32(2)}, feedback)
    return spec_of(folder, name, record)


def doubler(folder: Path, size: int | str = 2, name: str = "doubler") -> GraphSpec:
    """twice = 2 value, (1, size)."""
    nodes = [helper.make_node("Add", ["value", "value"], ["twice"])]
    shape = (1, size) if isinstance(size, int) else (size, 2)
    inputs: Specs = {"value": ("float32", shape)}
    record = save_graph(folder / f"{name}.onnx", nodes, inputs, {"twice": ("float32", shape)})
    return spec_of(folder, name, record)
