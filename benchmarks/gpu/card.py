"""The GPU of the benchmark: its name, its rates, and its memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from time import perf_counter
from typing import Any

from unibrain_rt.platform_facts import nvidia_driver

_SIDE, _COPY_BYTES, _REPEATS = 8192, 2**31, 10
_DRY_SIDE, _DRY_COPY_BYTES = 512, 2**24


def describe(device: str) -> dict[str, Any]:
    """Name, driver and memory of the device that torch sees."""
    import torch

    card: dict[str, Any] = {"name": "cpu (dry run)", "torch": torch.__version__, "cuda": torch.version.cuda}
    if device != "cuda":
        return card
    properties = torch.cuda.get_device_properties(0)
    card |= {"name": properties.name, "memory_bytes": properties.total_memory}
    card |= {"multiprocessors": properties.multi_processor_count, "cudnn": torch.backends.cudnn.version()}
    return card | {"driver": nvidia_driver()}


def peaks(device: str) -> dict[str, float]:
    """Rates of a large matrix product in half precision (FLOP/s), and of a large copy (bytes/s, read and written)."""
    import torch

    dry = device != "cuda"
    side, dtype = (_DRY_SIDE, torch.float32) if dry else (_SIDE, torch.float16)
    a, b = (torch.randn(side, side, dtype=dtype, device=device) for _ in range(2))
    source = torch.empty(_DRY_COPY_BYTES if dry else _COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def best(work: Callable[[], Any]) -> float:
        seconds = []
        for _ in range(_REPEATS):
            begun = perf_counter()
            work()
            if not dry:
                torch.cuda.synchronize()
            seconds.append(perf_counter() - begun)
        return min(seconds)

    best(lambda: torch.mm(a, b))  # warm
    return {
        "flops": 2 * side**3 / best(lambda: torch.mm(a, b)),
        "bytes": 2 * source.numel() / best(lambda: target.copy_(source)),
    }


def used_bytes() -> int | None:
    """Memory in use on the device, by everybody; None where no driver tells."""
    with suppress(Exception):  # not installed, or no device
        nvml, handle = _nvml()
        return int(nvml.nvmlDeviceGetMemoryInfo(handle).used)
    return None


def process_bytes(pid: int) -> int | None:
    """What one process takes of the device; None where the driver does not tell."""
    with suppress(Exception):
        nvml, handle = _nvml()
        for one in nvml.nvmlDeviceGetComputeRunningProcesses(handle):
            if one.pid == pid and one.usedGpuMemory:
                return int(one.usedGpuMemory)
    return None


def _nvml() -> tuple[Any, Any]:
    """NVIDIA's management library, and its handle of the device."""
    import pynvml

    pynvml.nvmlInit()
    return pynvml, pynvml.nvmlDeviceGetHandleByIndex(0)
