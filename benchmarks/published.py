"""The published size, end to end: write a checkpoint, export it, measure a step; one JSON file and one page.

Parts are kept in the work folder: an interrupted run goes on where it was.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import click

from unibrain_rt.benchmarks import machine
from unibrain_rt.benchmarks import markdown as tables
from unibrain_rt.benchmarks.export_cost import measure_export
from unibrain_rt.benchmarks.kept_results import KeptResults, out_option, write_results
from unibrain_rt.benchmarks.peers.rounds import measure_flow
from unibrain_rt.cli.messages import Command
from unibrain_rt.flows import FLOWS, Flow

PARTS = ("checkpoint", "export", "steps", "half")
NAME = "published-cpu"
_PRECISIONS = ("fp32", "fp16")
_STEPS_PEERS = ("onnxruntime", "torch", "diffusers")
_HALF_PEERS = ("torch", "onnxruntime-fp16")
# A step of the text flow takes a small part of an image step's time, so more rounds of it are cheap.
_ROUNDS: dict[Flow, int] = {"image": 1, "text": 3}
_HALF_ROUNDS = 2


class Published:
    """The parts of the benchmark and where they leave their results."""

    def __init__(self, work: Path, config: Path | None, rounds: int, threads: int | None) -> None:
        self.work, self.config, self.rounds, self.threads = work, config, rounds, threads
        self.kept = KeptResults(work)
        self.checkpoint = work / "checkpoint"

    def run(self, parts: tuple[str, ...]) -> None:
        """Run what is asked for and not there yet, in order."""
        for part, steps in self._steps().items():
            if part in parts:
                for name, measure in steps.items():
                    self._once(name, measure)

    def export(self, precision: str) -> None:
        """Export the checkpoint in one precision, if that is not there yet."""
        self._once(f"export-{precision}", self._steps()["export"][f"export-{precision}"])

    def results(self) -> dict[str, Any]:
        """Everything measured so far, as one mapping."""
        return {
            "machines": self._machines(),
            "checkpoint": self._read("checkpoint"),
            "exports": self._read_all(f"export-{precision}" for precision in _PRECISIONS),
            "flows": self._read_all(f"steps-{flow}" for flow in FLOWS),
            "half": self._read_all(f"half-{flow}" for flow in FLOWS),
        }

    def _steps(self) -> dict[str, dict[str, Callable[[], dict[str, Any]]]]:
        return {
            "checkpoint": {"checkpoint": self._write_checkpoint},
            "export": {
                f"export-{precision}": partial(
                    measure_export, self.checkpoint, self.work / precision, precision, self.config
                )
                for precision in _PRECISIONS
            },
            "steps": {
                f"steps-{flow}": partial(self._measure, flow, _STEPS_PEERS, self.rounds * _ROUNDS[flow])
                for flow in FLOWS
            },
            "half": {
                f"half-{flow}": partial(self._measure, flow, _HALF_PEERS, _HALF_ROUNDS) for flow in FLOWS
            },
        }

    def _once(self, name: str, measure: Callable[[], dict[str, Any]]) -> None:
        self.kept.once(name, lambda: {"machine": machine.collect(), "result": measure()})

    def _write_checkpoint(self) -> dict[str, Any]:
        # In a process of its own: building the modules' shapes takes libraries that would stay in this one's
        # memory.
        command = [sys.executable, "-m", "unibrain_rt.benchmarks.random_checkpoint", str(self.checkpoint)]
        command += ["--config", str(self.config)] if self.config else []
        # One that an interrupted run left may be incomplete.
        shutil.rmtree(self.checkpoint, ignore_errors=True)
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        files = {path.name: path.stat().st_size for path in sorted(self.checkpoint.glob("*.safetensors"))}
        return {"seconds": seconds, "files": files}

    def _measure(self, flow: Flow, peers: tuple[str, ...], rounds: int) -> dict[str, Any]:
        bundles = {"onnxruntime": self.work / "fp32", "onnxruntime-fp16": self.work / "fp16"}
        return measure_flow(
            flow,
            self.checkpoint,
            bundles,
            config=self.config,
            peers=peers,
            rounds=rounds,
            threads=self.threads,
        )

    def _read(self, name: str) -> Any:
        kept = self.kept.read(name)
        return None if kept is None else kept["result"]

    def _machines(self) -> list[dict[str, Any]]:
        """Where the parts were measured: one machine, unless the work folder was moved between them."""
        names = [name for steps in self._steps().values() for name in steps]
        machines: list[dict[str, Any]] = []
        for one in (self.kept.read(name)["machine"] for name in names if self.kept.there(name)):
            if one not in machines:
                machines.append(one)
        return machines

    def _read_all(self, names: Iterable[str]) -> list[Any]:
        return [result for result in map(self._read, names) if result is not None]


@click.command(cls=Command)
@click.option(
    "--work", type=click.Path(path_type=Path), required=True, help="For checkpoint, bundles and parts."
)
@out_option
@click.option("--config", type=click.Path(path_type=Path), help="JSON file with other sizes, to try it out.")
@click.option("--part", "parts", type=click.Choice(PARTS), multiple=True, default=PARTS, show_default=True)
@click.option(
    "--rounds", type=click.IntRange(1), default=5, show_default=True, help="Three times as many for text."
)
@click.option("--threads", type=click.IntRange(1), help="Of a step.  [default: one a core]")
def main(
    work: Path, out: Path, config: Path | None, parts: tuple[str, ...], rounds: int, threads: int | None
) -> None:
    """Run the parts that are missing and write the results of all that are there."""
    published = Published(work, config, rounds, threads)
    failure = None
    try:
        published.run(parts)
    except (RuntimeError, subprocess.CalledProcessError) as error:
        failure = error
    # What was measured before a part failed is worth a page too.
    results = published.results()
    write_results(out / NAME, results, tables.report(results))
    if failure is not None:
        raise click.ClickException(str(failure)) from failure


if __name__ == "__main__":
    main()
