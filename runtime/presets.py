"""Presets: how long a decode may take, and so how it samples. They live in the bundle's manifest."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

from unibrain_rt.errors import BundleError, InputError
from unibrain_rt.flows import CONTEXTS, INPUTS, Flow
from unibrain_rt.json_file import Fields
from unibrain_rt.samplers import SAMPLERS, SamplerTable, Schedule, build_table


@dataclass(frozen=True)
class Preset:
    """Sampler settings of both flows.

    ``strength`` is the share of the schedule that runs: the predicted latent is noised that far and denoised
    again. ``image_ratio`` weighs the image context against the text context when an image is decoded,
    ``caption_image_ratio`` when a caption is. Guidance acts where the timestep's share of the schedule lies
    in ``guidance_interval``.
    """

    sampler: str = "ddim"
    steps: int = 50
    strength: float = 0.75
    guidance_scale: float = 7.5
    guidance_interval: tuple[float, float] | None = None
    image_ratio: float = 0.6
    caption_image_ratio: float = 0.9

    @classmethod
    def from_fields(cls, name: str, fields: Fields) -> Preset:
        """Read from a manifest.

        Raises:
            BundleError: a value is missing or makes no sense.
        """
        limits = fields.optional("guidance_interval", list)
        interval = None
        if limits is not None:
            where = f"{fields.where}: guidance_interval"
            if len(limits) != 2:
                raise BundleError(f"{where} must be two numbers; export the bundle again")
            ends = Fields(dict(zip(("low", "high"), limits, strict=True)), where, fields.complain)
            interval = (ends.take("low", float), ends.take("high", float))
        preset = cls(
            sampler=fields.take("sampler", str),
            steps=fields.take("steps", int),
            strength=fields.take("strength", float),
            guidance_scale=fields.take("guidance_scale", float),
            guidance_interval=interval,
            image_ratio=fields.take("image_ratio", float),
            caption_image_ratio=fields.take("caption_image_ratio", float),
        )
        if preset.sampler not in SAMPLERS:
            raise BundleError(
                f"{fields.where}: unknown sampler {preset.sampler!r}; known are {', '.join(SAMPLERS)}"
            )
        return preset

    def table(self, schedule: Schedule, flow: Flow, inputs: Collection[str] = INPUTS) -> SamplerTable:
        """The sampler's table for one flow, where some of the inputs are used.

        Without its latent, a flow starts from noise alone, at the schedule's beginning. A context that is used alone
        has all the weight.

        Raises:
            BundleError: the settings are out of range.
        """
        ratio = self.image_ratio if flow == "image" else self.caption_image_ratio
        contexts = [name for name in CONTEXTS if name in inputs]
        if len(contexts) == 1:
            ratio = 1.0 if contexts == ["image_context"] else 0.0
        try:
            return build_table(
                schedule,
                self.sampler,
                self.steps,
                self.strength if f"{flow}_latent" in inputs else 1.0,
                self.guidance_scale,
                self.guidance_interval,
                ratio,
            )
        except (InputError, TypeError) as error:
            raise BundleError(f"preset: {error}") from error

    def to_mapping(self) -> dict[str, Any]:
        """The manifest's form, as it is read back: JSON knows no tuples."""
        limits = self.guidance_interval
        return {**asdict(self), "guidance_interval": None if limits is None else list(limits)}


# `fast` and `realtime` were chosen by measurement (`unibrain_rt.benchmarks.presets`): 5 and 3 steps run.
PRESETS: dict[str, Preset] = {
    "paper": Preset(),
    "fast": Preset(sampler="dpm-solver++2m", steps=9, strength=0.6),
    "realtime": Preset(sampler="dpm-solver++2m", steps=6, strength=0.5, guidance_interval=(0.2, 1.0)),
}
