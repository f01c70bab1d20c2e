"""What one guided step is given: the same numbers for every implementation, drawn from the sizes alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.export.bundles.architecture import Architecture
from unibrain_rt.flows import Flow
from unibrain_rt.presets import PRESETS, Preset
from unibrain_rt.samplers import Schedule, seeded_noise

Float = NDArray[np.float32]
PRESET = "paper"
_SEED = 0


@dataclass(frozen=True, eq=False)
class StepInputs:
    """The first step of the preset ``paper``.

    ``latent`` is (1, C, H, W) or (1, D); ``contexts`` are (2, L, D) by name, the unconditional one first, of
    unit length a token, as CLIP's are scaled; ``row`` is the sampler's, columns as in
    ``unibrain_rt.samplers.COLUMNS``.
    """

    latent: Float
    contexts: dict[Flow, Float]
    timestep: int
    row: Float
    preset: Preset
    schedule: Schedule

    @property
    def image_ratio(self) -> float:
        """Weight of the image context."""
        return float(self.row[1])

    @property
    def guidance_scale(self) -> float:
        """Scale of classifier-free guidance."""
        return float(self.row[0])


def step_inputs(architecture: Architecture, flow: Flow) -> StepInputs:
    """Inputs of one step of ``flow`` at the sizes of ``architecture``."""
    sizes, clip = architecture.unet, architecture.clip
    side = architecture.autokl.latent_size
    shape = (1, sizes.latent_channels, side, side) if flow == "image" else (1, sizes.text_latent_dim)
    tokens: dict[Flow, int] = {"image": clip.image_tokens, "text": clip.text_tokens}
    contexts = {}
    for stream, (name, length) in enumerate(tokens.items(), start=1):
        context = seeded_noise(_SEED, stream, (2, length, sizes.context_dim))
        contexts[name] = context / np.linalg.norm(context, axis=-1, keepdims=True)
    schedule, preset = Schedule(**asdict(architecture.schedule)), PRESETS[PRESET]
    table = preset.table(schedule, flow)
    return StepInputs(
        latent=seeded_noise(_SEED, 0, shape),
        contexts=contexts,
        timestep=int(table.timesteps[0]),
        row=table.coefficients[0].astype(np.float32),
        preset=preset,
        schedule=schedule,
    )
