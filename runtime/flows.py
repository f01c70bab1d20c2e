"""The two flows of a decode and the four inputs that guide it, by the names that manifest, graphs and code share.

UniBrain (arXiv 2308.07428) denoises an image latent and a text latent; captions are what the text flow becomes. Each
latent starts from what a ridge head predicts, and both are guided by an image context and a text context, which two
more heads predict.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from unibrain_rt.errors import InputError

Flow = Literal["image", "text"]
FLOWS: tuple[Flow, ...] = ("image", "text")
CONTEXTS = ("image_context", "text_context")
INPUTS = ("image_latent", "text_latent", *CONTEXTS)
"""What the ridge heads predict, a head each, and all that a decode knows of a scan."""


def checked_inputs(inputs: Collection[str], flows: Collection[Flow]) -> tuple[str, ...]:
    """Some of `INPUTS`, in their order.

    Raises:
        InputError: one is not among them, or one of ``flows`` would have neither a context nor a latent.
    """
    if unknown := sorted(set(inputs) - set(INPUTS)):
        raise InputError(f"unknown input {unknown[0]!r}; known are {', '.join(INPUTS)}")
    used = tuple(name for name in INPUTS if name in inputs)
    if not set(CONTEXTS) & set(used):
        for flow in flows:
            if f"{flow}_latent" not in used:
                raise InputError(f"without a context, {flow}_latent is needed; add it or a context")
    return used
