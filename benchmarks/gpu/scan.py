"""What every variant decodes: predicted latents, contexts and noise, the same for all; and how results compare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from unibrain_rt.bundle import Bundle
from unibrain_rt.export.bundles.architecture import Architecture
from unibrain_rt.flows import FLOWS, Flow
from unibrain_rt.samplers import SamplerTable, seeded_noise

START_TOKEN = 1  # with random weights, any token is as good a start
_CONTEXT_STREAM = 10


@dataclass(frozen=True, eq=False)
class RandomScan:
    """Noised latents (1, …) by flow, contexts (2, L, D), unconditional first, and how many tokens to write."""

    latents: dict[Flow, Any]
    contexts: dict[Flow, Any]
    tokens: int

    @classmethod
    def random(cls, bundle: Bundle, tokens: int, seed: int) -> RandomScan:
        sizes = Architecture.from_mapping(bundle.architecture)
        side = sizes.autokl.latent_size
        shapes: dict[Flow, tuple[int, ...]] = {
            "image": (1, sizes.unet.latent_channels, side, side),
            "text": (1, sizes.unet.text_latent_dim),
        }
        lengths: dict[Flow, int] = {"image": sizes.clip.image_tokens, "text": sizes.clip.text_tokens}
        contexts = {}
        for stream, (name, length) in enumerate(lengths.items(), start=_CONTEXT_STREAM):
            context = seeded_noise(seed, stream, (2, length, sizes.unet.context_dim))
            contexts[name] = context / np.linalg.norm(context, axis=-1, keepdims=True)
        latents = {flow: seeded_noise(seed, stream, shapes[flow]) for stream, flow in enumerate(FLOWS)}
        return cls(latents, contexts, tokens)


@dataclass(frozen=True, eq=False)
class Decoded:
    """What came out: latents by flow, picture (1, 3, H, W) in [0, 1], tokens."""

    latents: dict[Flow, Any]
    image: Any
    tokens: list[int]


def tables_of(bundle: Bundle, preset: str) -> dict[Flow, SamplerTable]:
    """Both flows' tables of a preset."""
    return {flow: bundle.preset(preset).table(bundle.schedule, flow) for flow in FLOWS}


def compare(decoded: Decoded, wanted: Decoded) -> dict[str, Any]:
    """How far a decode is from another: PSNR of the pictures, relative L2 distances of latents, equality of tokens."""
    return {
        "psnr_db": psnr_db(decoded.image.clip(0, 1), wanted.image.clip(0, 1)),
        **{f"{flow}_latent_error": distance(decoded.latents[flow], wanted.latents[flow]) for flow in FLOWS},
        "same_tokens": decoded.tokens == wanted.tokens,
        "finite": all(bool(np.isfinite(x).all()) for x in (decoded.image, *decoded.latents.values())),
    }


def psnr_db(picture: Any, wanted: Any) -> float:
    """Of pictures in [0, 1]; 200 where they are equal, since infinity is no JSON."""
    error = float(np.mean((np.asarray(picture, np.float64) - np.asarray(wanted, np.float64)) ** 2))
    return min(200.0, -10 * float(np.log10(error))) if error else 200.0


def distance(values: Any, wanted: Any) -> float:
    """Relative L2 distance."""
    difference = np.asarray(values, np.float64) - wanted
    return float(np.linalg.norm(difference) / np.linalg.norm(np.asarray(wanted, np.float64)))
