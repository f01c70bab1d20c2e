"""Whole decodes, the same in an engine and in torch: from noised latents and contexts to a picture and tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from unibrain_rt.benchmarks.gpu.scan import START_TOKEN, Decoded, RandomScan, tables_of
from unibrain_rt.bundle import Bundle
from unibrain_rt.engines import Call, Engine, Program, Repetition, Session
from unibrain_rt.flows import FLOWS, Flow
from unibrain_rt.loops import DenoisingLoop, likeliest_tokens

STAGES = ("context", "image_loop", "autokl", "text_loop", "tokens")


class LoadedVariant(ABC):
    """One implementation, loaded once; a preset is made ready before it is used."""

    @abstractmethod
    def prepare(self, preset: str) -> None:
        """Make the tables of a preset ready."""

    @abstractmethod
    def decode(self, preset: str, scan: RandomScan) -> Decoded:
        """Everything, to the end."""

    @abstractmethod
    def caption(self, preset: str, scan: RandomScan) -> list[int]:
        """The text flow and its tokens alone, under the contexts of the last decode."""

    @abstractmethod
    def stages(self, preset: str, scan: RandomScan, only: Sequence[str] = STAGES) -> dict[str, float]:
        """Milliseconds of each of these stages, each run alone and waited for."""

    @abstractmethod
    def steps(self, preset: str, scan: RandomScan) -> dict[str, Any]:
        """What one run of every graph gives, its inputs the same in every variant: arrays by graph."""


@dataclass(frozen=True, eq=False)
class _Programs:
    picture: Program
    text: Program


class EngineVariant(LoadedVariant):
    """The graphs of a bundle in an engine, driven as the decoder drives them."""

    def __init__(self, engine: Engine, bundle: Bundle) -> None:
        self._engine, self._bundle = engine, bundle
        self._context = engine.open(bundle.graph("unet_context"))
        shared = {spec.name: self._context.buffer(spec.name) for spec in self._context.graph.outputs}
        self._steps: dict[Flow, Session] = {
            flow: engine.open(bundle.graph(f"unet_{flow}_step"), shared=shared) for flow in FLOWS
        }
        self._autokl = engine.open(bundle.graph("autokl_decode"))
        self._optimus = engine.open(bundle.graph("optimus_decode"))
        self._programs: dict[str, _Programs] = {}
        self._captions: dict[int, Repetition] = {}

    def prepare(self, preset: str) -> None:
        if preset in self._programs:
            return
        tables = tables_of(self._bundle, preset)
        count = sum(len(table.timesteps) for table in tables.values())
        times = self._engine.open(self._bundle.graph("unet_time"), free=count)
        times.write("timesteps", np.concatenate([table.timesteps for table in tables.values()]))
        times.run()
        calls, start = {}, 0
        for flow, rows in tables.items():
            end = start + len(rows.timesteps)
            modulation = times.read(f"{flow}_modulation")[start:end]
            calls[flow] = DenoisingLoop(self._steps[flow], rows, modulation).call(f"{flow}_loop")
            start = end
        taken = {"latent": (self._steps["image"], "next_latent")}
        decoding = Call(self._autokl, takes=taken, name="autokl")
        program = self._engine.program
        self._programs[preset] = _Programs(program([calls["image"], decoding]), program([calls["text"]]))

    def decode(self, preset: str, scan: RandomScan) -> Decoded:
        programs = self._programs[preset]
        self._guide(scan)
        self._load("image", scan)
        programs.picture.start()
        self._load("text", scan)
        programs.text.start()
        programs.text.finish()
        latents: dict[Flow, Any] = {"text": self._steps["text"].read("next_latent")}
        tokens = self._write(latents["text"], scan.tokens)
        programs.picture.finish()
        latents["image"] = self._steps["image"].read("next_latent")
        return Decoded(latents, self._autokl.read("image"), tokens)

    def caption(self, preset: str, scan: RandomScan) -> list[int]:
        self._loop("text", self._programs[preset].text, scan)
        return self._write(self._steps["text"].read("next_latent"), scan.tokens)

    def stages(self, preset: str, scan: RandomScan, only: Sequence[str] = STAGES) -> dict[str, float]:
        programs = self._programs[preset]
        for name, context in scan.contexts.items():
            self._context.write(f"{name}_context", context)
        for flow in FLOWS:
            self._load(flow, scan)
        milliseconds = {}
        if "context" in only:
            milliseconds["context"] = _milliseconds(self._context.run)
        for program, its in ((programs.picture, ("image_loop", "autokl")), (programs.text, ("text_loop",))):
            if set(its) & set(only):
                program.start()
                program.finish()
                milliseconds.update(program.milliseconds)
        if "tokens" in only:
            milliseconds["tokens"] = _milliseconds(lambda: self._write(scan.latents["text"], scan.tokens))
        return {stage: milliseconds[stage] for stage in only}

    def steps(self, preset: str, scan: RandomScan) -> dict[str, Any]:
        self._guide(scan)
        outputs: dict[str, Any] = {"unet_context": self._context.read("image_context.0.keys")}
        for flow, table in tables_of(self._bundle, preset).items():
            times = self._engine.open(self._bundle.graph("unet_time"), free=1)
            times.write("timesteps", table.timesteps[:1])
            times.run()
            session = self._steps[flow]
            self._load(flow, scan)
            session.write("previous_x0", 0.0)
            session.write("modulation", times.read(f"{flow}_modulation"))
            session.write("coefficients", table.coefficients[0].astype(np.float32))
            session.run()
            outputs[f"unet_{flow}_step"] = session.read("x0")
        self._autokl.write("latent", scan.latents["image"])
        self._autokl.run()
        outputs["autokl_decode"] = self._autokl.read("image")
        self._write(scan.latents["text"], 1)
        outputs["optimus_decode"] = self._optimus.read("logits")
        return outputs

    def _guide(self, scan: RandomScan) -> None:
        for name, context in scan.contexts.items():
            self._context.write(f"{name}_context", context)
        self._context.run()

    def _loop(self, flow: Flow, program: Program, scan: RandomScan) -> None:
        self._load(flow, scan)
        program.start()
        program.finish()

    def _load(self, flow: Flow, scan: RandomScan) -> None:
        session = self._steps[flow]
        session.rewind()
        session.write("latent", scan.latents[flow])

    def _write(self, latent: Any, count: int) -> list[int]:
        self._optimus.write("latent", latent)
        if count not in self._captions:
            # No token ends it: every variant writes as many.
            self._captions[count] = likeliest_tokens(
                self._engine, self._optimus, START_TOKEN, end=None, at_most=count
            )
        return [START_TOKEN, *self._captions[count].run()]


class TorchVariant(LoadedVariant):
    """The project's torch modules, partitioned like the graphs, eager or compiled."""

    def __init__(
        self,
        modules: Mapping[str, Any],
        bundle: Bundle,
        device: str,
        compiler: Callable[[Any], Any] | None = None,
        compiled: Sequence[str] | None = None,
    ) -> None:
        """``compiled`` names the graphs that ``compiler`` takes, by default all."""
        import torch

        self._torch, self._device, self._bundle = torch, device, bundle
        self._run = {
            name: compiler(module) if compiler and (compiled is None or name in compiled) else module
            for name, module in modules.items()
        }
        self._dtype = next(modules["unet_context"].parameters()).dtype
        self._slots = modules["optimus_decode"].slots
        self._sizes = modules["optimus_decode"].decoder.sizes
        self._tables: dict[str, dict[Flow, tuple[Any, Any]]] = {}

    def prepare(self, preset: str) -> None:
        tables = tables_of(self._bundle, preset)
        with self._torch.inference_mode():
            self._tables[preset] = {
                flow: (
                    self._on(rows.coefficients.astype(np.float32)),
                    self._run["unet_time"](self._on(rows.timesteps))[place].clone(),
                )
                for place, (flow, rows) in enumerate(tables.items())
            }

    def decode(self, preset: str, scan: RandomScan) -> Decoded:
        with self._torch.inference_mode():
            self._guide(scan)
            latents = {flow: self._loop(preset, flow, scan) for flow in FLOWS}
            image = self._picture(latents["image"]).float().cpu().numpy()
            tokens = self._write(latents["text"], scan.tokens)
            return Decoded({flow: x.float().cpu().numpy() for flow, x in latents.items()}, image, tokens)

    def caption(self, preset: str, scan: RandomScan) -> list[int]:
        with self._torch.inference_mode():
            return self._write(self._loop(preset, "text", scan), scan.tokens)

    def stages(self, preset: str, scan: RandomScan, only: Sequence[str] = STAGES) -> dict[str, float]:
        torch = self._torch

        def timed(work: Callable[[], Any]) -> float:
            def waited() -> None:
                work()
                if self._device == "cuda":
                    torch.cuda.synchronize()

            return _milliseconds(waited)

        with torch.inference_mode():
            latents = {flow: self._on(scan.latents[flow]) for flow in FLOWS}
            if "context" not in only:
                self._guide(scan)
            works: dict[str, Callable[[], Any]] = {
                "context": lambda: self._guide(scan),
                "image_loop": lambda: self._loop(preset, "image", scan),
                "autokl": lambda: self._picture(latents["image"]),
                "text_loop": lambda: self._loop(preset, "text", scan),
                "tokens": lambda: self._write(latents["text"], scan.tokens),
            }
            return {stage: timed(works[stage]) for stage in only}

    def steps(self, preset: str, scan: RandomScan) -> dict[str, Any]:
        with self._torch.inference_mode():
            self._guide(scan)
            latents = {flow: self._on(scan.latents[flow]) for flow in FLOWS}
            outputs: dict[str, Any] = {"unet_context": self._keys_values[0]}
            for flow, latent in latents.items():
                outputs[f"unet_{flow}_step"] = self._step(
                    preset, flow, 0, latent, self._torch.zeros_like(latent)
                )[1]
            outputs["autokl_decode"] = self._picture(latents["image"])
            outputs["optimus_decode"] = self._token(latents["text"], *self._begin())[0]
            return {name: array.float().cpu().numpy() for name, array in outputs.items()}

    def _guide(self, scan: RandomScan) -> None:
        given = [self._on(scan.contexts[name]).to(self._dtype) for name in FLOWS]
        self._keys_values = [tensor.clone() for tensor in self._run["unet_context"](*given)]

    def _picture(self, latent: Any) -> Any:
        return self._run["autokl_decode"](latent.to(self._dtype))

    def _loop(self, preset: str, flow: Flow, scan: RandomScan) -> Any:
        latent = self._on(scan.latents[flow])
        x0 = self._torch.zeros_like(latent)
        for place in range(len(self._tables[preset][flow][0])):
            latent, x0 = self._step(preset, flow, place, latent, x0)
        return latent

    def _step(self, preset: str, flow: Flow, place: int, latent: Any, x0: Any) -> Any:
        rows, modulations = self._tables[preset][flow]
        following, x0 = self._run[f"unet_{flow}_step"](
            latent.to(self._dtype), x0, modulations[place : place + 1], rows[place], *self._keys_values
        )
        # Compiled to CUDA graphs, the next step writes where this one did.
        return following.clone(), x0.clone()

    def _begin(self) -> tuple[Any, ...]:
        torch, sizes = self._torch, self._sizes
        shape = (sizes.n_layer, sizes.n_head, self._slots, sizes.n_embd // sizes.n_head)
        keys = torch.zeros(shape, dtype=self._dtype, device=self._device)
        position = torch.ones(1, dtype=torch.int64, device=self._device)
        return torch.full_like(position, START_TOKEN), position, keys, torch.zeros_like(keys)

    def _token(self, latent: Any, *state: Any) -> Any:
        return self._run["optimus_decode"](latent.to(self._dtype), *state)

    def _write(self, latent: Any, count: int) -> list[int]:
        token, position, keys, values = self._begin()
        tokens = [token]
        for _ in range(count):
            _, *rest = self._token(latent, token, position, keys, values)
            keys, values, position, token = (tensor.clone() for tensor in rest)
            tokens.append(token)
        return [int(each) for each in self._torch.cat(tokens).cpu()]

    def _on(self, array: Any) -> Any:
        return self._torch.from_numpy(np.array(array)).to(self._device)


class Graphed:
    """A module whose second call is captured as a CUDA graph and replayed by all others: torch without its host.

    An input that is the object of the call before is not copied again.
    """

    def __init__(self, module: Any) -> None:
        self._module, self._calls = module, 0

    def __call__(self, *given: Any) -> Any:
        import torch

        self._calls += 1
        if self._calls == 1:
            return self._module(*given)
        if self._calls == 2:
            self._given, self._fed = [tensor.clone() for tensor in given], list(given)
            self._graph = torch.cuda.CUDAGraph()
            torch.cuda.synchronize()
            with torch.cuda.graph(self._graph):
                self._results = self._module(*self._given)
        for place, tensor in enumerate(given):
            if tensor is not self._fed[place]:
                self._given[place].copy_(tensor)
                self._fed[place] = tensor
        self._graph.replay()
        return self._results


def _milliseconds(work: Callable[[], Any]) -> float:
    begun = perf_counter()
    work()
    return (perf_counter() - begun) * 1000
