"""One scan file: ``.npy``, ``.npz``, ``.nii`` or ``.nii.gz``, header first, then one scan at a time.

`inspect` reads the header alone and checks everything it can tell: type, shape, voxel count, number of bytes.
`ScanFile.read` then reads one scan. Plain files are memory-mapped; compressed ones are unpacked once, which
compares their checksums. Nothing is ever unpickled. Whatever a file holds, the only error is an `InputError`.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.errors import InputError, input_error
from unibrain_rt.scans.scan_headers import Layout, Stored, damaged, padded, read_header, truncated
from unibrain_rt.scans.voxel_space import VoxelSpace

SUFFIXES = (".npy", ".npz", ".nii.gz", ".nii")

_IN_MEMORY_BYTES = 256 << 20  # unpacked data above this goes to a temporary file
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, eq=False)
class ScanFile:
    """A scan file whose header was read and found good; ``stems`` names its scans, in order.

    `read` keeps the file mapped (or unpacked) until `close`.
    """

    path: Path
    stems: tuple[str, ...]
    dtype: np.dtype[Any]
    space: VoxelSpace
    _stored: Stored
    _layout: Layout

    def __len__(self) -> int:
        return len(self.stems)

    @cached_property
    def _scans(self) -> NDArray[Any]:
        """Stored numbers, (scans, voxels) or (x, y, z, scans)."""
        layout, stored = self._layout, self._stored
        with _reading(self.path):
            if stored.suffix in (".npz", ".nii.gz"):
                data = _unpacked(stored, layout.end)
            elif os.stat(self.path).st_size == layout.end:
                data = np.memmap(self.path, np.uint8, mode="r")
            else:
                raise input_error(self.path, "changed while it was being read: wait until it is complete")
            shape, dtype, offset = layout.shape, layout.dtype, layout.offset
            array: NDArray[Any] = np.ndarray(shape, dtype, buffer=data, offset=offset, order=layout.order)
            if stored.suffix.startswith(".nii"):
                return array if array.ndim == 4 else array[..., None]
            return array if array.ndim == 2 else array[None]

    def load(self) -> None:
        """Map or unpack the data, if `read` has not done so yet. Raises `InputError`."""
        self._scans  # noqa: B018  (a cached property)

    def read(self, row: int) -> NDArray[np.float32]:
        """Betas (voxels,) of one scan. Raises `InputError` if they are not all finite in float32."""
        if not 0 <= row < len(self):
            raise IndexError(f"{self.path} has no scan {row}")
        layout, mask = self._layout, self.space.mask
        scans = self._scans
        with _reading(self.path), np.errstate(all="ignore"):
            if self._stored.suffix.startswith(".nii") and mask is not None:
                stored = scans[..., row][mask]
            else:
                stored = scans[row]
            if (layout.slope, layout.inter) == (1.0, 0.0):
                betas = np.array(stored, np.float32)
            else:
                betas = np.array(np.array(stored, np.float64) * layout.slope + layout.inter, np.float32)
            if not np.isfinite(betas).all():
                raise input_error(self.path, self._not_finite(row, stored, betas))
        return betas

    def close(self) -> None:
        """Let go of the data; `read` would map it again."""
        self.__dict__.pop("_scans", None)

    def _not_finite(self, row: int, stored: NDArray[Any], betas: NDArray[np.float32]) -> str:
        nan = int(np.isnan(betas).sum())
        infinite = int(np.isinf(stored).sum())
        beyond = int(np.isinf(betas).sum()) - infinite
        counts = ((nan, "NaN"), (infinite, "infinite"), (beyond, "beyond float32's range"))
        listed = ", ".join(f"{count:,} {kind}" for count, kind in counts if count)
        which = f"scan {row} (of {len(self):,}, counted from 0)" if len(self) > 1 else "the scan"
        return (
            f"{which} has values that are not finite ({listed}, of {betas.size:,}): mend it or leave it out"
        )


def inspect(path: str | os.PathLike[str], space: VoxelSpace) -> ScanFile:
    """Read a scan file's header and check it against the subject. Raises `InputError`; loads no data."""
    path = Path(path)
    suffix = next((s for s in SUFFIXES if path.name.lower().endswith(s) and len(path.name) > len(s)), None)
    with _reading(path):
        packed_bytes = _file_size(path)
        if suffix is None:
            raise input_error(path, f"not a kind of scan file that is read ({', '.join(sorted(SUFFIXES))})")
        if packed_bytes == 0:
            raise input_error(path, "an empty file (0 bytes): save or copy it again")
        stored, layout, count = read_header(Stored(path, suffix, packed_bytes), space)
    stem = path.name[: -len(suffix)]
    digits = max(3, len(str(count - 1)))
    stems = (stem,) if count == 1 else tuple(f"{stem}_{row:0{digits}d}" for row in range(count))
    return ScanFile(path, stems, layout.dtype, space, stored, layout)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Make one `InputError` of whatever a file's parser raises, and keep its warnings off the terminal."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except InputError:
        raise
    except MemoryError as error:
        raise input_error(path, "does not fit in memory: save it in smaller parts, or as .npy") from error
    except OSError as error:
        if error.errno in (None, errno.EINVAL):  # gzip's own, and a seek to a place no file has
            raise damaged(path, error.strerror or str(error)) from error
        advice = "check its permissions" if isinstance(error, PermissionError) else "copy it to another disk"
        raise input_error(path, f"cannot be read ({error.strerror}): {advice}") from error
    except Exception as error:  # between them, zipfile, zlib, ast, numpy and nibabel raise a dozen types
        raise damaged(path, str(error) or type(error).__name__) from error


def _file_size(path: Path) -> int:
    try:
        status = os.stat(path)
    except FileNotFoundError as error:
        raise input_error(path, "no such file: check the name") from error
    if stat.S_ISDIR(status.st_mode):
        raise input_error(path, "a folder: name the scan files in it")
    if not stat.S_ISREG(status.st_mode):
        raise input_error(path, "not a regular file: save the scan to a file first")
    return status.st_size


def _unpacked(stored: Stored, size: int) -> NDArray[np.uint8]:
    """All ``size`` bytes of a compressed file, read to the end so that its checksum is compared."""
    small = size <= _IN_MEMORY_BYTES
    with io.BytesIO() if small else tempfile.TemporaryFile() as sink, stored.stream() as stream:
        there = 0
        while there < size and (chunk := stream.read(min(_CHUNK_BYTES, size - there))):
            there += sink.write(chunk)
        if there < size:
            raise truncated(stored.path, size, f"there are {there:,}")
        if stream.read(1):  # reading past the end is also what makes zipfile and gzip compare the checksum
            raise padded(stored.path, None)
        sink.flush()
        if isinstance(sink, io.BytesIO):
            return np.frombuffer(sink.getvalue(), np.uint8)
        return np.memmap(sink, np.uint8, mode="r")
