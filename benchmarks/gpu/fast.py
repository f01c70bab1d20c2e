"""How fast whole decodes of the published size are.

``python -m unibrain_rt.benchmarks.gpu.fast --pack PACK --out OUT``.

All variants load at the same time, each in a process of its own. Whole decodes are measured when all that have them are
ready; then stages of the others, one variant as soon as it is. Every result is written as soon as it is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from threading import Thread
from time import perf_counter, sleep
from typing import Any

import click

from unibrain_rt.benchmarks.bench.roofline import StageWork
from unibrain_rt.benchmarks.gpu import filling
from unibrain_rt.benchmarks.gpu.parts import write
from unibrain_rt.benchmarks.gpu.scan import compare, tables_of
from unibrain_rt.benchmarks.gpu.variant_worker import VARIANTS, WORKS, load_decoded
from unibrain_rt.benchmarks.gpu.variants import STAGES
from unibrain_rt.benchmarks.processes import WorkerError, WorkerProcess
from unibrain_rt.bundle import Bundle
from unibrain_rt.engines import probe
from unibrain_rt.flows import FLOWS
from unibrain_rt.graph_size import costs_of

PRESETS = ("paper", "fast", "realtime")
TOKENS = 20
REFERENCE = "torch eager"
DEFAULT = (
    *("torch eager", "torch, CUDA graphs", "cuda", "cuda, plain", "cuda, no graphs"),
    *("torch.compile, image", "torch.compile, text", "torch.compile, rest"),
    *("cuda, fuse_conv_bias", "cuda, flash attention"),
)
STAGED = "cuda, no graphs"
"""Whose kernels are traced: one by one, nothing between them matters."""
FILLER = "torch eager"
_LOOK_S = 0.5


class Loading:
    """A variant's process, which gets ready in a thread of its own; ``ready`` while a preset can be measured."""

    def __init__(self, name: str, worker: WorkerProcess) -> None:
        self.name, self.worker = name, worker
        self.record: dict[str, Any] = {}
        self.ready = False
        Thread(target=self._get_ready, daemon=True).start()

    @property
    def failed(self) -> bool:
        return "error" in self.record

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """The worker's answer; an empty one where it failed, which the record then tells of."""
        try:
            return self.worker.ask(command, **arguments)
        except WorkerError as error:
            self.ready, self.record["error"] = False, str(error)[-1500:]
            return {}

    def _get_ready(self) -> None:
        try:
            self.record["load"] = self.worker.ask("load", fills=self.name == FILLER)
            self.record["prepare"] = self.worker.ask("prepare", preset=PRESETS[0])
            self.record["memory"] = self.worker.ask("memory")
            self.ready = True
        except Exception as error:  # also of a pipe that was closed because time was up
            self.record["error"] = str(error)[-1500:]


class FastRun:
    """The measurement: ``results`` as they stand, in a file."""

    def __init__(self, out: Path, budget_s: float) -> None:
        self._out, self._begun, self._budget_s = out, perf_counter(), budget_s
        self.results: dict[str, Any] = {"presets": {}, "variants": {}}

    @property
    def left_s(self) -> float:
        return self._budget_s - (perf_counter() - self._begun)

    def save(self) -> None:
        write(self._out / "fast.json", self.results)

    def say(self, line: str) -> None:
        click.echo(f"[{perf_counter() - self._begun:5.0f} s] {line}")


def measure_preset(run: FastRun, variants: Sequence[Loading], preset: str, rounds: int) -> None:
    """Interleaved rounds of the variants that are ready, then their stages, one variant after another."""
    kept = run.results["presets"].setdefault(preset, {"rounds": [], "stages": {}})
    if preset != PRESETS[0]:
        for one in _ready(variants):
            one.ask("prepare", preset=preset)
    for number in range(rounds):
        if run.left_s < 10:
            run.say(f"{preset}: no time for more than {number} rounds")
            break
        measured: dict[str, dict[str, float]] = {work: {} for work in WORKS}
        for one in _ready(variants)[:: 1 if number % 2 == 0 else -1]:
            for work, spent in one.ask("time", preset=preset).get("milliseconds", {}).items():
                measured[work][one.name] = spent
        kept["rounds"].append(measured)
        run.save()
    for one in _ready(variants):
        if run.left_s > 5 and (stages := one.ask("stages", preset=preset, rounds=3)):
            kept["stages"][one.name] = stages["rounds"]
            run.save()
    for one in _ready(variants):
        works = {work: [entry[work][one.name] for entry in kept["rounds"]] for work in WORKS}
        if works["decode"]:
            spent = ", ".join(f"{work} {median(times):.1f} ms" for work, times in works.items())
            run.say(f"{preset} {one.name}: {spent} {_medians(kept['stages'].get(one.name, []))}")


def _ready(variants: Sequence[Loading]) -> list[Loading]:
    return [one for one in variants if one.ready]


