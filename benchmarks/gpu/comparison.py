"""The whole comparison: every variant loaded, run and measured."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from unibrain_rt.benchmarks import machine
from unibrain_rt.benchmarks.gpu.device import Gpu
from unibrain_rt.benchmarks.gpu.roofline import roofline
from unibrain_rt.benchmarks.gpu.rounds import compare, measure, summarise
from unibrain_rt.benchmarks.whole_decodes import EngineVariant, Scan, TorchVariant, Variant, torch_modules
from unibrain_rt.bundle import Bundle
from unibrain_rt.engines import Engine, EngineError, Settings, create_engine, probe

REFERENCE = "torch eager"


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
    """All of it. Raises EngineError: there is no GPU for it, no engine, or one that misses kernels."""
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

    return {
        "cuda": CudaEngine(Settings(tell=say), strict=True),
        "cuda, no graphs": CudaEngine(Settings(tell=say, capture=False), strict=True),
    }
