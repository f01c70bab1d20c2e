"""A whole decode on one GPU: the engine ``cuda`` with and without CUDA graphs, against torch, eager and compiled.

Not run on a GPU yet: ``--dry-run`` takes the same path on the CPU, with the engine ``onnxruntime`` and in fp32.

Every variant starts from the same predicted latents, contexts and noise, and ends with a picture and the tokens of a
caption. All stay loaded; in a round each decodes once, in an order that turns, and ratios are taken within a round.
The roofline (`bench.roofline`) is at the measured rates of a large matrix product and of a large copy, graph by graph,
with nothing run at the same time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import click
import numpy as np

from unibrain_rt.benchmarks import machine
from unibrain_rt.benchmarks.bench.counting import count_work
from unibrain_rt.benchmarks.bench.roofline import StageWork
from unibrain_rt.benchmarks.tables import machine_line, table
from unibrain_rt.benchmarks.whole_decodes import (
    FLOWS,
    Decoded,
    EngineVariant,
    Scan,
    TorchVariant,
    Variant,
    torch_modules,
)
from unibrain_rt.bundle import Bundle
from unibrain_rt.engines import Engine, EngineError, Settings, create_engine, probe

NAME = "gpu"
REFERENCE = "torch eager"
WORKS = ("decode", "caption")
RATIOS = (
    ("decode", "over torch eager", "torch eager", "cuda"),
    ("decode", "over torch.compile", "torch.compile", "cuda"),
    ("decode", "CUDA graphs", "cuda, no graphs", "cuda"),
    ("caption", "CUDA graphs, caption flow", "cuda, no graphs", "cuda"),
)
"""Of which work, name, slower, faster."""
TARGETS = "Targets: under 450 ms, 2.5 times faster than torch eager, and 1.2 times on the caption flow by CUDA graphs."
_PEAK_SIDE, _PEAK_COPY_BYTES, _PEAK_REPEATS = 8192, 2**31, 10
_DRY_SIDE, _DRY_COPY_BYTES = 512, 2**24


# --- Measuring ----------------------------------------------------------------------------------------------


class Gpu:
    """The device, or what stands for it in a dry run."""

    def __init__(self, *, dry: bool) -> None:
        import torch

        self._torch, self._dry = torch, dry
        self.device = "cpu" if dry else "cuda"

    def wait(self) -> None:
        if not self._dry:
            self._torch.cuda.synchronize()

    def taken_bytes(self) -> int | None:
        """Memory in use on the device, by everybody."""
        if self._dry:
            return None
        free, total = self._torch.cuda.mem_get_info()
        return int(total - free)

    def describe(self) -> str:
        return "cpu (dry run)" if self._dry else str(self._torch.cuda.get_device_name())

    def peaks(self, dtype: Any) -> dict[str, float]:
        """Rates of a large matrix product (FLOP/s) and a large copy (bytes/s, read and written)."""
        torch = self._torch
        side = _DRY_SIDE if self._dry else _PEAK_SIDE
        a, b = (torch.randn(side, side, dtype=dtype, device=self.device) for _ in range(2))
        source = torch.empty(
            _DRY_COPY_BYTES if self._dry else _PEAK_COPY_BYTES, dtype=torch.uint8, device=self.device
        )
        target = torch.empty_like(source)
        return {
            "flops": 2 * side**3 / self._best(lambda: torch.mm(a, b)),
            "bytes": 2 * source.numel() / self._best(lambda: target.copy_(source)),
        }

    def _best(self, work: Callable[[], Any]) -> float:
        seconds = []
        for _ in range(_PEAK_REPEATS):
            self.wait()
            begun = perf_counter()
            work()
            self.wait()
            seconds.append(perf_counter() - begun)
        return min(seconds)


def roofline(bundle: Bundle, scan: Scan, peaks: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """By graph: runs in a decode, FLOPs and weights of a run, milliseconds of all runs at the measured rates."""
    runs = {f"unet_{flow}_step": len(scan.tables[flow].timesteps) for flow in FLOWS}
    runs |= {"unet_context": 1, "autokl_decode": 1, "optimus_decode": scan.tokens}
    found = {}
    for name, count in runs.items():
        stage = StageWork(name, name, count, count_work(bundle.graph(name).path))
        found[name] = {
            "runs": count,
            "flops": stage.work.flops,
            "weights_bytes": stage.work.weight_bytes,
            "milliseconds": stage.limit_ms(peaks["flops"], peaks["bytes"]),
        }
    return found


def measure(
    variants: Mapping[str, Variant], gpu: Gpu, scan: Scan, rounds: int
) -> list[dict[str, dict[str, float]]]:
    """Milliseconds by work and variant, a round at a time. Everything was run before."""
    measured = []
    for number in range(rounds):
        names = list(variants) if number % 2 == 0 else list(variants)[::-1]
        one: dict[str, dict[str, float]] = {work: {} for work in WORKS}
        for name in names:
            for work in WORKS:
                gpu.wait()
                begun = perf_counter()
                getattr(variants[name], work)(scan)
                gpu.wait()
                one[work][name] = (perf_counter() - begun) * 1000
        measured.append(one)
    return measured


def compare(found: Decoded, wanted: Decoded) -> dict[str, float | bool]:
    """How far a decode is from another: PSNR of the pictures, relative L2 distances of latents, equality of tokens."""
    error = float(np.mean((found.image.clip(0, 1).astype(np.float64) - wanted.image.clip(0, 1)) ** 2))
    return {
        # Infinity is no JSON.
        "psnr_db": min(200.0, -10 * float(np.log10(error))) if error else 200.0,
        **{f"{flow}_latent_error": _distance(found.latents[flow], wanted.latents[flow]) for flow in FLOWS},
        "same_tokens": found.tokens == wanted.tokens,
    }


def _distance(found: Any, wanted: Any) -> float:
    difference = found.astype(np.float64) - wanted
    return float(np.linalg.norm(difference) / np.linalg.norm(wanted))


def summarise(rounds: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """Median, smallest and largest of every variant's milliseconds, and of every ratio within a round."""
    times = {
        work: {name: _spread([one[work][name] for one in rounds]) for name in rounds[0][work]}
        for work in WORKS
    }
    ratios = {
        name: _spread([one[work][slow] / one[work][fast] for one in rounds])
        for work, name, slow, fast in RATIOS
        if {slow, fast} <= rounds[0][work].keys()
    }
    return {"milliseconds": times, "ratios": ratios}


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}


