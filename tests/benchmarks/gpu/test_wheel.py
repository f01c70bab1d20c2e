"""Machine code of other GPUs is gone from the wheel, and the rest stands where it stood."""

from __future__ import annotations

import shutil
import struct
import subprocess
import zipfile
from pathlib import Path

import pytest

from unibrain_rt.benchmarks.gpu.wheel import unpack_pruned

zstandard = pytest.importorskip("zstandard", reason="needs zstandard, which only packing for a GPU does")
if shutil.which("gcc") is None or shutil.which("readelf") is None:
    pytest.skip("needs gcc and readelf", allow_module_level=True)

KERNEL, UNUSED = b".text._Z9layerNormv", b".text._ZN8MoeFCKernelEv"


def entry(architecture: int, code: bytes) -> bytes:
    """A piece of machine code as nvcc stores it, as far as it is read here."""
    packed = zstandard.ZstdCompressor().compress(code)
    padded = packed + bytes(-len(packed) % 8)
    header = struct.pack("<HHIQIIII", 2, 0x101, 64, len(padded), len(packed), 0, 0, architecture)
    return header + bytes(64 - len(header)) + padded


def test_only_what_one_gpu_needs_is_left(tmp_path: Path) -> None:
    pieces = [entry(80, KERNEL * 9), entry(90, KERNEL * 9), entry(90, UNUSED * 9)]
    code = b"".join(pieces)
    fatbin = struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(code)) + code
    source = tmp_path / "code.s"
    (tmp_path / "code.bin").write_bytes(fatbin)
    source.write_text(f'.section .nv_fatbin, "a"\n.balign 8\n.incbin "{tmp_path / "code.bin"}"\n')
    library = tmp_path / "libonnxruntime_providers_cuda.so"
    subprocess.run(["gcc", "-shared", "-nostdlib", "-o", library, source], check=True)
    wheel = tmp_path / "onnxruntime_gpu.whl"
    with zipfile.ZipFile(wheel, "w") as files:
        files.write(library, f"onnxruntime/capi/{library.name}")
        files.writestr("onnxruntime/__init__.py", "")
        files.writestr("onnxruntime/tools/big.py", "")
        files.writestr("onnxruntime/capi/libonnxruntime.so.1.31.1", "")
        files.writestr("onnxruntime/capi/libonnxruntime_providers_tensorrt.so", "")
    unpack_pruned(wheel, tmp_path / "site", 90)
    kept = {path.relative_to(tmp_path / "site").as_posix() for path in (tmp_path / "site").rglob("*.*")}
    assert kept == {"onnxruntime/__init__.py", f"onnxruntime/capi/{library.name}"}
    before, after = library.read_bytes(), (tmp_path / "site/onnxruntime/capi" / library.name).read_bytes()
    assert len(before) == len(after)
    start = before.index(fatbin)
    wanted = bytearray(before)
    at = start + 16
    for piece, stays in zip(pieces, (False, True, False), strict=True):
        if not stays:
            wanted[at + 64 : at + len(piece)] = bytes(len(piece) - 64)
        at += len(piece)
    assert after == bytes(wanted)
