"""One guided dual-context step in the engines and in torch, on the same weights.

A *whole* step starts from latent, timestep and contexts and runs the UNet on two copies of the latent, one a
guidance branch. A *partitioned* one is given the time modulation and the contexts' keys and values, which a
decode computes once, and shares between the branches what comes before the first cross-attention. Both cover
both guidance branches, both contexts, guidance and the sampler's update.
Heavy libraries are imported when a peer is loaded, so that this module's names are cheap.
"""

from __future__ import annotations

from typing import Any, ClassVar, cast

import numpy as np

from unibrain_rt.benchmarks.inputs import Float, StepInputs, step_inputs
from unibrain_rt.benchmarks.peers.peer import EnginePeer, Peer, Source, opened, take
from unibrain_rt.export.bundles.architecture import Architecture
from unibrain_rt.flows import Flow


class OnnxRuntimePeer(EnginePeer):
    """The exported graphs in ONNX Runtime, driven as the decoder drives them."""

    variants: ClassVar[tuple[str, ...]] = ("partitioned", "whole")

    def load(self) -> None:
        bundle, engine = self.open_bundle()
        self._inputs = _inputs(Architecture.from_mapping(bundle.architecture), self.source)
        self._context = engine.open(bundle.graph("unet_context"))
        self._time = engine.open(bundle.graph("unet_time"))
        shared = {spec.name: self._context.buffer(spec.name) for spec in self._context.graph.outputs}
        self._step = engine.open(bundle.graph(f"unet_{self.source.flow}_step"), shared=shared)
        self._run_contexts()
        self._modulation = self._run_time()

    def step(self, variant: str) -> None:
        # The graph feeds its outputs back, so every step is given its latent anew.
        self._step.write("latent", self._inputs.latent)
        self._step.write("previous_x0", 0.0)
        if variant == "whole":
            self._run_contexts()
        self._step.write("coefficients", self._inputs.row)
        self._step.write("modulation", self._run_time() if variant == "whole" else self._modulation)
        self._step.run()

    def output(self) -> Float:
        return self._step.read("next_latent")

    def _run_contexts(self) -> None:
        for name, context in self._inputs.contexts.items():
            self._context.write(f"{name}_context", context)
        self._context.run()

    def _run_time(self) -> Any:
        # The graph gives the modulations of both flows at once.
        self._time.write("timesteps", self._inputs.timestep)
        self._time.run()
        return self._time.read(f"{self.source.flow}_modulation")


class OnnxRuntimeHalfPeer(OnnxRuntimePeer):
    """The same from a bundle exported in fp16: that it runs on a CPU, and how far it is off."""

    variants: ClassVar[tuple[str, ...]] = ("partitioned",)


class OpenVinoPeer(OnnxRuntimePeer):
    """The same graphs in OpenVINO, in the precision that this processor computes natively."""

    variants: ClassVar[tuple[str, ...]] = ("partitioned",)
    engine: ClassVar[str] = "openvino"


class OpenVinoHalfPeer(OpenVinoPeer):
    """OpenVINO from a bundle exported in fp16, whose weights it reads in half the bytes."""


class TorchPeer(Peer):
    """Our torch module, eager, fp32."""

    variants: ClassVar[tuple[str, ...]] = ("whole", "partitioned")

    def load(self) -> None:
        import torch

        from unibrain_rt.export.bundles.checkpoint import load_unet
        from unibrain_rt.export.bundles.graphs import UNetStep

        flow = cast(Flow, self.source.flow)
        torch.set_num_threads(self.source.threads)
        checkpoint = opened(self.source)
        inputs = _inputs(checkpoint.architecture, self.source)
        dtype = getattr(torch, self.precision)
        parts: Any = (f"{flow}.data", "image.context", "text.context", "time")
        self._unet = load_unet(checkpoint, dtype, parts)
        take(self._unet, lambda key: _used(key, flow))
        self._module = UNetStep(self._unet, flow)
        self._latent, self._row = torch.from_numpy(inputs.latent), torch.from_numpy(inputs.row)
        self._previous_x0 = torch.zeros_like(self._latent)
        self._timesteps, self._image_ratio = torch.tensor([inputs.timestep]), inputs.image_ratio
        self._contexts = {
            name: torch.from_numpy(context).to(dtype) for name, context in inputs.contexts.items()
        }
        self._dtype = dtype
        self._run_step: Any = torch.compile(self._module) if self.compiled else self._module
        self._run_unet: Any = torch.compile(self._unet) if self.compiled else self._unet
        with torch.inference_mode():
            self._once = self._context_and_time()

    def step(self, variant: str) -> None:
        import torch

        with torch.inference_mode():
            self._next, _ = self._whole() if variant == "whole" else self._partitioned()

    def output(self) -> Float:
        return np.asarray(self._next.float().numpy())

    def _whole(self) -> Any:
        """The module as it is trained and as the reference calls it: the latent once for either branch."""
        import torch

        both = torch.cat([self._latent, self._latent]).to(self._dtype)
        noise = self._run_unet(self.source.flow, both, self._timesteps, self._contexts, self._image_ratio)
        return self._module.sampler_update(self._latent, self._previous_x0, noise.float(), self._row)

    def _partitioned(self) -> Any:
        modulation, keys_values = self._once
        latent = self._latent.to(self._dtype)
        return self._run_step(latent, self._previous_x0, modulation, self._row, *keys_values)

    def _context_and_time(self) -> Any:
        keys_values = [
            tensor
            for name, context in self._contexts.items()
            for pair in self._unet.context_keys_values(name, context)
            for tensor in pair
        ]
        return self._unet.time_modulation(cast(Flow, self.source.flow), self._timesteps), keys_values


