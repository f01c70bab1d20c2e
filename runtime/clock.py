"""How long the stages of a decode take."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class Clock:
    """Wall time of named stages, in milliseconds."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._stages: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self._stages[stage] = (time.perf_counter() - begun) * 1000

    def add(self, stages: Mapping[str, float]) -> None:
        """Milliseconds of stages that another clock took."""
        for stage, more in stages.items():
            self._stages[stage] = self._stages.get(stage, 0.0) + more

    @property
    def stages(self) -> dict[str, float]:
        """Time of every stage so far."""
        return dict(self._stages)

    def finished(self) -> dict[str, float]:
        """Time of every stage, and ``total`` since the clock was made."""
        return {**self._stages, "total": (time.perf_counter() - self._start) * 1000}
