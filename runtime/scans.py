"""Scan files to betas: ``.npy``, ``.npz``, ``.nii`` and ``.nii.gz``, header first, one scan at a time.

`inspect` reads the header alone and checks everything it can tell: type, shape, voxel count, number of bytes.
`ScanFile.read` then reads one scan. Plain files are memory-mapped; compressed ones are unpacked once, which
compares their checksums. Nothing is ever unpickled. Whatever a file holds, the only error is an `InputError`.

From stored numbers to betas (float32, in the units the subject was fitted in):

- float16, float32 and float64 are taken as they are;
- int16 is multiplied by the subject's scale (1/300 for NSD);
- NIfTI: a header that scales (slope finite and not 0, and not slope 1 with intercept 0) is obeyed, as
  ``stored * slope + intercept``, and no other scale follows. Where the header does not scale, the stored
  numbers count, so that unscaled int16 is multiplied by the subject's scale like any other int16.
"""

from __future__ import annotations

import errno
import gzip
import io
import math
import os
import stat
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Literal, cast

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from unibrain_rt.errors import BundleError, InputError

SUFFIXES = (".npy", ".npz", ".nii.gz", ".nii")

_KINDS = {("f", 2), ("f", 4), ("f", 8), ("i", 2)}
_HEAD_BYTES = 16 << 10  # numpy refuses array headers over 10,000 bytes; NIfTI's has 348 or 540
_MAX_SCANS = 100_000  # NSD has 30,000 a subject
_MAX_UNPACKED_BYTES = 64 << 30
_IN_MEMORY_BYTES = 256 << 20  # unpacked data above this goes to a temporary file
_MAX_DEFLATE_RATIO = 1032  # the format's own limit: a file that promises more cannot keep it
_CHUNK_BYTES = 1 << 20

OnError = Callable[[InputError], None] | None


def one_line(text: str, limit: int = 300) -> str:
    """``text`` on one line of printable characters, cut in the middle to at most ``limit`` of them."""
    line = "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
    if len(line) <= limit:
        return line
    tail = limit // 2
    return f"{line[: limit - tail - 1]}…{line[-tail:]}"


def input_error(path: str | os.PathLike[str], problem: str) -> InputError:
    """An `InputError` of one line, at most 300 characters, that names the file."""
    return InputError(one_line(f"{one_line(os.fspath(path), 100)}: {problem}"))


@dataclass(frozen=True, eq=False)
class VoxelSpace:
    """What a subject expects of a scan: how many voxels, how int16 is scaled, and where the voxels lie.

    ``mask`` (x, y, z) picks ``count`` voxels of a volume in C order; without one, NIfTI cannot be read.
    Raises `BundleError` if they do not fit each other, since they come from the bundle.
    """

    subject: str
    count: int
    scale: float
    mask: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        mask, problem = self.mask, ""
        if self.count < 1 or not (math.isfinite(self.scale) and self.scale > 0):
            problem = f"{self.count} voxels with beta scale {self.scale}"
        elif mask is not None and (mask.ndim != 3 or mask.dtype != np.bool_):
            problem = f"its mask is not a 3-D array of booleans but {mask.ndim}-D of {mask.dtype}"
        elif mask is not None and (inside := int(np.count_nonzero(mask))) != self.count:
            problem = f"{inside:,} voxels in its mask, not {self.count:,}"
        if problem:
            raise BundleError(f"{self.label}: {problem}: fit the subject again")

    @property
    def label(self) -> str:
        return f"subject '{one_line(self.subject, 40)}'"


@dataclass(frozen=True, eq=False)
class Scan:
    """One scan, ready to decode: finite ``betas`` (voxels,). ``index`` is its row in a file of several."""

    stem: str
    source: Path
    index: int | None
    betas: NDArray[np.float32]


