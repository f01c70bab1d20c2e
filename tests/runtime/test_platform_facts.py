"""What a machine is, read from recordings of a Jetson, a workstation and a container."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from unibrain_rt import platform_facts
from unibrain_rt.platform_facts import Jetson, Memory, Processor

ORIN = {
    "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
    "etc/nv_tegra_release": (
        "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, "
        "DATE: Wed Jan  8 01:49:37 UTC 2025\n# KERNEL_VARIANT: oot\n"
    ),
    "proc/cpuinfo": (
        "processor\t: 0\nBogoMIPS\t: 62.50\n"
        "Features\t: fp asimd evtstrm aes crc32 atomics fphp asimdhp cpuid asimddp uscat ilrcpc\n"
        "CPU implementer\t: 0x41\nCPU part\t: 0xd42\n"
    ),
    "proc/driver/nvidia/version": (
        "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build  (buildbrain)\n"
    ),
    "proc/meminfo": "MemTotal:       64349464 kB\nMemFree:         1000000 kB\nMemAvailable:   58000000 kB\n",
}
WORKSTATION = {
    "proc/cpuinfo": (
        "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R) w5-3435X\n"
        "flags\t\t: fpu sse avx2 bmi2 avx512f avx512_vnni amx_bf16 amx_tile\n\nprocessor\t: 1\nmodel name\t: other\n"
    ),
    "proc/driver/nvidia/version": (
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n"
        "GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)\n"
    ),
    "proc/meminfo": "MemTotal:       131072000 kB\nMemAvailable:   65536000 kB\nHugetlb: 0 kB\n",
}


def record(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def test_a_jetson(tmp_path: Path) -> None:
    root = record(tmp_path, ORIN)
    found = platform_facts.jetson(root)
    assert found == Jetson("NVIDIA Jetson AGX Orin Developer Kit", "36.4.3")
    assert found.jetpack == 6
    assert platform_facts.processor(root) == Processor(None, ("asimdhp",))
    assert platform_facts.nvidia_driver(root) == "540.4.0"
    assert platform_facts.memory(root) == Memory(64349464 * 1024, 58000000 * 1024)


def test_a_jetson_in_a_container_has_no_release(tmp_path: Path) -> None:
    model = {"proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0"}
    found = platform_facts.jetson(record(tmp_path, model))
    assert found is not None
    assert (found.l4t, found.jetpack) == (None, None)


@pytest.mark.parametrize(
    ("release", "l4t", "jetpack"), [("35", "35.5.0", 5), ("38", "38.5.0", 7), ("99", "99.5.0", None)]
)
def test_releases_of_jetson_linux(tmp_path: Path, release: str, l4t: str, jetpack: int | None) -> None:
    root = record(tmp_path, {"etc/nv_tegra_release": f"# R{release} (release), REVISION: 5.0, GCID: 1"})
    found = platform_facts.jetson(root)
    assert found is not None
    assert (found.l4t, found.jetpack) == (l4t, jetpack)


def test_a_workstation(tmp_path: Path) -> None:
    root = record(tmp_path, WORKSTATION)
    assert platform_facts.jetson(root) is None
    flags = ("avx2", "avx512f", "avx512_vnni", "amx_bf16")
    assert platform_facts.processor(root) == Processor("Intel(R) Xeon(R) w5-3435X", flags)
    assert platform_facts.nvidia_driver(root) == "550.54.15"
    assert platform_facts.memory(root) == Memory(131072000 * 1024, 65536000 * 1024)


def test_another_board_is_no_jetson(tmp_path: Path) -> None:
    assert (
        platform_facts.jetson(record(tmp_path, {"proc/device-tree/model": "Raspberry Pi 5 Model B\0"}))
        is None
    )


def test_where_nothing_is_recorded(tmp_path: Path) -> None:
    assert platform_facts.jetson(tmp_path) is None
    assert platform_facts.processor(tmp_path) == Processor(None, ())
    assert platform_facts.nvidia_driver(tmp_path) is None
    assert platform_facts.memory(tmp_path) is None


def test_a_container_has_what_its_group_may_take(tmp_path: Path) -> None:
    group = {
        "sys/fs/cgroup/memory.max": "8000000000\n",
        "sys/fs/cgroup/memory.current": "5000000000\n",
        "sys/fs/cgroup/memory.stat": "anon 1000000000\ninactive_file 3000000000\n",
    }
    root = record(tmp_path, {**WORKSTATION, **group})
    assert platform_facts.memory(root) == Memory(8 * 10**9, 6 * 10**9)
    (root / "sys/fs/cgroup/memory.max").write_text("max\n")
    assert platform_facts.memory(root) == Memory(131072000 * 1024, 65536000 * 1024)


@pytest.mark.skipif(platform.system() != "Linux", reason="reads /proc")
def test_this_machine() -> None:
    found = platform_facts.memory()
    assert found is not None
    assert 0 < found.available_bytes <= found.total_bytes
