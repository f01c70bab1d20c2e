"""What this machine is: read from the files and the driver that are there, with nothing to install.

Each function takes the root of the file system, or the driver, so that a recording can stand in for a machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

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
    version = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", first)
    return version[0] if version else None


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


def _lines(path: Path) -> Iterable[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _number(path: Path) -> int | None:
    text = next(iter(_lines(path)), "")
    return int(text) if text.isdigit() else None