@dataclass(frozen=True)
class _Stored:
    """How to get at a file's uncompressed bytes."""

    path: Path
    suffix: str
    packed_bytes: int
    member: str | None = None  # of a .npz
    unpacked_bytes: int | None = None  # where the container says so before it is unpacked

    @contextmanager
    def stream(self) -> Iterator[IO[bytes]]:
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
class _Layout:
    """Where an array lies in the uncompressed bytes; its numbers mean ``stored * slope + inter``."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    order: Literal["C", "F"]
    offset: int
    slope: float = 1.0
    inter: float = 0.0

    @property
    def end(self) -> int:
        return self.offset + math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class ScanFile:
    """A scan file whose header was read and found good; ``stems`` names its scans, in order.

    `read` keeps the file mapped (or unpacked) until `close`.
    """

    path: Path
    stems: tuple[str, ...]
    dtype: np.dtype[Any]
    space: VoxelSpace
    _stored: _Stored
    _layout: _Layout

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
        found = ", ".join(f"{count:,} {kind}" for count, kind in counts if count)
        which = f"scan {row} (of {len(self):,}, counted from 0)" if len(self) > 1 else "the scan"
        return f"{which} has values that are not finite ({found}, of {betas.size:,}): mend it or leave it out"


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
        stored = _Stored(path, suffix, packed_bytes)
        if suffix == ".npz":
            stored = _npz_member(stored)
        if suffix.startswith(".nii"):
            layout, count = _nifti_layout(stored, space)
        else:
            layout, count = _npy_layout(stored, space)
        if count > _MAX_SCANS:
            raise input_error(path, f"{count:,} scans in one file: split it, {_MAX_SCANS:,} is the limit")
        _check_size(stored, layout)
    stem = path.name[: -len(suffix)]
    digits = max(3, len(str(count - 1)))
    stems = (stem,) if count == 1 else tuple(f"{stem}_{row:0{digits}d}" for row in range(count))
    return ScanFile(path, stems, layout.dtype, space, stored, layout)


def inspect_all(
    paths: Iterable[str | os.PathLike[str]], space: VoxelSpace, on_error: OnError = None
) -> tuple[ScanFile, ...]:
    """`inspect` every file. A bad one is given to ``on_error`` and left out; without it, it is raised."""
    files = []
    for path in paths:
        try:
            files.append(inspect(path, space))
        except InputError as error:
            _report(error, on_error)
    return tuple(files)


def iter_scans(
    files: Iterable[ScanFile], on_error: OnError = None, wanted: Container[str] | None = None
) -> Iterator[Scan]:
    """Scans of inspected files, in order, one at a time in memory; of ``wanted`` stems only, if given.

    A file that cannot be loaded, or a scan that is not finite, is given to ``on_error`` once and left out;
    without ``on_error`` it is raised.
    """
    for file in files:
        rows = [row for row, stem in enumerate(file.stems) if wanted is None or stem in wanted]
        try:
            if rows:
                file.load()
        except InputError as error:
            _report(error, on_error)
            continue
        try:
            for row in rows:
                try:
                    betas = file.read(row)
                except InputError as error:
                    _report(error, on_error)
                else:
                    yield Scan(file.stems[row], file.path, row if len(file) > 1 else None, betas)
        finally:
            file.close()


def read_scans(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    space: VoxelSpace,
    on_error: OnError = None,
) -> Iterator[Scan]:
    """Scans of one file or of many: every header is checked before the first scan is read."""
    several = (paths,) if isinstance(paths, (str, os.PathLike)) else paths
    return iter_scans(inspect_all(several, space, on_error), on_error)


def _report(error: InputError, on_error: OnError) -> None:
    if on_error is None:
        raise error
    on_error(error)


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
            raise _damaged(path, error.strerror or str(error)) from error
        advice = "check its permissions" if isinstance(error, PermissionError) else "copy it to another disk"
        raise input_error(path, f"cannot be read ({error.strerror}): {advice}") from error
    except Exception as error:  # between them, zipfile, zlib, ast, numpy and nibabel raise a dozen types
        raise _damaged(path, str(error) or type(error).__name__) from error


def _damaged(path: Path, detail: str) -> InputError:
    problem = f"damaged, or not what its name says ({one_line(detail, 90)})"
    return input_error(path, f"{problem}: save or copy it again")


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


def _npz_member(stored: _Stored) -> _Stored:
    """Which array of the archive holds the betas, and how many bytes it says to unpack to."""
    path = stored.path
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    names = [member.filename.removesuffix(".npy") for member in members]
    found = [m for m, name in zip(members, names, strict=True) if name == "betas"] or members
    if len(found) != 1:
        listed = f" ({one_line(', '.join(names), 80)})" if names else ""
        raise input_error(path, f"{len(found)} arrays{listed}: save one alone, or under the name 'betas'")
    member = found[0]
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & 1:
        raise input_error(path, "encrypted, or compressed as numpy does not: save with np.savez_compressed")
    if member.compress_size > stored.packed_bytes:
        raise input_error(path, "truncated: its array is larger than the archive: save or copy it again")
    return _Stored(path, stored.suffix, member.compress_size, member.filename, member.file_size)


def _npy_layout(stored: _Stored, space: VoxelSpace) -> tuple[_Layout, int]:
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
        raise _damaged(path, "its array header cannot be read") from error
    shape = tuple(int(extent) for extent in shape)
    if version not in ((1, 0), (2, 0), (3, 0)) or any(not 0 <= extent < 1 << 63 for extent in shape):
        raise _damaged(path, "its array header makes no sense")
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
    return _Layout(dtype, shape, "F" if fortran else "C", head.tell(), slope), count


def _nifti_layout(stored: _Stored, space: VoxelSpace) -> tuple[_Layout, int]:
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
        raise _damaged(path, f"{len(head)} bytes, shorter than a NIfTI header")
    # Unchecked, since nibabel's own check writes to the terminal and mends; what matters is checked here.
    header = (Nifti2Header if second else Nifti1Header)(head[:header_bytes], check=False)
    if bytes(header["magic"])[:3] != (b"n+2" if second else b"n+1"):
        raise _damaged(path, "no NIfTI header with the data in the same file")
    shape = tuple(int(extent) for extent in header.get_data_shape())
    try:
        dtype, offset = header.get_data_dtype(), header.get_data_offset()
    except (KeyError, ValueError, OverflowError) as error:
        raise _damaged(path, "unknown data type or impossible data offset in its header") from error
    slope, inter = header.get_slope_inter()
    if offset < header_bytes:
        raise _damaged(path, "impossible data offset in its header")
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
    return _Layout(dtype, shape, "F", offset, float(slope), float(inter)), count


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


def _check_size(stored: _Stored, layout: _Layout) -> None:
    """Compare what the header promises with the bytes that are there, as far as they can be known unread."""
    path, compressed = stored.path, stored.suffix in (".npz", ".nii.gz")
    if compressed and layout.end > _MAX_UNPACKED_BYTES:
        raise input_error(path, f"would unpack to {layout.end >> 30:,} GiB: save it in parts of at most 64")
    if compressed and layout.end > stored.packed_bytes * _MAX_DEFLATE_RATIO + 1024:
        raise _truncated(path, layout.end, f"{stored.packed_bytes:,} compressed bytes cannot hold that")
    size = stored.unpacked_bytes if compressed else stored.packed_bytes
    if size is not None and size < layout.end:
        raise _truncated(path, layout.end, f"there are {size:,}")
    if size is not None and size > layout.end:
        raise _padded(path, size - layout.end)


def _truncated(path: Path, promised: int, instead: str) -> InputError:
    problem = f"truncated: its header promises {promised:,} bytes, {instead}"
    return input_error(path, f"{problem}: save or copy it again")


def _padded(path: Path, extra: int | None) -> InputError:
    more = "more bytes" if extra is None else f"{extra:,} more bytes"
    return input_error(path, f"{more} than its header promises (a second array, or damage): save it again")


def _unpacked(stored: _Stored, size: int) -> NDArray[np.uint8]:
    """All ``size`` bytes of a compressed file, read to the end so that its checksum is compared."""
    small = size <= _IN_MEMORY_BYTES
    with io.BytesIO() if small else tempfile.TemporaryFile() as sink, stored.stream() as stream:
        there = 0
        while there < size and (chunk := stream.read(min(_CHUNK_BYTES, size - there))):
            there += sink.write(chunk)
        if there < size:
            raise _truncated(stored.path, size, f"there are {there:,}")
        if stream.read(1):  # reading past the end is also what makes zipfile and gzip compare the checksum
            raise _padded(stored.path, None)
        sink.flush()
        if isinstance(sink, io.BytesIO):
            return np.frombuffer(sink.getvalue(), np.uint8)
        return np.memmap(sink, np.uint8, mode="r")