def _medians(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    stages = rounds[0] if rounds else {}
    return {stage: round(median(one[stage] for one in rounds), 2) for stage in stages}


def bounds(bundle: Bundle, preset: str, peaks: dict[str, float]) -> dict[str, Any]:
    """By stage: work of a run, and the milliseconds that all runs take at least at measured rates."""
    tables = tables_of(bundle, preset)
    stages = {
        "context": ("unet_context", 1),
        **{f"{flow}_loop": (f"unet_{flow}_step", len(tables[flow].timesteps)) for flow in FLOWS},
        "autokl": ("autokl_decode", 1),
        "tokens": ("optimus_decode", TOKENS),
    }
    limits = {}
    for stage, (graph, runs) in stages.items():
        work = StageWork(stage, graph, runs, costs_of(bundle, graph))
        limits[stage] = {
            "runs": runs,
            "flops": work.work.flops,
            "weight_bytes": work.work.weight_bytes,
            "activation_bytes": work.work.activation_bytes,
            "limit_ms": work.limit_ms(peaks["flops"], peaks["bytes"]),
            "bound": work.bound(peaks["flops"], peaks["bytes"]),
        }
    return limits


@click.command()
@click.option("--pack", type=click.Path(path_type=Path, exists=True), required=True, help="What `pack` made.")
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--variants", default=",,".join(DEFAULT), help="Names, parted by two commas.")
@click.option("--device", default="cuda", show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=9, show_default=True)
@click.option("--budget-s", type=float, default=380, show_default=True, help="Everything ends within it.")
@click.option(
    "--filled", type=click.Path(path_type=Path), help="Folder for the weights.  [default: in memory]"
)
def main(
    pack: Path, out: Path, variants: str, device: str, rounds: int, budget_s: float, filled: Path | None
) -> None:
    """Time whole decodes of every variant, at every preset."""
    if device == "cuda" and not (probed := probe("cuda")).usable:
        raise click.ClickException(
            f"engine {probed}; --device cpu tries this benchmark with other --variants"
        )
    out.mkdir(parents=True, exist_ok=True)
    run = FastRun(out, budget_s)
    names = [name for name in variants.split(",,") if name]
    if unknown := [name for name in names if name not in VARIANTS]:
        raise click.UsageError(f"--variants: unknown {unknown[0]!r}; known are {',, '.join(VARIANTS)}")
    with ExitStack() as stack:
        folder = filled or stack.enter_context(filling.room())
        loading = [
            Loading(
                name,
                stack.enter_context(
                    WorkerProcess(
                        name,
                        "unibrain_rt.benchmarks.gpu.variant_worker",
                        {
                            "name": name,
                            "packed": pack / "published",
                            "filled": folder,
                            "device": device,
                            "tokens": TOKENS,
                        },
                    )
                ),
            )
            for name in names
        ]
        run.results["variants"] = {one.name: one.record for one in loading}
        _measure(run, loading, folder, rounds, out)
        for one in loading:
            if not one.ready:
                one.worker.kill()
    run.save()


def _measure(run: FastRun, loading: list[Loading], folder: Path, rounds: int, out: Path) -> None:
    def wait(names: Sequence[str], least_s: float) -> list[Loading]:
        wanted = [one for one in loading if one.name in names]
        while not all(one.ready or one.failed for one in wanted) and run.left_s > least_s:
            sleep(_LOOK_S)
        for one in wanted:
            load, ready = (one.record.get(key, {}).get("seconds") for key in ("load", "prepare"))
            run.say(
                f"{one.name}: loaded in {load}, ready in {ready}, {one.record.get('error', '')[-300:]} "
                f"{one.record.get('load', {}).get('told', [])[:2]}"
            )
        run.save()
        return _ready(wanted)

    compiled = [one.name for one in loading if VARIANTS[one.name].stages != STAGES]
    settings = [one.name for one in loading if VARIANTS[one.name].options or VARIANTS[one.name].environment]
    whole = wait([one.name for one in loading if one.name not in (*compiled, *settings)], 150)
    run.results["tokens"] = TOKENS
    for one in whole:
        if one.name == FILLER and (rates := one.ask("peaks")):
            run.results |= rates
            run.say(f"{run.results['device']['name']}: {run.results['peaks']}")
            bundle = filling.open_filled(folder)
            run.results["bounds"] = {preset: bounds(bundle, preset, rates["peaks"]) for preset in PRESETS}
    last = PRESETS[0]
    for preset in PRESETS:
        if run.left_s > 40:
            measure_preset(run, whole, preset, rounds)
            last = preset
    _compare(run, whole, last, out)
    for one in _ready(whole):
        if one.name == STAGED and run.left_s > 60:
            run.results["kernels"] = one.ask("kernels", preset=last)
            run.save()
    for name in (*settings, *compiled):
        for one in wait([name], 12):
            measure_stages(run, one, PRESETS[0], rounds)


def measure_stages(run: FastRun, one: Loading, preset: str, rounds: int) -> None:
    """Of a variant that has no whole decode, or none that is of interest."""
    if reply := one.ask("stages", preset=preset, rounds=rounds):
        run.results.setdefault("stages", {})[one.name] = reply["rounds"]
        run.save()
        run.say(f"{preset} {one.name}: {_medians(reply['rounds'])}")


def _compare(run: FastRun, variants: Sequence[Loading], preset: str, out: Path) -> None:
    """How far each variant's decode is from torch's; the fewer steps, the less a small difference grows."""
    decoded, path = {}, out / "decoded.npz"
    for one in _ready(variants):
        if run.left_s > 3:
            one.ask("decode", preset=preset, path=str(path))
        if path.exists():
            decoded[one.name] = load_decoded(path)
            path.unlink()
    parity = {
        name: compare(decode, decoded[REFERENCE]) for name, decode in decoded.items() if REFERENCE in decoded
    }
    run.results["parity"] = {"preset": preset, "variants": parity}
    for name, distances in parity.items():
        run.say(f"{preset} {name} against {REFERENCE}: {distances}")
    run.save()


if __name__ == "__main__":
    main()
