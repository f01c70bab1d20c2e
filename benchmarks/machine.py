"""What a measurement ran on: the machine and the versions, without anything that names the machine itself."""

from __future__ import annotations

import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from unibrain_rt.engines.host import usable_cores

PACKAGES = ("numpy", "onnx", "onnxruntime", "openvino", "torch", "diffusers", "transformers", "safetensors")
# Vector extensions that decide how fast matrices multiply, as Linux names them.
_EXTENSIONS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")


def collect() -> dict[str, Any]:
    """Processor, cores, memory, operating system, Python and versions of libraries; None where unknown."""
    processor = _proc_values("cpuinfo")
    flags = (processor.get("flags") or processor.get("Features") or "").split()
    return {
        "cpu": processor.get("model name") or platform.machine(),
        "vector_extensions": [name for name in _EXTENSIONS if name in flags],
        "cores": usable_cores(),
        "memory_gib": _memory_gib(),
        "os": _os(),
        "kernel": f"{platform.system()} {platform.release().split('-')[0]}",
        "transparent_huge_pages": _huge_pages(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def available_bytes() -> int:
    """Memory that can be taken without swapping."""
    return int(_proc_values("meminfo")["MemAvailable"].split()[0]) * 1024


def load_average() -> float | None:
    """Processes that wanted a core, averaged over the last minute: others disturb a measurement."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _proc_values(name: str) -> dict[str, str]:
    """The first value of every key in a file of /proc; empty elsewhere than on Linux."""
    try:
        lines = Path("/proc", name).read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    values: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        values.setdefault(key.strip(), value.strip())
    return values


def _memory_gib() -> float | None:
    total = _proc_values("meminfo").get("MemTotal")
    return None if total is None else round(int(total.split()[0]) / 2**20, 1)


def _os() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


def _huge_pages() -> str | None:
    try:
        text = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(encoding="ascii")
    except OSError:
        return None
    return text.partition("[")[2].partition("]")[0]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    print(json.dumps(collect(), indent=1))
