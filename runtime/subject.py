"""Subjects: one person's voxel statistics and four ridge heads, from betas to latents and contexts.

What lies where in a subject's folder is told in `unibrain_rt.subject_files`, and so is the formula of a prediction.
Nothing in a prediction depends on the other scans of a batch: every scan goes through the same operations, bit
for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.errors import InputError, one_line
from unibrain_rt.factors import Factor, products
from unibrain_rt.scans import VoxelSpace
from unibrain_rt.subject_files import (
    ROI_FILE,
    STORAGE,
    TENSOR_FILE,
    Head,
    broken,
    read_description,
    read_factor,
    read_mask,
    read_rois,
    read_statistic,
    read_tensors,
    reading,
    sides,
)
from unibrain_rt.tensor_file import type_name

_FAR = 1e4  # standard deviations; closer than this, only a damaged head gives infinities


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
        told = read_description(folder)
        path = folder / TENSOR_FILE
        tensors = read_tensors(path, told.voxels, told.heads)
        mean = read_statistic(path, tensors, "voxel_mean")
        std = read_statistic(path, tensors, "voxel_std", low=0.0)
        offsets = {
            head: _Offsets(
                read_statistic(path, tensors, f"{head}.bias"),
                read_statistic(path, tensors, f"{head}.target_mean"),
                read_statistic(path, tensors, f"{head}.calibration", low=0.0),
            )
            for head in told.heads
        }
        factors = {
            head: tuple(read_factor(path, tensors, f"{head}.{side}") for side in sides(entry))
            for head, entry in told.heads.items()
        }
        space = VoxelSpace(told.name, told.voxels, told.beta_scale, read_mask(path, tensors, told.voxels))
        return cls(
            folder,
            **vars(told),
            voxel_space=space,
            voxel_mean=mean,
            voxel_std=std,
            _offsets=offsets,
            _factors=factors,
        )

    def head_shape(self, name: str) -> tuple[int, ...]:
        """Shape, without the batch, of what one of `INPUTS` predicts."""
        return self.heads[name].shape

    def storage(self, name: str) -> str:
        """Type that one of `INPUTS` is stored in: int8, float16 or float32."""
        return STORAGE[type_name(self._factors[name][-1].values.dtype)]

    def size_bytes(self, name: str) -> int:
        """Bytes that one of `INPUTS` takes on disk, without its offsets."""
        return sum(factor.size_bytes for factor in self._factors[name])

    def rois(self) -> dict[str, NDArray[np.bool_]]:
        """Region -> which voxels (V,) lie in it, read from the file anew; empty where no regions are stored.

        Raises `BundleError`: the file is damaged, or does not fit the subject.
        """
        path = self.folder / ROI_FILE
        if not path.exists():
            return {}
        return read_rois(path, self.voxels)

    def predict(self, betas: NDArray[np.floating[Any]]) -> dict[str, NDArray[np.float32]]:
        """Latents and contexts of every head, (N, *shape) float32, from betas (N, V), or (V,) for one scan.

        A scan's prediction is the same, bit for bit, alone and in any batch. Raises `InputError` for betas
        that are not this subject's, `BundleError` if a head is damaged.
        """
        z = self.z_scores(betas)
        with reading(self.folder / TENSOR_FILE):
            first = [factors[0] for factors in self._factors.values()]
            y = dict(zip(self._factors, products([z] * len(first), first), strict=True))
            second = {name: factors[1] for name, factors in self._factors.items() if len(factors) > 1}
            predicted = products([y[name] for name in second], list(second.values()))
            y.update(zip(second, predicted, strict=True))
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
            raise broken(self.folder / TENSOR_FILE, f"{head} gives values that are not finite")
