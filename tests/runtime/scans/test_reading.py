"""Scan files: what is read, and that every other file is refused in one line."""

from __future__ import annotations

import gzip
import io
import os
import struct
import subprocess
import sys
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.lib import format as npy_format

from unibrain_rt.errors import BundleError, InputError
from unibrain_rt.scans import VoxelSpace, inspect_all, iter_scans, read_scans, scan_file
from unibrain_rt.scans.scan_file import inspect

VOLUME = (5, 4, 3)
SCALE = 1 / 300


def make_space(*, mask: bool = True) -> VoxelSpace:
    inside = np.random.default_rng(0).random(VOLUME) < 0.6
    return VoxelSpace("sub-01", int(inside.sum()), SCALE, inside if mask else None)


SPACE = make_space()
V = SPACE.count


def betas(*shape: int, dtype: str = "<f4") -> np.ndarray[Any, Any]:
    values = np.random.default_rng(1).normal(size=shape) * (300 if np.dtype(dtype).kind == "i" else 1)
    return values.astype(dtype)


def refused(path: Path | str, *parts: str, space: VoxelSpace = SPACE) -> str:
    """The one line with which every scan of ``path`` is refused; it names the file and holds ``parts``."""
    with pytest.raises(InputError) as caught:
        list(read_scans(path, space))
    message = str(caught.value)
    check_line(message)
    assert Path(path).name in message
    for part in parts:
        assert part in message, message
    return message


def check_line(message: str) -> None:
    assert "\n" not in message
    assert message.isprintable()
    assert len(message) <= 300


# --- what is read -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", "<i2", ">f2", ">f4", ">f8", ">i2"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_arrays_of_every_type_and_order(tmp_path: Path, dtype: str, order: str, suffix: str) -> None:
    stored = np.asarray(betas(4, V, dtype=dtype), order=order)  # type: ignore[call-overload]
    path = tmp_path / f"many{suffix}"
    if suffix == ".npy":
        np.save(path, stored)
    else:
        np.savez_compressed(path, stored)
    expected = stored.astype(np.float64) * (SCALE if "i" in dtype else 1)
    found = list(read_scans(path, SPACE))
    assert [scan.stem for scan in found] == ["many_000", "many_001", "many_002", "many_003"]
    assert [scan.index for scan in found] == [0, 1, 2, 3]
    for scan, row in zip(found, expected, strict=True):
        assert scan.betas.dtype == np.float32
        assert scan.betas.dtype.isnative
        assert type(scan.betas) is np.ndarray
        np.testing.assert_array_equal(scan.betas, row.astype(np.float32))


@pytest.mark.parametrize("shape", [(V,), (1, V)])
def test_a_single_scan_has_the_name_of_its_file(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "one.two.npy", betas(*shape))
    (scan,) = read_scans(tmp_path / "one.two.npy", SPACE)
    assert (scan.stem, scan.index, scan.source) == ("one.two", None, tmp_path / "one.two.npy")
    np.testing.assert_array_equal(scan.betas, betas(*shape).reshape(V))


def test_stems_are_padded_to_the_count(tmp_path: Path) -> None:
    np.save(tmp_path / "s.npy", np.zeros((1001, V), np.float16))
    stems = inspect(tmp_path / "s.npy", SPACE).stems
    assert (stems[0], stems[-1], len(stems)) == ("s_0000", "s_1000", 1001)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_format_versions(tmp_path: Path, version: tuple[int, int]) -> None:
    with open(tmp_path / "scan.npy", "wb") as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        npy_format.write_array(stream, betas(2, V), version=version)
    assert len(list(read_scans(tmp_path / "scan.npy", SPACE))) == 2


def test_a_named_array_is_preferred_in_an_archive(tmp_path: Path) -> None:
    np.savez(tmp_path / "scan.npz", other=np.zeros(3), betas=betas(V))
    (scan,) = read_scans(str(tmp_path / "scan.npz"), SPACE)
    np.testing.assert_array_equal(scan.betas, betas(V))


