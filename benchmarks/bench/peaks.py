"""What an engine's device can do at best: a large matrix product and a large copy, in the process that decodes."""

from __future__ import annotations

import time
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from unibrain_rt.engines import Call, Engine, EngineError, GraphSpec, TensorSpec

GRAPHS = Path(__file__).parent / "graphs"
"""Files of one operator each, in float32."""
SIDES = (1024, 2048)
"""Of the matrices: on some processors the smaller product is the faster one."""
COPY_SHAPE = (2**15, 2**10)
_LEAST_REPEATS = 3


def measure_peaks(engine: Engine, seconds: float = 1.0) -> dict[str, Any]:
    """FLOP/s and bytes/s (read and written), the best of what fits in ``seconds`` for each of the works.

    The product is one MatMul of the engine, in the precision that it computes in. The copy is a Neg of the engine or a
    copy of numpy, whichever is faster; of a device with memory of its own, the engine's alone.
    """
    peaks: dict[str, Any] = {"flops_per_s": 0.0, "bytes_per_s": 0.0, "problem": None}
    try:
        for side in SIDES:
            rate = 2 * side**3 / _best(engine, product(side), seconds / len(SIDES))
            peaks["flops_per_s"] = max(peaks["flops_per_s"], rate)
        peaks["bytes_per_s"] = 2 * 4 * prod(COPY_SHAPE) / _best(engine, negation(), seconds)
    except EngineError as error:
        peaks["problem"] = str(error)
    if engine.describe().get("device") == "cpu":
        peaks["bytes_per_s"] = max(peaks["bytes_per_s"], _numpys_copy(seconds))
        if not peaks["flops_per_s"]:
            peaks["flops_per_s"] = _numpys_product(seconds)
    return peaks


def product(side: int) -> GraphSpec:
    """y = a b of square matrices, with one of `SIDES`."""
    return _graph(f"matmul-{side}", ("a", "b"), (side, side))


def negation() -> GraphSpec:
    """y = -a."""
    return _graph("negation", ("a",), COPY_SHAPE)


def _graph(name: str, inputs: tuple[str, ...], shape: tuple[int, ...]) -> GraphSpec:
    *given, result = (TensorSpec(tensor, "float32", shape) for tensor in (*inputs, "y"))
    return GraphSpec(name, GRAPHS / f"{name}.onnx", tuple(given), (result,))


def _best(engine: Engine, graph: GraphSpec, seconds: float) -> float:
    """Least seconds of one run, on the device's own clock where it has one."""
    session = engine.open(graph)
    for spec in graph.inputs:
        session.write(spec.name, np.random.default_rng(0).random(spec.sized(1), np.float32))
    program = engine.program([Call(session)])
    spent: list[float] = []
    ends = time.perf_counter() + seconds
    while len(spent) <= _LEAST_REPEATS or time.perf_counter() < ends:
        program.start()
        program.finish()
        spent.append(sum(program.milliseconds.values()) / 1000)
    return min(spent[1:])


def _numpys_copy(seconds: float) -> float:
    source = np.ones(COPY_SHAPE, np.float32)
    target = np.empty_like(source)
    return 2 * source.nbytes / _least(lambda: np.copyto(target, source), seconds)


def _numpys_product(seconds: float) -> float:
    one = np.ones((SIDES[0], SIDES[0]), np.float32)
    return 2 * SIDES[0] ** 3 / _least(lambda: one @ one, seconds)


def _least(work: Any, seconds: float) -> float:
    spent: list[float] = []
    ends = time.perf_counter() + seconds
    while len(spent) <= _LEAST_REPEATS or time.perf_counter() < ends:
        begun = time.perf_counter()
        work()
        spent.append(time.perf_counter() - begun)
    return min(spent[1:])
