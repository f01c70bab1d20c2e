"""Run by the interpreter of a lean environment: imports everything a decode may need, decodes, tells what was loaded.

    python lean_decode.py SCAN CACHE OUT

Decodes with the engine ``tensorrt`` on stand-ins. Prints one line of JSON: ``built`` (plans), ``pictures`` (a digest for each
decode), ``trace`` (how often each of CUDA's functions was called and each thing done), ``modules`` (ours that were imported)
and ``libraries`` (top names of what was loaded from site-packages).
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import json
import pkgutil
import site
import sys
from collections import Counter
from pathlib import Path

from lean_stand_ins import CUDA

import unibrain_rt
from unibrain_rt import Decoder, read_scans
from unibrain_rt.bundle import Bundle
from unibrain_rt.engines import create_engine
from unibrain_rt.engines.ahead import AheadEngine
from unibrain_rt.outputs import plan_outputs, write_pair
from unibrain_rt.ridge_graph import ridge_graphs
from unibrain_rt.sessions import decode_graphs

PRESET = "fast"
ROUNDS = 4
"""The first decode is launched piece by piece, the second is captured, the others are replays."""
ABOVE = {"export", "benchmarks"}


def build_plans(cache: Path) -> int:
    """Compile the shipped bundle's graphs, those of its default subject's heads, too; how many there are."""
    engine = create_engine("tensorrt", cache=cache)
    assert isinstance(engine, AheadEngine)
    bundle = Bundle.open()
    graphs = decode_graphs(bundle, [PRESET]) + ridge_graphs(bundle, [bundle.subject()])
    return sum(not engine.build(graph, free).hit for graph, free in graphs)


def decode(scan: Path, cache: Path, out: Path) -> list[str]:
    """Decode a scan of the shipped bundle and then another, often enough for every way to launch, and write the first's
    files; a digest of each picture and its caption."""
    decoder = Decoder.open(preset=PRESET, engine="tensorrt", cache=cache)
    (read,) = read_scans(scan, decoder.subject.voxel_space)
    results = [decoder.decode(read.betas) for _ in range(ROUNDS)]
    (output,) = plan_outputs(out, [read.stem], overwrite=False).todo
    result = results[-1]
    write_pair(output, result.image, result.record(), text={"Description": result.caption or ""})
    results.append(decoder.decode(read.betas[::-1].copy()))
    return [hashlib.sha256(each.image.tobytes() + str(each.caption).encode()).hexdigest() for each in results]


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


def main(scan: Path, cache: Path, out: Path) -> None:
    built = build_plans(cache)
    pictures = decode(scan, cache, out)
    gc.collect()
    CUDA.check()
    told = {"built": built, "pictures": pictures, "trace": Counter(CUDA.kinds())}
    print(json.dumps({**told, "modules": import_all(), "libraries": sorted(libraries())}))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