def test_a_large_archive_is_unpacked_to_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_file, "_IN_MEMORY_BYTES", 0)
    np.savez_compressed(tmp_path / "scan.npz", betas(3, V))
    file = inspect(tmp_path / "scan.npz", SPACE)
    np.testing.assert_array_equal([file.read(row) for row in (2, 0, 1)], betas(3, V)[[2, 0, 1]])
    file.close()


def test_upper_case_suffixes(tmp_path: Path) -> None:
    np.save(tmp_path / "scan.npy", betas(V))
    os.rename(tmp_path / "scan.npy", tmp_path / "SCAN.NPY")
    assert inspect(tmp_path / "SCAN.NPY", SPACE).stems == ("SCAN",)


def test_inspecting_reads_no_data(tmp_path: Path) -> None:
    path = tmp_path / "huge.npy"
    rows, count = 10_000, 200_000
    with open(path, "wb") as stream:  # a sparse file of 16 GB: reading it would show
        stream.write(header_only((rows, count)))
        stream.truncate(stream.tell() + rows * count * 8)
    started = time.perf_counter()
    file = inspect(path, VoxelSpace("big", count, SCALE))
    assert len(file) == rows
    assert not file.read(rows - 1).any()
    assert time.perf_counter() - started < 3


def test_reading_after_closing_and_out_of_range(tmp_path: Path) -> None:
    np.save(tmp_path / "scan.npy", betas(2, V))
    file = inspect(tmp_path / "scan.npy", SPACE)
    first = file.read(1)
    file.close()
    file.close()
    np.testing.assert_array_equal(file.read(1), first)
    for row in (-1, 2):
        with pytest.raises(IndexError, match="no scan"):
            file.read(row)


def test_the_betas_are_the_callers_own(tmp_path: Path) -> None:
    np.save(tmp_path / "scan.npy", betas(V))
    file = inspect(tmp_path / "scan.npy", SPACE)
    file.read(0)[:] = 7
    np.testing.assert_array_equal(file.read(0), betas(V))


# --- NIfTI --------------------------------------------------------------------------------------------------


def save_nifti(path: Path, volume: np.ndarray[Any, Any], slope: float = np.nan, inter: float = np.nan,
               kind: str = "Nifti1", **fields: Any) -> None:  # fmt: skip
    """Write stored numbers and scaling as they are, whatever nibabel would choose."""
    nibabel = pytest.importorskip("nibabel")
    header = getattr(nibabel, f"{kind}Header")(endianness=">" if volume.dtype.byteorder == ">" else "<")
    header.set_data_shape(volume.shape)
    header.set_data_dtype(volume.dtype)
    header["vox_offset"] = 352 if kind == "Nifti1" else 544
    header["magic"] = b"n+1" if kind == "Nifti1" else b"n+2"
    header["scl_slope"], header["scl_inter"] = slope, inter
    for name, value in fields.items():
        header[name] = value
    data = header.binaryblock + b"\0" * 4 + volume.tobytes(order="F")
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", ["Nifti1", "Nifti2"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<i2", ">i2"])
def test_volumes(tmp_path: Path, suffix: str, kind: str, dtype: str) -> None:
    volume = betas(*VOLUME, 3, dtype=dtype)
    save_nifti(tmp_path / f"bold{suffix}", volume, kind=kind)
    assert SPACE.mask is not None
    found = list(read_scans(tmp_path / f"bold{suffix}", SPACE))
    assert [scan.stem for scan in found] == ["bold_000", "bold_001", "bold_002"]
    for row, scan in enumerate(found):
        expected = volume[..., row][SPACE.mask].astype(np.float64) * (SCALE if "i" in dtype else 1)
        np.testing.assert_array_equal(scan.betas, expected.astype(np.float32))


