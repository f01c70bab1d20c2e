"""Parts of a benchmark, each in a process and a time of its own, whose results are on the disk when they end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

from unibrain_rt.files import write_files

_TAIL_LINES = 12


def run_part(
    module: str, name: str, out: Path, options: Mapping[str, object], limit_s: float
) -> dict[str, Any]:
    """Run ``module`` with ``--part name``; it writes ``out/name.json``, which comes back with how it ended.

    A part that fails or takes too long leaves what it had written, and its last lines: the next goes on.
    """
    words = [f"--{key}={value}" for key, value in options.items()]
    begun = perf_counter()
    with (out / f"{name}.log").open("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module, f"--part={name}", f"--out={out}", *words],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code: int | str = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            code = f"ended after {limit_s:.0f} s"
        log.seek(0)
        tail = log.read().strip().splitlines()[-_TAIL_LINES:]
    results = read(out / f"{name}.json")
    return {
        **results,
        "ended": code,
        "seconds": round(perf_counter() - begun, 1),
        **({} if code == 0 else {"tail": tail}),
    }


def read(path: Path) -> dict[str, Any]:
    """A part's results so far; empty where there are none."""
    if not path.is_file():
        return {}
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return results


def write(path: Path, results: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    write_files({path: json.dumps(results, indent=1) + "\n"})
