"""What stands in for a fitted subject, where a bundle has none: the rest of a decode takes as long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.bundle import Bundle
from unibrain_rt.scans import VoxelSpace

VOXELS = 15_724
"""Of NSD's subject 1."""


class MadeUpSubject:
    """Predicts noise of the right shapes from any scan. Its heads take no memory and no time to speak of."""

    name = "made-up"
    voxels = VOXELS
    folder = Path()
    """In no bundle: there is no graph of its heads, on no device."""

    def __init__(self, bundle: Bundle) -> None:
        image, text = bundle.unconditional_contexts()
        steps = {"image_latent": "unet_image_step", "text_latent": "unet_text_step"}
        self._shapes = {"image_context": image.shape[1:], "text_context": text.shape[1:]}
        self._shapes |= {
            head: bundle.graph(graph).tensor("latent").sized(1)[1:] for head, graph in steps.items()
        }
        self.voxel_space = VoxelSpace(self.name, VOXELS, 1.0)

    def head_shape(self, head: str) -> tuple[int, ...]:
        return self._shapes[head]

    def predict(self, voxels: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        """Noise, of length 1 a token as CLIP's contexts are."""
        rng = np.random.default_rng(0)
        predictions = {}
        for head, shape in self._shapes.items():
            values = rng.standard_normal((len(voxels), *shape), dtype=np.float32)
            scale = shape[-1] ** -0.5 if head.endswith("context") else 1.0
            predictions[head] = values * np.float32(scale)
        return predictions