@pytest.mark.parametrize(
    ("slope", "inter", "factor", "offset"),
    [
        (np.nan, 0, SCALE, 0),
        (0, 5, SCALE, 0),
        (np.inf, 0, SCALE, 0),
        (1, 0, SCALE, 0),
        (1, 2, 1, 2),
        (0.5, 0, 0.5, 0),
        (0.25, -3, 0.25, -3),
    ],
)
def test_scaling_of_int16_volumes(
    tmp_path: Path, slope: float, inter: float, factor: float, offset: float
) -> None:
    volume = betas(*VOLUME, dtype="<i2")
    save_nifti(tmp_path / "scan.nii", volume, slope, inter)
    (scan,) = read_scans(tmp_path / "scan.nii", SPACE)
    assert (scan.stem, scan.index) == ("scan", None)
    expected = volume[SPACE.mask].astype(np.float64) * factor + offset
    np.testing.assert_array_equal(scan.betas, expected.astype(np.float32))


def test_scaling_of_float_volumes(tmp_path: Path) -> None:
    volume = betas(*VOLUME)
    save_nifti(tmp_path / "scan.nii", volume, 2.0, 1.0)
    (scan,) = read_scans(tmp_path / "scan.nii", SPACE)
    expected = volume[SPACE.mask].astype(np.float64) * 2 + 1
    np.testing.assert_array_equal(scan.betas, expected.astype(np.float32))


def test_what_nibabel_writes_is_read(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    volume = betas(*VOLUME, 2)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "scan.nii.gz")
    found = list(read_scans(tmp_path / "scan.nii.gz", SPACE))
    np.testing.assert_array_equal(found[1].betas, volume[..., 1][SPACE.mask])


def test_volumes_need_a_mask(tmp_path: Path) -> None:
    save_nifti(tmp_path / "scan.nii", betas(*VOLUME))
    refused(tmp_path / "scan.nii", "no mask", "'sub-01'", ".npy", space=make_space(mask=False))


def test_volumes_need_nibabel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_nifti(tmp_path / "scan.nii", betas(*VOLUME))
    monkeypatch.setitem(sys.modules, "nibabel.nifti1", None)
    refused(tmp_path / "scan.nii", 'pip install "unibrain-rt[nifti]"')


@pytest.mark.parametrize("shape", [(4, 5, 3), (5, 4, 3, 0), (5, 4), (5, 4, 3, 2, 2), (5, 4, 4, 2)])
def test_volumes_of_other_shapes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    save_nifti(tmp_path / "scan.nii", np.zeros(shape, np.float32))
    message = refused(tmp_path / "scan.nii")
    assert any(part in message for part in ("mask", "dimensions", "holds no scan")), message


@pytest.mark.parametrize("dtype", ["u1", "<i4", "<u2", "<c8", "i1", "<i8"])
def test_volumes_of_other_types(tmp_path: Path, dtype: str) -> None:
    save_nifti(tmp_path / "scan.nii", np.zeros(VOLUME, dtype))
    refused(tmp_path / "scan.nii", np.dtype(dtype).name, "astype(np.float32)")


@pytest.mark.parametrize(
    "fields",
    [
        {"vox_offset": 0},
        {"vox_offset": -352},
        {"vox_offset": np.nan},
        {"vox_offset": np.inf},
        {"magic": b"ni1"},
        {"magic": b""},
        {"datatype": 999},
        {"datatype": 0},
        {"scl_slope": 2, "scl_inter": np.inf},
        {"dim": [9, 5, 4, 3, 1, 1, 1, 1]},
        {"dim": [3, -5, 4, 3, 1, 1, 1, 1]},
        {"dim": [4, 5, 4, 3, -1, 1, 1, 1]},
    ],
)
def test_volumes_with_broken_headers(tmp_path: Path, fields: dict[str, Any]) -> None:
    save_nifti(tmp_path / "scan.nii", betas(*VOLUME), **fields)
    refused(tmp_path / "scan.nii")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("change", [-1, -100, 1, 5000])
def test_volumes_with_too_few_or_too_many_bytes(tmp_path: Path, suffix: str, change: int) -> None:
    save_nifti(tmp_path / "scan.nii", betas(*VOLUME))
    data = (tmp_path / "scan.nii").read_bytes()
    data = data[:change] if change < 0 else data + b"\1" * change
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(gzip.compress(data) if suffix == ".nii.gz" else data)
    refused(path, "truncated" if change < 0 else "more bytes")


