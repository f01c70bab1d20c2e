"""What this machine is: read from the files and the driver that are there, with nothing to install.

Each function takes the root of the file system, or the driver, so that a recording can stand in for a machine.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path("/")
_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_bf16",
    "avx512_vnni",
    "amx_bf16",
    "amx_int8",
    "asimdhp",
    "bf16",
    "i8mm",
    "sve",
)
"""What makes a difference to a decode; x86 first, then Arm."""
_ONNX_RUNTIMES = ("onnxruntime", "onnxruntime-gpu")
_DRIVER_LIBRARY = "libcuda.so.1"
_MAJOR, _MINOR, _INTEGRATED = 75, 76, 18  # attributes of a device, as cuda.h numbers them
_NAME_BYTES = 256


@dataclass(frozen=True)
class Processor:
    """``model`` as the system names it; ``flags`` are those that matter here, as in /proc/cpuinfo."""

    model: str | None
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Jetson:
    """A Jetson's model, and its release of Jetson Linux, such as ``36.4.3``."""

    model: str
    l4t: str | None

    @property
    def jetpack(self) -> int | None:
        """The JetPack that this release belongs to."""
        majors = {"35": 5, "36": 6, "38": 7, "39": 7}
        return majors.get((self.l4t or "").split(".")[0])


@dataclass(frozen=True)
class Memory:
    """Of the host, in bytes; ``available`` is what programs can still get."""

    total_bytes: int
    available_bytes: int


@dataclass(frozen=True)
class Gpu:
    """A CUDA device. ``shared``: its memory is the host's."""

    name: str
    capability: str
    total_bytes: int
    free_bytes: int | None
    shared: bool = False


@dataclass(frozen=True)
class Gpus:
    """What the CUDA driver offers; ``problem`` says why it offers nothing although it is there."""

    devices: tuple[Gpu, ...] = ()
    problem: str | None = None


def processor(root: Path = ROOT) -> Processor:
    """The first core's model and flags, of /proc/cpuinfo; an Arm core often has no model."""
    fields: dict[str, str] = {}
    for line in _lines(root / "proc/cpuinfo"):
        name, _, value = line.partition(":")
        fields.setdefault(name.strip().lower(), value.strip())
    have = set(fields.get("flags", fields.get("features", "")).split())
    return Processor(fields.get("model name") or None, tuple(flag for flag in _FLAGS if flag in have))


def jetson(root: Path = ROOT) -> Jetson | None:
    """The Jetson this is; None elsewhere."""
    model = next(iter(_lines(root / "proc/device-tree/model")), "").strip("\0 ")
    text = " ".join(_lines(root / "etc/nv_tegra_release"))
    release = re.search(r"# R(\d+) \(release\), REVISION: ([\d.]+)", text)
    if release is None and "jetson" not in model.lower():
        return None
    return Jetson(model or "Jetson", f"{release[1]}.{release[2]}" if release else None)


def nvidia_driver(root: Path = ROOT) -> str | None:
    """Version of NVIDIA's kernel module; None where none is loaded."""
    first = next(iter(_lines(root / "proc/driver/nvidia/version")), "")
    found = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", first)
    return found[0] if found else None


def memory(root: Path = ROOT) -> Memory | None:
    """The host's memory, and no more than this process's control group may take; None where nothing says."""
    fields: dict[str, int] = {}
    for line in _lines(root / "proc/meminfo"):
        match = re.match(r"(\w+):\s+(\d+) kB", line)
        if match:
            fields[match[1]] = int(match[2]) * 1024
    if "MemTotal" not in fields or "MemAvailable" not in fields:
        return None
    total, available = fields["MemTotal"], fields["MemAvailable"]
    group = root / "sys/fs/cgroup"
    limit, used = (_number(group / name) for name in ("memory.max", "memory.current"))
    if limit is not None and used is not None:  # in a container
        # Pages of files that were read count as used, and are given up when memory is wanted.
        stat = dict(line.split() for line in _lines(group / "memory.stat"))
        used -= int(stat.get("inactive_file", 0))
        total, available = min(total, limit), min(available, max(limit - used, 0))
    return Memory(total, available)


def cuda_driver() -> Any:
    """The CUDA driver's library; None where there is none."""
    try:
        return ctypes.CDLL(_DRIVER_LIBRARY)
    except OSError:
        return None


def gpus(driver: Any) -> Gpus:
    """The devices of the CUDA driver that ``cuda_driver`` found."""
    if driver is None:
        return Gpus()
    try:
        _check(driver, driver.cuInit(0))
        count = ctypes.c_int()
        _check(driver, driver.cuDeviceGetCount(ctypes.byref(count)))
        return Gpus(tuple(_gpu(driver, number) for number in range(count.value)))
    except OSError as error:
        return Gpus(problem=str(error))


def onnxruntimes(installed: Callable[[str], str] = metadata.version) -> dict[str, str]:
    """Version of every distribution that brings a module ``onnxruntime``; two of them overwrite each other's files."""
    found = {}
    for name in _ONNX_RUNTIMES:
        try:
            found[name] = installed(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _gpu(driver: Any, number: int) -> Gpu:
    device, name = ctypes.c_int(), ctypes.create_string_buffer(_NAME_BYTES)
    _check(driver, driver.cuDeviceGet(ctypes.byref(device), number))
    _check(driver, driver.cuDeviceGetName(name, _NAME_BYTES, device))
    facts = []
    for attribute in (_MAJOR, _MINOR, _INTEGRATED):
        value = ctypes.c_int()
        _check(driver, driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device))
        facts.append(value.value)
    total = ctypes.c_size_t()
    _check(driver, driver.cuDeviceTotalMem_v2(ctypes.byref(total), device))
    return Gpu(
        name.value.decode("utf-8", "replace"),
        f"sm{facts[0]}{facts[1]}",
        total.value,
        _free_bytes(driver, device),
        bool(facts[2]),
    )


def _free_bytes(driver: Any, device: Any) -> int | None:
    """Free memory of a device; None where the driver does not let us ask, as on a device that is taken."""
    context, free, total = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
    if driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) != 0:
        return None
    try:
        if driver.cuCtxPushCurrent_v2(context) != 0:
            return None
        asked = driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
        driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
        return free.value if asked == 0 else None
    finally:
        driver.cuDevicePrimaryCtxRelease_v2(device)


def _check(driver: Any, code: int) -> None:
    """Raises OSError in the driver's words where a call failed."""
    if code == 0:
        return
    text = ctypes.c_char_p()
    known = driver.cuGetErrorString(code, ctypes.byref(text)) == 0 and text.value
    raise OSError(
        f"{text.value.decode()} (CUDA error {code})" if known and text.value else f"CUDA error {code}"
    )


def _lines(path: Path) -> Iterable[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _number(path: Path) -> int | None:
    text = next(iter(_lines(path)), "")
    return int(text) if text.isdigit() else None
