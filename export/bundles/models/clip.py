"""The CLIP context encoders: transformers' CLIP towers, every token projected as in Versatile Diffusion."""

from __future__ import annotations

from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from unibrain_rt.export.bundles.architecture import CLIPConfig


class CLIPImageContext(CLIPVisionModelWithProjection):
    """Normalised pixels (N, 3, S, S) → context (N, patches + 1, D), divided by the class token's norm."""

    def forward(self, pixel_values: Tensor) -> Tensor:  # type: ignore[override]
        tokens = self.vision_model(pixel_values=pixel_values).last_hidden_state
        tokens = self.visual_projection(self.vision_model.post_layernorm(tokens))
        return tokens / tokens[:, :1].norm(dim=-1, keepdim=True)


class CLIPTextContext(CLIPTextModelWithProjection):
    """Token ids (N, L) → context (N, L, D), divided by the norm of the end-of-text token's projection."""

    def forward(self, input_ids: Tensor) -> Tensor:  # type: ignore[override]
        output = self.text_model(input_ids=input_ids)
        pooled = self.text_projection(output.pooler_output)
        return self.text_projection(output.last_hidden_state) / pooled.norm(dim=-1)[:, None, None]


def build_clip_image(config: CLIPConfig) -> CLIPImageContext:
    """The image tower at the sizes of ``config``, with random weights."""
    return CLIPImageContext(CLIPVisionConfig(**{**config.vision, "projection_dim": config.projection_dim}))


def build_clip_text(config: CLIPConfig) -> CLIPTextContext:
    """The text tower at the sizes of ``config``, with random weights."""
    return CLIPTextContext(CLIPTextConfig(**{**config.text, "projection_dim": config.projection_dim}))
