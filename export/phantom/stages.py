"""What the phantom's models learn: AutoKL, CLIP and Optimus, then the four-flow UNet on their latents."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models import AutoencoderKL
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unibrain_rt.export.config import Architecture
from unibrain_rt.export.models.autokl import build_autokl
from unibrain_rt.export.models.clip import (
    CLIPImageContext,
    CLIPTextContext,
    build_clip_image,
    build_clip_text,
)
from unibrain_rt.export.models.optimus import OptimusDecoder, OptimusEncode
from unibrain_rt.export.models.unet import Flow, FourFlowUNet
from unibrain_rt.export.phantom.phrases import captions
from unibrain_rt.export.phantom.pictures import stimuli
from unibrain_rt.export.phantom.scenes import scenes
from unibrain_rt.export.pixels import clip_pixels
from unibrain_rt.export.tokenization import bert_ids, clip_ids, gpt2_ids
from unibrain_rt.samplers import Schedule, alphas_cumprod

DROPPED_CONTEXTS = 0.1
# Standard deviation of the latents that the UNet learns on. The published noise schedule is made for 64 × 64
# latents, whose neighbours repeat each other; 8 × 8 ones, and 64 numbers for a sentence, would be drowned at
# the strengths it is used with. Larger latents are the same as less noise (arXiv 2301.10972).
SPREAD = 3.0
# The text latent's in the end. It has 64 numbers, none of which repeats another, so that even more of it would
# be lost: of 100 held-out scans 91 had the right kind in the ridge's latent, and after the caption loop at the
# paper's strength 69 at a spread of 3, 77 at 5 and 87 at 8. The text flow's own blocks learn it in a stage
# of their own.
TEXT_SPREAD = 8.0


@dataclass(frozen=True)
class World:
    """Scenes as arrays: images (N, 3, S, S) uint8, and per caption phrasing the three kinds of token ids."""

    images: Tensor
    clip_ids: Tensor
    bert_ids: Tensor
    gpt2_ids: Tensor

    @classmethod
    def render(cls, part: str, count: int, seed: int, architecture: Architecture, tokenizers: Path) -> World:
        """``count`` scenes of a split; token ids are (phrasings, N, L)."""
        chosen = scenes(part, count, seed)  # type: ignore[arg-type]
        images = (
            torch.from_numpy(stimuli(chosen, architecture.autokl.image_size)).permute(0, 3, 1, 2).contiguous()
        )
        texts = [list(phrasing) for phrasing in zip(*(captions(scene) for scene in chosen), strict=True)]
        length = architecture.clip.text_tokens

        def ids(encode: object, name: str) -> Tensor:
            rows = [encode(tokenizers / name, phrasing, length) for phrasing in texts]  # type: ignore[operator]
            return torch.from_numpy(np.stack(rows))

        return cls(images, ids(clip_ids, "clip"), ids(bert_ids, "bert"), ids(gpt2_ids, "gpt2"))

    @classmethod
    def cached(
        cls, folder: Path, count: int, seed: int, architecture: Architecture, tokenizers: Path
    ) -> World:
        """The training split, rendered once and kept in ``folder``."""
        path = folder / f"world_{count}_{seed}.safetensors"
        if not path.is_file():
            world = cls.render("train", count, seed, architecture, tokenizers)
            temporary = path.with_suffix(f".{os.getpid()}.tmp")
            save_file(vars(world), temporary)
            os.replace(temporary, path)
        return cls(**load_file(path))

    def __len__(self) -> int:
        return len(self.images)

    def image_batch(self, index: NDArray[np.int64]) -> Tensor:
        """Images in [0, 1]."""
        return self.images[torch.from_numpy(index)].float() / 255


class AutoKLLearner:
    """Reconstruction by the error of values and of edges, and a slight pull of the posterior to N(0, 1)."""

    def __init__(self, architecture: Architecture, world: World, batch: int = 8) -> None:
        self.module: AutoencoderKL = build_autokl(architecture.autokl)
        self.world, self.batch = world, batch

    def loss(self, rng: np.random.Generator, step: int) -> Tensor:
        """Variational: latents are drawn from their posterior, which spreads them like N(0, 1)."""
        image = self._images(rng)
        posterior = self.module.encode(image).latent_dist
        latent = posterior.mean + posterior.std * _normal(rng, posterior.mean.shape)
        return self._difference(latent, image) + 1e-5 * posterior.kl().mean()

    def sharpening_loss(self, rng: np.random.Generator, step: int) -> Tensor:
        """Afterwards: posterior means with little noise, as a decode uses them."""
        image = self._images(rng)
        mean = self.module.encode(image).latent_dist.mean
        return self._difference(mean + 0.05 * _normal(rng, mean.shape), image) + 1e-3 * mean.square().mean()

    def colouring_loss(self, rng: np.random.Generator, step: int) -> Tensor:
        """As ``sharpening_loss``, with colour weighed up and large areas again.

        Brightness makes most of the error of these scenes and colour little, so that a short training forgets
        it; to a person it is half of the picture.
        """
        image = self._images(rng)
        mean = self.module.encode(image).latent_dist.mean
        return self._coloured(mean + 0.05 * _normal(rng, mean.shape), image) + 1e-3 * mean.square().mean()

    def decoding_loss(self, rng: np.random.Generator, step: int) -> Tensor:
        """Last, with the encoder as it is: the decoder alone, on latents as blurred as denoised ones are."""
        image = self._images(rng)
        with torch.no_grad():
            mean = self.module.encode(image).latent_dist.mean
        return self._coloured(mean + 0.1 * _normal(rng, mean.shape), image)

    def decoder_parameters(self) -> tuple[nn.Parameter, ...]:
        """What ``decoding_loss`` is for."""
        return (*self.module.post_quant_conv.parameters(), *self.module.decoder.parameters())

    def _coloured(self, latent: Tensor, image: Tensor) -> Tensor:
        decoded = self.module.decode(latent).sample
        error = decoded - image
        brightness = error.mean(dim=1, keepdim=True)
        error = brightness + 3 * (error - brightness)
        areas = sum(F.avg_pool2d(error, side).square().mean() for side in (4, 8))
        return error.abs().mean() + error.square().mean() + 4 * areas + _edges(decoded, image)

    def _images(self, rng: np.random.Generator) -> Tensor:
        return 2 * self.world.image_batch(rng.integers(len(self.world), size=self.batch)) - 1

    def _difference(self, latent: Tensor, image: Tensor) -> Tensor:
        decoded = self.module.decode(latent).sample
        return F.l1_loss(decoded, image) + F.mse_loss(decoded, image) + _edges(decoded, image)

    @torch.no_grad()
    def latent_std(self, count: int = 512) -> float:
        """Standard deviation of unscaled latents; its inverse is the scale factor."""
        index = np.arange(min(count, len(self.world)))
        return float(self.module.encode(2 * self.world.image_batch(index) - 1).latent_dist.mean.std())


class CLIPLearner(nn.Module):
    """Contrastive learning of both towers (arXiv 2103.00020)."""

    def __init__(self, architecture: Architecture, world: World, batch: int = 128) -> None:
        super().__init__()
        self.image: CLIPImageContext = build_clip_image(architecture.clip)
        self.text: CLIPTextContext = build_clip_text(architecture.clip)
        self.logit_scale = nn.Parameter(torch.tensor(np.log(1 / 0.07), dtype=torch.float32))
        self.world, self.batch = world, batch

    def loss(self, rng: np.random.Generator, step: int) -> Tensor:
        index = rng.integers(len(self.world), size=self.batch)
        phrasing = rng.integers(len(self.world.clip_ids), size=self.batch)
        ids = self.world.clip_ids[phrasing, index]
        seen = self.image(clip_pixels(self.world.image_batch(index)))[:, 0]
        pooled = self.text.text_projection(self.text.text_model(input_ids=ids).pooler_output)
        logits = self.logit_scale.exp().clamp(max=100) * seen @ F.normalize(pooled, dim=-1).T
        target = torch.arange(self.batch)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


class OptimusLearner(nn.Module):
    """The sentence autoencoder, whose latent has to be readable by the linear map that a ridge head is.

    What is learned: every token from the latent and the tokens before it; which words the sentence holds, by
    a linear layer from the latent alone (a bag of words, arXiv 1703.10960, which keeps GPT-2 from ignoring
    the latent); and a divergence from N(0, 1) in which every dimension has ``FREE`` nats for nothing (as in
    arXiv 2004.04092), so that the sentence spreads over many dimensions. Part of the sentences is told in
    the words of another phrasing: scenes that are alike then have latents that are alike.
    """

    FREE = 0.5
    DIVERGENCE_WEIGHT = 0.01
    BAG_WEIGHT = 0.5
    HIDDEN = 0.3

    def __init__(self, architecture: Architecture, world: World, batch: int = 64) -> None:
        super().__init__()
        self.encoder = OptimusEncode(architecture.optimus)
        self.decoder = OptimusDecoder(architecture.optimus)
        vocabulary = architecture.optimus.decoder["vocab_size"]
        self.bag = nn.Linear(architecture.optimus.latent_size, vocabulary)
        self.pad = vocabulary - 3
        self.world, self.batch = world, batch

    def loss(self, rng: np.random.Generator, step: int) -> Tensor:
        """Half of the sentences in another phrasing; the latent's noise grows, as words are learned first."""
        return self._loss(rng, noise=min(1.0, 0.05 + step / 1500), as_read=0.5)

    def sharpening_loss(self, rng: np.random.Generator, step: int) -> Tensor:
        """Afterwards: nearly all sentences as they were read, so that the latent tells the phrasing, too."""
        return self._loss(rng, noise=1.0, as_read=0.9)

    def _loss(self, rng: np.random.Generator, noise: float, as_read: float) -> Tensor:
        phrasings = len(self.world.bert_ids)
        index = rng.integers(len(self.world), size=self.batch)
        read = rng.integers(phrasings, size=self.batch)
        told = np.where(rng.random(self.batch) < as_read, read, rng.integers(phrasings, size=self.batch))
        mean, log_variance = self.encoder.posterior(self.world.bert_ids[read, index])
        latent = mean + noise * (log_variance / 2).exp() * _normal(rng, mean.shape)
        ids = self.world.gpt2_ids[told, index]
        # The latent has to carry the sentence, so a part of what GPT-2 could lean on is hidden from it.
        hidden = torch.from_numpy(rng.random(ids.shape) < self.HIDDEN) & (ids < self.pad)
        logits = self.decoder(latent, ids.masked_fill(hidden, self.pad)[:, :-1])
        words = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=self.pad)
        said = torch.zeros(self.batch, self.bag.out_features).scatter_(1, ids, 1.0)
        bag = F.binary_cross_entropy_with_logits(self.bag(latent), said, reduction="none").sum(dim=1).mean()
        divergence = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).mean(dim=0)
        return words + self.BAG_WEIGHT * bag + self.DIVERGENCE_WEIGHT * divergence.clamp(min=self.FREE).sum()

    @torch.no_grad()
    def spread(self, std: float) -> float:
        """Scale the latent to ``std`` in the encoder's last layer, and back in the decoder's first.

        Returns the factor by which latents have grown.
        """
        latents = torch.cat([self.encoder(ids) for ids in self.world.bert_ids[0, :2048].split(256)])
        factor = float(std / latents.std())
        means, _ = self.encoder.linear.weight.chunk(2)
        means *= factor
        self.decoder.linear.weight /= factor
        self.decoder.linear_emb.weight /= factor
        return factor


