"""A process that decodes when it is told to: one engine and one preset, loaded once."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unibrain_rt.benchmarks import processes
from unibrain_rt.benchmarks.bench.decodes import Setup, TimedDecodes
from unibrain_rt.benchmarks.memory import ProcessMemory, memory_of
from unibrain_rt.engines.cuda.driver import cuda_driver, gpus

_PATHS = ("bundle", "scan", "cache")
_TIME_REPEATS = 5


class DecodeAnswers:
    """Answers commands with decodes.

    ``load`` opens a decoder and makes its first decode; ``decode`` makes ``count`` more and gives a record each
    (`TimedDecodes.decode`) and the wall time of all; ``peaks`` measures the engine's matrix product and copy (`Peaks`).
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._decodes: TimedDecodes | None = None

    def __call__(self, request: Mapping[str, Any]) -> dict[str, Any]:
        command = request["command"]
        if command == "load":
            return self._load()
        assert self._decodes is not None, "load comes first"
        if command == "decode":
            begun = time.perf_counter()
            records = [self._decodes.decode() for _ in range(request["count"])]
            return {"records": records, "seconds": time.perf_counter() - begun}
        if command == "peaks":
            from unibrain_rt.benchmarks.bench.peaks import measure_peaks

            return measure_peaks(self._decodes.engine, float(request["seconds"]))
        if command == "memory":
            return {**(memory_of("self") or ProcessMemory()).to_mapping(), "device_bytes": _device_bytes()}
        raise ValueError(f"unknown command {command!r}")

    def _load(self) -> dict[str, Any]:
        taken = _device_bytes()
        decodes = self._decodes = TimedDecodes(self._setup)
        first = decodes.decode()
        after = _device_bytes()
        return {
            "engine": decodes.engine.describe(),
            "passed_over": [str(each) for each in decodes.engine.passed_over],
            "load_ms": decodes.load_ms,
            "first": first,
            "runs": decodes.runs_of(first),
            "time_ms": decodes.time_modulation(_TIME_REPEATS),
            "subject": decodes.decoder.subject.name,
            # Engines keep what they once took, so this is the peak, if nothing else changed meanwhile.
            "device_bytes": None if taken is None or after is None else after - taken,
        }


def _device_bytes() -> int | None:
    """Memory in use on all CUDA devices, by everybody; None where there are none."""
    devices = [one for one in gpus(cuda_driver()).devices if one.free_bytes is not None]
    return sum(one.total_bytes - (one.free_bytes or 0) for one in devices) if devices else None


def make(fields: dict[str, Any]) -> DecodeAnswers:
    """From the JSON form of a `Setup`."""
    paths = {name: Path(fields.pop(name)) for name in _PATHS if fields.get(name) is not None}
    return DecodeAnswers(Setup(**{**fields, **paths}))


if __name__ == "__main__":
    processes.main(make)
