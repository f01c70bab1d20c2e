"""Subjects: one person's voxel statistics and four ridge heads, from betas to latents and contexts.

A subject is a folder of two files, or of up to four. ``subject.json`` holds::

    schema_version   1
    name, voxels     voxels = V
    beta_scale       stored int16 betas are multiplied by it (1/300 for NSD)
    heads            for each of `HEADS`: shape (without the batch), rank (null where the head is exact),
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

Nothing in a prediction depends on the other scans of a batch: every scan goes through the same operations, bit
for bit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.errors import BundleError, InputError, one_line
from unibrain_rt.factors import Factor, products
from unibrain_rt.scans import VoxelSpace
from unibrain_rt.tensor_file import map_tensors, type_name

HEADS = ("image_latent", "text_latent", "image_context", "text_context")
SCHEMA_VERSION = 1
DESCRIPTION_FILE, TENSOR_FILE, ROI_FILE = "subject.json", "heads.safetensors", "rois.safetensors"
GRAPH_FILE = "ridge.onnx"

_DESCRIPTION_BYTES = 1 << 20  # a subject.json has about one thousand
_FAR = 1e4  # standard deviations; closer than this, only a damaged head gives infinities

_ADVICE = "copy the subject again, or fit it anew"
_FLOAT32, _FACTORS = ("F32",), ("I8", "F16", "F32")
#: What the types of factors are called where users read them.
_STORAGE = {"I8": "int8", "F16": "float16", "F32": "float32"}


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


@dataclass(frozen=True, eq=False)
class _Offsets:
    """What turns ``z @ left @ right`` into a prediction; (T,) each, ``calibration`` also (1,)."""

    bias: NDArray[np.float32]
    target_mean: NDArray[np.float32]
    calibration: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Subject:
    """An open subject: its factors stay in the mapped file, everything else was read and checked."""

    folder: Path
    name: str
    voxels: int
    beta_scale: float
    heads: Mapping[str, Head]
    encoders: str | None
    fitted_on: Mapping[str, Any]
    voxel_space: VoxelSpace
    voxel_mean: NDArray[np.float32]
    voxel_std: NDArray[np.float32]
    _offsets: Mapping[str, _Offsets]
    _factors: Mapping[str, tuple[Factor, ...]]  # of each head: left and right, or one that is exact

    @classmethod
    def open(cls, folder: Path) -> Subject:
        """Map a subject's folder and check all of it but the factors' values.

        Raises `BundleError`: a file is missing or damaged, or the two do not agree.
        """
        folder = Path(folder)
        path = folder / DESCRIPTION_FILE
        described = _description(path)
        version = described.get("schema_version")
        if isinstance(version, bool) or version != SCHEMA_VERSION:
            problem = f"schema version {_shown(version)}, but this unibrain-rt reads {SCHEMA_VERSION}"
            raise _broken(path, problem, "fit the subject with the same version of unibrain-rt")
        name = described.get("name")
        if not isinstance(name, str) or not name.strip():
            raise _broken(path, f"name is {_shown(name)}, not a text")
        voxels = _whole(path, "voxels", described.get("voxels"))
        scale = _number(path, "beta_scale", described.get("beta_scale"), 0.0, math.inf)
        if scale == 0.0:
            raise _broken(path, "beta_scale is 0, but it must be above")
        heads = _heads(path, described.get("heads"))
        encoders = described.get("encoders")
        if encoders is not None and not isinstance(encoders, str):
            raise _broken(path, f"encoders is {_shown(encoders)}, not a text")
        fitted_on = described.get("fitted_on", {})
        if not isinstance(fitted_on, dict):
            raise _broken(path, f"fitted_on is {_shown(fitted_on)}, not an object")

        path = folder / TENSOR_FILE
        tensors = _tensors(path, voxels, heads)
        mean = _statistic(path, tensors, "voxel_mean")
        std = _statistic(path, tensors, "voxel_std", low=0.0)
        offsets = {
            head: _Offsets(
                _statistic(path, tensors, f"{head}.bias"),
                _statistic(path, tensors, f"{head}.target_mean"),
                _statistic(path, tensors, f"{head}.calibration", low=0.0),
            )
            for head in heads
        }
        factors = {
            head: tuple(_factor(path, tensors, f"{head}.{side}") for side in _sides(entry))
            for head, entry in heads.items()
        }
        space = VoxelSpace(name, voxels, scale, _mask(path, tensors, voxels))
        return cls(
            folder, name, voxels, scale, heads, encoders, fitted_on, space, mean, std, offsets, factors
        )

    def head_shape(self, name: str) -> tuple[int, ...]:
        """Shape, without the batch, of what one of `HEADS` predicts."""
        return self.heads[name].shape

    def storage(self, name: str) -> str:
        """Type that one of `HEADS` is stored in: int8, float16 or float32."""
        return _STORAGE[type_name(self._factors[name][-1].values.dtype)]

    def size_bytes(self, name: str) -> int:
        """Bytes that one of `HEADS` takes on disk, without its offsets."""
        return sum(factor.size_bytes for factor in self._factors[name])

    def rois(self) -> dict[str, NDArray[np.bool_]]:
        """Region -> which voxels (V,) lie in it, read from the file anew; empty where no regions are stored.

        Raises `BundleError`: the file is damaged, or does not fit the subject.
        """
        path = self.folder / ROI_FILE
        if not path.exists():
            return {}
        return _rois(path, self.voxels)

    def predict(self, betas: NDArray[np.floating[Any]]) -> dict[str, NDArray[np.float32]]:
        """Latents and contexts of every head, (N, *shape) float32, from betas (N, V), or (V,) for one scan.

        A scan's prediction is the same, bit for bit, alone and in any batch. Raises `InputError` for betas
        that are not this subject's, `BundleError` if a head is damaged.
        """
        z = self.z_scores(betas)
        with _reading(self.folder / TENSOR_FILE):
            first = [factors[0] for factors in self._factors.values()]
            y = dict(zip(self._factors, products([z] * len(first), first), strict=True))
            second = {name: factors[1] for name, factors in self._factors.items() if len(factors) > 1}
            found = products([y[name] for name in second], list(second.values()))
            y.update(zip(second, found, strict=True))
        return {name: self._finished(z, y[name], head) for name, head in self.heads.items()}

    def z_scores(self, betas: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Betas as the heads take them, (N, V). Raises `InputError` for betas that are not this subject's."""
        betas = np.asarray(betas)
        label = self.voxel_space.label
        if betas.ndim not in (1, 2) or betas.dtype.kind != "f":
            problem = (
                f"betas are {betas.ndim}-D of {betas.dtype}, but {label} takes (voxels,) or (scans, voxels)"
            )
            raise InputError(one_line(f"{problem} of floating point"))
        if betas.shape[-1] != self.voxels:
            problem = f"{betas.shape[-1]:,} voxels, but {label} has {self.voxels:,}"
            raise InputError(f"{problem}: give that subject's voxels, or choose another with --subject")
        constant = self.voxel_std == 0.0
        with np.errstate(all="ignore"):  # what does not fit is found below
            z = np.array(betas, np.float32, order="C", ndmin=2)
            z -= self.voxel_mean
            z /= np.where(constant, np.float32(1.0), self.voxel_std)
        if not np.isfinite(z).all():
            raise InputError(
                f"betas that are not finite, or too large for {label}: mend the scan or leave it out"
            )
        z[:, constant] = 0.0
        return z

    def _finished(self, z: NDArray[np.float32], y: NDArray[np.float32], head: Head) -> NDArray[np.float32]:
        """Predictions (N, *shape) from z-scores (N, V) and what the factors make of them (N, T), overwritten."""
        offsets = self._offsets[head.name]
        with np.errstate(all="ignore"):
            y += offsets.bias - offsets.target_mean
            y *= offsets.calibration
            y += offsets.target_mean
        self.check_prediction(head.name, z, y)
        return y.reshape(len(z), *head.shape)

    def check_prediction(self, head: str, z: NDArray[np.float32], values: NDArray[np.float32]) -> None:
        """Raise where what a head made of z-scores is not finite: `InputError` or `BundleError`, as ``predict``."""
        if not np.isfinite(values).all():
            if float(np.abs(z).max()) > _FAR:
                problem = f"betas up to {float(np.abs(z).max()):.1g} standard deviations from those of"
                raise InputError(f"{problem} {self.voxel_space.label}: check their units, and mend the scan")
            raise _broken(self.folder / TENSOR_FILE, f"{head} gives values that are not finite")