@dataclass(frozen=True)
class Latents:
    """What the UNet learns from: image latent and context a scene, text latent and context a phrasing."""

    image: Tensor
    text: Tensor
    image_context: Tensor
    text_context: Tensor
    no_image: Tensor
    no_text: Tensor

    @classmethod
    @torch.no_grad()
    def encode(
        cls,
        world: World,
        architecture: Architecture,
        autokl: AutoencoderKL,
        clip: CLIPLearner,
        optimus: OptimusLearner,
        scale_factor: float,
    ) -> Latents:
        """Run every encoder over the world, and over the black image and the empty caption."""
        image, image_context = [], []
        for start in range(0, len(world), 64):
            batch = world.image_batch(np.arange(start, min(start + 64, len(world))))
            image.append(autokl.encode(2 * batch - 1).latent_dist.mean * scale_factor)
            image_context.append(clip.image(clip_pixels(batch)))
        phrasings = range(len(world.clip_ids))

        def each(encode: nn.Module, ids: Tensor) -> Tensor:
            return torch.stack([torch.cat([encode(part) for part in ids[p].split(256)]) for p in phrasings])

        side, text = architecture.autokl.image_size, architecture.clip
        end = text.text["eos_token_id"]
        empty = torch.tensor([[text.text["bos_token_id"], end, *[end] * (text.text_tokens - 2)]])
        return cls(
            torch.cat(image),
            each(optimus.encoder, world.bert_ids),
            torch.cat(image_context),
            each(clip.text, world.clip_ids),
            clip.image(clip_pixels(torch.zeros(1, 3, side, side))),
            clip.text(empty),
        )


