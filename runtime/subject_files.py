"""A subject's folder, read and checked.

A subject is a folder of two files, or of up to four. ``subject.json`` holds::

    schema_version   1
    name, voxels     voxels = V
    beta_scale       stored int16 betas are multiplied by it (1/300 for NSD)
    heads            for each of `INPUTS`: shape (without the batch), rank (null where the head is exact),
                     alpha, held_out_correlation (mean over targets), fidelity (share of the exact
                     predictions' variance that the factors keep); the last three may be null if unknown
    encoders         optional: which bundle's encoders made the targets (`Bundle.encoders`)
    fitted_on        free provenance: scans, repeats, ...

``heads.safetensors`` holds ``voxel_mean`` and ``voxel_std`` (V,), optionally ``mask`` (x, y, z) uint8, and
per head, with T the product of its shape, ``<head>.left`` (V, rank) and ``<head>.right`` (rank, T) in int8,
float16 or float32, or for an exact head ``<head>.left`` (V, T) alone; ``<head>.bias`` and ``<head>.target_mean``
(T,); ``<head>.calibration`` (T,) or (1,). Columns of an int8 factor are multiplied by ``<head>.left_scale``
(rank,) and ``<head>.right_scale`` (T,). All but factors and mask are float32. A prediction is::

    z = (betas - voxel_mean) / voxel_std          0 where voxel_std is 0
    y = z @ left @ right + bias
    prediction = target_mean + calibration * (y - target_mean)

``ridge.onnx``, if it is there, is the same for engines that run it (`unibrain_rt.ridge_graph`), with the heads' file
for its weights.

``rois.safetensors``, if it is there, holds per region (V1v, faces, ...) which voxels lie in it, uint8 (V,).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.errors import BundleError, one_line
from unibrain_rt.factors import Factor
from unibrain_rt.flows import INPUTS
from unibrain_rt.json_file import Fields
from unibrain_rt.tensor_file import map_tensors, type_name

SCHEMA_VERSION = 1
DESCRIPTION_FILE, TENSOR_FILE, ROI_FILE = "subject.json", "heads.safetensors", "rois.safetensors"
GRAPH_FILE = "ridge.onnx"
#: What the types of factors are called where users read them.
STORAGE = {"I8": "int8", "F16": "float16", "F32": "float32"}

_DESCRIPTION_BYTES = 1 << 20  # a subject.json has about one thousand
_ADVICE = "copy the subject again, or fit it anew"
_FLOAT32, _FACTORS = ("F32",), ("I8", "F16", "F32")


@dataclass(frozen=True)
class Head:
    """What ``subject.json`` says of a head; ``shape`` is a prediction's without the batch."""

    name: str
    shape: tuple[int, ...]
    rank: int | None  # None: exact, one dense matrix
    alpha: float | None
    held_out_correlation: float | None
    fidelity: float | None

    @property
    def targets(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Description:
    """What ``subject.json`` says."""

    name: str
    voxels: int
    beta_scale: float
    heads: Mapping[str, Head]
    encoders: str | None
    fitted_on: Mapping[str, Any]


def read_description(folder: Path) -> Description:
    """A subject's ``subject.json``. Raises BundleError: it is missing or damaged, or of another version."""
    path = folder / DESCRIPTION_FILE
    _check_file(path)
    described = Fields.load(path, _complaint, largest_bytes=_DESCRIPTION_BYTES)
    version = described.raw().get("schema_version")
    if isinstance(version, bool) or version != SCHEMA_VERSION:
        problem = f"schema version {version}, but this unibrain-rt reads {SCHEMA_VERSION}"
        raise broken(path, problem, "fit the subject with the same version of unibrain-rt")
    if not (name := described.take("name", str)).strip():
        raise broken(path, "name is blank")
    scale = described.number("beta_scale", 0.0)
    if scale == 0.0:
        raise broken(path, "beta_scale is 0, but it must be above")
    return Description(
        name,
        described.whole("voxels"),
        scale,
        _heads(path, described.object("heads")),
        described.optional("encoders", str),
        described.optional("fitted_on", dict) or {},
    )


def read_tensors(path: Path, voxels: int, heads: Mapping[str, Head]) -> dict[str, NDArray[Any]]:
    """The mapped file, after its header was compared with the description. Raises BundleError."""
    with reading(path):
        _check_file(path)
        tensors = map_tensors(path)
    wanted: dict[str, tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]] = {
        "voxel_mean": (_FLOAT32, ((voxels,),)),
        "voxel_std": (_FLOAT32, ((voxels,),)),
    }
    for name, head in heads.items():
        width = head.targets
        shapes = [(voxels, width)] if head.rank is None else [(voxels, head.rank), (head.rank, width)]
        for side, shape in zip(sides(head), shapes, strict=True):
            key = f"{name}.{side}"
            wanted[key] = (_FACTORS, (shape,))
            if key in tensors and tensors[key].dtype == np.int8:
                wanted[f"{key}_scale"] = (_FLOAT32, (shape[1:],))
        wanted[f"{name}.bias"] = wanted[f"{name}.target_mean"] = (_FLOAT32, ((width,),))
        wanted[f"{name}.calibration"] = (_FLOAT32, ((width,), (1,)))
    there = set(tensors) - {"mask"}
    for verb, names in (("has no", set(wanted) - there), ("has an unknown", there - set(wanted))):
        if names:
            raise broken(path, f"{verb} {one_line(', '.join(sorted(names)), 80)}")
    for key, (types, extents) in wanted.items():
        kind, extent = type_name(tensors[key].dtype), tensors[key].shape
        if kind not in types or extent not in extents:
            expected = f"{' or '.join(types)} {' or '.join(map(str, extents))}"
            raise broken(path, f"{key} is {kind} {extent}, but {DESCRIPTION_FILE} says {expected}")
    return tensors


