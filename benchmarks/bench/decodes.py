"""Decodes timed stage by stage, as ``unibrain-rt decode`` makes them: from a file of scans to picture and record."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unibrain_rt import Decoder
from unibrain_rt.benchmarks.bench.calibration import Calibration
from unibrain_rt.benchmarks.bench.tap import GraphRun, Tap, between, spans, undisturbed
from unibrain_rt.benchmarks.bench.thread_clock import Moment, ThreadClock
from unibrain_rt.benchmarks.made_up_subject import MadeUpSubject
from unibrain_rt.bundle import Bundle
from unibrain_rt.captions import CaptionOptions
from unibrain_rt.engines import Engine, create_engine
from unibrain_rt.errors import InputError
from unibrain_rt.outputs import plan_outputs, write_pair
from unibrain_rt.ridge_graph import ridge_graphs
from unibrain_rt.samplers import seeded_noise
from unibrain_rt.scans import read_scans
from unibrain_rt.sessions import decode_graphs

STAGES = ("scan_read", "ridge", "context", "image_loop", "autokl", "text_loop", "caption", "png")
"""As a reconstruction's ``timings_ms`` name them, with reading and writing; in the order in which they run. With the
little between them, they make up the end-to-end time."""
ONCE = "time"
"""The stage that runs once per schedule, when a decoder is opened: its graph gives the time modulation of all steps."""
LOOPS = {"image_step": "unet_image_step", "text_step": "unet_text_step", "token": "optimus_decode"}
"""What is timed one by one, and the graph that runs for each."""
STEP_OF = {"image_loop": "image_step", "text_loop": "text_step", "caption": "token"}
GRAPHS = {
    "context": "unet_context",
    "image_loop": "unet_image_step",
    "autokl": "autokl_decode",
    "text_loop": "unet_text_step",
    "caption": "optimus_decode",
}
"""Which graph a stage runs."""
_SCAN = "scan"


@dataclass(frozen=True)
class Setup:
    """What decodes run on. ``scan`` is a file of scans; without one, made-up betas are decoded.

    ``low_memory`` loads a graph when its stage begins and lets it go after it: a stage's first run holds the loading.
    """

    bundle: Path
    engine: str
    preset: str
    subject: str | None = None
    scan: Path | None = None
    threads: int | None = None
    cache: Path | None = None
    low_memory: bool = False


class TimedDecodes:
    """A decoder, opened as the command line opens it, and what its decodes cost.

    ``load_ms`` tells what opening it took: ``bundle`` (every file's SHA-256 is compared), ``engine`` and ``graphs``.
    """

    def __init__(self, setup: Setup) -> None:
        """Raises InputError, BundleError, EngineError as a decode does."""
        self._clock = ThreadClock()
        begun = time.perf_counter()
        self.bundle = Bundle.open(setup.bundle)
        self.bundle.preset(setup.preset)
        subject: Any = (
            self.bundle.subject(setup.subject) if self.bundle.subjects else MadeUpSubject(self.bundle)
        )
        opened = time.perf_counter()
        self.engine: Engine = create_engine(
            setup.engine,
            setup.threads,
            cache=setup.cache,
            graphs=decode_graphs(self.bundle, [setup.preset]),
            device_graphs=ridge_graphs(self.bundle, [subject]),
            low_memory=setup.low_memory,
        )
        made = time.perf_counter()
        self._tap = Tap(self.engine, self._clock)
        self.decoder = Decoder(self.bundle, subject, self.engine, setup.preset, CaptionOptions())
        self.load_ms = {
            "bundle": (opened - begun) * 1000,
            "engine": (made - opened) * 1000,
            "graphs": (time.perf_counter() - made) * 1000,
        }
        self._tap.take()
        self._calibration = Calibration(self._clock)
        self._folder = tempfile.TemporaryDirectory(prefix="unibrain-rt-bench-")
        self._out = Path(self._folder.name)
        self.scan = setup.scan or made_up_scan(self._out, subject)

    def close(self) -> None:
        self._folder.cleanup()

    def decode(self) -> dict[str, Any]:
        """Decode the file's first scan, seed 0; what it took, in milliseconds.

        ``stages`` and ``end_to_end`` are wall times, on the device's own clock where it has one; ``undisturbed`` is the
        same without the wait for a core; ``steps`` are lists by the names of `LOOPS`; ``host`` is what the host spent
        between the runs of a loop, undisturbed; ``calibration`` is what `Calibration` took, before and after.
        """
        before = self._calibration()
        begun, begun_cpu = self._clock.now(), time.process_time()
        scan = next(iter(read_scans(self.scan, self.decoder.subject.voxel_space)), None)
        if scan is None:
            raise InputError(f"{self.scan}: holds no scan")
        read = self._clock.now()
        result = self.decoder.decode(scan.betas)
        decoded = self._clock.now()
        (output,) = plan_outputs(self._out, [_SCAN], True).todo
        write_pair(output, result.image, result.record(), text={"Description": result.caption or ""})
        ended, ended_cpu = self._clock.now(), time.process_time()
        runs = self._tap.take()
        ends = {"scan_read": (begun, read), "png": (decoded, ended)}
        stages = {stage: taken for stage, taken in result.timings_ms.items() if stage in STAGES}
        stages |= {stage: late.milliseconds_since(early) for stage, (early, late) in ends.items()}
        return {
            "stages": {stage: stages[stage] for stage in STAGES if stage in stages},
            "end_to_end": ended.milliseconds_since(begun),
            "undisturbed": _undisturbed(stages, runs, ends) | {"end_to_end": ended.undisturbed_since(begun)},
            "cpu": (ended_cpu - begun_cpu) * 1000,
            "steps": self._steps(stages, runs, len(result.tokens) - 1),
            "host": {name: between(runs[graph]) for name, graph in LOOPS.items() if graph in runs},
            "calibration": (before + self._calibration()) / 2,
            "caption": result.caption,
        }

    def time_modulation(self, repeats: int) -> list[float]:
        """Milliseconds of the stage `ONCE`, repeatedly: what a decoder computes when it is opened."""
        ((graph, count),) = (
            (graph, free)
            for graph, free in decode_graphs(self.bundle, [self.decoder.preset_name])
            if graph.name == "unet_time"
        )
        session, milliseconds = self.engine.open(graph, free=count), []
        for _ in range(repeats + 1):
            begun = time.perf_counter()
            session.write("timesteps", np.arange(count))
            session.run()
            session.read(graph.outputs[0].name)
            milliseconds.append((time.perf_counter() - begun) * 1000)
        self._tap.take()
        return milliseconds[1:]

    def runs_of(self, record: Mapping[str, Any]) -> dict[str, int]:
        """How often each stage's graph ran in a decode."""
        return {
            stage: len(record["steps"].get(STEP_OF.get(stage, ""), [0]))
            for stage in GRAPHS
            if stage in record["stages"]
        }

    def _steps(
        self, stages: Mapping[str, float], runs: Mapping[str, list[GraphRun]], tokens: int
    ) -> dict[str, list[float]]:
        """One by one where the host sees them; of a loop that the device runs by itself, its mean, so often."""
        preset, schedule = self.bundle.preset(self.decoder.preset_name), self.bundle.schedule
        counts = {
            "image_step": len(preset.table(schedule, "image").timesteps),
            "text_step": len(preset.table(schedule, "text").timesteps),
            "token": tokens,
        }
        times = {}
        for stage, name in STEP_OF.items():
            if stage in stages and counts[name]:
                seen = list(spans(runs.get(LOOPS[name], [])))
                times[name] = seen or [stages[stage] / counts[name]] * counts[name]
        return times


def _undisturbed(
    stages: Mapping[str, float], runs: Mapping[str, list[GraphRun]], ends: Mapping[str, tuple[Moment, Moment]]
) -> dict[str, float]:
    """Of the stages that the host sees, without the wait for a core; of the others, their wall time."""
    times = dict(stages)
    times |= {stage: undisturbed(runs[graph]) for stage, graph in GRAPHS.items() if graph in runs}
    times |= {stage: late.undisturbed_since(early) for stage, (early, late) in ends.items()}
    return {stage: times[stage] for stage in STAGES if stage in times}


def made_up_scan(folder: Path, subject: Any) -> Path:
    """A file with one scan, of noise in the range of betas."""
    path = folder / f"{_SCAN}.npy"
    np.save(path, seeded_noise(0, 0, (subject.voxels,)))
    return path
