"""Time as a thread lives it: the wall's, and without what the thread stood ready for while others had the core."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass


@dataclass(frozen=True)
class Moment:
    """Nanoseconds: of a monotonic clock, and for how long this thread has waited for a core since it began."""

    wall: int
    waited: int

    def milliseconds_since(self, earlier: Moment) -> float:
        return (self.wall - earlier.wall) / 1e6

    def undisturbed_since(self, earlier: Moment) -> float:
        """Milliseconds since then, less those in which the thread was ready and had no core.

        That is what other programs add to a wall time; work, sleep and waiting for a device or a file stay.
        """
        return (self.wall - earlier.wall - (self.waited - earlier.waited)) / 1e6


class ThreadClock:
    """The clock of the thread that makes it. Where Linux's scheduler tells of no waiting, none is taken off."""

    def __init__(self) -> None:
        self._file: int | None = None
        with suppress(OSError):
            # Fields: time on a core, time ready without one, slices (Documentation/scheduler/sched-stats.rst).
            self._file = os.open(f"/proc/self/task/{threading.get_native_id()}/schedstat", os.O_RDONLY)
        if self._file is not None and len(os.pread(self._file, 200, 0).split()) < 2:
            self._file = None

    def now(self) -> Moment:
        waited = self._waited()
        while True:
            wall = time.perf_counter_ns()
            # Between the two readings the thread may lose its core: then they do not belong together.
            again = self._waited()
            if again == waited:
                return Moment(wall, waited)
            waited = again

    def _waited(self) -> int:
        return 0 if self._file is None else int(os.pread(self._file, 200, 0).split()[1])
