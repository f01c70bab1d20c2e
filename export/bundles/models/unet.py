"""The four-flow UNet of Versatile Diffusion (arXiv 2211.08332).

A *flow* is what is denoised (an image latent or a text latent); a *context* is what guides it (CLIP of an
image, CLIP of a text). Every flow owns its data blocks, every context owns its transformers, and all four
pairings share one layout: at each place of the UNet a data block runs, then the transformers of the contexts
given, whose results are mixed. Sub-module names equal the keys of the published checkpoint below
``diffuser.``.

Contexts are constant during a decode and timesteps between decodes, so what depends on them alone can be
computed apart: ``context_keys_values`` and ``time_modulation`` give what ``denoise`` takes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unibrain_rt.export.bundles.architecture import UNetConfig
from unibrain_rt.export.bundles.models.transformer import GROUPS, ContextTransformer

Flow = Literal["image", "text"]
KeysValues = list[tuple[Tensor, Tensor]]
CONTEXTS: tuple[Flow, Flow] = ("image", "text")


def timestep_embedding(timesteps: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding (N,) → (N, dim): cosines, then sines, of frequencies 10000^(−i / (dim/2))."""
    half = dim // 2
    frequencies = torch.exp(
        -math.log(10000) * torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    )
    angles = timesteps[:, None].to(torch.float32) * frequencies[None]
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)


class ResBlock(nn.Module):
    """Residual block whose middle is shifted by the time modulation: (B, C, …) → (B, out, …).

    ``features`` is 1 for images, which are convolved 3×3. For texts the (C, features) tokens of a sample are
    flattened and pass through fully connected layers, the published 1×1 convolutions on a 1×1 grid.
    """

    def __init__(self, channels: int, out_channels: int, time_dim: int, flow: Flow, features: int) -> None:
        super().__init__()
        self.flow = flow
        self.features = features
        wide, out_wide = channels * features, out_channels * features
        layer = _conv3x3 if flow == "image" else nn.Linear
        self.in_layers = nn.Sequential(nn.GroupNorm(GROUPS, wide), nn.SiLU(), layer(wide, out_wide))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time_dim, out_wide))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, out_wide), nn.SiLU(), nn.Identity(), layer(out_wide, out_wide)
        )
        shortcut = _conv1x1 if flow == "image" else nn.Linear
        self.skip_connection = shortcut(wide, out_wide) if wide != out_wide else nn.Identity()

    @property
    def width(self) -> int:
        """Length of this block's time modulation."""
        return int(self.emb_layers[1].out_features)  # type: ignore[arg-type]

    def forward(self, h: Tensor, modulation: Tensor) -> Tensor:
        x = h if self.flow == "image" else h.flatten(1)
        shift = modulation[:, :, None, None] if self.flow == "image" else modulation
        y = self.out_layers(self.in_layers(x) + shift)
        y = self.skip_connection(x) + y
        return y if self.flow == "image" else y.unflatten(1, (-1, self.features))


class Resample(nn.Module):
    """Changes the grid of the image flow by 2; in the text flow a fully connected layer of the same width."""

    def __init__(self, channels: int, direction: Literal["down", "up"]) -> None:
        super().__init__()
        self.direction = direction
        if direction == "down":
            self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        else:
            self.conv = _conv3x3(channels, channels)

    def forward(self, h: Tensor) -> Tensor:
        if self.direction == "down":
            return self.op(h)
        return self.conv(F.interpolate(h, scale_factor=2.0, mode="nearest"))


class TokenLinear(nn.Linear):
    """Fully connected layer over all (C, features) tokens of a text at once; flat out without features."""

    def __init__(self, in_width: int, out_width: int, features: int | None) -> None:
        super().__init__(in_width, out_width)
        self.features = features

    def forward(self, h: Tensor) -> Tensor:
        y = super().forward(h.flatten(1))
        return y if self.features is None else y.unflatten(1, (-1, self.features))


