"""The training scans' voxels, factorised once for everything that is fitted on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigh
from scipy.linalg.blas import dsyrk

from unibrain_rt.errors import InputError
from unibrain_rt.export.subjects.ridge.journal import Journal

Floats = NDArray[np.float64]

_CONSTANT = 1e-6  # of the mean: float32 cannot tell smaller spreads from none
_BLOCK_BYTES = 128 << 20  # of voxels at a time in float64


@dataclass(frozen=True, eq=False)
class VoxelScale:
    """Means and deviations (V,) of the training scans' voxels; 0 for constant voxels, whose z is 0."""

    voxel_mean: Floats
    voxel_std: Floats
    scans: int

    @classmethod
    def of(cls, betas: NDArray[Any], weights: Floats) -> VoxelScale:
        """Of betas (N, V), whose scans count by ``weights`` (N,) of mean 1; ddof 1.

        Raises `InputError` for betas that are not finite, too few or all constant.
        """
        if betas.ndim != 2 or len(betas) < 4 or betas.shape[1] < 1 or betas.dtype.kind not in "fiu":
            raise InputError(
                f"training betas have shape {betas.shape}: give (scans, voxels), 4 scans or more"
            )
        scans, count = betas.shape
        mean, std = np.empty(count), np.empty(count)
        for part in blocks(count, 8 * scans):
            block = np.asarray(betas[:, part], np.float64)
            if not np.isfinite(block).all():
                raise InputError(
                    "training betas have values that are not finite: mend or leave out those scans"
                )
            mean[part] = weights @ block / scans
            std[part] = np.sqrt(weights @ np.square(block - mean[part]) / (scans - 1))
        std[std <= _CONSTANT * np.abs(mean)] = 0.0
        if not std.any():
            raise InputError("every voxel is constant over the training scans: check how they were read")
        return cls(mean, std, scans)

    @property
    def voxels(self) -> int:
        return len(self.voxel_mean)

    def z(self, voxels: ArrayLike, part: slice = slice(None)) -> Floats:
        """z-scored voxels (M, B) of scans (M, B), the voxels being those of ``part``."""
        mean, std = self.voxel_mean[part], self.voxel_std[part]
        z = (np.asarray(voxels, np.float64) - mean) / np.where(std > 0.0, std, 1.0)
        z[..., std == 0.0] = 0.0
        return z


@dataclass(frozen=True, eq=False)
class Basis(VoxelScale):
    """``√w z = scores @ axes.T`` of N scans of V voxels, R components."""

    root_weights: Floats  # (N,): √w, of mean square 1
    axes: Floats  # (V, R), orthonormal
    scores: Floats  # (N, R), orthogonal
    squares: Floats  # (R,): squared lengths of the scores, eigenvalues of the Gram matrix, falling

    @classmethod
    def factorise(
        cls, voxels: ArrayLike, weights: ArrayLike | None = None, journal: Journal | None = None
    ) -> Basis:
        """Factorise betas (N, V), by the smaller of the Gram matrices z z.T and z.T z, in blocks of voxels or scans.

        ``weights`` (N,) tell how much each scan counts: for example 3 for a mean over three repeats, 1 for a single
        trial. By default all count the same. Memory maps stay on disk. Raises `InputError` as `VoxelScale.of` does.
        """
        betas = np.asanyarray(voxels)
        root = _root_weights(weights, len(betas) if betas.ndim else 0)
        scale = VoxelScale.of(betas, np.square(root))
        by_scans = scale.voxels > scale.scans
        kept = (journal := journal or Journal()).find("basis")
        if kept is None:
            squares, vectors = eigen(_gram(scale, betas, root, by_scans))
            journal.enter("basis", squares=squares, vectors=vectors)
        else:
            squares, vectors = kept["squares"], kept["vectors"]
        lengths = np.sqrt(squares)
        if by_scans:
            scores, axes = vectors * lengths, np.empty((scale.voxels, len(squares)))
            for part in blocks(scale.voxels, 8 * scale.scans):
                axes[part] = (root[:, None] * scale.z(betas[:, part], part)).T @ (vectors / lengths)
        else:
            vectors[scale.voxel_std == 0.0] = 0.0  # exactly, and not just nearly
            axes, scores = vectors, np.empty((scale.scans, len(squares)))
            for part in blocks(scale.scans, 8 * scale.voxels):
                scores[part] = root[part, None] * (scale.z(betas[part]) @ axes)
        return cls(scale.voxel_mean, scale.voxel_std, scale.scans, root, axes, scores, squares)

    @property
    def intercept(self) -> Floats:
        """(N,), of length 1: the intercept's column among the weighted rows."""
        return self.root_weights / np.linalg.norm(self.root_weights)


def eigen(gram: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Eigenvalues in falling order and eigenvectors of a Gram matrix, which is overwritten.

    Those that are smaller than what rounding does are left out.
    """
    squares, vectors = eigh(gram, overwrite_a=True, check_finite=False, driver="evd")
    # In float32 a safe bound on rounding would cut off signal. A lax one leaves noise, which does no harm.
    errors = len(squares) if squares.dtype == np.float64 else np.sqrt(len(squares))
    keep = squares > squares[-1] * errors * np.finfo(squares.dtype).eps
    return squares[keep][::-1].copy(), np.ascontiguousarray(vectors[:, keep][:, ::-1])


def blocks(count: int, bytes_each: int, block_bytes: int = _BLOCK_BYTES) -> Iterator[slice]:
    """Slices of ``count`` things, of at most ``block_bytes`` each: ten things, four a block, are 0:4, 4:8 and 8:10."""
    step = max(1, block_bytes // bytes_each)
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def _root_weights(weights: ArrayLike | None, scans: int) -> Floats:
    if weights is None:
        return np.ones(scans)
    given = np.asarray(weights, np.float64)
    if given.shape != (scans,) or not np.isfinite(given).all() or not (given > 0.0).all():
        raise InputError(f"weights of scans are {given.shape}: give one number above 0 for each of {scans:,}")
    return np.sqrt(given / given.mean())


def _gram(scale: VoxelScale, betas: NDArray[Any], root: Floats, by_scans: bool) -> Floats:
    """z z.T (N, N) or z.T z (V, V), its lower triangle, a block at a time."""
    side = scale.scans if by_scans else scale.voxels
    gram = np.zeros((side, side), order="F")
    for part in blocks(*((scale.voxels, 8 * scale.scans) if by_scans else (scale.scans, 8 * scale.voxels))):
        if by_scans:
            block = root[:, None] * scale.z(betas[:, part], part)
            gram = dsyrk(1.0, block.T, 1.0, gram, trans=1, lower=1, overwrite_c=1)
        else:
            block = root[part, None] * scale.z(betas[part])
            gram = dsyrk(1.0, block.T, 1.0, gram, trans=0, lower=1, overwrite_c=1)
    return gram
