"""Data like those of NSD's subject 1, simulated by a generator that is written down here and seeded.

- every stimulus has 600 latents, independent and normal, of falling variance ``k^-0.8``;
- voxels answer to them by a random matrix, so that signals have a power-law spectrum; noise that voxels share (400
  components, ``k^-1``) and noise of each voxel's own are added. Signal is about a fifth of a voxel's variance, as in
  means over three trials; a tenth of the voxels carries most of it;
- targets are other mixtures of the same latents, half of their variance, of as many latents that no voxel knows (45 %:
  features of an encoder vary together, also where a brain does not follow), and of noise of each target's own (5 %),
  each target in units of its own (log-normal, 0.5).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.files import whole_file

SHAPES = {
    "image_latent": (4, 64, 64),
    "text_latent": (768,),
    "image_context": (257, 768),
    "text_context": (77, 768),
}
SCANS, TESTS, VOXELS, LATENTS, SHARED = 8859, 982, 15724, 600, 400
SEED = 5
BLOCK = 4096
Floats = NDArray[np.float32]


class NsdLikeWorld:
    """The generator; ``scale`` shrinks scans, voxels, targets and latents alike, 1 is NSD's size."""

    def __init__(self, scale: float) -> None:
        self.scale = scale
        self.scans, self.tests, self.voxels = (
            max(60, round(scale * full)) for full in (SCANS, TESTS, VOXELS)
        )
        self.latents, self.shared = (max(20, round(scale * full)) for full in (LATENTS, SHARED))
        self.shapes = {
            head: tuple(max(2, round(scale ** (1 / len(shape)) * size)) for size in shape)
            for head, shape in SHAPES.items()
        }

    def _normal(self, part: int, *shape: int) -> Floats:
        return np.random.default_rng([SEED, part]).standard_normal(shape, np.float32)

    def latent_scans(self) -> Floats:
        """(scans + tests, 2 latents), each half of unit variance together: those that voxels know, and the others."""
        spread = np.arange(1, self.latents + 1) ** -0.4
        spread = np.tile(spread / np.linalg.norm(spread), 2).astype(np.float32)
        return self._normal(0, self.scans + self.tests, 2 * self.latents) * spread

    def betas(self, latents: Floats) -> Floats:
        """(scans + tests, voxels)."""
        strength = np.random.default_rng([SEED, 1]).lognormal(0, 1, self.voxels).astype(np.float32)
        strength *= 0.5 / np.sqrt(np.mean(np.square(strength)))
        betas = latents[:, : self.latents] @ self._normal(2, self.latents, self.voxels) * strength
        spread = (np.arange(1, self.shared + 1) ** -0.5).astype(np.float32)
        spread *= 0.6 / np.linalg.norm(spread)
        betas += (self._normal(3, len(latents), self.shared) * spread) @ self._normal(
            4, self.shared, self.voxels
        )
        betas += 0.6 * self._normal(5, len(latents), self.voxels)
        return betas

    def targets(self, head: str, latents: Floats, start: int, stop: int) -> Floats:
        """(len(latents), stop - start) of a head; ``start`` is a multiple of `BLOCK`."""
        seed = [SEED, 6, list(SHAPES).index(head), start, len(latents)]
        rng = np.random.default_rng(seed)
        mixing = np.random.default_rng(seed[:-1])
        weights = mixing.standard_normal((2 * self.latents, stop - start), np.float32)
        weights *= np.repeat(np.sqrt(np.array([0.5, 0.45], np.float32)), self.latents)[:, None]
        units = mixing.lognormal(0, 0.5, stop - start).astype(np.float32)
        noise = rng.standard_normal((len(latents), stop - start), np.float32)
        return units * (latents @ weights + np.float32(math.sqrt(0.05)) * noise)


def write_targets(world: NsdLikeWorld, latents: Floats, folder: Path) -> dict[str, Any]:
    """Training targets as float16 memory maps."""
    maps = {}
    for head, shape in world.shapes.items():
        path, size = folder / f"{head}.targets.npy", (world.scans, math.prod(shape))
        if not path.exists():
            with whole_file(path) as part:
                array = np.lib.format.open_memmap(part, "w+", np.float16, size)
                for start in range(0, size[1], BLOCK):
                    stop = min(start + BLOCK, size[1])
                    array[:, start:stop] = world.targets(head, latents, start, stop)
                array.flush()
        maps[head] = np.load(path, mmap_mode="r").reshape(world.scans, *shape)
    return maps
