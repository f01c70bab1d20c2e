"""What the header of a scan file tells: where its numbers lie, how many scans there are, what a number means.

Only headers are read here, and all that they can tell is checked: type, shape, voxel count, number of bytes.

From stored numbers to betas (float32, in the units the subject was fitted in):

- float16, float32 and float64 are taken as they are;
- int16 is multiplied by the subject's scale (1/300 for NSD);
- NIfTI: a header that scales (slope finite and not 0, and not slope 1 with intercept 0) is obeyed, as
  ``stored * slope + intercept``, and no other scale follows. Where the header does not scale, the stored
  numbers count, so that unscaled int16 is multiplied by the subject's scale like any other int16.
"""

from __future__ import annotations

import gzip
import io
import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

import numpy as np
from numpy.lib import format as npy_format

from unibrain_rt.errors import InputError, input_error, one_line
from unibrain_rt.scans.voxel_space import VoxelSpace

_KINDS = {("f", 2), ("f", 4), ("f", 8), ("i", 2)}
_HEAD_BYTES = 16 << 10  # numpy refuses array headers over 10,000 bytes; NIfTI's has 348 or 540
_MAX_SCANS = 100_000  # NSD has 30,000 a subject
_MAX_UNPACKED_BYTES = 64 << 30
_MAX_DEFLATE_RATIO = 1032  # the format's own limit: a file that promises more cannot keep it


@dataclass(frozen=True)
class Stored:
    """How to get at a file's uncompressed bytes."""

    path: Path
    suffix: str
    packed_bytes: int
    member: str | None = None  # of a .npz
    unpacked_bytes: int | None = None  # where the container says so before it is unpacked

    @contextmanager
    def stream(self) -> Iterator[IO[bytes]]:
        """The uncompressed bytes, from the first."""
        if self.member is not None:
            with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as stream:
                yield stream
        elif self.suffix == ".nii.gz":
            with gzip.open(self.path, "rb") as unpacking:
                yield cast(IO[bytes], unpacking)
        else:
            with open(self.path, "rb") as stream:
                yield stream