def test_damaged_gzip(tmp_path: Path) -> None:
    save_nifti(tmp_path / "good.nii.gz", betas(*VOLUME, 2))
    good = (tmp_path / "good.nii.gz").read_bytes()
    flipped = bytearray(good)
    flipped[-6] ^= 1  # the checksum
    half = good[: len(good) // 2]
    for data in (good[:-3], bytes(flipped), half, good[:5], b"not gzip at all", good + b"rest"):
        (tmp_path / "scan.nii.gz").write_bytes(data)
        refused(tmp_path / "scan.nii.gz")


def test_a_damaged_file_of_many_scans_is_reported_once(tmp_path: Path) -> None:
    save_nifti(tmp_path / "scan.nii.gz", betas(*VOLUME, 50))
    data = bytearray((tmp_path / "scan.nii.gz").read_bytes())
    data[-6] ^= 1
    (tmp_path / "scan.nii.gz").write_bytes(data)
    errors: list[InputError] = []
    assert list(read_scans(tmp_path / "scan.nii.gz", SPACE, errors.append)) == []
    assert len(errors) == 1


# --- arrays that are refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "parts"),
    [
        (np.zeros(V + 100, np.float32), (f"{V + 100:,} voxels", f"'sub-01' has {V:,}", "--subject")),
        (np.zeros((2, V - 1), np.float32), (f"{V - 1:,} voxels",)),
        (np.zeros((V, 7), np.float32), ("transposed", "betas.T")),
        (np.float32(3), ("0 dimensions",)),
        (np.zeros((2, 3, V), np.float32), (f"3 dimensions (2, 3, {V})", "reshape")),
        (np.zeros((1,) * 32, np.float32), ("32 dimensions",)),
        (np.zeros((0, V), np.float32), ("holds no scan", f"(0, {V})")),
        (np.zeros(0, np.float32), ("holds no scan",)),
        (np.zeros((4, 0), np.float32), ("holds no scan",)),
        (np.array([{"a": 1}] * V, object), ("objects", "unpickled", "astype(np.float32)")),
        (np.zeros(V, [("a", "<f4"), ("b", "O")]), ("objects",)),
        (np.zeros(V, [("a", "<f4"), ("b", "<f4")]), ("structured",)),
        (np.zeros(V, np.complex64), ("complex64",)),
        (np.zeros(V, "U7"), ("str",)),
        (np.zeros(V, "S7"), ("bytes",)),
        (np.zeros(V, "V4"), ("void",)),
        (np.zeros(V, bool), ("bool",)),
        (np.zeros(V, np.uint8), ("uint8",)),
        (np.zeros(V, np.int32), ("int32",)),
        (np.zeros(V, "M8[s]"), ("datetime64",)),
        (np.zeros(V, np.longdouble), ("float128" if np.dtype(np.longdouble).itemsize > 8 else "",)),
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_arrays_of_other_shapes_and_types(
    tmp_path: Path, array: np.ndarray[Any, Any], parts: tuple[str, ...], suffix: str
) -> None:
    if np.asarray(array).dtype == np.float64:
        pytest.skip("no long double here")
    (np.save if suffix == ".npy" else np.savez)(tmp_path / f"scan{suffix}", array)
    refused(tmp_path / f"scan{suffix}", *parts)


def test_the_message_of_a_wrong_voxel_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("scan.npy", np.zeros(1100, np.float32))
    message = refused("scan.npy", space=VoxelSpace("sub-01", 1200, SCALE))
    assert message.startswith("scan.npy: 1,100 voxels, but subject 'sub-01' has 1,200: ")


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    values = betas(3, V, dtype="<f8")
    values[1, :4] = np.nan, np.inf, -np.inf, np.nan
    values[2, 5] = 1e39
    np.save(tmp_path / "scan.npy", values)
    errors: list[InputError] = []
    found = list(read_scans(tmp_path / "scan.npy", SPACE, errors.append))
    assert [scan.stem for scan in found] == ["scan_000"]
    first, second = map(str, errors)
    assert "scan 1 (of 3, counted from 0) has values that are not finite" in first
    assert f"(2 NaN, 2 infinite, of {V})" in first
    assert "1 beyond float32's range" in second
    np.save(tmp_path / "one.npy", values[1])
    refused(tmp_path / "one.npy", "the scan has values that are not finite")


def test_a_nifti_scaling_beyond_float32(tmp_path: Path) -> None:
    save_nifti(tmp_path / "scan.nii", np.full(VOLUME, 30000, "<i2"), 1e38, 0)
    refused(tmp_path / "scan.nii", f"{V} beyond float32's range")


@pytest.mark.parametrize(("change", "word"), [(-1, "truncated"), (-V * 4, "truncated"), (1, "1 more bytes")])
def test_arrays_with_too_few_or_too_many_bytes(tmp_path: Path, change: int, word: str) -> None:
    path = tmp_path / "scan.npy"
    np.save(path, betas(2, V))
    data = path.read_bytes()
    path.write_bytes(data[:change] if change < 0 else data + b"\0" * change)
    with pytest.raises(InputError, match=word):
        inspect(path, SPACE)  # before any data is read
    refused(path, word)


def test_two_arrays_in_one_file(tmp_path: Path) -> None:
    with open(tmp_path / "scan.npy", "wb") as stream:
        np.save(stream, betas(V))
        np.save(stream, betas(V))
    refused(tmp_path / "scan.npy", "more bytes", "second array")


def raw_npy(header: bytes, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    length = struct.pack("<H" if version == b"\x01\x00" else "<I", len(header))
    return b"\x93NUMPY" + version + length + header + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUM",
        b"\x93NUMPY",
        b"\x93NUMPY\x01\x00",
        b"\x93NUMPY\x01\x00\xff\xff{",
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff{'descr'",
        b"\x93NUMPY\x09\x00\x10\x00" + b" " * 16,
        b"\x80\x04\x95K\x00\x00\x00",  # a pickle
        b"betas,1,2,3\n" * 9,
        raw_npy(b"not a dictionary"),
        raw_npy(b"{'descr': '<f4'}\n"),
        raw_npy(b"{'descr': '<f4', 'fortran_order': 1, 'shape': (7,)}\n"),
        raw_npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': [7]}\n"),
        raw_npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (-7,)}\n"),
        raw_npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (0x" + b"f" * 5000 + b",)}\n"),
        raw_npy(b"{'descr': 'nonsense', 'fortran_order': False, 'shape': (7,)}\n"),
        raw_npy(b"{'descr': [('a',)], 'fortran_order': False, 'shape': (7,)}\n"),
        raw_npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (7L,)}\n"),
        raw_npy(b"{'descr': __import__('os'), 'fortran_order': False, 'shape': (7,)}\n"),
        raw_npy(b"(" * 9000),
        raw_npy(b"-" * 9000 + b"1"),
        raw_npy(b"[" * 5000 + b"]" * 5000),
        raw_npy(b"'\\d' \\"),
        raw_npy(b"\xff" * 64, version=b"\x03\x00"),
        raw_npy(b" " * 70_000, version=b"\x02\x00"),
    ],
)
def test_what_is_not_an_array(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "scan.npy").write_bytes(content)
    refused(tmp_path / "scan.npy")
    with zipfile.ZipFile(tmp_path / "scan.npz", "w") as archive:
        archive.writestr("betas.npy", content)
    refused(tmp_path / "scan.npz")


