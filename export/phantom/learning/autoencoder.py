"""AutoKL: what it learns in the phantom's world."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models import AutoencoderKL
from torch import Tensor

from unibrain_rt.export.bundles.architecture import Architecture
from unibrain_rt.export.bundles.models.autokl import build_autokl
from unibrain_rt.export.phantom.learning.world import World, normal


class AutoKLLearner:
    """Reconstruction by the error of values and of edges, and a slight pull of the posterior to N(0, 1)."""

    def __init__(self, architecture: Architecture, world: World, batch: int = 8) -> None:
        self.module: AutoencoderKL = build_autokl(architecture.autokl)
        self.world, self.batch = world, batch

    def loss(self, rng: np.random.Generator, step: int) -> Tensor:
        """Variational: latents are drawn from their posterior, which spreads them like N(0, 1)."""
        image = self._images(rng)
        posterior = self.module.encode(image).latent_dist
        latent = posterior.mean + posterior.std * normal(rng, posterior.mean.shape)
        return self._difference(latent, image) + 1e-5 * posterior.kl().mean()

    def sharpening_loss(self, rng: np.random.Generator, step: int) -> Tensor:
        """Afterwards: posterior means with little noise, as a decode uses them."""
        image = self._images(rng)
        mean = self.module.encode(image).latent_dist.mean
        return self._difference(mean + 0.05 * normal(rng, mean.shape), image) + 1e-3 * mean.square().mean()

    def colouring_loss(self, rng: np.random.Generator, step: int) -> Tensor:
        """As ``sharpening_loss``, with colour weighed up and large areas again.

        Brightness makes most of the error of these scenes and colour little, so that a short training forgets
        it; to a person it is half of the picture.
        """
        image = self._images(rng)
        mean = self.module.encode(image).latent_dist.mean
        return self._coloured(mean + 0.05 * normal(rng, mean.shape), image) + 1e-3 * mean.square().mean()

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


def _edges(decoded: Tensor, image: Tensor) -> Tensor:
    return sum(
        ((torch.diff(decoded, dim=axis) - torch.diff(image, dim=axis)).abs().mean() for axis in (2, 3)),
        start=torch.zeros(()),
    )
