"""Whole decodes, the same in an engine and in torch: from predicted latents and contexts to a picture and tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unibrain_rt.benchmarks.inputs import Flow
from unibrain_rt.bundle import Bundle
from unibrain_rt.engines import Call, Engine, Session
from unibrain_rt.export.checkpoint import load_autokl, load_optimus_decoder, load_unet, open_checkpoint
from unibrain_rt.export.config import Architecture
from unibrain_rt.presets import Flow as PresetFlow
from unibrain_rt.samplers import SamplerTable, seeded_noise

FLOWS: dict[Flow, PresetFlow] = {"image": "image", "text": "caption"}
"""What a flow is called in graphs, and in presets."""
_CONTEXT_STREAM = 10
_START_TOKEN = 1  # with random weights, any token is as good a start


@dataclass(frozen=True, eq=False)
class Scan:
    """What a decode starts from: latents and noise (1, …) by flow, contexts (2, L, D), unconditional first."""

    latents: dict[Flow, Any]
    contexts: dict[Flow, Any]
    tables: dict[Flow, SamplerTable]
    tokens: int

    @classmethod
    def random(cls, bundle: Bundle, preset: str, tokens: int, seed: int) -> Scan:
        sizes = Architecture.from_mapping(bundle.architecture)
        tables = {flow: bundle.preset(preset).table(bundle.schedule, kind) for flow, kind in FLOWS.items()}
        side = sizes.autokl.latent_size
        shapes: dict[Flow, tuple[int, ...]] = {
            "image": (1, sizes.unet.latent_channels, side, side),
            "text": (1, sizes.unet.text_latent_dim),
        }
        lengths: dict[Flow, int] = {"image": sizes.clip.image_tokens, "text": sizes.clip.text_tokens}
        contexts = {}
        for stream, (name, length) in enumerate(lengths.items(), start=_CONTEXT_STREAM):
            context = seeded_noise(seed, stream, (2, length, sizes.unet.context_dim))
            contexts[name] = context / np.linalg.norm(context, axis=-1, keepdims=True)
        latents = {flow: seeded_noise(seed, stream, shapes[flow]) for stream, flow in enumerate(FLOWS)}
        return cls(latents, contexts, tables, tokens)


@dataclass(frozen=True, eq=False)
class Decoded:
    """What came out: latents by flow, picture (1, 3, H, W) in [0, 1], tokens."""

    latents: dict[Flow, Any]
    image: Any
    tokens: list[int]


class Variant(ABC):
    """One implementation, loaded once."""

    @abstractmethod
    def decode(self, scan: Scan) -> Decoded:
        """Everything, to the end."""

    @abstractmethod
    def caption(self, scan: Scan) -> list[int]:
        """The text flow and its tokens alone, under the contexts of the last decode."""


class EngineVariant(Variant):
    """The graphs of a bundle in an engine, driven as the decoder drives them."""

    def __init__(self, engine: Engine, bundle: Bundle, tables: Mapping[Flow, SamplerTable]) -> None:
        self._context = engine.open(bundle.graph("unet_context"))
        shared = {spec.name: self._context.buffer(spec.name) for spec in self._context.graph.outputs}
        self._steps: dict[Flow, Session] = {
            flow: engine.open(bundle.graph(f"unet_{flow}_step"), shared=shared) for flow in FLOWS
        }
        self._autokl = engine.open(bundle.graph("autokl_decode"))
        self._optimus = engine.open(bundle.graph("optimus_decode"))
        count = sum(len(table.timesteps) for table in tables.values())
        times = engine.open(bundle.graph("unet_time"), free=count)
        times.write("timesteps", np.concatenate([table.timesteps for table in tables.values()]))
        times.run()
        calls, start = {}, 0
        for flow, rows in tables.items():
            end = start + len(rows.timesteps)
            read = {
                "coefficients": rows.coefficients.astype(np.float32),
                "modulation": times.read(f"{flow}_modulation")[start:end, None],
            }
            calls[flow], start = Call(self._steps[flow], len(rows.timesteps), read), end
        decoding = Call(self._autokl, takes={"latent": (self._steps["image"], "next_latent")})
        self._picture = engine.program([calls["image"], decoding])
        self._text = engine.program([calls["text"]])

    def decode(self, scan: Scan) -> Decoded:
        for name, context in scan.contexts.items():
            self._context.write(f"{name}_context", context)
        self._context.run()
        self._load("image", scan)
        self._picture.start()
        self._load("text", scan)
        self._text.start()
        self._picture.finish()
        image = self._autokl.read("image")
        self._text.finish()
        latents = {flow: session.read("next_latent") for flow, session in self._steps.items()}
        return Decoded(latents, image, self._tokens(latents["text"], scan.tokens))

    def caption(self, scan: Scan) -> list[int]:
        self._load("text", scan)
        self._text.start()
        self._text.finish()
        return self._tokens(self._steps["text"].read("next_latent"), scan.tokens)

    def _load(self, flow: Flow, scan: Scan) -> None:
        session = self._steps[flow]
        session.rewind()
        session.write("latent", scan.latents[flow])
        session.write("previous_x0", 0.0)

    def _tokens(self, latent: Any, count: int) -> list[int]:
        session = self._optimus
        session.rewind()
        for name, value in (("latent", latent), ("position", 1), ("key_cache", 0.0), ("value_cache", 0.0)):
            session.write(name, value)
        tokens = [_START_TOKEN]
        chooses = "next_token" in session.graph.feedback
        session.write("token", tokens[0])
        for _ in range(count):
            if not chooses:
                session.write("token", tokens[-1])
            session.run()
            tokens.append(
                int(session.read("next_token")[0] if chooses else session.read("logits")[0].argmax())
            )
        return tokens


class TorchVariant(Variant):
    """The project's torch modules, partitioned like the graphs, eager or compiled."""

    def __init__(
        self,
        modules: Mapping[str, Any],
        device: str,
        tables: Mapping[Flow, SamplerTable],
        compiler: Callable[[Any], Any] | None = None,
    ) -> None:
        import torch

        self._torch, self._device = torch, device
        self._run = {name: compiler(module) if compiler else module for name, module in modules.items()}
        self._dtype = next(modules["unet_context"].parameters()).dtype
        self._slots = modules["optimus_decode"].slots
        self._sizes = modules["optimus_decode"].decoder.sizes
        with torch.inference_mode():
            self._rows = {
                flow: self._on(rows.coefficients.astype(np.float32)) for flow, rows in tables.items()
            }
            self._modulations = {
                flow: self._run["unet_time"](self._on(rows.timesteps))[place]
                for place, (flow, rows) in enumerate(tables.items())
            }

    def decode(self, scan: Scan) -> Decoded:
        with self._torch.inference_mode():
            given = [self._on(scan.contexts[name]).to(self._dtype) for name in FLOWS]
            self._keys_values = [tensor.clone() for tensor in self._run["unet_context"](*given)]
            latents = {flow: self._loop(flow, scan) for flow in FLOWS}
            image = self._run["autokl_decode"](latents["image"].to(self._dtype)).float().cpu().numpy()
            tokens = self._tokens(latents["text"], scan.tokens)
            return Decoded({flow: x.float().cpu().numpy() for flow, x in latents.items()}, image, tokens)

    def caption(self, scan: Scan) -> list[int]:
        with self._torch.inference_mode():
            return self._tokens(self._loop("text", scan), scan.tokens)

    def _loop(self, flow: Flow, scan: Scan) -> Any:
        latent = self._on(scan.latents[flow])
        x0 = self._torch.zeros_like(latent)
        for place in range(len(self._rows[flow])):
            latent, x0 = self._step(flow, place, latent, x0)
        return latent

    def _step(self, flow: Flow, place: int, latent: Any, x0: Any) -> Any:
        run, modulation, row = (
            self._run[f"unet_{flow}_step"],
            self._modulations[flow],
            self._rows[flow][place],
        )
        following, x0 = run(
            latent.to(self._dtype), x0, modulation[place : place + 1], row, *self._keys_values
        )
        # Compiled to CUDA graphs, the next step writes where this one did.
        return following.clone(), x0.clone()

    def _tokens(self, latent: Any, count: int) -> list[int]:
        torch, sizes = self._torch, self._sizes
        shape = (sizes.n_layer, sizes.n_head, self._slots, sizes.n_embd // sizes.n_head)
        keys = torch.zeros(shape, dtype=self._dtype, device=self._device)
        values, position = torch.zeros_like(keys), torch.ones(1, dtype=torch.int64, device=self._device)
        token = torch.full_like(position, _START_TOKEN)
        tokens = [token]
        for _ in range(count):
            _, *rest = self._run["optimus_decode"](latent.to(self._dtype), token, position, keys, values)
            keys, values, position, token = (tensor.clone() for tensor in rest)
            tokens.append(token)
        return [int(each) for each in torch.cat(tokens).cpu()]

    def _on(self, array: Any) -> Any:
        return self._torch.from_numpy(np.array(array)).to(self._device)


def torch_modules(
    checkpoint: Path, config: Path | None, slots: int, dtype: Any, device: str
) -> dict[str, Any]:
    """The modules of the graphs that a decode runs, by graph."""

    from unibrain_rt.export import graphs
    from unibrain_rt.export.models.optimus import OptimusStep

    opened = open_checkpoint(checkpoint, config)
    unet = load_unet(opened, dtype).to(device)
    vae = load_autokl(opened, dtype).to(device)
    optimus = load_optimus_decoder(opened, dtype).to(device)
    modules: dict[str, Any] = {
        "unet_context": graphs.UNetContext(unet),
        "unet_time": graphs.UNetTime(unet),
        **{f"unet_{flow}_step": graphs.UNetStep(unet, flow) for flow in FLOWS},
        "autokl_decode": graphs.autokl_decode(vae, opened.architecture).module,
        "optimus_decode": OptimusStep(optimus, slots),
    }
    for module in modules.values():
        module.requires_grad_(False)
    return modules