def test_a_python_2_header_is_read_without_a_warning(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({V}L,)}}\n".encode()
    (tmp_path / "scan.npy").write_bytes(raw_npy(header, betas(V).tobytes()))
    (scan,) = read_scans(tmp_path / "scan.npy", SPACE)
    np.testing.assert_array_equal(scan.betas, betas(V))
    assert not list(recwarn)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    np.save(tmp_path / "scan.npy", np.array([Trap()] * V, object), allow_pickle=True)
    np.savez(tmp_path / "scan.npz", np.array([Trap()] * V, object))
    refused(tmp_path / "scan.npy", "objects")
    refused(tmp_path / "scan.npz", "objects")
    assert not (tmp_path / "sprung").exists()


# --- archives -----------------------------------------------------------------------------------------------


def npy_bytes(array: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def test_archives_of_several_arrays_list_them(tmp_path: Path) -> None:
    np.savez(tmp_path / "scan.npz", lh=betas(V), rh=betas(V))
    refused(tmp_path / "scan.npz", "2 arrays (lh, rh)", "'betas'")
    np.savez(tmp_path / "many.npz", **{f"a{n}": np.zeros(1) for n in range(500)})
    refused(tmp_path / "many.npz", "500 arrays (a0, a1")
    np.savez(tmp_path / "none.npz")
    refused(tmp_path / "none.npz", "0 arrays")


def test_archives_with_one_name_twice(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "scan.npz", "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("betas.npy", npy_bytes(betas(V)))
        archive.writestr("betas.npy", npy_bytes(betas(V) + 1))
    refused(tmp_path / "scan.npz", "2 arrays (betas, betas)")


def test_archives_with_a_wrong_checksum(tmp_path: Path) -> None:
    np.savez(tmp_path / "scan.npz", betas=betas(20, V))
    data = bytearray((tmp_path / "scan.npz").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "scan.npz").write_bytes(data)
    refused(tmp_path / "scan.npz", "CRC")


@pytest.mark.parametrize("keep", [0.01, 0.5, 0.99])
def test_truncated_archives(tmp_path: Path, keep: float) -> None:
    np.savez(tmp_path / "scan.npz", betas=betas(20, V))
    data = (tmp_path / "scan.npz").read_bytes()
    (tmp_path / "scan.npz").write_bytes(data[: int(keep * len(data))])
    refused(tmp_path / "scan.npz", "damaged")


@pytest.mark.parametrize("change", [-8, 8])
def test_archives_whose_array_is_not_as_long_as_it_says(tmp_path: Path, change: int) -> None:
    data = npy_bytes(betas(V))
    with zipfile.ZipFile(tmp_path / "scan.npz", "w") as archive:
        archive.writestr("betas.npy", data[:change] if change < 0 else data + b"\0" * change)
    refused(tmp_path / "scan.npz", "truncated" if change < 0 else "8 more bytes")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_archives_compressed_otherwise(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "scan.npz", "w", method) as archive:
        archive.writestr("betas.npy", npy_bytes(betas(V)))
    refused(tmp_path / "scan.npz", "savez_compressed")


def test_encrypted_archives(tmp_path: Path) -> None:
    np.savez(tmp_path / "scan.npz", betas=betas(V))
    data = bytearray((tmp_path / "scan.npz").read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "scan.npz").write_bytes(data)
    refused(tmp_path / "scan.npz", "encrypted")


def header_only(shape: tuple[int, ...]) -> bytes:
    head = io.BytesIO()
    npy_format.write_array_header_1_0(head, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return head.getvalue()


def test_archives_that_would_unpack_to_too_much(tmp_path: Path) -> None:
    rows = (65 << 30) // (8 * 100_000)
    with zipfile.ZipFile(tmp_path / "scan.npz", "w") as archive:
        archive.writestr("betas.npy", header_only((rows, 100_000)))
    refused(tmp_path / "scan.npz", "GiB", "at most 64", space=VoxelSpace("big", 100_000, 1.0))


def test_archives_that_promise_more_than_their_bytes_can_hold(tmp_path: Path) -> None:
    head = header_only((90_000, V))
    size = len(head) + 90_000 * V * 8
    with zipfile.ZipFile(tmp_path / "scan.npz", "w") as archive:
        archive.writestr("betas.npy", head)
    data = (tmp_path / "scan.npz").read_bytes()
    data = data.replace(struct.pack("<II", len(head), len(head)), struct.pack("<II", len(head), size))
    (tmp_path / "scan.npz").write_bytes(data)
    refused(tmp_path / "scan.npz", "truncated", "cannot hold")


def test_too_many_scans(tmp_path: Path) -> None:
    with open(tmp_path / "scan.npy", "wb") as stream:
        stream.write(header_only((100_001, V)))
        stream.truncate(stream.tell() + 100_001 * V * 8)
    refused(tmp_path / "scan.npy", "100,001 scans", "split")


# --- files that cannot be opened ----------------------------------------------------------------------------


def test_paths_that_are_not_scan_files(tmp_path: Path) -> None:
    refused(tmp_path / "missing.npy", "no such file")
    (tmp_path / "folder.npy").mkdir()
    refused(tmp_path / "folder.npy", "a folder")
    for name in ("scan.txt", "scan", ".npy", "scan.npy.gz", "scan.nii.bz2", ".nii.gz.x"):
        (tmp_path / name).write_bytes(b"x")
        refused(tmp_path / name, ".npy", ".nii.gz")
    (tmp_path / "empty.nii.gz").touch()
    refused(tmp_path / "empty.nii.gz", "0 bytes")
    os.mkfifo(tmp_path / "pipe.npy")
    refused(tmp_path / "pipe.npy", "not a regular file")
    os.symlink("loop.npy", tmp_path / "loop.npy")
    refused(tmp_path / "loop.npy", "cannot be read")
    with pytest.raises(InputError):
        inspect("a\0b.npy", SPACE)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".nii", ".nii.gz"])
def test_unreadable_permissions(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nibabel.nifti2")
    path = tmp_path / f"scan{suffix}"
    path.write_bytes(b"x")
    if os.geteuid() == 0:  # root reads everything: let open() refuse

        def forbidden(*args: Any, **kwargs: Any) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr("builtins.open", forbidden)
        monkeypatch.setattr("io.open", forbidden)
    else:
        path.chmod(0)
    message = refused(path, "cannot be read", "permission")
    assert "Permission denied" in message


def test_names_that_would_break_the_line(tmp_path: Path) -> None:
    for name in ("new\nline.npy", "escape\x1b[31m.npy", os.fsdecode(b"bytes\xff.npy"), "long" * 60 + ".npy"):
        path = tmp_path / name
        np.save(path, np.zeros(3, np.float32))
        with pytest.raises(InputError) as caught:
            inspect(path, VoxelSpace("subject\n" * 100, 12, 1.0))
        check_line(str(caught.value))
        assert "3 voxels" in str(caught.value)
        str(caught.value).encode()


def test_a_file_that_changes_after_it_was_inspected(tmp_path: Path) -> None:
    path = tmp_path / "scan.npy"
    np.save(path, betas(2, V))
    file = inspect(path, SPACE)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="changed while"):
        file.read(0)
    path.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        file.read(0)


def test_what_does_not_fit_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    np.savez(tmp_path / "scan.npz", betas(V))
    monkeypatch.setattr(scan_file, "_unpacked", full)
    refused(tmp_path / "scan.npz", "does not fit in memory")


# --- many files ---------------------------------------------------------------------------------------------


def test_one_bad_file_among_many(tmp_path: Path) -> None:
    for name in "abc":
        np.save(tmp_path / f"{name}.npy", betas(2, V))
    (tmp_path / "b.npy").write_bytes(b"junk")
    paths = [tmp_path / f"{name}.npy" for name in "abcd"]
    errors: list[InputError] = []
    files = inspect_all(paths, SPACE, errors.append)
    assert [file.path.name for file in files] == ["a.npy", "c.npy"]
    assert [str(error).split(": ")[0][-5:] for error in errors] == ["b.npy", "d.npy"]
    found = [scan.stem for scan in iter_scans(files, errors.append)]
    assert found == ["a_000", "a_001", "c_000", "c_001"]
    with pytest.raises(InputError, match=r"b\.npy"):
        inspect_all(paths, SPACE)


def test_only_wanted_scans_are_read(tmp_path: Path) -> None:
    values = betas(3, V)
    values[1] = np.nan
    np.save(tmp_path / "a.npy", values)
    (tmp_path / "b.npy").write_bytes((tmp_path / "a.npy").read_bytes())
    files = inspect_all([tmp_path / "a.npy", tmp_path / "b.npy"], SPACE)
    (tmp_path / "b.npy").unlink()  # none of it is wanted, so it is not missed
    assert [scan.stem for scan in iter_scans(files, wanted={"a_002", "a_000"})] == ["a_000", "a_002"]


def test_an_abandoned_iteration_lets_go_of_its_file(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", betas(3, V))
    (file,) = inspect_all([tmp_path / "a.npy"], SPACE)
    iterator = iter_scans([file])
    next(iterator)
    assert "_scans" in file.__dict__
    iterator.close()  # type: ignore[attr-defined]
    assert "_scans" not in file.__dict__


# --- the subject's side -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "scale", "mask"),
    [
        (0, 1.0, None),
        (5, 0.0, None),
        (5, float("nan"), None),
        (5, 1.0, np.ones((2, 2), bool)),
        (8, 1.0, np.ones((2, 2, 2))),
        (7, 1.0, np.ones((2, 2, 2), bool)),
    ],
)
def test_a_subject_that_does_not_fit_itself(count: int, scale: float, mask: Any) -> None:
    with pytest.raises(BundleError, match="sub-01") as caught:
        VoxelSpace("sub-01", count, scale, mask)
    check_line(str(caught.value))


def test_no_heavy_import() -> None:
    code = "import sys, unibrain_rt.scans; print(sorted({'nibabel', 'PIL', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- whatever the bytes -------------------------------------------------------------------------------------


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """``data`` with a few bytes changed, cut out or put in; mostly near the header, where it matters."""
    changed = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        reach = min(len(changed), int(rng.choice([16, 160, 400, len(data)]))) or 1
        at = int(rng.integers(reach))
        if rng.random() < 0.2:  # the directory of an archive and the checksum of gzip are at the end
            at = max(0, len(changed) - 1 - at)
        match rng.integers(6):
            case 0:
                changed[at : at + 1] = rng.bytes(1)
            case 1:
                changed[at : at + 1] = bytes([changed[at] ^ (1 << int(rng.integers(8)))]) if changed else b"x"
            case 2:
                del changed[at : at + int(rng.integers(1, 20))]
            case 3:
                changed[at:at] = rng.bytes(int(rng.integers(1, 20)))
            case 4:
                changed[at : at + 4] = int(rng.choice([0, 1, 2**31 - 1, 2**32 - 1])).to_bytes(4, "little")
            case 5:
                changed[at : at + 1] = rng.choice(list(b"0123456789-<>|=fiOUV,()[]{}' \n")).tobytes()[:1]
    return bytes(changed[: int(rng.integers(len(changed) + 1))] if rng.random() < 0.1 else changed)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".nii", ".nii.gz"])
