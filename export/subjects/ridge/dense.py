"""Heads that were fitted elsewhere and come as whole weight matrices, made ready to be stored like our own."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.errors import InputError, input_error
from unibrain_rt.export.subjects.ridge.basis import VoxelScale, blocks, eigen
from unibrain_rt.export.subjects.ridge.journal import Journal, Report
from unibrain_rt.export.subjects.ridge.reduced import Reduced, check_fidelity
from unibrain_rt.export.subjects.ridge.solution import spread_evenly
from unibrain_rt.export.subjects.ridge.targets import release

_BLOCK_BYTES = 128 << 20
_MOST_SCANS = 4096  # whose predictions tell the directions
_RESAVE = (
    'load it where you trust it, and save the arrays alone: numpy.savez("head.npz", weight=..., bias=...)'
)


class DenseHead:
    """Weights (*shape, V) and bias (*shape) for z-scored voxels, as Brain-Diffuser has them.

    ``betas`` (N, V) are scans like those it will see, in the scale of ``basis``: rank is chosen by what it keeps of
    predictions for them. Raises `InputError` if the file cannot be read or does not fit.
    """

    alpha = mean_correlation = None

    def __init__(self, path: Path, shape: tuple[int, ...], basis: VoxelScale, betas: NDArray[Any]) -> None:
        arrays = _arrays(path)
        weight, bias = arrays["weight"], np.asarray(arrays.get("bias", np.zeros(shape)), np.float32)
        if weight.size != math.prod(shape) * basis.voxels or weight.shape[-1] != basis.voxels:
            expected = (*shape, basis.voxels)
            raise input_error(
                path, f"weight is {weight.shape}, not {expected}: give that head's and subject's"
            )
        if bias.size != math.prod(shape) or not np.isfinite(bias).all():
            raise input_error(path, f"bias is {bias.shape} or not finite, not {shape}: save the head again")
        self.path, self.shape, self.basis = path, shape, basis
        self._weight, self._betas = weight.reshape(-1, basis.voxels), betas
        self.bias = self.target_mean = bias.reshape(-1)
        self.calibration = np.asarray(arrays.get("calibration", np.ones(1)), np.float32).reshape(-1)
        if self.calibration.size not in (1, self.bias.size) or not (self.calibration > 0).all():
            raise input_error(path, f"calibration is not {shape} of numbers above 0: save the head again")
        self.calibration = np.broadcast_to(self.calibration, self.bias.shape)

    @property
    def units(self) -> NDArray[np.float32]:
        """(T,): what an error counts by; the targets' deviations are not known."""
        return self.calibration

    def weights(self) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Weights (V, B), each block with its slice of the T targets. Raises `InputError` if they are not finite."""
        for part in blocks(len(self._weight), 4 * self.basis.voxels, _BLOCK_BYTES):
            block = np.array(self._weight[part], np.float32)
            release(self._weight)
            if not np.isfinite(block).all():
                raise input_error(self.path, "weights that are not finite: save the head again")
            yield part, block.T

    def some_z(self, most: int) -> NDArray[Any]:
        """z-scored voxels (M, V) of at most ``most`` scans, spread evenly."""
        return self.basis.z(self._betas[spread_evenly(len(self._betas), most)]).astype(np.float32)

    def reduced(
        self,
        fidelity: float,
        journal: Journal | None = None,
        report: Report | None = None,
    ) -> Reduced:
        """The smallest rank that keeps the share ``fidelity`` of predictions for (at most 4,096 of) the scans."""
        check_fidelity(fidelity)
        z = self._z
        gram = np.zeros((len(z), len(z)), np.float32)
        for part, weights in self.weights():
            predictions = (z @ weights) * self.calibration[part]
            gram += predictions @ predictions.T
        squares, vectors = eigen(np.asfortranarray(gram))
        shares = np.cumsum(squares, dtype=np.float64) / (float(squares.sum(dtype=np.float64)) or 1.0)
        rank = min(int(np.searchsorted(shares, fidelity)) + 1, len(squares))
        if not rank:
            raise input_error(self.path, "every weight is 0: save the head again")
        width = len(self._weight)
        right_of = (vectors[:, :rank] / np.sqrt(squares[:rank])).T @ z * np.sqrt(width)
        left = np.zeros((self.basis.voxels, rank), np.float32)
        for part, weights in self.weights():
            scaled = weights * np.square(self.calibration[part])
            left += scaled @ (right_of @ weights).T / width
        if report is not None:
            report(f"{self.path.name}: rank {rank:,} keeps {shares[rank - 1]:.4f} of the predictions")
        return Reduced(left, right_of, self.weights, shares[:rank])

    @cached_property
    def _z(self) -> NDArray[Any]:
        return self.some_z(_MOST_SCANS)


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    """``weight``, and ``bias`` and ``calibration`` where there are; nothing is unpickled."""
    if not path.is_file():
        raise input_error(path, "no such file: name a .npz with weight and bias, or a .npy")
    with path.open("rb") as file:
        magic = file.read(6)
    if magic[:2] == b"PK":
        kind = "npz"
    elif magic == b"\x93NUMPY":
        kind = "npy"
    else:
        what = (
            "a pickle, which may run anything when it is read"
            if magic[:1] == b"\x80"
            else "neither .npz nor .npy"
        )
        raise input_error(path, f"{what}: {_RESAVE}")
    try:
        if kind == "npy":
            arrays: dict[str, NDArray[Any]] = {"weight": np.load(path, mmap_mode="r", allow_pickle=False)}
        else:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                names = {"weight", "bias", "calibration"} & set(stored.files)
                arrays = {name: stored[name] for name in names}
    except (OSError, ValueError, EOFError) as error:
        if "pickle" in str(error).lower() or "object" in str(error).lower():
            raise input_error(path, f"holds Python objects: {_RESAVE}") from error
        raise input_error(path, f"damaged ({error}): copy it again") from error
    except Exception as error:  # zipfile has errors of its own
        raise input_error(path, f"damaged ({error}): copy it again") from error
    if "weight" not in arrays:
        raise input_error(path, f"has no array called weight: {_RESAVE}")
    for name, array in arrays.items():
        if array.dtype.kind != "f" or not array.ndim:
            raise InputError(f"{path}: {name} is {array.dtype} {array.shape}: save it as floating point")
    return arrays
