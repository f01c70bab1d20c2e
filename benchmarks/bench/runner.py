"""Measures decodes with several engines and presets, each in processes of its own, in rounds that take turns."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from unibrain_rt import __version__
from unibrain_rt.benchmarks import machine
from unibrain_rt.benchmarks.bench.decodes import Setup
from unibrain_rt.benchmarks.bench.statistics import summarise
from unibrain_rt.benchmarks.processes import WorkerProcess
from unibrain_rt.bundle import Bundle
from unibrain_rt.engines.cuda.driver import cuda_driver, gpus
from unibrain_rt.engines.host import usable_cores
from unibrain_rt.platform_facts import nvidia_driver

_log = logging.getLogger(__name__)

MOST_ROUNDS = 10
_PEAK_ROUNDS, _PEAK_SECONDS = 3, 0.5
_WORKER = "unibrain_rt.benchmarks.bench.decode_worker"


@dataclass(frozen=True)
class Plan:
    """What to measure: every engine with every preset, ``runs`` decodes of each after the first.

    ``batch`` scans are decoded at a time, each by a process of its own with its share of the threads: a bundle's graphs
    take one scan. ``rounds`` spread the runs over the time that all of it takes.
    """

    bundle: Path
    engines: tuple[str, ...] = ("auto",)
    presets: tuple[str, ...] = ("paper",)
    subject: str | None = None
    scan: Path | None = None
    threads: int | None = None
    cache: Path | None = None
    batch: int = 1
    runs: int = 20
    low_memory: bool = False

    @property
    def rounds(self) -> list[int]:
        """How many decodes each round makes."""
        count = min(self.runs, MOST_ROUNDS)
        return [self.runs // count + (place < self.runs % count) for place in range(count)]


class Case:
    """One engine with one preset: as many processes as scans are decoded at a time."""

    def __init__(self, plan: Plan, engine: str, preset: str, stack: ExitStack) -> None:
        cores = plan.threads or usable_cores()
        setup = Setup(
            plan.bundle, engine, preset, plan.subject, plan.scan,
            threads=plan.threads if plan.batch == 1 else max(1, cores // plan.batch),
            cache=plan.cache, low_memory=plan.low_memory,
        )  # fmt: skip
        self.engine, self.preset = engine, preset
        name = f"{engine} {preset}"
        self.workers = [
            stack.enter_context(WorkerProcess(name, _WORKER, asdict(setup))) for _ in range(plan.batch)
        ]
        self.loaded: dict[str, Any] = {}
        self.rounds: list[dict[str, Any]] = []

    def load(self) -> None:
        for worker in self.workers:
            worker.memory.stage = "load"
        self.loaded = self._ask("load")[0]
        for worker in self.workers:
            worker.memory.sample()
            worker.memory.stage = "steady"

    def decode(self, count: int) -> None:
        """One round: so many decodes in every process."""
        begun = time.perf_counter()
        replies = self._ask("decode", count=count)
        self.rounds.append(
            {
                "load_average": machine.load_average(),
                "records": [record for reply in replies for record in reply["records"]],
                "seconds": time.perf_counter() - begun,
            }
        )

    def result(self) -> dict[str, Any]:
        for worker in self.workers:
            worker.memory.sample()
        memory = [worker.ask("memory") for worker in self.workers]
        records = [record for one in self.rounds for record in one["records"]]
        loaded, first = self.loaded, self.loaded["first"]
        return {
            "engine": loaded["engine"],
            "passed_over": loaded["passed_over"],
            "preset": self.preset,
            "subject": loaded["subject"],
            "load_ms": {**loaded["load_ms"], "total": sum(loaded["load_ms"].values())},
            "first_ms": {**first["stages"], "end_to_end": first["end_to_end"]},
            "runs": loaded["runs"],
            **summarise(records, loaded["time_ms"], len(self.workers)),
            "memory": {
                "peak_rss_bytes": sum(each["high_water_bytes"] for each in memory),
                "peak_own_bytes": sum(worker.memory.peak.anonymous for worker in self.workers),
                "device_bytes": loaded["device_bytes"],
            },
            "rounds": [
                {**one, "records": [_short(record) for record in one["records"]]} for one in self.rounds
            ],
        }

    def _ask(self, command: str, **arguments: Any) -> list[dict[str, Any]]:
        """Of all processes at the same time."""
        for worker in self.workers:
            worker.send(command, **arguments)
        return [worker.receive() for worker in self.workers]


def measure(plan: Plan) -> list[dict[str, Any]]:
    """A result for every engine and preset.

    Raises:
        WorkerError: a process failed; with the exit code of what users can cause.
    """
    with ExitStack() as stack:
        cases: list[Case] = []
        for engine in plan.engines:
            for preset in plan.presets:
                cases.append(Case(plan, engine, preset, stack))
                cases[-1].load()
                seconds = sum(cases[-1].loaded["load_ms"].values()) / 1000
                _log.info("%s, %s: loaded in %.1f s", engine, preset, seconds)
        for place, count in enumerate(plan.rounds):
            for case in cases if place % 2 == 0 else reversed(cases):
                case.decode(count)
            _log.info("round %d of %d", place + 1, len(plan.rounds))
        # Before the peaks are measured, whose matrices would count as the decode's memory.
        results = [case.result() for case in cases]
        peaks = _peaks(cases)
        return [{**result, "peaks": peaks[case.engine]} for case, result in zip(cases, results, strict=True)]


def _peaks(cases: Sequence[Case]) -> dict[str, dict[str, Any]]:
    """By engine, the best of several attempts that take turns: what else runs here comes and goes."""
    by_engine = {case.engine: case.workers[0] for case in reversed(cases)}
    peaks: dict[str, dict[str, Any]] = {}
    for _ in range(_PEAK_ROUNDS):
        for engine, worker in by_engine.items():
            one = worker.ask("peaks", seconds=_PEAK_SECONDS)
            before = peaks.get(engine, {})
            peaks[engine] = one | {
                rate: max(one[rate], before.get(rate, 0.0)) for rate in ("flops_per_s", "bytes_per_s")
            }
    return peaks


def describe(plan: Plan, bundle: Bundle) -> dict[str, Any]:
    """What a reader has to know of where results come from: machine, versions, bundle and settings."""
    settings = replace(plan, bundle=Path(bundle.name), cache=None, scan=plan.scan and Path(plan.scan.name))
    devices = [f"{gpu.name} ({gpu.capability})" for gpu in gpus(cuda_driver()).devices]
    return {
        "version": __version__,
        "machine": machine.collect() | ({"gpus": devices, "driver": nvidia_driver()} if devices else {}),
        "bundle": {
            "name": bundle.name,
            "fingerprint": bundle.fingerprint(),
            "precision": bundle.precision,
            "size_bytes": sum(record.size_bytes for record in bundle.files.values()),
        },
        "settings": {
            name: str(value) if isinstance(value, Path) else value for name, value in _settings(settings)
        },
    }


def _settings(plan: Plan) -> Iterator[tuple[str, Any]]:
    for name, value in asdict(plan).items():
        if name != "cache":
            yield name, list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _short(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record without what is long or the same in all."""
    kept = {name: record[name] for name in ("stages", "undisturbed")}
    return {
        **{name: {stage: round(value, 4) for stage, value in each.items()} for name, each in kept.items()},
        **{name: round(record[name], 4) for name in ("end_to_end", "cpu", "calibration")},
    }
