"""Fitted heads to a subject's folder, in the form `unibrain_rt.subject_files` reads: whole or not at all."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, get_args

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray
from safetensors.numpy import save

from unibrain_rt.errors import InputError, input_error
from unibrain_rt.export.bundles.tensor_writer import new_tensors
from unibrain_rt.export.subjects.ridge.basis import VoxelScale
from unibrain_rt.export.subjects.ridge.graph import write_ridge_graph
from unibrain_rt.export.subjects.ridge.journal import Journal, Report
from unibrain_rt.export.subjects.ridge.ranks import share_out
from unibrain_rt.export.subjects.ridge.reduced import Reduced, check_fidelity
from unibrain_rt.export.subjects.ridge.storage import ROUNDING, Storage, StoredFactors
from unibrain_rt.export.subjects.ridge.targets import release
from unibrain_rt.files import whole_folder
from unibrain_rt.flows import INPUTS
from unibrain_rt.subject import Subject
from unibrain_rt.subject_files import DESCRIPTION_FILE, ROI_FILE, SCHEMA_VERSION, TENSOR_FILE

#: By default kept of the held-out predictions' variance: they correlate with the exact heads' by 0.999.
FIDELITY = 0.998

_CHECKED_SCANS = 256  # on which it is measured what rounding takes
_SEARCHED = 0.9995  # of each head is kept by the components among which the ranks are then chosen


@dataclass(frozen=True)
class StorageOptions:
    """The arguments of `write_subject` with these names."""

    fidelity: float = FIDELITY
    max_bytes: int | None = None
    storage: Storage = "int8"
    exact: bool = False


class WritableHead(Protocol):
    """What is written of a head: a `RidgeFit`, or one that was fitted elsewhere. V voxels, T targets."""

    @property
    def basis(self) -> VoxelScale: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def alpha(self) -> float | None: ...
    @property
    def mean_correlation(self) -> float | None: ...
    @property
    def bias(self) -> NDArray[np.float32]: ...
    @property
    def target_mean(self) -> NDArray[np.float32]: ...
    @property
    def calibration(self) -> NDArray[np.float32]: ...
    @property
    def units(self) -> NDArray[np.float32]: ...

    def weights(self) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Weights (V, B), each block with its slice of the T targets."""

    def reduced(self, fidelity: float, journal: Journal | None, report: Report | None) -> Reduced:
        """Factors that keep the share ``fidelity`` of the predictions' variance."""

    def some_z(self, most: int) -> NDArray[Any]:
        """z-scored voxels (M, V) of some scans."""


def write_subject(
    folder: Path,
    name: str,
    heads: Mapping[str, WritableHead],
    *,
    beta_scale: float,
    mask: ArrayLike | None = None,
    rois: Mapping[str, ArrayLike] | None = None,
    storage: Storage = "int8",
    exact: bool = False,
    fidelity: float = FIDELITY,
    max_bytes: int | None = None,
    encoders: str | None = None,
    provenance: Mapping[str, Any] | None = None,
    journal: Journal | None = None,
    report: Report | None = None,
) -> None:
    """Write four heads of the same voxels, those of one `fit_heads`, into the new folder ``folder``.

    Heads are factored, so that of the held-out predictions' variance (in units of each target's deviation) the share
    ``fidelity`` is kept, the mean over heads, rounding included, or as much as ``max_bytes`` of factors and offsets
    can. They are stored as ``storage`` says. ``exact`` heads are dense and always float32: a large subject's weights
    are below what half precision can hold. ``mask`` (x, y, z) picks the voxels of a volume in C order, ``rois`` tells
    which of them (V,) lie in each region (a file of its own, left out where there are none).
    ``encoders`` names the bundle's that made the targets. ``provenance`` goes into ``fitted_on`` beside the number of
    scans. ``journal`` keeps what took long to find; the file itself is written anew.

    The same fit gives the same bytes. Raises `InputError` if the folder exists or cannot be written, or the
    mask or the factors do not fit; nothing is left behind then.
    """
    folder = Path(folder)
    if set(heads) != set(INPUTS) or len({id(head.basis) for head in heads.values()}) != 1:
        raise ValueError(f"a subject is one fit of {', '.join(INPUTS)}, not {', '.join(heads)}")
    if storage not in get_args(Storage):
        raise ValueError(f"heads are stored in {', '.join(get_args(Storage))}, not {storage}")
    if not name.strip() or not 0.0 < beta_scale < math.inf:
        raise InputError(f"subject '{name}' with beta scale {beta_scale}: give a name and a scale above 0")
    if os.path.lexists(folder):
        raise input_error(folder, "exists already: remove it first, or give the subject another name")
    basis = heads[INPUTS[0]].basis
    arrays: dict[str, NDArray[Any]] = {
        "voxel_mean": basis.voxel_mean.astype(np.float32),
        "voxel_std": basis.voxel_std.astype(np.float32),
    }
    if mask is not None:
        arrays["mask"] = _mask(mask, basis.voxels)
    regions = {region: _region(region, inside, basis.voxels) for region, inside in (rois or {}).items()}
    stored = {} if exact else _stored(heads, storage, fidelity, max_bytes, journal, report)
    with whole_folder(folder) as part:
        _write_tensors(part / TENSOR_FILE, heads, stored, arrays)
        description = {
            "schema_version": SCHEMA_VERSION,
            "name": name,
            "voxels": basis.voxels,
            "beta_scale": float(beta_scale),
            "heads": {key: _described(heads[key], stored.get(key)) for key in INPUTS},
            "encoders": encoders,
            "fitted_on": {"scans": basis.scans, **(provenance or {})},
        }
        text = json.dumps(description, indent=2, sort_keys=True, allow_nan=False)
        (part / DESCRIPTION_FILE).write_bytes(f"{text}\n".encode())
        if regions:
            (part / ROI_FILE).write_bytes(_saved(regions))
        write_ridge_graph(part)
        Subject.open(part).rois()  # what cannot be read back is not put in place