@pytest.mark.filterwarnings("error")
def test_mutated_files(
    tmp_path: Path, suffix: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(sum(suffix.encode()))
    path = tmp_path / f"scan{suffix}"
    seeds = []
    for dtype in ("<f4", "<i2", ">f8"):
        if suffix == ".npy":
            np.save(path, betas(3, V, dtype=dtype))
        elif suffix == ".npz":
            np.savez_compressed(path, betas=betas(3, V, dtype=dtype))
        else:
            save_nifti(path, betas(*VOLUME, 3, dtype=dtype), kind="Nifti2" if "f8" in dtype else "Nifti1")
        seeds.append(path.read_bytes())
    refusals = 0
    for turn in range(300):
        data = mutated(seeds[turn % len(seeds)], rng)
        if suffix == ".nii.gz" and turn % 2:  # half of them with a sound wrapping
            data = gzip.compress(mutated(gzip.decompress(seeds[turn % len(seeds)]), rng), 1)
        if suffix == ".npz" and turn % 2:
            inner = mutated(npy_bytes(betas(3, V)), rng)
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("betas.npy", inner)
            data = path.read_bytes()
        path.write_bytes(data)
        errors: list[InputError] = []
        for scan in read_scans(path, SPACE, errors.append):
            assert scan.betas.shape == (V,)
            assert np.isfinite(scan.betas).all()
        for error in errors:
            check_line(str(error))
            assert "scan" in str(error)
        refusals += bool(errors)
    assert refusals > 150
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