def read_factor(path: Path, tensors: Mapping[str, NDArray[Any]], name: str) -> Factor:
    """One of a head's matrices, mapped. Raises BundleError."""
    values = tensors[name]
    return Factor(values, read_statistic(path, tensors, f"{name}_scale") if values.dtype == np.int8 else None)


def read_statistic(
    path: Path, tensors: Mapping[str, NDArray[Any]], name: str, low: float = -math.inf
) -> NDArray[np.float32]:
    """A vector, read, so that what is used is what was checked. Raises BundleError: not finite, or below ``low``."""
    values: NDArray[np.float32] = np.array(tensors[name])  # read, so that what is used is what was checked
    if not np.isfinite(values).all():
        raise broken(path, f"{name} has values that are not finite")
    if float(values.min()) < low:
        raise broken(path, f"{name} has values below {low:g}")
    return values


def read_mask(path: Path, tensors: Mapping[str, NDArray[Any]], voxels: int) -> NDArray[np.bool_] | None:
    """The mask (x, y, z), where the file has one. Raises BundleError: it does not hold so many voxels."""
    if "mask" not in tensors:
        return None
    stored = tensors["mask"]
    if stored.dtype != np.uint8 or stored.ndim != 3:
        raise broken(path, f"mask is {type_name(stored.dtype)} {stored.shape}, not U8 in 3 dimensions")
    inside = np.asarray(stored != 0, np.bool_)
    if int(stored.max(initial=0)) > 1 or int(inside.sum()) != voxels:
        problem = f"mask has {int(inside.sum()):,} voxels and values up to {stored.max(initial=0)}"
        raise broken(path, f"{problem}, not {voxels:,} ones")
    return inside


def read_rois(path: Path, voxels: int) -> dict[str, NDArray[np.bool_]]:
    """Region -> which voxels (V,) lie in it. Raises BundleError: the file is damaged, or does not fit."""
    rois: dict[str, NDArray[np.bool_]] = {}
    with reading(path):
        _check_file(path)
        tensors = map_tensors(path)
    for name, stored in sorted(tensors.items()):
        if stored.dtype != np.uint8 or stored.shape != (voxels,):
            kind = type_name(stored.dtype)
            raise broken(path, f"region {name} is {kind} {stored.shape}, not U8 ({voxels},)")
        if int(stored.max()) > 1:
            raise broken(path, f"region {name} has values up to {int(stored.max())}, not 0 and 1")
        rois[name] = np.asarray(stored != 0, np.bool_)
    return rois


def sides(head: Head) -> tuple[str, ...]:
    """Names of a head's factors in the file."""
    return ("left",) if head.rank is None else ("left", "right")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Make one `BundleError` of what the parsers raise."""
    try:
        yield
    except MemoryError as error:
        raise broken(path, "does not fit in memory", "close other programs") from error
    except OSError as error:
        raise broken(path, f"cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:  # not UTF-8 is a ValueError, too
        raise broken(path, f"damaged ({one_line(str(error), 90)})") from error


def broken(path: Path, problem: str, advice: str = _ADVICE) -> BundleError:
    """That a file is damaged, in one line: where, what, and what to do."""
    return BundleError(one_line(f"{one_line(str(path), 100)}: {one_line(problem, 130)}: {advice}"))


def _complaint(where: str, problem: str) -> BundleError:
    return broken(Path(where), problem)


def _check_file(path: Path) -> None:
    if not path.exists():
        raise broken(path, "no such file")
    if not path.is_file():
        raise broken(path, "not a regular file")


def _heads(path: Path, described: Fields) -> dict[str, Head]:
    if set(described.raw()) != set(INPUTS):
        raise broken(
            path, f"heads are {one_line(', '.join(described.raw()) or 'none', 60)}, not {', '.join(INPUTS)}"
        )
    heads = {}
    for name in INPUTS:
        entry = described.object(name)
        optional = {
            key: entry.number(key, least, most) if key in entry else None
            for key, least, most in (
                ("alpha", 0.0, math.inf),
                ("held_out_correlation", -1.0, 1.0),
                ("fidelity", 0.0, 1.0),
            )
        }
        rank = entry.whole("rank") if "rank" in entry else None
        heads[name] = Head(name, entry.wholes("shape"), rank, **optional)
    return heads