def _broken(path: Path, problem: str, advice: str = _ADVICE) -> BundleError:
    return BundleError(one_line(f"{one_line(str(path), 100)}: {one_line(problem, 130)}: {advice}"))


def _shown(value: object) -> str:
    if isinstance(value, (list, dict)):
        return f"a {type(value).__name__} of {len(value):,}"
    return "missing" if value is None else one_line(repr(value), 30)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Make one `BundleError` of what the parsers raise."""
    try:
        yield
    except MemoryError as error:
        raise _broken(path, "does not fit in memory", "close other programs") from error
    except OSError as error:
        raise _broken(path, f"cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:  # not UTF-8 is a ValueError, too
        raise _broken(path, f"damaged ({one_line(str(error), 90)})") from error


def _check_file(path: Path) -> None:
    if not path.exists():
        raise _broken(path, "no such file")
    if not path.is_file():
        raise _broken(path, "not a regular file")


def _description(path: Path) -> dict[str, Any]:
    with _reading(path):
        _check_file(path)
        if path.stat().st_size > _DESCRIPTION_BYTES:
            raise _broken(path, f"{path.stat().st_size:,} bytes, too many for a subject")
        described = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(described, dict):
        raise _broken(path, f"a JSON object is expected, not {_shown(described)}")
    return described


def _whole(path: Path, what: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 1 << 40:
        raise _broken(path, f"{what} is {_shown(value)}, not a whole number of at least 1")
    return value


def _number(path: Path, what: str, value: object, low: float, high: float) -> float:
    try:
        number = float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
    except OverflowError:
        number = math.nan
    if not (math.isfinite(number) and low <= number <= high):
        limits = f"from {low:g} to {high:g}" if high < math.inf else f"of at least {low:g}"
        raise _broken(path, f"{what} is {_shown(value)}, not a finite number {limits}")
    return number


def _heads(path: Path, described: object) -> dict[str, Head]:
    if not isinstance(described, dict) or set(described) != set(HEADS):
        found = ", ".join(described) or "none" if isinstance(described, dict) else _shown(described)
        raise _broken(path, f"heads are {one_line(found, 60)}, not {', '.join(HEADS)}")
    heads = {}
    for name in HEADS:
        entry = described[name]
        if not isinstance(entry, dict):
            raise _broken(path, f"head {name} is {_shown(entry)}, not an object")
        shape = entry.get("shape")
        if not isinstance(shape, list) or not 1 <= len(shape) <= 8:
            raise _broken(path, f"shape of {name} is {_shown(shape)}, not a list of up to 8 numbers")
        optional = {}
        for key, low, high in (
            ("alpha", 0.0, math.inf),
            ("held_out_correlation", -1.0, 1.0),
            ("fidelity", 0.0, 1.0),
        ):
            value = entry.get(key)
            optional[key] = None if value is None else _number(path, f"{key} of {name}", value, low, high)
        rank = entry.get("rank")
        heads[name] = Head(
            name,
            tuple(_whole(path, f"shape of {name}", extent) for extent in shape),
            None if rank is None else _whole(path, f"rank of {name}", rank),
            **optional,
        )
    return heads


def _sides(head: Head) -> tuple[str, ...]:
    return ("left",) if head.rank is None else ("left", "right")


def _tensors(path: Path, voxels: int, heads: Mapping[str, Head]) -> dict[str, NDArray[Any]]:
    """The mapped file, after its header was compared with the description."""
    with _reading(path):
        _check_file(path)
        tensors = map_tensors(path)
    wanted: dict[str, tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]] = {
        "voxel_mean": (_FLOAT32, ((voxels,),)),
        "voxel_std": (_FLOAT32, ((voxels,),)),
    }
    for name, head in heads.items():
        width = head.targets
        shapes = [(voxels, width)] if head.rank is None else [(voxels, head.rank), (head.rank, width)]
        for side, shape in zip(_sides(head), shapes, strict=True):
            key = f"{name}.{side}"
            wanted[key] = (_FACTORS, (shape,))
            if key in tensors and tensors[key].dtype == np.int8:
                wanted[f"{key}_scale"] = (_FLOAT32, (shape[1:],))
        wanted[f"{name}.bias"] = wanted[f"{name}.target_mean"] = (_FLOAT32, ((width,),))
        wanted[f"{name}.calibration"] = (_FLOAT32, ((width,), (1,)))
    there = set(tensors) - {"mask"}
    for verb, names in (("has no", set(wanted) - there), ("has an unknown", there - set(wanted))):
        if names:
            raise _broken(path, f"{verb} {one_line(', '.join(sorted(names)), 80)}")
    for key, (types, extents) in wanted.items():
        kind, found = type_name(tensors[key].dtype), tensors[key].shape
        if kind not in types or found not in extents:
            expected = f"{' or '.join(types)} {' or '.join(map(str, extents))}"
            raise _broken(path, f"{key} is {kind} {found}, but {DESCRIPTION_FILE} says {expected}")
    return tensors


def _factor(path: Path, tensors: Mapping[str, NDArray[Any]], name: str) -> Factor:
    values = tensors[name]
    return Factor(values, _statistic(path, tensors, f"{name}_scale") if values.dtype == np.int8 else None)


def _statistic(
    path: Path, tensors: Mapping[str, NDArray[Any]], name: str, low: float = -math.inf
) -> NDArray[np.float32]:
    values: NDArray[np.float32] = np.array(tensors[name])  # read, so that what is used is what was checked
    if not np.isfinite(values).all():
        raise _broken(path, f"{name} has values that are not finite")
    if float(values.min()) < low:
        raise _broken(path, f"{name} has values below {low:g}")
    return values


def _mask(path: Path, tensors: Mapping[str, NDArray[Any]], voxels: int) -> NDArray[np.bool_] | None:
    if "mask" not in tensors:
        return None
    stored = tensors["mask"]
    if stored.dtype != np.uint8 or stored.ndim != 3:
        raise _broken(path, f"mask is {type_name(stored.dtype)} {stored.shape}, not U8 in 3 dimensions")
    inside = np.asarray(stored != 0, np.bool_)
    if int(stored.max(initial=0)) > 1 or int(inside.sum()) != voxels:
        problem = f"mask has {int(inside.sum()):,} voxels and values up to {stored.max(initial=0)}"
        raise _broken(path, f"{problem}, not {voxels:,} ones")
    return inside


def _rois(path: Path, voxels: int) -> dict[str, NDArray[np.bool_]]:
    rois: dict[str, NDArray[np.bool_]] = {}
    with _reading(path):
        _check_file(path)
        tensors = map_tensors(path)
    for name, stored in sorted(tensors.items()):
        if stored.dtype != np.uint8 or stored.shape != (voxels,):
            kind = type_name(stored.dtype)
            raise _broken(path, f"region {name} is {kind} {stored.shape}, not U8 ({voxels},)")
        if int(stored.max()) > 1:
            raise _broken(path, f"region {name} has values up to {int(stored.max())}, not 0 and 1")
        rois[name] = np.asarray(stored != 0, np.bool_)
    return rois