def _stored(
    heads: Mapping[str, WritableHead],
    storage: Storage,
    fidelity: float,
    max_bytes: int | None,
    journal: Journal | None,
    report: Report | None,
) -> dict[str, StoredFactors]:
    """Every head as factors. The ranks are chosen for all heads together."""
    check_fidelity(fidelity)
    budget = min(1.0, fidelity + ROUNDING[storage])
    # How long components take to find does not depend on how many are kept, so one search serves every budget.
    reduced = {key: heads[key].reduced(max(budget, _SEARCHED), journal, report) for key in INPUTS}
    width, scale = np.dtype(storage).itemsize, 4 if storage == "int8" else 0
    voxels = heads[INPUTS[0]].basis.voxels
    targets = {key: math.prod(head.shape) for key, head in heads.items()}
    offsets = 8 * voxels + (12 + scale) * sum(targets.values())
    ranks = share_out(
        {key: factors.shares for key, factors in reduced.items()},
        {key: width * (voxels + targets[key]) + scale for key in INPUTS},
        budget,
        None if max_bytes is None else max_bytes - offsets,
    )
    if report is not None:
        report(f"ranks: {', '.join(f'{key} {ranks[key]:,}' for key in INPUTS)}")
    return {
        key: StoredFactors(
            key, factors.cut(ranks[key]), storage, heads[key].some_z(_CHECKED_SCANS), heads[key].units
        )
        for key, factors in reduced.items()
    }


def _described(head: WritableHead, stored: StoredFactors | None) -> dict[str, Any]:
    """A head's entry in the description."""
    correlation = head.mean_correlation
    return {
        "shape": list(head.shape),
        "rank": None if stored is None else stored.rank,
        "alpha": head.alpha,
        "held_out_correlation": None if correlation is None else round(correlation, 6),
        "fidelity": 1.0 if stored is None else round(stored.fidelity, 6),
    }


def _write_tensors(
    path: Path,
    heads: Mapping[str, WritableHead],
    stored: Mapping[str, StoredFactors],
    arrays: Mapping[str, NDArray[Any]],
) -> None:
    """Fill the file a block of targets at a time: it may be larger than memory."""
    given = dict(arrays)
    specs: dict[str, tuple[DTypeLike, tuple[int, ...]]] = {}
    for key, head in heads.items():
        width = math.prod(head.shape)
        for offset in ("bias", "target_mean", "calibration"):
            given[f"{key}.{offset}"] = getattr(head, offset)
        if key not in stored:
            specs[f"{key}.left"] = (np.float32, (head.basis.voxels, width))
            continue
        given[f"{key}.left"] = stored[key].left
        specs[f"{key}.right"] = (stored[key].left.dtype, (stored[key].rank, width))
        if (scale := stored[key].left_scale) is not None:
            given[f"{key}.left_scale"] = scale
            specs[f"{key}.right_scale"] = (np.float32, (width,))
    tensors = new_tensors(
        path, specs | {name: (values.dtype, values.shape) for name, values in given.items()}
    )
    for name, values in given.items():
        tensors[name][:] = values
    for key, head in heads.items():
        if key not in stored:
            for part, weights in head.weights():
                tensors[f"{key}.left"][:, part] = weights
                release(tensors[f"{key}.left"])
            continue
        for part, values, scale in stored[key].right():
            tensors[f"{key}.right"][:, part] = values
            if scale is not None:
                tensors[f"{key}.right_scale"][part] = scale
            release(tensors[f"{key}.right"])
    for tensor in tensors.values():
        tensor.flush()


def _saved(tensors: Mapping[str, NDArray[Any]]) -> bytes:
    # safetensors orders tensors by type and name, so that the mapping's order does not reach the file.
    return save({key: np.ascontiguousarray(tensors[key]) for key in sorted(tensors)})


def _region(name: str, inside: ArrayLike, voxels: int) -> NDArray[np.uint8]:
    member = np.asarray(inside)
    if member.shape != (voxels,):
        raise InputError(f"region {name} is {member.shape}, but there are {voxels:,} voxels: draw it anew")
    return np.asarray(member > 0, np.uint8)


def _mask(mask: ArrayLike, voxels: int) -> NDArray[np.uint8]:
    inside = np.asarray(mask) > 0
    if inside.ndim != 3 or int(inside.sum()) != voxels:
        problem = f"the mask has {int(inside.sum()):,} voxels in {inside.ndim} dimensions"
        raise InputError(f"{problem}, but the betas have {voxels:,}: give the 3-D mask they were taken with")
    return inside.astype(np.uint8)