class DiffusersPeer(Peer):
    """diffusers' Versatile Diffusion, eager, fp32: the denoising step of its dual-guided pipeline.

    The pipeline has the image flow only. For the text flow its text UNet is run in the same way, with the
    image UNet's transformers at the side of its own, so that both flows work under both contexts.
    """

    variants: ClassVar[tuple[str, ...]] = ("whole",)

    def load(self) -> None:
        import torch
        from diffusers import DDIMScheduler

        from unibrain_rt.benchmarks.peers.diffusers_unet import dual_unet

        flow = cast(Flow, self.source.flow)
        torch.set_num_threads(self.source.threads)
        checkpoint = opened(self.source)
        inputs = _inputs(checkpoint.architecture, self.source)
        dtype = getattr(torch, self.precision)
        unet = dual_unet(checkpoint, flow, text_weight=1 - inputs.image_ratio)
        take(unet, lambda key: True)
        unet = unet.to(dtype)
        self._unet: Any = torch.compile(unet) if self.compiled else unet
        schedule = inputs.schedule
        self._scheduler = DDIMScheduler(
            num_train_timesteps=schedule.timesteps,
            beta_start=schedule.beta_start,
            beta_end=schedule.beta_end,
            beta_schedule=schedule.beta_schedule,
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        )
        self._scheduler.set_timesteps(inputs.preset.steps)
        latent, self._shape = torch.from_numpy(inputs.latent), inputs.latent.shape
        self._latent = (latent if flow == "image" else latent[:, :, None, None]).to(dtype)
        contexts: tuple[Flow, ...] = ("text", "image")
        self._contexts = torch.cat([torch.from_numpy(inputs.contexts[name]) for name in contexts], dim=1).to(
            dtype
        )
        self._timestep, self._scale = torch.tensor(inputs.timestep), inputs.guidance_scale

    def step(self, variant: str) -> None:
        import torch

        with torch.inference_mode():
            both = torch.cat([self._latent] * 2)
            noise = self._unet(both, self._timestep, encoder_hidden_states=self._contexts).sample
            unconditional, conditional = noise.chunk(2)
            guided = unconditional + self._scale * (conditional - unconditional)
            self._next = self._scheduler.step(guided, self._timestep, self._latent).prev_sample

    def output(self) -> Float:
        # diffusers keeps a text latent as (1, D, 1, 1).
        return np.asarray(self._next.float().numpy().reshape(self._shape))


def step_weight_bytes(source: Source) -> int:
    """Bytes, in fp32, of all weights that a whole step of the flow reads."""
    from unibrain_rt.export.bundles.layouts import is_extra

    checkpoint = opened(source)
    prefix = "diffuser."
    wanted = (
        key
        for key in checkpoint.keys()  # noqa: SIM118 - a method of our own
        if key.startswith(prefix)
        and not is_extra(key)
        and _used(key.removeprefix(prefix), cast(Flow, source.flow))
    )
    return sum(4 * int(np.prod(checkpoint.shape(key))) for key in wanted)


def _inputs(architecture: Architecture, source: Source) -> StepInputs:
    return step_inputs(architecture, cast(Flow, source.flow))


def _used(key: str, flow: Flow) -> bool:
    """Whether a step of ``flow`` uses a parameter of ``FourFlowUNet``."""
    return key.startswith(
        (f"{flow}.data_blocks.", "image.context_blocks.", "text.context_blocks.", "image.time_embed.")
    )
