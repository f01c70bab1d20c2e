"""The GPU of the benchmark: waiting for it, its memory and its rates."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

_PEAK_SIDE, _PEAK_COPY_BYTES, _PEAK_REPEATS = 8192, 2**31, 10
_DRY_SIDE, _DRY_COPY_BYTES = 512, 2**24


class Gpu:
    """The device, or what stands for it in a dry run."""

    def __init__(self, *, dry: bool) -> None:
        import torch

        self._torch, self._dry = torch, dry
        self.device = "cpu" if dry else "cuda"

    def wait(self) -> None:
        if not self._dry:
            self._torch.cuda.synchronize()

    def taken_bytes(self) -> int | None:
        """Memory in use on the device, by everybody."""
        if self._dry:
            return None
        free, total = self._torch.cuda.mem_get_info()
        return int(total - free)

    def describe(self) -> str:
        return "cpu (dry run)" if self._dry else str(self._torch.cuda.get_device_name())

    def peaks(self, dtype: Any) -> dict[str, float]:
        """Rates of a large matrix product (FLOP/s) and a large copy (bytes/s, read and written)."""
        torch = self._torch
        side = _DRY_SIDE if self._dry else _PEAK_SIDE
        a, b = (torch.randn(side, side, dtype=dtype, device=self.device) for _ in range(2))
        source = torch.empty(
            _DRY_COPY_BYTES if self._dry else _PEAK_COPY_BYTES, dtype=torch.uint8, device=self.device
        )
        target = torch.empty_like(source)
        return {
            "flops": 2 * side**3 / self._best(lambda: torch.mm(a, b)),
            "bytes": 2 * source.numel() / self._best(lambda: target.copy_(source)),
        }

    def _best(self, work: Callable[[], Any]) -> float:
        seconds = []
        for _ in range(_PEAK_REPEATS):
            self.wait()
            begun = perf_counter()
            work()
            self.wait()
            seconds.append(perf_counter() - begun)
        return min(seconds)