@dataclass(frozen=True)
class Layout:
    """Where an array lies in the uncompressed bytes; its numbers mean ``stored * slope + inter``."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    order: Literal["C", "F"]
    offset: int
    slope: float = 1.0
    inter: float = 0.0

    @property
    def end(self) -> int:
        """Number of uncompressed bytes, the header included."""
        return self.offset + math.prod(self.shape) * self.dtype.itemsize


def read_header(stored: Stored, space: VoxelSpace) -> tuple[Stored, Layout, int]:
    """The array with the betas, its layout and the number of scans in it, checked against the subject.

    Raises:
        InputError: the header does not fit the subject, the file or what numpy and NIfTI write.
        Exception: of any kind, from the parser of a damaged file; `scan_file` turns it into an InputError.
    """
    if stored.suffix == ".npz":
        stored = _npz_member(stored)
    if stored.suffix.startswith(".nii"):
        layout, count = _nifti_layout(stored, space)
    else:
        layout, count = _npy_layout(stored, space)
    if count > _MAX_SCANS:
        raise input_error(stored.path, f"{count:,} scans in one file: split it, {_MAX_SCANS:,} is the limit")
    _check_size(stored, layout)
    return stored, layout, count


def damaged(path: Path, detail: str) -> InputError:
    """The error for a file that no parser understands; ``detail`` is what the parser says."""
    problem = f"damaged, or not what its name says ({one_line(detail, 90)})"
    return input_error(path, f"{problem}: save or copy it again")


def _npz_member(stored: Stored) -> Stored:
    """Which array of the archive holds the betas, and how many bytes it says to unpack to."""
    path = stored.path
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    names = [member.filename.removesuffix(".npy") for member in members]
    betas = [m for m, name in zip(members, names, strict=True) if name == "betas"] or members
    if len(betas) != 1:
        listed = f" ({one_line(', '.join(names), 80)})" if names else ""
        raise input_error(path, f"{len(betas)} arrays{listed}: save one alone, or under the name 'betas'")
    member = betas[0]
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & 1:
        raise input_error(path, "encrypted, or compressed as numpy does not: save with np.savez_compressed")
    if member.compress_size > stored.packed_bytes:
        raise input_error(path, "truncated: its array is larger than the archive: save or copy it again")
    return Stored(path, stored.suffix, member.compress_size, member.filename, member.file_size)


def _npy_layout(stored: Stored, space: VoxelSpace) -> tuple[Layout, int]:
    """Layout of a .npy array, (voxels,) or (scans, voxels), by its header; number of scans."""
    path = stored.path
    with stored.stream() as stream:
        head = io.BytesIO(stream.read(_HEAD_BYTES))
    if not head.getvalue().startswith(npy_format.MAGIC_PREFIX):
        raise input_error(path, "not a .npy array (it begins otherwise): save betas with np.save")
    try:
        version = npy_format.read_magic(head)
        if version == (1, 0):
            shape, fortran, dtype = npy_format.read_array_header_1_0(head)
        else:  # 3.0 differs from 2.0 in the names of fields alone, and fields are refused
            shape, fortran, dtype = npy_format.read_array_header_2_0(head)
    except Exception as error:  # the parser's own words show a page of header
        raise damaged(path, "its array header cannot be read") from error
    shape = tuple(int(extent) for extent in shape)
    if version not in ((1, 0), (2, 0), (3, 0)) or any(not 0 <= extent < 1 << 63 for extent in shape):
        raise damaged(path, "its array header makes no sense")
    _check_dtype(path, dtype)
    wanted = "betas are (voxels,) or (scans, voxels)"
    if len(shape) not in (1, 2):
        raise input_error(path, f"{len(shape)} dimensions {_text(shape)}, but {wanted}: reshape it")
    if 0 in shape:
        raise input_error(path, f"holds no scan, its shape is {_text(shape)}: {wanted}")
    if shape[-1] != space.count:
        problem = f"{shape[-1]:,} voxels, but {space.label} has {space.count:,}"
        if shape[0] == space.count:
            raise input_error(path, f"{problem}: it looks transposed, save betas.T (scans, voxels)")
        raise input_error(path, f"{problem}: give that subject's voxels, or choose another with --subject")
    slope = space.scale if dtype.kind == "i" else 1.0
    count = shape[0] if len(shape) == 2 else 1
    return Layout(dtype, shape, "F" if fortran else "C", head.tell(), slope), count


def _nifti_layout(stored: Stored, space: VoxelSpace) -> tuple[Layout, int]:
    """Layout of a volume, (x, y, z) or (x, y, z, scans), by its NIfTI-1 or -2 header; number of scans."""
    path = stored.path
    if space.mask is None:
        raise input_error(path, f"{space.label} has no mask for volumes: give betas as .npy (voxels,)")
    try:
        from nibabel.nifti1 import Nifti1Header
        from nibabel.nifti2 import Nifti2Header
    except ImportError as error:
        raise input_error(path, 'to read NIfTI, pip install "unibrain-rt[nifti]"; or give .npy') from error
    with stored.stream() as stream:
        head = stream.read(540)
    second = 540 in (int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big"))
    header_bytes = 540 if second else 348
    if len(head) < header_bytes:
        raise damaged(path, f"{len(head)} bytes, shorter than a NIfTI header")
    # Unchecked, since nibabel's own check writes to the terminal and mends; what matters is checked here.
    header = (Nifti2Header if second else Nifti1Header)(head[:header_bytes], check=False)
    if bytes(header["magic"])[:3] != (b"n+2" if second else b"n+1"):
        raise damaged(path, "no NIfTI header with the data in the same file")
    shape = tuple(int(extent) for extent in header.get_data_shape())
    try:
        dtype, offset = header.get_data_dtype(), header.get_data_offset()
    except (KeyError, ValueError, OverflowError) as error:
        raise damaged(path, "unknown data type or impossible data offset in its header") from error
    slope, inter = header.get_slope_inter()
    if offset < header_bytes:
        raise damaged(path, "impossible data offset in its header")
    _check_dtype(path, dtype)
    wanted = "volumes are (x, y, z) or (x, y, z, scans)"
    if len(shape) not in (3, 4):
        raise input_error(path, f"{len(shape)} dimensions {_text(shape)}, but {wanted}: reshape it")
    if shape[:3] != space.mask.shape:
        problem = f"volume is {_text(shape[:3])}, but the mask of {space.label} is {_text(space.mask.shape)}"
        raise input_error(path, f"{problem}: resample the scan to it, or choose another with --subject")
    count = shape[3] if len(shape) == 4 else 1
    if count < 1:
        raise input_error(path, f"holds no scan, its shape is {_text(shape)}: {wanted}")
    if slope is None or (slope, inter) == (1.0, 0.0):
        slope, inter = (space.scale if dtype.kind == "i" else 1.0), 0.0
    return Layout(dtype, shape, "F", offset, float(slope), float(inter)), count


def _text(shape: tuple[int, ...]) -> str:
    return one_line(str(shape), 60)


def _check_dtype(path: Path, dtype: np.dtype[Any]) -> None:
    if (dtype.kind, dtype.itemsize) in _KINDS and dtype.names is None and dtype.shape == ():
        return
    if dtype.hasobject:
        problem = "an array of Python objects, which would have to be unpickled and never is"
    else:
        name = "structured" if dtype.names or dtype.shape else one_line(dtype.name, 40) or "unknown"
        problem = f"values of type {name}, but float16, float32, float64 and int16 are read"
    raise input_error(path, f"{problem}: save betas.astype(np.float32)")


def _check_size(stored: Stored, layout: Layout) -> None:
    """Compare what the header promises with the bytes that are there, as far as they can be known unread."""
    path, compressed = stored.path, stored.suffix in (".npz", ".nii.gz")
    if compressed and layout.end > _MAX_UNPACKED_BYTES:
        raise input_error(path, f"would unpack to {layout.end >> 30:,} GiB: save it in parts of at most 64")
    if compressed and layout.end > stored.packed_bytes * _MAX_DEFLATE_RATIO + 1024:
        raise truncated(path, layout.end, f"{stored.packed_bytes:,} compressed bytes cannot hold that")
    size = stored.unpacked_bytes if compressed else stored.packed_bytes
    if size is not None and size < layout.end:
        raise truncated(path, layout.end, f"there are {size:,}")
    if size is not None and size > layout.end:
        raise padded(path, size - layout.end)


def truncated(path: Path, promised: int, instead: str) -> InputError:
    """The error for a file with fewer bytes than it promises."""
    problem = f"truncated: its header promises {promised:,} bytes, {instead}"
    return input_error(path, f"{problem}: save or copy it again")


def padded(path: Path, extra: int | None) -> InputError:
    """The error for a file with more bytes than it promises, ``extra`` if they were counted."""
    more = "more bytes" if extra is None else f"{extra:,} more bytes"
    return input_error(path, f"{more} than its header promises (a second array, or damage): save it again")
