"""Scenes and a cortex that several modules of the phantom are tested on."""

from __future__ import annotations

import numpy as np
import pytest

from unibrain_rt.export.phantom.cortex import Cortex, make_cortex
from unibrain_rt.export.phantom.scenes import Scene, sample_scene


@pytest.fixture(scope="session")
def plain() -> Scene:
    """The scene to change one factor of."""
    return Scene("face", "red", "middle", "large", 1, "wall", "bright")


@pytest.fixture(scope="session")
def sampled() -> list[Scene]:
    """Two thousand scenes of any split."""
    rng = np.random.Generator(np.random.Philox(0))
    return [sample_scene(rng) for _ in range(2000)]


@pytest.fixture(scope="session")
def cortex() -> Cortex:
    return make_cortex(1200)
