"""The graph partition: what runs per fit, schedule, decode and step, as modules with named tensors.

Each ``Graph`` is one ONNX file. Tensor names are the same in the manifest, in ONNX and in the runtime.
Contexts do not change during a decode and timesteps do not change between decodes, so ``unet_context`` and
``unet_time`` hold their projections, and a step graph holds all the rest of one denoising step: both guidance
branches as one batch, both contexts, classifier-free guidance and the sampler's update.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from diffusers.models import AutoencoderKL
from torch import Tensor, nn

from unibrain_rt.export.bundles.architecture import Architecture
from unibrain_rt.export.bundles.models.autokl import AutoKLDecode, AutoKLEncode
from unibrain_rt.export.bundles.models.clip import CLIPImageContext, CLIPTextContext
from unibrain_rt.export.bundles.models.optimus import OptimusDecoder, OptimusEncode, OptimusStep
from unibrain_rt.export.bundles.models.unet import CONTEXTS, Flow, FourFlowUNet
from unibrain_rt.samplers import COLUMNS


@dataclass(frozen=True)
class Graph:
    """One graph to export.

    ``example`` gives inputs of the right shapes and types; ``batch`` names the inputs and outputs whose first
    axis is free. ``feedback`` maps an output to the input it becomes on the next run.
    """

    name: str
    module: nn.Module
    example: dict[str, Tensor]
    outputs: tuple[str, ...]
    batch: bool = False
    feedback: dict[str, str] = field(default_factory=dict)


class UNetContext(nn.Module):
    """Image context (2, L, D) and text context (2, L, D), unconditional first → every key and value."""

    def __init__(self, unet: FourFlowUNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, image_context: Tensor, text_context: Tensor) -> tuple[Tensor, ...]:
        given: dict[Flow, Tensor] = {"image": image_context, "text": text_context}
        return tuple(
            tensor
            for name in CONTEXTS
            for pair in self.unet.context_keys_values(name, given[name])
            for tensor in pair
        )


class UNetTime(nn.Module):
    """Timesteps (T,) → time modulations (T, M) of both flows."""

    def __init__(self, unet: FourFlowUNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        return self.unet.time_modulation("image", timesteps), self.unet.time_modulation("text", timesteps)


class SamplerUpdate(nn.Module):
    """Classifier-free guidance and one row of a sampler's table, kept in fp32 in every precision.

    With e = e_uncond + scale (e_cond − e_uncond): x0 = c₂ x + c₃ e and next = c₄ x + c₅ x0 + c₆ previous_x0,
    where c are the columns of ``unibrain_rt.samplers.COLUMNS``.
    """

    def forward(
        self, latent: Tensor, previous_x0: Tensor, noise: Tensor, row: Tensor
    ) -> tuple[Tensor, Tensor]:
        column = dict(zip(COLUMNS, row.unbind(), strict=True))
        unconditional, conditional = noise.chunk(2)
        guided = unconditional + column["guidance_scale"] * (conditional - unconditional)
        x0 = column["x0_from_latent"] * latent + column["x0_from_noise"] * guided
        following = (
            column["next_from_latent"] * latent
            + column["next_from_x0"] * x0
            + column["next_from_previous_x0"] * previous_x0
        )
        return following, x0


class UNetStep(nn.Module):
    """One guided denoising step of one flow under both contexts."""

    def __init__(self, unet: FourFlowUNet, flow: Flow) -> None:
        super().__init__()
        self.unet, self.flow = unet, flow
        self.sampler_update = SamplerUpdate()

    def forward(
        self,
        latent: Tensor,
        previous_x0: Tensor,
        modulation: Tensor,
        coefficients: Tensor,
        *keys_values: Tensor,
    ) -> tuple[Tensor, Tensor]:
        half = len(keys_values) // 2
        given = {
            name: list(zip(part[0::2], part[1::2], strict=True))
            for name, part in zip(CONTEXTS, (keys_values[:half], keys_values[half:]), strict=True)
        }
        ratio = coefficients[COLUMNS.index("image_ratio")]
        noise = self.unet.denoise(self.flow, latent, modulation, given, ratio)
        return self.sampler_update(latent, previous_x0, noise, coefficients)


def keys_values_names(unet: FourFlowUNet) -> list[str]:
    """``image_context.0.keys``, ``image_context.0.values``, …, ``text_context.N.values``."""
    return [
        f"{context}_context.{place}.{part}"
        for context in CONTEXTS
        for place in range(len(unet.blocks(context).context_blocks))
        for part in ("keys", "values")
    ]


def unet_context(unet: FourFlowUNet, architecture: Architecture) -> Graph:
    """The graph ``unet_context``."""
    clip, dim = architecture.clip, architecture.unet.context_dim
    example = {
        "image_context": torch.zeros(2, clip.image_tokens, dim),
        "text_context": torch.zeros(2, clip.text_tokens, dim),
    }
    return Graph("unet_context", UNetContext(unet), example, tuple(keys_values_names(unet)))


def unet_time(unet: FourFlowUNet) -> Graph:
    """The graph ``unet_time``; any number of timesteps."""
    example = {"timesteps": torch.zeros(2, dtype=torch.int64)}
    return Graph("unet_time", UNetTime(unet), example, ("image_modulation", "text_modulation"), batch=True)


def unet_step(unet: FourFlowUNet, architecture: Architecture, flow: Flow) -> Graph:
    """The graph ``unet_image_step`` or ``unet_text_step``."""
    sizes, clip = architecture.unet, architecture.clip
    shape: tuple[int, ...]
    if flow == "image":
        side = architecture.autokl.latent_size
        shape = (1, sizes.latent_channels, side, side)
    else:
        shape = (1, sizes.text_latent_dim)
    tokens = {"image": clip.image_tokens, "text": clip.text_tokens}
    example = {
        "latent": torch.zeros(shape),
        "previous_x0": torch.zeros(shape),
        "modulation": torch.zeros(1, unet.blocks(flow).modulation_width),
        "coefficients": torch.zeros(len(COLUMNS)),
    }
    names = iter(keys_values_names(unet))
    for context in CONTEXTS:
        for holder in unet.blocks(context).context_blocks:
            channels = holder[0].proj_in.out_features  # type: ignore[index, union-attr]
            width = (2, sizes.num_heads, tokens[context], channels // sizes.num_heads)
            for _ in ("keys", "values"):
                example[next(names)] = torch.zeros(width)
    outputs, feedback = ("next_latent", "x0"), {"next_latent": "latent", "x0": "previous_x0"}
    return Graph(f"unet_{flow}_step", UNetStep(unet, flow), example, outputs, feedback=feedback)


def autokl_encode(vae: AutoencoderKL, architecture: Architecture) -> Graph:
    """The graph ``autokl_encode``; any number of images."""
    side = architecture.autokl.image_size
    module = AutoKLEncode(vae, architecture.autokl.scale_factor)
    return Graph("autokl_encode", module, {"image": torch.zeros(2, 3, side, side)}, ("latent",), batch=True)


def autokl_decode(vae: AutoencoderKL, architecture: Architecture) -> Graph:
    """The graph ``autokl_decode``; one image."""
    side = architecture.autokl.latent_size
    module = AutoKLDecode(vae, architecture.autokl.scale_factor)
    example = {"latent": torch.zeros(1, architecture.autokl.latent_channels, side, side)}
    return Graph("autokl_decode", module, example, ("image",))


def clip_image(encoder: CLIPImageContext, architecture: Architecture) -> Graph:
    """The graph ``clip_image``; any number of images, normalised and at CLIP's size."""
    side = architecture.clip.vision["image_size"]
    example = {"pixel_values": torch.zeros(2, 3, side, side)}
    return Graph("clip_image", encoder, example, ("context",), batch=True)


