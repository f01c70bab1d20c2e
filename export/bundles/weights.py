"""The files of a checkpoint: weights, in safetensors or written by ``torch.save``, and JSON.

Names and shapes are read at once; the numbers stay in their file, mapped into memory, until they are asked
for. Files from before torch 1.6, which cannot be mapped, are read whole.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from unibrain_rt.errors import InputError
from unibrain_rt.export.bundles.architecture import read_object
from unibrain_rt.export.bundles.layouts import Shape

_SAFETENSORS_TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class StoredTensor(NamedTuple):
    """A tensor in a file."""

    shape: Shape
    dtype: torch.dtype
    read: Callable[[], Tensor]


def read_weights(folder: Path, name: str, files: dict[str, Path]) -> dict[str, StoredTensor]:
    """The tensors of a weights file, or of the shards in an index; ``files`` collects what was opened.

    Raises:
        InputError: a file is damaged, is not of the kind that its name says or holds more than tensors.
        OSError: a file cannot be opened.
    """
    path = folder / name
    files[name] = path
    if path.suffix == ".json":
        shards = read_object(path).get("weight_map")
        names = set(shards.values()) if isinstance(shards, dict) else set()
        if not names or not all(isinstance(shard, str) and Path(shard).name == shard for shard in names):
            raise InputError(f"{path}: not an index of shards beside it")
        tensors: dict[str, StoredTensor] = {}
        for shard in sorted(names):
            tensors |= read_weights(folder, f"{Path(name).parent.as_posix()}/{shard}", files)
        return tensors
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)


def _read_safetensors(path: Path) -> dict[str, StoredTensor]:
    try:
        file = safe_open(path, framework="pt")
        result = {}
        for key in file.keys():  # noqa: SIM118 - not a mapping
            entry = file.get_slice(key)
            dtype = getattr(torch, _SAFETENSORS_TYPES.get(entry.get_dtype(), "uint8"))
            result[key] = StoredTensor(tuple(entry.get_shape()), dtype, partial(file.get_tensor, key))
        return result
    except SafetensorError as error:
        raise InputError(f"{path}: damaged or incomplete ({first_line(error)}); fetch it again") from error


def _read_pickle(path: Path) -> dict[str, StoredTensor]:
    """Tensors of a file written by ``torch.save``; only tensors are unpickled, so nothing in it can run."""
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Files from before torch 1.6 are not archives.
            state = torch.load(path, map_location="cpu", mmap=zipped, weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle can end in nearly any exception
        # The class is known by its name alone: it lives in ``pickle``, which no module here imports.
        refused = type(error).__name__ == "UnpicklingError"
        if refused and re.search("GLOBAL|Unsupported class", str(error)):
            raise InputError(
                f"{path}: refused, since it holds more than tensors and unpickling that could run code; "
                "convert it to .safetensors where you trust it"
            ) from error
        raise InputError(
            f"{path}: damaged, incomplete or not written by torch.save; fetch it again"
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    tensors = {k: v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, Mapping) else {}
    if not tensors:
        raise InputError(f"{path}: holds no named tensors; a state dict is expected")
    return {str(key): StoredTensor(tuple(t.shape), t.dtype, t.detach) for key, t in tensors.items()}


def first_line(error: BaseException) -> str:
    """What an error of a library says, without the pages that may follow."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].strip()
