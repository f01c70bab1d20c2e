"""Memory of a process: what it owns (anonymous), and what it maps from files, which the kernel can drop."""

from __future__ import annotations

import threading
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from types import TracebackType

_INTERVAL_S = 0.2


@dataclass(frozen=True)
class ProcessMemory:
    """Resident memory in bytes; ``total`` is RSS, ``high_water`` the kernel's record of its largest value."""

    anonymous: int = 0
    file_backed: int = 0
    total: int = 0
    high_water: int = 0

    def to_mapping(self) -> dict[str, int]:
        """The JSON form."""
        return {f"{name}_bytes": value for name, value in asdict(self).items()}


def memory_of(pid: int | str = "self") -> ProcessMemory | None:
    """Memory of a running process now; None once it is gone."""
    try:
        lines = Path("/proc", str(pid), "status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    pairs = (line.split(":", 1) for line in lines)
    kilobytes = {key: value.split()[0] for key, value in pairs if value.strip()}
    if "VmHWM" not in kilobytes:  # a zombie
        return None
    anonymous, file_backed, shared, high_water = (
        int(kilobytes[key]) * 1024 for key in ("RssAnon", "RssFile", "RssShmem", "VmHWM")
    )
    return ProcessMemory(anonymous + shared, file_backed, anonymous + shared + file_backed, high_water)


class PeakMemory:
    """Samples a process five times a second and keeps the largest of each value.

    ``stage`` names what the process does now; peaks are kept per stage too. The peaks of anonymous and of
    file-backed memory need not fall together, so their sum may exceed the largest total. ``high_water`` also
    covers the time between samples, but since the start of the process.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.stage = ""
        self.stages: dict[str, ProcessMemory] = {}

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def sample(self) -> None:
        """Take a sample now, whatever the clock says."""
        current, stage = memory_of(self._pid), self.stage
        if current is not None:
            self.stages[stage] = _largest(self.stages.get(stage, ProcessMemory()), current)

    @property
    def peak(self) -> ProcessMemory:
        """The largest values over all stages."""
        peak = ProcessMemory()
        for memory in list(self.stages.values()):
            peak = _largest(peak, memory)
        return peak

    def _watch(self) -> None:
        while not self._stop.wait(_INTERVAL_S):
            self.sample()


def _largest(first: ProcessMemory, second: ProcessMemory) -> ProcessMemory:
    pairs = zip(astuple(first), astuple(second), strict=True)
    return ProcessMemory(*(max(pair) for pair in pairs))
