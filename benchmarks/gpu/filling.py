"""Weights for graphs that `hollow` made: written from the parameters of modules, into files that have the room."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unibrain_rt.bundle import MANIFEST, Bundle

if TYPE_CHECKING:
    from torch import Tensor, nn

PLACES = "weights.json"
"""In the packed bundle: of every file of weights its size, and which part of which parameter lies where."""
_DONE = "filled"
_ROOM_BYTES = 16 * 2**30


def fill(packed: Path, folder: Path, modules: Mapping[str, nn.Module]) -> None:
    """Make the bundle ``folder`` of the one in ``packed``, which has no weights, with those of ``modules``."""
    shutil.copytree(packed, folder, dirs_exist_ok=True)
    parameters = {
        f"{name}.{key}": value for name, module in modules.items() for key, value in module.named_parameters()
    }
    places = json.loads((packed / PLACES).read_text(encoding="utf-8"))
    for name, file in places.items():
        with (folder / name).open("wb") as written:
            written.truncate(file["bytes"])
            for stored in file["tensors"]:
                written.seek(stored["offset"])
                written.write(_numbers(parameters, stored).tobytes())
    (folder / _DONE).touch()


@contextmanager
def room() -> Iterator[Path]:
    """A folder for weights, in memory where that has the room, which is gone afterwards."""
    shared = Path("/dev/shm")
    fits = shared.is_dir() and shutil.disk_usage(shared).free > _ROOM_BYTES
    with tempfile.TemporaryDirectory(dir=shared if fits else None) as folder:
        yield Path(folder)


def architecture(packed: Path) -> dict[str, Any]:
    """The sizes of the packed bundle, which cannot be opened without its weights."""
    manifest: dict[str, Any] = json.loads((packed / MANIFEST).read_text(encoding="utf-8"))
    sizes: dict[str, Any] = manifest["architecture"]
    return sizes


def is_filled(folder: Path) -> bool:
    """Whether `fill` has come to its end."""
    return (folder / _DONE).exists()


def open_filled(folder: Path) -> Bundle:
    """The bundle; its SHA-256 are those of files without weights, and are not compared."""
    return Bundle.open(folder, verify=False)


def _numbers(parameters: Mapping[str, Tensor], stored: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    total: Any = 0
    for term in stored["terms"]:
        part = term["part"]
        rows = parameters[part["parameter"]][part["start"] : part["stop"]]
        rows = rows.t() if part["transposed"] else rows
        if len(stored["terms"]) > 1:  # vectors, which are added in fp32
            rows = term["sign"] * rows.float().reshape(-1)
        total = total + rows if len(stored["terms"]) > 1 else rows
    array = total.contiguous().cpu().numpy()
    return array.astype(stored["dtype"]).reshape(stored["shape"])
