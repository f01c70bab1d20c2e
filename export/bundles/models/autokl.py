"""AutoKL, the image autoencoder: diffusers' ``AutoencoderKL`` for images in [0, 1] and scaled latents."""

from __future__ import annotations

import re

from diffusers.models import AutoencoderKL
from torch import Tensor, nn

from unibrain_rt.export.bundles.architecture import AutoKLConfig


def build_autokl(config: AutoKLConfig) -> AutoencoderKL:
    """The autoencoder at the sizes of ``config``, with random weights."""
    widths = [config.channels * mult for mult in config.channel_mult]
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=config.latent_channels,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=tuple(widths),
        layers_per_block=config.num_res_blocks,
        norm_num_groups=32,
        scaling_factor=config.scale_factor,
        sample_size=config.image_size,
    )


class AutoKLEncode(nn.Module):
    """Image (N, 3, S, S) in [0, 1] → posterior mean times the scale factor, (N, 4, s, s)."""

    def __init__(self, vae: AutoencoderKL, scale_factor: float) -> None:
        super().__init__()
        self.encoder, self.quant_conv, self.scale_factor = vae.encoder, vae.quant_conv, scale_factor

    def forward(self, image: Tensor) -> Tensor:
        mean, _ = self.quant_conv(self.encoder(2 * image - 1)).chunk(2, dim=1)
        return mean * self.scale_factor


class AutoKLDecode(nn.Module):
    """Scaled latent (N, 4, s, s) → image (N, 3, S, S), clipped to [0, 1]."""

    def __init__(self, vae: AutoencoderKL, scale_factor: float) -> None:
        super().__init__()
        self.decoder, self.post_quant_conv, self.scale_factor = vae.decoder, vae.post_quant_conv, scale_factor

    def forward(self, latent: Tensor) -> Tensor:
        image = self.decoder(self.post_quant_conv(latent / self.scale_factor))
        return ((image + 1) / 2).clamp(0, 1)


def published_key(key: str, levels: int) -> str:
    """The key of the published checkpoint (below ``vae.image.``) for a key of diffusers' module.

    Both name the same layers. The published decoder counts its levels from the finest, diffusers' from the
    coarsest one.
    """
    key = re.sub(r"^encoder\.down_blocks\.(\d+)\.resnets\.(\d+)\.", r"encoder.down.\1.block.\2.", key)
    key = re.sub(r"^encoder\.down_blocks\.(\d+)\.downsamplers\.0\.", r"encoder.down.\1.downsample.", key)
    up = re.match(r"^decoder\.up_blocks\.(\d+)\.(resnets\.(\d+)|upsamplers\.0)\.(.*)$", key)
    if up:
        level = levels - 1 - int(up[1])
        key = f"decoder.up.{level}.{f'block.{up[3]}' if up[3] else 'upsample'}.{up[4]}"
    key = re.sub(r"\.mid_block\.resnets\.(\d+)\.", lambda m: f".mid.block_{int(m[1]) + 1}.", key)
    key = key.replace(".conv_shortcut.", ".nin_shortcut.").replace(".conv_norm_out.", ".norm_out.")
    if ".mid_block.attentions.0." in key:
        key = key.replace(".mid_block.attentions.0.", ".mid.attn_1.").replace(".group_norm.", ".norm.")
        for ours, theirs in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):
            key = key.replace(f".{ours}.", f".{theirs}.")
    return key