class FlowBlocks(nn.Module):
    """The blocks one modality owns: the data blocks of its flow and the transformers of its context.

    ``plan`` lists what runs, in order: ``data`` (with a modulation if the block is residual), ``context``,
    ``save`` and ``load`` of a skip connection. It is the same for both flows.
    """

    def __init__(self, config: UNetConfig, flow: Flow) -> None:
        super().__init__()
        self.plan: list[Literal["data", "context", "save", "load"]] = []
        self.data_blocks = nn.ModuleList()
        self.context_blocks = nn.ModuleList()
        channels = config.model_channels
        if flow == "image":
            self.time_embed = nn.Sequential(
                nn.Linear(channels, 4 * channels), nn.SiLU(), nn.Linear(4 * channels, 4 * channels)
            )
        self._build(config, flow)

    def _build(self, config: UNetConfig, flow: Flow) -> None:
        base, time_dim = config.model_channels, 4 * config.model_channels
        features = 1 if flow == "image" else config.text_second_dim

        def data(block: nn.Module) -> None:
            self.data_blocks.append(nn.ModuleList([block]))
            self.plan.append("data")

        def residual(channels: int, out_channels: int) -> None:
            data(ResBlock(channels, out_channels, time_dim, flow, features))

        def context(channels: int) -> None:
            self.context_blocks.append(
                nn.ModuleList([ContextTransformer(channels, config.context_dim, config.num_heads)])
            )
            self.plan.append("context")

        def resample(channels: int, direction: Literal["down", "up"]) -> None:
            wide = channels * features
            data(Resample(channels, direction) if flow == "image" else TokenLinear(wide, wide, features))

        if flow == "image":
            data(_conv3x3(config.latent_channels, base))
        else:
            data(TokenLinear(config.text_latent_dim, base * features, features))
        self.plan.append("save")
        skips, channels = [base], base
        last = len(config.channel_mult) - 1
        for level, mult in enumerate(config.channel_mult):
            for _ in range(config.num_res_blocks[level]):
                residual(channels, mult * base)
                channels = mult * base
                if config.attention_levels[level]:
                    context(channels)
                self.plan.append("save")
                skips.append(channels)
            if level != last:
                resample(channels, "down")
                self.plan.append("save")
                skips.append(channels)

        residual(channels, channels)
        context(channels)
        residual(channels, channels)

        for level, mult in reversed(list(enumerate(config.channel_mult))):
            for _ in range(config.num_res_blocks[level] + 1):
                self.plan.append("load")
                residual(channels + skips.pop(), mult * base)
                channels = mult * base
                if config.attention_levels[level]:
                    context(channels)
            if level != 0:
                resample(channels, "up")

        out: nn.Module
        if flow == "image":
            out = _conv3x3(channels, config.latent_channels)
        else:
            out = TokenLinear(channels * features, config.text_latent_dim, None)
        data(nn.Sequential(nn.GroupNorm(GROUPS, channels), nn.SiLU(), out))

    def residual_blocks(self) -> Iterator[ResBlock]:
        """The blocks that take a time modulation, in the order they run."""
        for holder in self.data_blocks:
            if isinstance(holder[0], ResBlock):  # type: ignore[index]
                yield holder[0]  # type: ignore[index, misc]

    @property
    def modulation_width(self) -> int:
        """Length of the concatenated time modulations of all residual blocks."""
        return sum(block.width for block in self.residual_blocks())


class FourFlowUNet(nn.Module):
    """Predicts the noise in an image or a text latent under image context, text context or both."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        self.image = FlowBlocks(config, "image")
        self.text = FlowBlocks(config, "text")

    def blocks(self, modality: Flow) -> FlowBlocks:
        """The blocks that belong to a modality."""
        return self.image if modality == "image" else self.text

    def time_modulation(self, flow: Flow, timesteps: Tensor) -> Tensor:
        """(T,) → (T, M): every residual block's time shift, concatenated in the order the blocks run."""
        embedding = self.image.time_embed(
            timestep_embedding(timesteps, self.config.model_channels).to(self._dtype)
        )
        return torch.cat(
            [block.emb_layers(embedding) for block in self.blocks(flow).residual_blocks()], dim=-1
        )

    def context_keys_values(self, context_type: Flow, context: Tensor) -> KeysValues:
        """(B, L, context_dim) → per cross-attention a pair of (B, heads, L, channels / heads)."""
        holders = self.blocks(context_type).context_blocks
        return [holder[0].keys_values(context) for holder in holders]  # type: ignore[index]

    def denoise(
        self,
        flow: Flow,
        latent: Tensor,
        modulation: Tensor,
        keys_values: Mapping[Flow, KeysValues],
        image_ratio: Tensor | float | None = None,
    ) -> Tensor:
        """Predict the noise.

        Args:
            latent: (B, C, H, W) for the image flow, (B, D) for the text flow. One latent under several
                contexts (guidance) need not be repeated: B may be 1, and what precedes the first
                cross-attention then runs once.
            modulation: (B or 1, M) of ``time_modulation``.
            keys_values: of one context, or of both.
            image_ratio: weight of the image context when both are given.
        """
        own = self.blocks(flow)
        widths = [block.width for block in own.residual_blocks()]
        shifts = iter(modulation.split(widths, dim=-1))
        data, place = iter(own.data_blocks), 0
        h, skips = latent, []
        for kind in own.plan:
            if kind == "save":
                skips.append(h)
            elif kind == "load":
                skip = skips.pop()
                h = torch.cat([h, skip.expand(len(h), *skip.shape[1:])], dim=1)
            elif kind == "data":
                block = next(data)[0]  # type: ignore[index]
                h = block(h, next(shifts)) if isinstance(block, ResBlock) else block(h)
            else:
                h = h + self._guide(h, place, keys_values, image_ratio)
                place += 1
        return h

    def forward(
        self,
        flow: Flow,
        latent: Tensor,
        timesteps: Tensor,
        contexts: Mapping[Flow, Tensor],
        image_ratio: Tensor | float | None = None,
    ) -> Tensor:
        """``denoise`` from timesteps (B,) and contexts (B, L, context_dim)."""
        keys_values = {name: self.context_keys_values(name, context) for name, context in contexts.items()}
        return self.denoise(flow, latent, self.time_modulation(flow, timesteps), keys_values, image_ratio)

    def _guide(
        self,
        h: Tensor,
        place: int,
        keys_values: Mapping[Flow, KeysValues],
        image_ratio: Tensor | float | None,
    ) -> Tensor:
        deltas = {
            name: self.blocks(name).context_blocks[place][0](h, *pairs[place])  # type: ignore[index]
            for name, pairs in keys_values.items()
        }
        if len(deltas) == 1:
            return next(iter(deltas.values()))
        if image_ratio is None:
            raise ValueError("image_ratio is needed where both contexts are given")
        return deltas["text"] + image_ratio * (deltas["image"] - deltas["text"])

    @property
    def _dtype(self) -> torch.dtype:
        return self.image.time_embed[0].weight.dtype  # type: ignore[union-attr, return-value]


def _conv3x3(channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out_channels, 3, padding=1)


def _conv1x1(channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out_channels, 1)
