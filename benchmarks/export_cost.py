"""What an export costs: time and peak memory of ``unibrain-rt export`` by graph, and the sizes of its files.

The command runs as a process of its own and is watched from outside, so that what is measured is what a user
gets.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

from unibrain_rt.benchmarks import machine
from unibrain_rt.benchmarks.memory import PeakMemory

PRECISIONS = ("fp32", "fp16", "fp32-half-weights")
STARTING = "start"
_PROGRESS = re.compile(r"\[(\d+)/(\d+)\] (\S+)")
_TAIL_LINES = 20


def measure_export(checkpoint: Path, bundle: Path, precision: str, config: Path | None) -> dict[str, Any]:
    """Export ``checkpoint`` into ``bundle``, replacing it, and report what that took.

    A stage runs from its line of progress to the next one: ``start`` is before the first graph (imports,
    opening and checking the checkpoint), and the last graph's stage also holds the constants and the SHA-256
    of every file.

    Raises:
        RuntimeError: the export failed; the message ends with its last lines.
    """
    command = [sys.executable, "-m", "unibrain_rt", "export", str(checkpoint), "--out", str(bundle)]
    command += ["--precision", precision, "--overwrite"] + (["--config", str(config)] if config else [])
    load = machine.load_average()
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    stages, tail = {STARTING: begun}, deque[str](maxlen=_TAIL_LINES)
    with PeakMemory(process.pid) as memory:
        memory.stage = STARTING
        assert process.stderr is not None
        for line in process.stderr:
            tail.append(line)
            match = _PROGRESS.match(line)
            if match:
                stages[match[3]] = time.perf_counter()
                memory.stage = match[3]
        # wait4 gives this child's own record of memory, where getrusage adds up all that ever ended.
        _, status, usage = os.wait4(process.pid, 0)
    ended = time.perf_counter()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"export --precision {precision} exited {process.returncode}:\n{''.join(tail)}")
    ends = [*list(stages.values())[1:], ended]
    return {
        "precision": precision,
        "seconds": ended - begun,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "load_average_before": load,
        "peak_rss_bytes": usage.ru_maxrss * 1024,
        "peak_anonymous_bytes": memory.peak.anonymous,
        "peak_file_backed_bytes": memory.peak.file_backed,
        "checkpoint_bytes": sum(path.stat().st_size for path in _weights(checkpoint)),
        "stages": [
            {"name": name, "seconds": end - start, **_stage_memory(memory, name)}
            for (name, start), end in zip(stages.items(), ends, strict=True)
        ],
        "files": {
            path.relative_to(bundle).as_posix(): path.stat().st_size
            for path in sorted(bundle.rglob("*"))
            if path.is_file()
        },
    }


def _weights(checkpoint: Path) -> list[Path]:
    return [path for path in checkpoint.rglob("*") if path.suffix in (".safetensors", ".pth", ".bin")]


def _stage_memory(memory: PeakMemory, name: str) -> dict[str, int | None]:
    # A stage shorter than the sampling interval may have no sample.
    stage = memory.stages.get(name)
    return {
        "peak_rss_bytes": stage.total if stage else None,
        "peak_anonymous_bytes": stage.anonymous if stage else None,
        "peak_file_backed_bytes": stage.file_backed if stage else None,
    }
