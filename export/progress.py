"""What long commands say of how far they are, on stderr."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import click

_log = logging.getLogger(__name__)


class Watch:
    """Tells what is being done and since when, and keeps the seconds of each part."""

    def __init__(self) -> None:
        self._start = self._lap = time.monotonic()
        self.seconds: dict[str, float] = {}

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    def say(self, what: str) -> None:
        _log.info("%-52s %6.0f s", what, self.elapsed)

    def step(self, name: str, step: int, steps: int, loss: float) -> None:
        """One line that a training rewrites as it goes on."""
        line = f"{name:<12} {step:>6} / {steps}   loss {loss:.4f}   {self.elapsed:7.0f} s"
        click.echo(f"\r{line}", nl=step == steps, err=True)

    def lap(self, part: str) -> None:
        now = time.monotonic()
        self.seconds[part] = round(now - self._lap, 3)
        self.seconds["all"] = round(now - self._start, 3)
        self._lap = now


def by_shares(tell: Callable[[int, int], None], parts: int) -> Callable[[int, int], None]:
    """``tell`` of (done, total) about ``parts`` times on the way, and at its end."""
    told = 0

    def progress(done: int, total: int) -> None:
        nonlocal told
        if done == total or done - told >= total / parts:
            told = done
            tell(done, total)

    return progress
