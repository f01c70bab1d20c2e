"""CLIP and Optimus: what they learn of the phantom's captions."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from unibrain_rt.export.bundles.architecture import Architecture
from unibrain_rt.export.bundles.models.clip import (
    CLIPImageContext,
    CLIPTextContext,
    build_clip_image,
    build_clip_text,
)
from unibrain_rt.export.bundles.models.optimus import OptimusDecoder, OptimusEncode
from unibrain_rt.export.phantom.learning.world import World, normal
from unibrain_rt.export.subjects.pixels import clip_pixels


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

    The latent is a channel of limited power: its dimensions are pulled to unit variance and no correlation
    (as in arXiv 2105.04906), and noise of ``NOISE`` is added to all of them alike, so that a sentence can only be
    told if it spreads over many. (Without that, sentences settle in some sixteen dimensions of the 64, in
    which a ridge's errors turn one colour into another.) What is learned: every token from the latent and the
    tokens before it, and which words the sentence holds, by a linear layer from the latent alone (a bag of
    words, arXiv 1703.10960, which keeps GPT-2 from ignoring the latent). Part of the sentences is told in the
    words of another phrasing: scenes that are alike then have latents that are alike.

    Then (``colour_loss``) its last three dimensions are tied to how the named colour looks. A language as large
    as ours puts words for colours that look alike near one another; captions of a small world teach nothing of
    it, and give every colour a direction of its own. Of those a linear head can make little: what it reads of an
    orange thing is half red and half yellow, and neither is orange (the masking of linear regression on classes).
    """

    NOISE = 1.0
    COLOUR_STD = 2.5
    COLOUR_WEIGHT = 2.0
    WHITENESS_WEIGHT = 1.0
    BAG_WEIGHT = 0.5
    HIDDEN = 0.3
    AS_READ = 0.5

    def __init__(self, architecture: Architecture, world: World, batch: int = 128) -> None:
        super().__init__()
        self.encoder = OptimusEncode(architecture.optimus)
        self.decoder = OptimusDecoder(architecture.optimus)
        vocabulary = architecture.optimus.decoder["vocab_size"]
        self.bag = nn.Linear(architecture.optimus.latent_size, vocabulary)
        self.pad = vocabulary - 3
        self.world, self.batch = world, batch

    def loss(self, rng: np.random.Generator, step: int) -> Tensor:
        """Half of the sentences in another phrasing; the latent's noise grows, as words are learned first."""
        _, mean, words = self._told(rng, self.NOISE * min(1.0, 0.05 + step / 1500))
        return words + self.WHITENESS_WEIGHT * _unwhiteness(mean)

    def colour_loss(self, rng: np.random.Generator, step: int) -> Tensor:
        """The same at full noise, with the named colour's looks in the last three dimensions."""
        index, mean, words = self._told(rng, self.NOISE)
        free, colour = mean[:, :-3], mean[:, -3:]
        looks = F.mse_loss(colour, self.COLOUR_STD * self.world.colours[torch.from_numpy(index)])
        return words + self.WHITENESS_WEIGHT * _unwhiteness(free) + self.COLOUR_WEIGHT * looks

    def _told(self, rng: np.random.Generator, noise: float) -> tuple[NDArray[np.int64], Tensor, Tensor]:
        """Which scenes, their latents (N, D), and how badly they are told under so much noise."""
        phrasings = len(self.world.bert_ids)
        index = rng.integers(len(self.world), size=self.batch)
        read = rng.integers(phrasings, size=self.batch)
        told = np.where(rng.random(self.batch) < self.AS_READ, read, rng.integers(phrasings, size=self.batch))
        mean = self.encoder(self.world.bert_ids[read, index])
        latent = mean + noise * normal(rng, mean.shape)
        ids = self.world.gpt2_ids[told, index]
        # The latent has to carry the sentence, so a part of what GPT-2 could lean on is hidden from it.
        hidden = torch.from_numpy(rng.random(ids.shape) < self.HIDDEN) & (ids < self.pad)
        logits = self.decoder(latent, ids.masked_fill(hidden, self.pad)[:, :-1])
        words = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=self.pad)
        said = torch.zeros(self.batch, self.bag.out_features).scatter_(1, ids, 1.0)
        bag = F.binary_cross_entropy_with_logits(self.bag(latent), said, reduction="none").sum(dim=1).mean()
        return index, mean, words + self.BAG_WEIGHT * bag

    @torch.no_grad()
    def turn(self) -> None:
        """Turn the latent so that its dimensions are in falling order of variance; no sentence changes."""
        latents = torch.cat([self.encoder(ids) for ids in self.world.bert_ids[0, :4096].split(256)])
        turned = torch.linalg.eigh(latents.T.cov()).eigenvectors.flip(1).T
        means, _ = self.encoder.linear.weight.chunk(2)
        means.copy_(turned @ means)
        for layer in (self.decoder.linear, self.decoder.linear_emb, self.bag):
            layer.weight.copy_(layer.weight @ turned.T)

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


def _unwhiteness(latents: Tensor) -> Tensor:
    """How far latents (N, D) are from mean 0 and the covariance 1."""
    middle = latents.mean(dim=0)
    covariance = (latents - middle).T @ (latents - middle) / (len(latents) - 1)
    off = (covariance - torch.eye(len(covariance))).square().sum() / len(covariance)
    return off + middle.square().mean()
