"""Fitted heads to a subject's folder, in the form `unibrain_rt.subject` reads: whole or not at all."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray
from safetensors.numpy import save

from unibrain_rt.errors import InputError, input_error
from unibrain_rt.export.ridge import Basis, RidgeFit, factorise
from unibrain_rt.subject import DESCRIPTION_FILE, HEADS, ROI_FILE, SCHEMA_VERSION, TENSOR_FILE, Subject

_BLOCK = 1024  # targets at a time


def write_subject(
    folder: Path,
    name: str,
    fits: Mapping[str, RidgeFit],
    *,
    beta_scale: float,
    mask: ArrayLike | None = None,
    rois: Mapping[str, ArrayLike] | None = None,
    dtype: DTypeLike = np.float16,
    exact: bool = False,
    fidelity: float = 0.999,
    max_rank: int | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write the four heads of one `fit_heads` into the new folder ``folder``.

    Heads are factored (`factorise`, errors in the units of the calibrated predictions, at least ``fidelity``
    of their variance kept) and stored in ``dtype``, float16 or float32. ``exact`` heads are dense and always
    float32: a large subject's weights are below what half precision can hold. ``mask`` (x, y, z) picks the
    voxels of a volume in C order, ``rois`` tells which of them (V,) lie in each region (a file of its own, left
    out where there are none). ``provenance`` goes into ``fitted_on`` beside the number of scans.

    The same fit gives the same bytes. Raises `InputError` if the folder exists or cannot be written, or the
    mask or the factors do not fit; nothing is left behind then.
    """
    folder = Path(folder)
    if set(fits) != set(HEADS) or len({id(fit.basis) for fit in fits.values()}) != 1:
        raise ValueError(f"a subject is one fit of {', '.join(HEADS)}, not {', '.join(fits)}")
    stored_dtype = np.dtype(dtype)
    if stored_dtype not in (np.float16, np.float32):
        raise ValueError(f"heads are stored in float16 or float32, not {stored_dtype}")
    if not name.strip() or not 0.0 < beta_scale < math.inf:
        raise InputError(f"subject '{name}' with beta scale {beta_scale}: give a name and a scale above 0")
    if os.path.lexists(folder):
        raise input_error(folder, "exists already: remove it first, or give the subject another name")
    basis = fits[HEADS[0]].basis
    tensors: dict[str, NDArray[Any]] = {
        "voxel_mean": basis.voxel_mean.astype(np.float32),
        "voxel_std": basis.voxel_std.astype(np.float32),
    }
    if mask is not None:
        tensors["mask"] = _mask(mask, basis.voxels)
    heads = {}
    for head in HEADS:
        fit = fits[head]
        kept = 1.0
        if exact:
            tensors[f"{head}.left"] = fit.weight
        else:
            factors = factorise(fit.weight, basis.root, fidelity, max_rank, fit.calibration)
            left, right = (_narrow(head, factor, stored_dtype) for factor in factors)
            tensors[f"{head}.left"], tensors[f"{head}.right"] = left, right
            kept = kept_variance(basis, fit, left, right)
        tensors[f"{head}.bias"] = fit.bias
        tensors[f"{head}.target_mean"] = fit.target_mean
        tensors[f"{head}.calibration"] = fit.calibration
        heads[head] = {
            "shape": list(fit.shape),
            "rank": None if exact else left.shape[1],
            "alpha": fit.alpha,
            "held_out_correlation": round(fit.mean_correlation, 6),
            "fidelity": round(kept, 6),
        }
    description = {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "voxels": basis.voxels,
        "beta_scale": float(beta_scale),
        "heads": heads,
        "fitted_on": {"scans": basis.scans, **(provenance or {})},
    }
    text = json.dumps(description, indent=2, sort_keys=True, allow_nan=False)
    files = {DESCRIPTION_FILE: f"{text}\n".encode(), TENSOR_FILE: _saved(tensors)}
    if rois:
        files[ROI_FILE] = _saved({region: _region(region, rois[region], basis.voxels) for region in rois})
    _write(folder, files)


def kept_variance(basis: Basis, fit: RidgeFit, left: NDArray[Any], right: NDArray[Any]) -> float:
    """Share, in [0, 1], of the calibrated predictions' variance over the training scans that factors keep."""
    root = basis.root
    reduced = root @ left.astype(np.float64)
    total = lost = 0.0
    for start in range(0, fit.weight.shape[1], _BLOCK):
        part = slice(start, start + _BLOCK)
        wanted = (root @ fit.weight[:, part]) * fit.calibration[part]
        error = wanted - (reduced @ right[:, part]) * fit.calibration[part]
        total += float(np.square(wanted).sum())
        lost += float(np.square(error).sum())
    return max(0.0, 1.0 - lost / total) if total else 1.0


def _saved(tensors: Mapping[str, NDArray[Any]]) -> bytes:
    # safetensors orders tensors by type and name, so that the mapping's order does not reach the file.
    return save({key: np.ascontiguousarray(tensors[key]) for key in sorted(tensors)})


def _region(name: str, inside: ArrayLike, voxels: int) -> NDArray[np.uint8]:
    member = np.asarray(inside)
    if member.shape != (voxels,):
        raise InputError(f"region {name} is {member.shape}, but there are {voxels:,} voxels: draw it anew")
    return np.asarray(member > 0, np.uint8)


def _narrow(head: str, factor: NDArray[np.float32], dtype: np.dtype[Any]) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        narrow = factor.astype(dtype)
    if not np.isfinite(narrow).all():
        raise InputError(
            f"{head}: factors up to {np.abs(factor).max():.1g} do not fit in {dtype}: store float32"
        )
    return narrow


def _mask(mask: ArrayLike, voxels: int) -> NDArray[np.uint8]:
    inside = np.asarray(mask) > 0
    if inside.ndim != 3 or int(inside.sum()) != voxels:
        problem = f"the mask has {int(inside.sum()):,} voxels in {inside.ndim} dimensions"
        raise InputError(f"{problem}, but the betas have {voxels:,}: give the 3-D mask they were taken with")
    return inside.astype(np.uint8)


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Make ``folder`` with these files, or nothing."""
    part = folder.with_name(f".{os.urandom(8).hex()}.tmp")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part.mkdir()
        for file, content in files.items():
            (part / file).write_bytes(content)
        Subject.open(part).rois()  # what cannot be read back is not put in place
        part.rename(folder)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        if isinstance(error, OSError):
            problem = f"cannot be written ({error.strerror or type(error).__name__})"
            raise input_error(folder, f"{problem}: write elsewhere, or free some space") from error
        raise