def run(
    checkpoint: Path,
    bundle: Bundle,
    *,
    config: Path | None,
    preset: str,
    rounds: int,
    tokens: int,
    dry: bool,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """All of it. Raises EngineError: there is no GPU for it, or no engine."""
    if not dry and not (found := probe("cuda")).usable:
        raise EngineError(f"engine {found}; --dry-run checks this benchmark on a CPU")
    import torch

    gpu, dtype = Gpu(dry=dry), torch.float32 if dry else torch.float16
    scan = Scan.random(bundle, preset, tokens, seed=0)
    warm = Scan.random(bundle, preset, tokens, seed=1)
    peaks = gpu.peaks(dtype)
    slots = int(bundle.graph("optimus_decode").tensor("key_cache").sized(1)[2])
    lazily: dict[str, Callable[[], Variant]] = {}
    for name, engine in _engines(dry, say).items():
        lazily[name] = partial(EngineVariant, engine, bundle, scan.tables)
    modules: dict[str, Any] = {}

    def torch_variant(compiler: Callable[[Any], Any] | None) -> TorchVariant:
        if not modules:
            modules.update(torch_modules(checkpoint, config, slots, dtype, gpu.device))
        return TorchVariant(modules, gpu.device, scan.tables, compiler)

    lazily[REFERENCE] = partial(torch_variant, None)
    # In a dry run the path counts, and not the code that a compiler makes.
    compiler = (
        partial(torch.compile, backend="eager") if dry else partial(torch.compile, mode="reduce-overhead")
    )
    lazily["torch.compile"] = partial(torch_variant, compiler)
    variants: dict[str, Variant] = {}
    loading, decoded = {}, {}
    for name, load in lazily.items():
        say(f"{name}: loading")
        before, begun = gpu.taken_bytes(), perf_counter()
        variants[name] = load()
        variants[name].decode(warm)
        variants[name].caption(warm)
        decoded[name] = variants[name].decode(scan)
        after = gpu.taken_bytes()
        loading[name] = {
            "seconds": perf_counter() - begun,
            # Neither torch nor ONNX Runtime gives back what it once took, so this is the peak.
            "device_bytes": None if before is None or after is None else after - before,
        }
    bounds = roofline(bundle, scan, peaks)
    measured = measure(variants, gpu, scan, rounds)
    return {
        "machine": machine.collect(),
        "device": gpu.describe(),
        "dry_run": dry,
        "precision": {"bundle": bundle.precision, "torch": str(dtype).removeprefix("torch.")},
        "preset": preset,
        "steps": {flow: len(table.timesteps) for flow, table in scan.tables.items()},
        "tokens": tokens,
        "loading": loading,
        "peaks": peaks,
        "roofline": bounds,
        "parity": {name: compare(one, decoded[REFERENCE]) for name, one in decoded.items()},
        "rounds": measured,
        **summarise(measured),
    }


def _engines(dry: bool, say: Callable[[str], None]) -> dict[str, Engine]:
    if dry:
        return {"onnxruntime": create_engine("onnxruntime")}
    from unibrain_rt.engines.onnxruntime_cuda import CudaEngine

    settings = Settings(tell=say)
    return {"cuda": CudaEngine(settings, graphs=True), "cuda, no graphs": CudaEngine(settings, graphs=False)}


# --- Reporting ----------------------------------------------------------------------------------------------


def page(results: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    floor = sum(entry["milliseconds"] for entry in results["roofline"].values())
    times = [
        [
            name,
            *(f"{results['milliseconds'][work][name]['median']:.1f} ms" for work in WORKS),
            f"{floor / spread['median']:.0%}",
            _gib(results["loading"][name]["device_bytes"]),
            f"{results['loading'][name]['seconds']:.0f} s",
        ]
        for name, spread in results["milliseconds"]["decode"].items()
    ]
    ratios = [
        [name, f"**{spread['median']:.2f}**", f"{spread['min']:.2f}–{spread['max']:.2f}"]
        for name, spread in results["ratios"].items()
    ]
    parity = [
        [
            name,
            f"{found['psnr_db']:.1f} dB",
            *(f"{found[f'{flow}_latent_error']:.1e}" for flow in FLOWS),
            "yes" if found["same_tokens"] else "no",
        ]
        for name, found in results["parity"].items()
    ]
    bounds = [
        [
            name,
            str(entry["runs"]),
            f"{entry['flops'] / 1e9:,.1f}",
            f"{entry['weights_bytes'] / 1e6:,.0f}",
            f"{entry['milliseconds']:.2f} ms",
        ]
        for name, entry in results["roofline"].items()
    ]
    steps = " and ".join(f"{count} {flow}" for flow, count in results["steps"].items())
    dry = (
        ["**A dry run on a CPU: it shows that the benchmark runs, and nothing of a GPU.**"]
        if results["dry_run"]
        else []
    )
    sections = [
        "# A whole decode on one GPU",
        *dry,
        f"{results['device']}. {machine_line(results['machine'])}",
        f"Preset {results['preset']}: {steps} steps, {results['tokens']} tokens; bundle in "
        f"{results['precision']['bundle']}, torch in {results['precision']['torch']}; {len(results['rounds'])} "
        f"rounds, interleaved. {TARGETS}",
        table(
            ["variant", "whole decode", "caption flow alone", "of the roofline", "device memory", "loading"],
            times,
        ),
        table(["times faster, within a round", "median", "range"], ratios),
        "Against torch eager on the same device:",
        table(["variant", "picture", "image latent", "text latent", "same tokens"], parity),
        f"Roofline: {floor:.1f} ms at {results['peaks']['flops'] / 1e12:.1f} TFLOP/s of a matrix product and "
        f"{results['peaks']['bytes'] / 1e9:.0f} GB/s of a copy, both measured here.",
        table(["graph", "runs", "GFLOP a run", "MB of weights", "at least"], bounds),
    ]
    return "\n\n".join(sections) + "\n"


def _gib(size: int | None) -> str:
    return "–" if size is None else f"{size / 2**30:.2f} GiB"


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results"), show_default=True)
@click.option("--config", type=click.Path(path_type=Path), help="JSON file with the checkpoint's sizes.")
@click.option("--preset", default="paper", show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=10, show_default=True)
@click.option("--tokens", type=click.IntRange(1), default=20, show_default=True, help="Of the caption.")
@click.option("--dry-run", is_flag=True, help="On the CPU, to check this benchmark.")
def main(
    checkpoint: Path,
    bundle: Path,
    out: Path,
    config: Path | None,
    preset: str,
    rounds: int,
    tokens: int,
    dry_run: bool,
) -> None:
    """Measure whole decodes of the CHECKPOINT folder's model and of the BUNDLE made of it."""
    try:
        results = run(
            checkpoint,
            Bundle.open(bundle, verify=False),
            config=config,
            preset=preset,
            rounds=rounds,
            tokens=tokens,
            dry=dry_run,
            say=partial(click.echo, err=True),
        )
    except EngineError as error:
        raise click.ClickException(str(error)) from error
    name = f"{NAME}-dry-run" if dry_run else NAME
    out.mkdir(parents=True, exist_ok=True)
    _write(out / f"{name}.json", json.dumps(results, indent=1) + "\n")
    _write(out / f"{name}.md", page(results))
    click.echo(f"{out / name}.json and .md written")


if __name__ == "__main__":
    main()
