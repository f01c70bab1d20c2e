"""One variant in a process of its own: loads, gets presets ready, and decodes when it is told to."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from unibrain_rt.benchmarks import processes
from unibrain_rt.benchmarks.gpu import filling
from unibrain_rt.benchmarks.gpu.card import describe, peaks, process_bytes, used_bytes
from unibrain_rt.benchmarks.gpu.scan import Decoded, RandomScan
from unibrain_rt.benchmarks.gpu.variants import STAGES, EngineVariant, Graphed, LoadedVariant, TorchVariant
from unibrain_rt.benchmarks.logged import logged_lines
from unibrain_rt.bundle import Bundle
from unibrain_rt.engines import Engine, Settings, create_engine
from unibrain_rt.export.bundles.architecture import Architecture

WORKS = ("decode", "caption")
_LOOK_S = 0.2
_WAIT_S = 240


@dataclass(frozen=True)
class VariantKind:
    """How a variant runs.

    ``flavour``: of the engine's graphs, where it has one of its own. ``options`` are the provider's, instead of the
    engine's, and ``environment`` is set before anything is loaded. ``compiled``: which graphs a compiler of torch
    takes, by default all; then ``stages`` are what can be timed.
    """

    engine: str = ""
    capture: bool = True
    flavour: bool = True
    options: tuple[tuple[str, str], ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    compiler: str | None = None
    compiled: tuple[str, ...] | None = None
    stages: tuple[str, ...] = STAGES
    precision: str = "float16"


_FIXED = ("unet_context", "unet_image_step", "unet_text_step", "autokl_decode", "optimus_decode")
"""Graphs of one shape, whatever the preset."""
VARIANTS: dict[str, VariantKind] = {
    "torch fp32": VariantKind(precision="float32"),
    "torch eager": VariantKind(),
    "torch, CUDA graphs": VariantKind(compiler="graphs", compiled=_FIXED),
    "torch.compile": VariantKind(compiler="reduce-overhead", compiled=_FIXED),
    # In three processes, because one after another they take longer to compile than a machine is there.
    "torch.compile, image": VariantKind(
        compiler="reduce-overhead", compiled=("unet_image_step",), stages=("image_loop",)
    ),
    "torch.compile, text": VariantKind(
        compiler="reduce-overhead", compiled=("unet_text_step",), stages=("text_loop",)
    ),
    "torch.compile, rest": VariantKind(
        compiler="reduce-overhead",
        compiled=("unet_context", "autokl_decode", "optimus_decode"),
        stages=("autokl", "tokens", "context"),
    ),
    "cuda": VariantKind("cuda"),
    "cuda, no graphs": VariantKind("cuda", capture=False),
    "cuda, plain": VariantKind("cuda", flavour=False),
    "cuda, plain, no graphs": VariantKind("cuda", capture=False, flavour=False),
    "cuda, fuse_conv_bias": VariantKind("cuda", options=(("fuse_conv_bias", "1"),)),
    "cuda, flash attention": VariantKind("cuda", environment=(("ORT_ENABLE_CUDNN_FLASH_ATTENTION", "0"),)),
    # The same path on a CPU, to try this benchmark.
    "onnxruntime": VariantKind("onnxruntime", flavour=False),
    "torch.compile, dry": VariantKind(
        compiler="eager", compiled=("unet_image_step",), stages=("image_loop",)
    ),
}
"""By name. ``cuda`` takes the graphs that were made for it; ``plain`` are those that every engine can run."""


class Answers:
    """Answers what its methods are called: ``load`` first, then ``prepare`` for every preset that is used."""

    def __init__(self, name: str, packed: Path, filled: Path, device: str, tokens: int) -> None:
        self._kind, self._packed, self._filled = VARIANTS[name], packed, filled
        self._device, self._tokens = device, tokens
        self._told: list[str] = []
        self._variant: LoadedVariant | None = None

    def __call__(self, request: Mapping[str, Any]) -> dict[str, Any]:
        answer: Callable[..., dict[str, Any]] = getattr(self, f"_{request['command']}")
        with logged_lines() as lines:
            reply = answer(**{key: value for key, value in request.items() if key != "command"})
        self._told += lines
        return {**reply, "told": self._told} if "seconds" in reply else reply

    def _load(self, fills: bool = False) -> dict[str, Any]:
        begun, kind = perf_counter(), self._kind
        os.environ.update(kind.environment)
        if kind.engine:
            self._wait()
            begun = perf_counter()
            engine = self._engine()
            if not kind.flavour:
                engine.flavour = None
            bundle = filling.open_filled(self._filled)
            self._variant = EngineVariant(engine, bundle)
        else:
            bundle, self._variant = self._torch_variant(fills)
        self._scans = [
            RandomScan.random(bundle, min(self._tokens, _slots(bundle)), seed) for seed in range(4)
        ]
        return {"seconds": perf_counter() - begun}

    def _wait(self) -> None:
        """Until the weights are drawn, which another process may do."""
        begun = perf_counter()
        while not filling.is_filled(self._filled):
            if perf_counter() - begun > _WAIT_S:
                raise TimeoutError("nobody filled the weights")
            time.sleep(_LOOK_S)

    def _engine(self) -> Engine:
        kind = self._kind
        if not kind.options:
            return create_engine(kind.engine, capture=kind.capture)
        from unibrain_rt.engines.onnxruntime_cuda import CudaEngine

        settings = Settings(capture=kind.capture)
        return CudaEngine(settings, options=dict(kind.options))

    def _torch_variant(self, fills: bool) -> tuple[Bundle, LoadedVariant]:
        import torch

        from unibrain_rt.benchmarks.gpu.modules import graph_modules, random_modules

        # What fp32 promises; in half it changes nothing.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        sizes = Architecture.from_mapping(filling.architecture(self._packed))
        modules = random_modules(sizes, self._device)
        if fills:
            filling.fill(self._packed, self._filled, modules)
        self._wait()
        bundle = filling.open_filled(self._filled)
        for module in modules.values():
            module.to(getattr(torch, self._kind.precision if self._device == "cuda" else "float32"))
        compiler = self._kind.compiler
        compiling: Callable[[Any], Any] | None = None
        if compiler == "graphs":
            compiling = Graphed
        elif compiler is not None:
            options: dict[str, Any] = {"backend": "eager"} if compiler == "eager" else {"mode": compiler}
            compiling = partial(torch.compile, **options)
        graphs = graph_modules(modules, sizes, _slots(bundle))
        return bundle, TorchVariant(graphs, bundle, self._device, compiling, self._kind.compiled)

    def _prepare(self, preset: str) -> dict[str, Any]:
        """Ready, and run twice: compiled, captured, warm."""
        begun, variant = perf_counter(), self._loaded
        variant.prepare(preset)
        for seed in (1, 2):
            if self._kind.stages != STAGES:
                variant.stages(preset, self._scans[seed], self._kind.stages)
                continue
            variant.decode(preset, self._scans[seed])
            variant.caption(preset, self._scans[seed])
        return {"seconds": perf_counter() - begun}

    def _time(self, preset: str) -> dict[str, Any]:
        """Milliseconds of each of `WORKS`, after one that is not counted: another process had the device before."""
        variant, scan = self._loaded, self._scans[0]
        variant.caption(preset, scan)
        milliseconds = {}
        for work in WORKS:
            begun = perf_counter()
            getattr(variant, work)(preset, scan)
            milliseconds[work] = (perf_counter() - begun) * 1000
        return {"milliseconds": milliseconds}

    def _stages(self, preset: str, rounds: int) -> dict[str, Any]:
        variant, scan, stages = self._loaded, self._scans[0], self._kind.stages
        variant.stages(preset, scan, stages)
        return {"rounds": [variant.stages(preset, scan, stages) for _ in range(rounds)]}

    def _kernels(self, preset: str) -> dict[str, Any]:
        """By stage, every kernel that the device ran, how often and for how long, as CUPTI traces them."""
        import torch

        variant, scan, profiles = self._loaded, self._scans[0], {}
        for stage in ("image_loop", "text_loop", "tokens"):
            variant.stages(preset, scan, [stage])
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                variant.stages(preset, scan, [stage])
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "trace.json"
                profile.export_chrome_trace(str(path))
                events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
            spent: dict[str, tuple[int, float]] = {}
            for event in events:
                if event.get("cat") in ("kernel", "gpu_memset", "gpu_memcpy"):
                    count, total = spent.get(event["name"][:200], (0, 0.0))
                    spent[event["name"][:200]] = count + 1, total + float(event["dur"])
            rows = sorted(((name, *one) for name, one in spent.items()), key=lambda row: -row[2])
            total_us = sum(total for _, total in spent.values())
            profiles[stage] = {
                "microseconds": total_us,
                "launches": sum(n for n, _ in spent.values()),
                "rows": rows[:80],
            }
        return {"preset": preset, "stages": profiles}

    def _decode(self, preset: str, path: str) -> dict[str, Any]:
        decoded = self._loaded.decode(preset, self._scans[0])
        np.savez(
            path,
            image=decoded.image,
            tokens=decoded.tokens,
            **{f"{k}_latent": v for k, v in decoded.latents.items()},
        )
        return {}

    def _steps(self, preset: str, path: str) -> dict[str, Any]:
        if self._kind.engine == "":
            self._loaded.prepare(preset)
        np.savez(path, **self._loaded.steps(preset, self._scans[0]))
        return {}

    def _peaks(self) -> dict[str, Any]:
        return {"device": describe(self._device), "peaks": peaks(self._device)}

    def _memory(self) -> dict[str, Any]:
        """What this process takes of the device; None where the driver does not tell."""
        return {"process_bytes": process_bytes(os.getpid()), "used_bytes": used_bytes()}

    @property
    def _loaded(self) -> LoadedVariant:
        assert self._variant is not None, "load comes first"
        return self._variant


def load_decoded(path: Path) -> Decoded:
    """What ``decode`` saved."""
    with np.load(path, allow_pickle=False) as saved:
        latents: Any = {flow: saved[f"{flow}_latent"] for flow in ("image", "text")}
        return Decoded(latents, saved["image"], [int(token) for token in saved["tokens"]])


def _slots(bundle: Bundle) -> int:
    """Tokens that the cache of the caption's graph holds."""
    return int(bundle.graph("optimus_decode").tensor("key_cache").sized(1)[2])


def _make(fields: dict[str, Any]) -> Answers:
    return Answers(
        fields["name"], Path(fields["packed"]), Path(fields["filled"]), fields["device"], fields["tokens"]
    )


if __name__ == "__main__":
    processes.main(_make)
