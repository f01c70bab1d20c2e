"""NVIDIA's libraries on the lean machine: the stand-ins of the other tests, with graphs whose numbers are made up.

There is nothing on that machine to compute a graph with. What comes out has the type and shape that the bundle's manifest
names, and follows from all that goes in: what does not reach the device, or does not come back from it, shows in the picture.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from fake_cuda import FakeCuda
from fake_tensorrt import FakeTensorRt
from stand_in_graphs import Tensor

from unibrain_rt.engines import TensorSpec
from unibrain_rt.ridge_graph import ridge_tensors
from unibrain_rt.subject import Subject
from unibrain_rt.subject_files import DESCRIPTION_FILE

_TOKENS = 7
_SENSITIVITY = 40.0
"""Radians by which the numbers turn where an input's mean changes by one."""


class MadeUpGraph:
    """Outputs are waves, each of a length of its own, in a phase that every input turns."""

    def __init__(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
        self.inputs, self.outputs = inputs, outputs

    def run(self, feeds: Mapping[str, np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        free = next((feeds[name].shape[0] for name, tensor in self.inputs.items() if -1 in tensor.shape), 1)
        phase = sum(_pitch(name) * float(np.mean(value, dtype=np.float64)) for name, value in feeds.items())
        return [self._output(name, tensor, free, phase) for name, tensor in self.outputs.items()]

    @staticmethod
    def _output(name: str, tensor: Tensor, free: int, phase: float) -> np.ndarray[Any, Any]:
        shape = tuple(free if size < 0 else size for size in tensor.shape)
        if np.dtype(tensor.dtype).kind in "iu":
            return np.full(shape, int(abs(phase) * _SENSITIVITY) % _TOKENS, tensor.dtype)
        places = np.arange(np.prod(shape, dtype=np.int64)).reshape(shape)
        return np.cos(_pitch(name) * places + _SENSITIVITY * phase).astype(tensor.dtype)


class BundleGraphs:
    """What a graph's bundle says of it: its manifest, or the description of the subject whose heads it is."""

    def operators(self, path: str) -> Iterable[tuple[str, str]]:
        return []

    def open(self, path: str) -> MadeUpGraph:
        file = Path(path)
        if (file.parent / DESCRIPTION_FILE).exists():
            return MadeUpGraph(*map(_of_specs, ridge_tensors(Subject.open(file.parent))))
        folder = file.parent.parent
        manifest = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
        record = next(each for each in manifest["graphs"].values() if folder / each["file"] == file)
        return MadeUpGraph(_of_records(record["inputs"]), _of_records(record["outputs"]))


def _of_records(records: Iterable[Mapping[str, Any]]) -> dict[str, Tensor]:
    return {
        record["name"]: Tensor(
            record["dtype"], tuple(s if isinstance(s, int) else -1 for s in record["shape"])
        )
        for record in records
    }


def _of_specs(specs: Iterable[TensorSpec]) -> dict[str, Tensor]:
    return {
        spec.name: Tensor(spec.dtype, tuple(s if isinstance(s, int) else -1 for s in spec.shape))
        for spec in specs
    }


def _pitch(name: str) -> float:
    """A number of a tensor's own, from 0.5 to 1.5."""
    return 0.5 + zlib.crc32(name.encode()) / 2**32


CUDA = FakeCuda()
TENSORRT = FakeTensorRt(CUDA, BundleGraphs())
