"""ONNX Runtime's GPU wheel, small enough to carry to a machine with one kind of GPU.

The provider for CUDA is a quarter of a gigabyte of machine code, for every architecture and for kernels that no graph
of ours calls. Both are zeroed and then compressed away. Headers stay, so the library loads as before, and a kernel that
was dropped and is called after all ends in CUDA's error, not in a wrong number.
"""

from __future__ import annotations

import re
import struct
import subprocess
import zipfile
from pathlib import Path

_PROVIDER = "libonnxruntime_providers_cuda.so"
_KEPT = re.compile(
    r"onnxruntime/(?!tools|transformers|quantization|backend|datasets)|onnxruntime_gpu.*dist-info/"
)
_LEFT = re.compile(r"providers_tensorrt|/libonnxruntime\.so|ThirdPartyNotices")
"""The C library is for C programs: Python's module holds all of it once more."""
_DROPPED = re.compile(
    rb"MoeFC|fused_moe|3llm7kernels|MixedInput|GroupProblemShape|fpA_intB|FpAIntB|xqa|XQA|kernel_mha|deform|gated_delta|"
    rb"LinearAttention|5flash.*bfloat16|AttentionKernelIN7cutlass10bfloat16|arch4Sm(?:50|70|75)|"
    rb"Flash_fwd_kernel_traitsILi(?:128|256)E"
)
"""Kernels of mixtures of experts, of products with packed weights, of attention in bf16, for older GPUs, or for widths
of
heads that no graph of ours has."""
_SYMBOL = re.compile(rb"\.text\.([A-Za-z0-9_$]+)")
_FATBIN = 0xBA55ED50
_SECTION = re.compile(r"\]\s+\.nv_fatbin\s+\S+\s+\S+\s+([0-9a-f]+)\s+([0-9a-f]+)")
_LARGEST = 1 << 28


def unpack_pruned(wheel: Path, folder: Path, architecture: int) -> None:
    """Unpack what of onnxruntime-gpu a GPU of one compute capability (90, say) needs.

    Needs ``readelf`` and the package zstandard. Raises ValueError: the wheel has no provider as it is known here.
    """
    with zipfile.ZipFile(wheel) as files:
        for name in sorted(files.namelist()):
            if name.endswith("/") or not _KEPT.match(name) or _LEFT.search(name):
                continue
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(files.read(name))
            if target.name == _PROVIDER:
                target.write_bytes(_without_code(target, architecture))


def _without_code(library: Path, architecture: int) -> bytes:
    data = bytearray(library.read_bytes())
    place, size = _code(library)
    end = place + size
    while place < end:
        if struct.unpack_from("<I", data, place)[0] != _FATBIN:
            place += 8  # padding between containers
            continue
        _, _, header, length = struct.unpack_from("<IHHQ", data, place)
        entry, stop = place + header, place + header + length
        while entry < stop:
            _, _, own_header, payload = struct.unpack_from("<HHIQ", data, entry)
            (compressed,) = struct.unpack_from("<I", data, entry + 16)
            (built_for,) = struct.unpack_from("<I", data, entry + 28)
            start = entry + own_header
            code = bytes(data[start : start + (compressed or payload)])
            if built_for != architecture or _unused(code):
                data[start : start + payload] = bytes(payload)
            entry = start + payload
        place = stop
    return bytes(data)


def _code(library: Path) -> tuple[int, int]:
    """Where the machine code for devices begins, and its size."""
    listed = subprocess.run(["readelf", "-SW", library], capture_output=True, text=True, check=True)
    section = _SECTION.search(listed.stdout)
    if section is None:
        raise ValueError(f"{_PROVIDER} has no .nv_fatbin section")
    return int(section[1], 16), int(section[2], 16)


def _unused(code: bytes) -> bool:
    """Whether most kernels in a piece of machine code are of the families that no graph of ours calls."""
    import zstandard

    try:
        unpacked = zstandard.ZstdDecompressor().decompress(code, max_output_size=_LARGEST)
    except zstandard.ZstdError:  # not compressed: small, and kept
        return False
    names = set(_SYMBOL.findall(unpacked))
    return sum(bool(_DROPPED.search(name)) for name in names) > len(names) / 2
