"""One session's file of NSD, NIfTI or HDF5: its header is checked first, then trials are read and masked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.errors import input_error
from unibrain_rt.export.subjects.datasets.hdf5 import hdf5_array
from unibrain_rt.scans import VoxelSpace
from unibrain_rt.scans.scan_file import ScanFile, inspect

SESSION_TRIALS = 750
_BLOCK_TRIALS = 25  # volumes that are read at a time
_KINDS = (("i", 2), ("f", 4))


@dataclass(frozen=True, eq=False)
class NsdSession:
    """A session's file whose header was read and found good."""

    number: int
    path: Path
    space: VoxelSpace
    _file: ScanFile | None  # None: HDF5

    @classmethod
    def open(cls, path: Path, number: int, space: VoxelSpace) -> NsdSession:
        """Read the header alone. Raises `InputError`."""
        if path.suffix == ".hdf5":
            file = None
            with hdf5_array(path, "betas") as stored:
                shape, dtype = tuple(stored.shape), stored.dtype
            count = shape[0] if len(shape) == 4 else 0
            assert space.mask is not None
            if shape[1:] != space.mask.shape[::-1] or (dtype.kind, dtype.itemsize) not in _KINDS:
                wanted = f"int16 or float32 ({SESSION_TRIALS}, z, y, x) with the mask's {space.mask.shape}"
                raise input_error(path, f"betas are {dtype} {shape}, not {wanted}: copy the session again")
        else:
            file = inspect(path, space)
            count = len(file)
        if count != SESSION_TRIALS:
            raise input_error(
                path, f"{count} trials, but a session has {SESSION_TRIALS}: copy the session again"
            )
        return cls(number, path, space, file)

    @property
    def first(self) -> int:
        """Number of its first trial, from 0."""
        return (self.number - 1) * SESSION_TRIALS

    def read(self, trials: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
        """Betas (V,) of these of its trials, counted from 0. Raises `InputError`."""
        if self._file is not None:
            try:
                for trial in trials:
                    yield self._file.read(int(trial))
            finally:
                self._file.close()
            return
        mask = self.space.mask
        assert mask is not None
        with hdf5_array(self.path, "betas") as stored:
            for start in range(0, len(trials), _BLOCK_TRIALS):
                part = trials[start : start + _BLOCK_TRIALS]
                volumes = np.asarray(stored[part])
                for trial, volume in zip(part, volumes, strict=True):
                    scale = self.space.scale if volume.dtype.kind == "i" else 1.0
                    betas = np.array(volume.T[mask].astype(np.float64) * scale, np.float32)
                    if not np.isfinite(betas).all():
                        raise input_error(self.path, f"trial {trial} has values that are not finite: mend it")
                    yield betas