def clip_text(encoder: CLIPTextContext, architecture: Architecture) -> Graph:
    """The graph ``clip_text``; any number of captions."""
    example = {"input_ids": torch.zeros(2, architecture.clip.text_tokens, dtype=torch.int64)}
    return Graph("clip_text", encoder, example, ("context",), batch=True)


def optimus_encode(encoder: OptimusEncode, tokens: int) -> Graph:
    """The graph ``optimus_encode``; any number of captions of ``tokens`` BERT tokens, padded with 0."""
    example = {"input_ids": torch.ones(2, tokens, dtype=torch.int64)}
    return Graph("optimus_encode", encoder, example, ("latent",), batch=True)


def optimus_decode(decoder: OptimusDecoder, latent_size: int, slots: int) -> Graph:
    """The graph ``optimus_decode``: one token, with room for ``slots`` of them in the cache."""
    sizes = decoder.sizes
    cache = (sizes.n_layer, sizes.n_head, slots, sizes.n_embd // sizes.n_head)
    example = {
        "latent": torch.zeros(1, latent_size),
        "token": torch.zeros(1, dtype=torch.int64),
        "position": torch.ones(1, dtype=torch.int64),
        "key_cache": torch.zeros(cache),
        "value_cache": torch.zeros(cache),
    }
    feedback = {
        "next_key_cache": "key_cache",
        "next_value_cache": "value_cache",
        "next_position": "position",
        "next_token": "token",
    }
    outputs = ("logits", *feedback)
    return Graph("optimus_decode", OptimusStep(decoder, slots), example, outputs, feedback=feedback)
