"""A safetensors file that is filled in place: for tensors that memory has no room for."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from unibrain_rt.tensor_file import type_name


def new_tensors(path: Path, specs: Mapping[str, tuple[DTypeLike, tuple[int, ...]]]) -> dict[str, Any]:
    """Make a file of zeros with these types and shapes, and map it to be written: name -> memory map.

    Tensors lie in the order of their types' sizes, large ones first, so that each is aligned. The same specs give
    the same header. Raises `OSError`.
    """
    kinds = {name: np.dtype(dtype) for name, (dtype, _) in specs.items()}
    places: dict[str, dict[str, Any]] = {}
    end = 0
    for name in sorted(specs, key=lambda name: (-kinds[name].itemsize, name)):
        size_bytes = math.prod(specs[name][1]) * kinds[name].itemsize
        places[name] = {
            "dtype": type_name(kinds[name]),
            "shape": list(specs[name][1]),
            "data_offsets": [end, end + size_bytes],
        }
        end += size_bytes
    header = json.dumps(places).encode()
    header += b" " * (-len(header) % 64)  # after 8 bytes of its length; the data begin at a multiple of 8
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.flush()
        os.posix_fallocate(file.fileno(), 0, 8 + len(header) + end)  # a full disk is told of now
    return {
        name: np.memmap(path, kinds[name], "r+", 8 + len(header) + place["data_offsets"][0], specs[name][1])
        for name, place in places.items()
    }
