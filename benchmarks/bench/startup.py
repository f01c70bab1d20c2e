"""From the start of ``unibrain-rt decode`` to its files: how long, and where the time goes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from unibrain_rt.benchmarks.bench.statistics import quantiles
from unibrain_rt.benchmarks.processes import WorkerError

PARTS = ("interpreter", "imports", "bundle", "engine", "graphs", "decode", "write", "other", "exit")
"""In this order; ``imports`` is the command's own, ``engine`` the back end's library too, ``exit`` lets it all go."""
_PROBE = "unibrain_rt.benchmarks.bench.startup_probe"


def measure_startup(
    bundle: Path, scan: Path, *, engine: str, preset: str, subject: str | None, threads: int | None,
    cache: Path | None, warm: int = 5, cold: int = 2,
) -> dict[str, Any]:  # fmt: skip
    """Milliseconds of the whole process, warm (everything was read before) and cold, and of its `PARTS` when warm.

    Cold: the kernel is told to drop what it keeps of the files that a decode reads: the bundle's, the plans',
    Python's and the libraries'. Pages that other processes use stay, those of this one among them.

    Raises:
        WorkerError: the command fails; with its exit code.
    """
    with tempfile.TemporaryDirectory(prefix="unibrain-rt-startup-") as folder:
        words = ["decode", str(scan), "--bundle", str(bundle), "--out", folder, "--overwrite"]
        words += ["--engine", engine, "--preset", preset]
        for option, value in (("--subject", subject), ("--threads", threads), ("--cache", cache)):
            words += [option, str(value)] if value is not None else []
        files: list[str] = []
        parts: list[dict[str, float]] = []
        runs: list[float] = []
        for number in range(warm + 1):
            probed = _probe(words, Path(folder) / "probe.json")
            if number:  # the first may compile
                parts.append(probed["seconds"])
            files = probed["files"]
            if number:  # beside each other, whatever else the machine does falls on both alike
                runs.append(_run(words))
        own = [path for path in bundle.rglob("*") if path.is_file()]
        cached = [path for path in cache.rglob("*") if path.is_file()] if cache else []
        colds = []
        for _ in range(cold):
            _drop([*map(Path, files), *own, *cached])
            colds.append(_run(words))
        return {
            "engine": engine,
            "preset": preset,
            "warm_ms": quantiles(runs),
            "cold_ms": quantiles(colds) if colds else None,
            "parts_ms": {
                part: float(np.median([one.get(part, 0.0) for one in parts])) * 1000 for part in PARTS
            },
            "samples_ms": {"warm": runs, "cold": colds},
        }


def _run(words: Sequence[str]) -> float:
    """Milliseconds from starting a process to its end, when the files lie there."""
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "unibrain_rt", *words], capture_output=True, text=True, errors="replace"
    )
    spent = (time.perf_counter() - begun) * 1000
    _check(done)
    return spent


def _probe(words: Sequence[str], out: Path) -> dict[str, Any]:
    begun = time.perf_counter()
    command = [sys.executable, "-m", _PROBE, str(begun), str(out), *words]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    ended = time.perf_counter()
    if not out.is_file():
        _check(done)
    probed: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    out.unlink()
    probed["seconds"]["exit"] = ended - probed["ended"]
    return probed


def _check(done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
        error = WorkerError(lines[-1].removeprefix("unibrain-rt: "))
        error.exit_code = done.returncode
        raise error


def _drop(paths: Iterable[Path]) -> None:
    """Ask the kernel to forget its copies of files. What is not written yet stays, so does what others map."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in paths:
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
