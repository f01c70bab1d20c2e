"""What ``bundle.json`` says, read by type: of files, of graphs, of the sampler's schedule."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from unibrain_rt.engines.graph_costs import GraphCosts
from unibrain_rt.engines.graph_spec import GraphSpec, TensorSpec
from unibrain_rt.errors import BundleError, InputError
from unibrain_rt.json_file import Fields
from unibrain_rt.samplers import Schedule

_TYPES = ("float32", "float16", "int64", "int32", "bool")
_COSTS = ("flops", "weight_numbers", "activation_numbers", "stored_bytes", "bytes_per_number")
_SHA256 = re.compile("[0-9a-f]{64}")
_MOST_ELEMENTS = 2**32  # of a tensor that is bound; the largest real one has some 10**8


@dataclass(frozen=True)
class FileRecord:
    """What the manifest says of a file."""

    size_bytes: int
    sha256: str


def broken(where: str, problem: str) -> BundleError:
    """That the manifest, or a part of it, is not what an export writes."""
    return BundleError(f"{where}: {problem}; export the bundle again")


def read_files(folder: Path, fields: Fields) -> dict[str, FileRecord]:
    """Every file that the manifest names, by its place in ``folder``. Raises BundleError."""
    files = {
        name: FileRecord(record.take("size_bytes", int), record.take("sha256", str))
        for name, record in fields.objects("files")
    }
    for name, record in files.items():
        inside(folder, name, fields.where)
        if not _SHA256.fullmatch(record.sha256):
            raise broken(fields.where, f"{name} has no SHA-256")
    return files


def read_schedule(architecture: Fields) -> Schedule:
    """The schedule that the model was trained with. Raises BundleError."""
    fields = architecture.object("schedule")
    try:
        return Schedule(
            fields.take("timesteps", int),
            fields.take("beta_start", float),
            fields.take("beta_end", float),
            fields.take("beta_schedule", str),
        )
    except InputError as error:
        raise broken(fields.where, str(error)) from error


def read_graph(folder: Path, name: str, fields: Fields, files: Mapping[str, FileRecord]) -> GraphSpec:
    """What the manifest says of a graph. Raises BundleError."""
    inputs = tuple(_tensor(item) for item in fields.list_of_objects("inputs"))
    outputs = tuple(_tensor(item) for item in fields.list_of_objects("outputs"))
    feedback = fields.take("feedback", dict)
    sizes_in, sizes_out = (
        {spec.name: (spec.dtype, spec.shape) for spec in part} for part in (inputs, outputs)
    )
    names = [spec.name for spec in (*inputs, *outputs)]
    if len(names) != len(set(names)):
        raise broken(fields.where, "two tensors have the same name")
    for output, source in feedback.items():
        fits = isinstance(source, str) and output in sizes_out and sizes_in.get(source) == sizes_out[output]
        if not fits:
            raise broken(fields.where, f"feedback {output} does not fit an input")
    file, fallback = fields.take("file", str), fields.optional("fallback", str)
    weights = fields.optional("weights", list)
    if weights is None:  # of a bundle from before they were noted: all that lies beside and is no graph
        beside = PurePosixPath(file).parent
        weights = [
            other for other in files if PurePosixPath(other).parent == beside and not other.endswith(".onnx")
        ]
    flavours = fields.optional("flavours", dict) or {}
    named = [file, *([] if fallback is None else [fallback]), *flavours.values(), *weights]
    for other in named:
        if not isinstance(other, str) or other not in files:
            raise broken(fields.where, f"{other} is not among the manifest's files")
    return GraphSpec(
        name,
        folder / file,
        inputs,
        outputs,
        feedback,
        files={PurePosixPath(other).name: files[other].sha256 for other in named},
        fallback=None if fallback is None else folder / fallback,
        flavours={flavour: folder / other for flavour, other in flavours.items()},
        costs=_costs(fields.object("costs")) if "costs" in fields else None,
        flavour_operators={
            flavour: _counts(fields.object("flavour_operators").object(flavour))
            for flavour in fields.optional("flavour_operators", dict) or {}
        },
    )


def _costs(fields: Fields) -> GraphCosts:
    numbers = {name: fields.take(name, int) for name in _COSTS}
    if min(numbers.values()) < 0:
        raise broken(fields.where, "costs cannot be negative")
    held = fields.optional("held_numbers", int)
    if held is not None and held < 0:
        raise broken(fields.where, "costs cannot be negative")
    return GraphCosts(**numbers, operators=_counts(fields.object("operators")), held_numbers=held)


def _counts(fields: Fields) -> dict[str, int]:
    return {name: fields.take(name, int) for name in fields.raw()}


def _tensor(fields: Fields) -> TensorSpec:
    shape = tuple(fields.take("shape", list))
    for size in shape:
        if isinstance(size, bool) or not (isinstance(size, str) or (isinstance(size, int) and size > 0)):
            raise broken(fields.where, "shape must hold sizes above 0 or names")
    dtype = fields.take("dtype", str)
    if dtype not in _TYPES:
        raise broken(fields.where, f"unknown type {dtype!r}")
    if len(shape) > 8 or math.prod(size for size in shape if isinstance(size, int)) > _MOST_ELEMENTS:
        raise broken(fields.where, "shape is too large")
    return TensorSpec(fields.take("name", str), dtype, shape)


def inside(folder: Path, name: object, where: str) -> Path:
    """A file or folder of the bundle by its place in it. Raises BundleError: it lies elsewhere."""
    if not isinstance(name, str) or not name.isprintable() or not name or "\\" in name:
        raise broken(where, f"{name!r} is not a file name")
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or os.path.splitdrive(name)[0]:
        raise broken(where, f"{name!r} points outside the bundle")
    return folder / name
