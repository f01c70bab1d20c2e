"""Simulated data of NSD's size: the same every time, and of the size they claim."""

from __future__ import annotations

import numpy as np

from unibrain_rt.benchmarks.ridge.nsd_like import NsdLikeWorld


def test_the_world_is_the_same_every_time() -> None:
    world = NsdLikeWorld(0.01)
    latents = world.latent_scans()
    np.testing.assert_array_equal(latents, NsdLikeWorld(0.01).latent_scans())
    first, again = (world.targets("text_latent", latents, 0, 5) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    full = NsdLikeWorld(1.0)
    assert (full.scans, full.voxels, full.tests) == (8859, 15724, 982)
    assert sum(int(np.prod(shape)) for shape in full.shapes.values()) == 273_664