class UNetLearner:
    """Noise prediction in all flows, under one context or a random mixture; 10 % of contexts are dropped."""

    def __init__(self, architecture: Architecture, latents: Latents, batch: int = 32) -> None:
        self.module = FourFlowUNet(architecture.unet)
        self.latents, self.batch = latents, batch
        schedule = Schedule(**vars(architecture.schedule))
        self.alphas = torch.from_numpy(alphas_cumprod(schedule)).float()

    def loss(self, rng: np.random.Generator, step: int) -> Tensor:
        """Both flows."""
        return self._loss(rng, ("image", "text"))

    def _loss(self, rng: np.random.Generator, flows: tuple[Flow, ...]) -> Tensor:
        index = rng.integers(len(self.latents.image), size=self.batch)
        phrasing = rng.integers(len(self.latents.text), size=self.batch)
        contexts = {
            "image": self._context(rng, self.latents.image_context[index], self.latents.no_image),
            "text": self._context(rng, self.latents.text_context[phrasing, index], self.latents.no_text),
        }
        # Guidance drops both contexts at once; so does this.
        dropped = torch.from_numpy(rng.random(self.batch) < DROPPED_CONTEXTS)[:, None, None]
        contexts["image"] = torch.where(dropped, self.latents.no_image, contexts["image"])
        contexts["text"] = torch.where(dropped, self.latents.no_text, contexts["text"])
        given = [("image",), ("text",), ("image", "text"), ("image", "text")][rng.integers(4)]
        chosen = {name: contexts[name] for name in given}
        ratio = float(rng.random())
        clean = {"image": self.latents.image[index], "text": self.latents.text[phrasing, index]}
        return sum(
            (self._flow_loss(rng, flow, clean[flow], chosen, ratio) for flow in flows), start=torch.zeros(())
        )

    def caption_loss(self, rng: np.random.Generator, step: int) -> Tensor:
        """The text flow alone, which costs a fifth of the image flow and needs more steps."""
        return self._loss(rng, ("text",))

    def caption_parameters(self) -> tuple[nn.Parameter, ...]:
        """What ``caption_loss`` is for: the blocks that only the text flow uses."""
        return tuple(self.module.text.data_blocks.parameters())

    def _flow_loss(
        self, rng: np.random.Generator, flow: Flow, clean: Tensor, contexts: dict[str, Tensor], ratio: float
    ) -> Tensor:
        timesteps = torch.from_numpy(rng.integers(len(self.alphas), size=self.batch))
        noise = _normal(rng, clean.shape)
        alpha = self.alphas[timesteps].view(-1, *[1] * (clean.dim() - 1))
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        predicted = self.module(flow, noisy, timesteps, contexts, ratio)  # type: ignore[arg-type]
        return F.mse_loss(predicted, noise)

    def _context(self, rng: np.random.Generator, context: Tensor, nothing: Tensor) -> Tensor:
        # Contexts regressed from voxels are blurred; some noise in training makes guidance by them robust.
        strength = torch.from_numpy(rng.random((self.batch, 1, 1), dtype=np.float32)) * 0.5
        spread = (context - nothing).std()
        return context + strength * spread * _normal(rng, context.shape)


def _edges(decoded: Tensor, image: Tensor) -> Tensor:
    return sum(
        ((torch.diff(decoded, dim=axis) - torch.diff(image, dim=axis)).abs().mean() for axis in (2, 3)),
        start=torch.zeros(()),
    )


def _normal(rng: np.random.Generator, shape: torch.Size) -> Tensor:
    return torch.from_numpy(rng.standard_normal(tuple(shape), dtype=np.float32))
