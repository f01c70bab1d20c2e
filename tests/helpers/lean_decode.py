"""Run by the interpreter of a lean environment: imports everything a decode may need, decodes, tells what was loaded.

    python lean_decode.py SCAN OUT

Prints one line of JSON: ``modules`` (ours that were imported) and ``libraries`` (top names of what was loaded from
site-packages).
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import site
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import unibrain_rt
from unibrain_rt import Decoder, read_scans
from unibrain_rt.bundle import Bundle
from unibrain_rt.captions import CaptionOptions
from unibrain_rt.engines.base import Engine, GraphSpec, Session
from unibrain_rt.outputs import plan_outputs, write_pair

ABOVE = {"export", "benchmarks"}


class IdleSession(Session):
    """Buffers of the right shapes, in which nothing is ever computed."""

    def __init__(self, graph: GraphSpec, free: int, shared: Mapping[str, Any]) -> None:
        super().__init__(graph, free)
        self._buffers = {
            spec.name: shared.get(spec.name, np.zeros(spec.sized(free), spec.dtype))
            for spec in (*graph.inputs, *graph.outputs)
        }

    def run(self) -> None:
        for output, source in self.graph.feedback.items():
            self._buffers[source][...] = self._buffers[output]

    def buffer(self, name: str) -> object:
        return self._buffers[name]

    def _write_impl(self, name: str, value: Any) -> None:
        self._buffers[name][...] = value

    def _read_impl(self, name: str) -> Any:
        return self._buffers[name].copy()


class IdleEngine(Engine):
    """Stands in for the engine of a machine that has no GPU here."""

    name = "idle"

    def describe(self) -> dict[str, str | int]:
        return {"name": self.name}

    def _open_impl(self, graph: GraphSpec, free: int, shared: Mapping[str, object]) -> Session:
        return IdleSession(graph, free, shared)


def decode(engine: Engine, scan: Path, out: Path) -> None:
    """Decode a scan of the shipped bundle and write its files."""
    bundle = Bundle.open()
    subject = bundle.subject()
    decoder = Decoder(bundle, subject, engine, "fast", CaptionOptions())
    (read,) = read_scans(scan, subject.voxel_space)
    result = decoder.decode(read.betas)
    (output,) = plan_outputs(out, [read.stem], overwrite=False).todo
    write_pair(output, result.image, result.record(), text={"Description": result.caption or ""})


def import_all() -> list[str]:
    """Import every module of runtime and engines."""
    names = [
        module.name
        for module in pkgutil.walk_packages(unibrain_rt.__path__, "unibrain_rt.")
        if module.name.split(".")[1] not in {*ABOVE, "__main__"}
    ]
    for name in names:
        importlib.import_module(name)
    return names


def libraries() -> set[str]:
    """Top names of the loaded modules that lie in site-packages."""
    folders = site.getsitepackages()
    found = set()
    for name, module in list(sys.modules.items()):
        places = [getattr(module, "__file__", None) or "", *(getattr(module, "__path__", None) or [])]
        if any(place.startswith(folder) for place in places for folder in folders):
            found.add(name.split(".")[0])
    return found


if __name__ == "__main__":
    decode(IdleEngine(), Path(sys.argv[1]), Path(sys.argv[2]))
    print(json.dumps({"modules": import_all(), "libraries": sorted(libraries())}))
