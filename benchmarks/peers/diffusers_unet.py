"""diffusers' Versatile Diffusion on a published checkpoint's weights, joined as by its pipeline."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import UNet2DConditionModel
from diffusers.models.transformers.dual_transformer_2d import DualTransformer2DModel
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.pipelines.deprecated.versatile_diffusion.modeling_text_unet import UNetFlatConditionModel

from unibrain_rt.engines import EngineError
from unibrain_rt.export.bundles.architecture import Architecture
from unibrain_rt.export.bundles.checkpoint import Checkpoint
from unibrain_rt.export.bundles.layouts import diffusers_name, unet_blocks
from unibrain_rt.flows import Flow

_SECOND_DIM = 4
"""Of ``UNetFlatConditionModel``'s blocks, which have it written down."""


def dual_unet(checkpoint: Checkpoint, flow: Flow, text_weight: float) -> Any:
    """The UNet of ``flow`` with both contexts' transformers in it, their weights mapped from the checkpoint.

    It takes the contexts as one sequence, text first; ``text_weight`` is the weight of the text context.

    Raises:
        EngineError: diffusers cannot have these sizes.
    """
    second = checkpoint.architecture.unet.text_second_dim
    if flow == "text" and second != _SECOND_DIM:
        raise EngineError(
            f"diffusers: its text UNet works on (channels, {_SECOND_DIM}) alone, not on {second}"
        )
    blocks = unet_blocks(checkpoint.architecture.unet)
    with init_empty_weights(include_buffers=False):
        unets = _unets(checkpoint.architecture)
    for name, unet in unets.items():
        state = {}
        for key, value in unet.state_dict().items():
            if name == flow or ".attentions." in key:
                canonical = diffusers_name(f"{name}_unet", key, blocks, 0)
                # The flows share one time embedding, which is published once.
                canonical = canonical.replace("diffuser.text.time_embed", "diffuser.image.time_embed")
                stored = checkpoint.tensor(canonical)
                state[key] = stored.reshape(value.shape).to(torch.float32)
        unet.load_state_dict(state, strict=False, assign=True)
        unet.eval().requires_grad_(False)
    clip = checkpoint.architecture.clip
    owner = unets[flow]
    places = [name for name, module in owner.named_modules() if isinstance(module, Transformer2DModel)]
    for place in places:
        with init_empty_weights():
            both = DualTransformer2DModel(in_channels=32, num_attention_heads=1, attention_head_dim=32)
        # The first transformer serves the image context, the second the text context, which comes first in
        # the sequence.
        for slot, name in enumerate(("image", "text")):
            both.transformers[slot] = unets[name].get_submodule(place)
        both.mix_ratio, both.condition_lengths = text_weight, [clip.text_tokens, clip.image_tokens]
        both.forward = partial(_without_mask, both.forward)
        parent, index = place.rsplit(".", 1)
        owner.get_submodule(parent)[int(index)] = both
    return owner


def _without_mask(forward: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    # diffusers 0.39 hands its dual transformer a mask that it does not take.
    options.pop("encoder_attention_mask", None)
    return forward(*inputs, **options)


def _unets(architecture: Architecture) -> dict[str, Any]:
    sizes = architecture.unet
    shared: dict[str, Any] = {
        "block_out_channels": tuple(sizes.model_channels * mult for mult in sizes.channel_mult),
        "layers_per_block": tuple(sizes.num_res_blocks),
        "cross_attention_dim": sizes.context_dim,
        # diffusers means the number of heads.
        "attention_head_dim": sizes.num_heads,
    }
    features = (sizes.text_latent_dim, 1, 1)
    flows = {
        "image": (UNet2DConditionModel, "2D", sizes.latent_channels),
        "text": (UNetFlatConditionModel, "Flat", features),
    }
    return {
        name: build(
            in_channels=channels,
            out_channels=channels,
            down_block_types=tuple(f"{'CrossAttn' * on}DownBlock{kind}" for on in sizes.attention_levels),
            up_block_types=tuple(
                f"{'CrossAttn' * on}UpBlock{kind}" for on in reversed(sizes.attention_levels)
            ),
            **shared,
        )
        for name, (build, kind, channels) in flows.items()
    }
