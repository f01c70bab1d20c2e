"""What one scan decodes to, with a face: it shows itself in a notebook, saves itself, and prints in one line."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.errors import input_error, one_line
from unibrain_rt.flows import INPUTS, Flow
from unibrain_rt.outputs import Output, write_pair
from unibrain_rt.png import encode_png

Float = NDArray[np.float32]


@dataclass(frozen=True, eq=False, repr=False)
class Reconstruction:
    """What one scan decodes to.

    Attributes:
        image: uint8 (H, W, 3).
        caption: None where the bundle cannot write captions.
        seed: of the noise.
        preset, engine, bundle, subject: what it was decoded with, by name.
        timings_ms: the time of each stage, and ``total``, the wall time of all: less than the stages' sum where an
            engine runs two at once.
        predictions: the latents and contexts that the ridge heads gave, without a batch axis.
        latents: what each flow ended with, without a batch axis: the image's (C, h, w), the caption's (D,).
        tokens: GPT-2's, ``<BOS>`` and ``<EOS>`` included; empty where there is no caption.
        inputs: which of the four predictions were used; all, but in an ablation.
        fallbacks: the graphs that had to be computed in fp32.

    In a notebook, the last expression of a cell shows picture and caption.
    """

    image: NDArray[np.uint8]
    caption: str | None
    seed: int
    preset: str
    engine: str
    bundle: str
    subject: str
    timings_ms: dict[str, float]
    predictions: dict[str, Float]
    latents: dict[Flow, Float] = field(default_factory=dict)
    tokens: tuple[int, ...] = ()
    inputs: tuple[str, ...] = INPUTS
    fallbacks: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """What is written beside the picture as JSON."""
        return {
            "caption": self.caption,
            "seed": self.seed,
            "preset": self.preset,
            "engine": self.engine,
            "bundle": self.bundle,
            "subject": self.subject,
            "image_size": [self.image.shape[1], self.image.shape[0]],
            "timings_ms": {stage: round(value, 3) for stage, value in self.timings_ms.items()},
            **({"inputs": list(self.inputs)} if self.inputs != INPUTS else {}),
            **({"fallbacks": list(self.fallbacks)} if self.fallbacks else {}),
        }

    def save(self, path: str | Path) -> tuple[Path, Path]:
        """Write the picture to ``path``, named .png, and the record beside it as .json: both, or none.

        Gives both paths. Folders are made, and files that are there are replaced.

        Raises:
            InputError: ``path`` is not named .png, or cannot be written.
        """
        png = Path(path)
        if png.suffix.lower() != ".png":
            raise input_error(png, "a picture is saved as PNG: give a name that ends in .png")
        output = Output(png.stem, png, png.with_suffix(".json"), ())
        text = {"Description": self.caption or "", "Software": "unibrain-rt"}
        write_pair(output, self.image, self.record(), text=text)
        return output.png, output.json

    def __repr__(self) -> str:
        height, width = self.image.shape[:2]
        caption = "no caption" if self.caption is None else repr(one_line(self.caption, 60))
        return (
            f"<Reconstruction {width}×{height}, {caption}, {self.subject}, {self.preset}, seed {self.seed}>"
        )

    def _repr_html_(self) -> str:
        """Picture and caption, as notebooks show them."""
        picture = base64.b64encode(encode_png(self.image)).decode("ascii")
        caption = html.escape(self.caption or "")
        return (
            f'<figure style="display:inline-block;margin:0"><img alt="{caption}" width="256" '
            f'style="image-rendering:pixelated" src="data:image/png;base64,{picture}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )


def fallback_note(graphs: Iterable[str]) -> str:
    """A line about the graphs of `Reconstruction.fallbacks`."""
    return f"{', '.join(graphs)}: computed in fp32, because numbers in half precision were not finite"
