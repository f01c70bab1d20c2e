"""The four-flow UNet: the latents and contexts it learns from, and the noise it learns to predict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unibrain_rt.export.bundles.architecture import Architecture
from unibrain_rt.export.bundles.models.unet import Flow, FourFlowUNet
from unibrain_rt.export.phantom.learning.language import CLIPLearner, OptimusLearner
from unibrain_rt.export.phantom.learning.world import World, normal
from unibrain_rt.export.subjects.pixels import clip_pixels
from unibrain_rt.files import whole_file
from unibrain_rt.samplers import Schedule, alphas_cumprod

DROPPED_CONTEXTS = 0.1
# Standard deviation of the latents that the UNet learns on. The published noise schedule is made for 64 × 64
# latents, whose neighbours repeat each other; 8 × 8 ones, and 64 numbers for a sentence, would be drowned at
# the strengths it is used with. Larger latents are the same as less noise (arXiv 2301.10972).
SPREAD = 2.0
# None of the text latent's 64 numbers repeats another, so that still more of it would be lost.
TEXT_SPREAD = 14.0


@dataclass(frozen=True)
class Latents:
    """What the UNet learns from: image latent and context a scene, text latent and context a phrasing."""

    image: Tensor  # (N, C, h, w)
    image_context: Tensor  # (N, L, D)
    text_context: Tensor  # (phrasings, N, L, D)
    no_image: Tensor  # (1, L, D): the unconditional context, that of the black image
    no_text: Tensor  # (1, L, D): likewise, of the empty caption
    text: Tensor | None = None  # (phrasings, N, D); the image flows do without

    @classmethod
    def cached(cls, path: Path, encode: Callable[[], Latents]) -> Latents:
        """Read from ``path``, or encode and keep them there: they take minutes."""
        if not path.is_file():
            latents = {
                name: value.contiguous() for name, value in vars(encode()).items() if value is not None
            }
            with whole_file(path) as part:
                save_file(latents, part)
        return cls(**load_file(path))

    @classmethod
    @torch.no_grad()
    def encode(
        cls,
        world: World,
        architecture: Architecture,
        autokl: AutoencoderKL,
        clip: CLIPLearner,
        scale_factor: float,
    ) -> Latents:
        """All but ``text``: every encoder over the world, and over the black image and the empty caption."""
        image, image_context = [], []
        for start in range(0, len(world), 64):
            batch = world.image_batch(np.arange(start, min(start + 64, len(world))))
            image.append(autokl.encode(2 * batch - 1).latent_dist.mean * scale_factor)
            image_context.append(clip.image(clip_pixels(batch)))
        side, text = architecture.autokl.image_size, architecture.clip
        end = text.text["eos_token_id"]
        empty = torch.tensor([[text.text["bos_token_id"], end, *[end] * (text.text_tokens - 2)]])
        return cls(
            torch.cat(image),
            torch.cat(image_context),
            _each_phrasing(clip.text, world.clip_ids),
            clip.image(clip_pixels(torch.zeros(1, 3, side, side))),
            clip.text(empty),
        )


@torch.no_grad()
def encode_text(world: World, optimus: OptimusLearner) -> Tensor:
    """Optimus' latents (phrasings, N, D) of the world's captions."""
    return _each_phrasing(optimus.encoder, world.bert_ids)


def _each_phrasing(encode: nn.Module, ids: Tensor) -> Tensor:
    return torch.stack([torch.cat([encode(part) for part in phrasing.split(256)]) for phrasing in ids])


class UNetLearner:
    """Noise prediction under one context or a random mixture of both; 10 % of contexts are dropped."""

    def __init__(
        self, architecture: Architecture, latents: Latents, image_batch: int = 64, text_batch: int = 128
    ) -> None:
        self.module = FourFlowUNet(architecture.unet)
        self.latents, self.image_batch, self.text_batch = latents, image_batch, text_batch
        schedule = Schedule(**vars(architecture.schedule))
        self.alphas = torch.from_numpy(alphas_cumprod(schedule)).float()

    def image_loss(self, rng: np.random.Generator, step: int) -> Tensor:
        """What ``image_parameters`` learn by."""
        return self._loss(rng, "image", self.image_batch)

    def image_parameters(self) -> tuple[nn.Parameter, ...]:
        """The blocks of the image flow and the contexts' transformers, which both flows share."""
        text = {id(parameter) for parameter in self.text_parameters()}
        return tuple(parameter for parameter in self.module.parameters() if id(parameter) not in text)

    def text_loss(self, rng: np.random.Generator, step: int) -> Tensor:
        """What ``text_parameters`` learn by afterwards; all others stay as they are."""
        return self._loss(rng, "text", self.text_batch)

    def text_parameters(self) -> tuple[nn.Parameter, ...]:
        """The blocks that only the text flow uses."""
        return tuple(self.module.text.data_blocks.parameters())

    def _loss(self, rng: np.random.Generator, flow: Flow, batch: int) -> Tensor:
        latents = self.latents
        index = rng.integers(len(latents.image), size=batch)
        phrasing = rng.integers(len(latents.text_context), size=batch)
        contexts = {
            "image": _blurred(rng, latents.image_context[index], latents.no_image),
            "text": _blurred(rng, latents.text_context[phrasing, index], latents.no_text),
        }
        # Guidance drops both contexts at once; so does this.
        dropped = torch.from_numpy(rng.random(batch) < DROPPED_CONTEXTS)[:, None, None]
        contexts["image"] = torch.where(dropped, latents.no_image, contexts["image"])
        contexts["text"] = torch.where(dropped, latents.no_text, contexts["text"])
        names = [("image",), ("text",), ("image", "text"), ("image", "text")][rng.integers(4)]
        ratio = float(rng.random())
        if flow == "image":
            clean = latents.image[index]
        else:
            assert latents.text is not None, "the text flow is learned after Optimus"
            clean = latents.text[phrasing, index]
        timesteps = torch.from_numpy(rng.integers(len(self.alphas), size=batch))
        noise = normal(rng, clean.shape)
        alpha = self.alphas[timesteps].view(-1, *[1] * (clean.dim() - 1))
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        chosen = {name: contexts[name] for name in names}
        predicted = self.module(flow, noisy, timesteps, chosen, ratio)  # type: ignore[arg-type]
        return F.mse_loss(predicted, noise)


def _blurred(rng: np.random.Generator, context: Tensor, unconditional: Tensor) -> Tensor:
    """Contexts regressed from voxels are blurred; some noise in training makes guidance by them robust."""
    strength = torch.from_numpy(rng.random((len(context), 1, 1), dtype=np.float32)) * 0.5
    return context + strength * (context - unconditional).std() * normal(rng, context.shape)
