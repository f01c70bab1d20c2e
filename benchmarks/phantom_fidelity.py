"""How well the shipped phantom decodes held-out scans, with the control that voxels are shuffled.

    python -m unibrain_rt.benchmarks.phantom_fidelity --scans 100 --out benchmarks/results

writes ``phantom-fidelity.json`` and the contact sheet that the README shows.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from unibrain_rt import Decoder
from unibrain_rt.benchmarks.machine import collect
from unibrain_rt.decoder import Reconstruction
from unibrain_rt.export.metrics import pixel_correlation, two_way_identification
from unibrain_rt.export.phantom.assemble import held_out
from unibrain_rt.export.phantom.phrases import captions, colour_word, kind_words
from unibrain_rt.export.phantom.scenes import COLOURS, KINDS, Scene
from unibrain_rt.export.targets import image_contexts
from unibrain_rt.outputs import Tile, contact_sheet, write_json, write_png

SHOWN = 18
RESAMPLES = 2000


@click.command()
@click.option("--bundle", type=click.Path(path_type=Path), help="[default: the shipped phantom]")
@click.option("--scans", default=100, show_default=True, type=click.IntRange(10))
@click.option("--preset", default="paper", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results"), show_default=True)
def main(bundle: Path | None, scans: int, preset: str, out: Path) -> None:
    """Decode held-out scans of the phantom and score pictures and captions."""
    decoder = Decoder.open(bundle, preset=preset)
    size = decoder.bundle.architecture["autokl"]["image_size"]
    scenes, stimuli, voxels = held_out(decoder.subject.name, scans, size)
    results = [decoder.decode(scan) for scan in voxels]
    # The control keeps every number of a scan and loses which voxel it belongs to.
    rng = np.random.Generator(np.random.Philox(key=[0, 0]))
    controls = [decoder.decode(rng.permutation(scan)) for scan in voxels]
    scores = {
        "machine": collect(),
        "bundle": decoder.bundle.fingerprint(),
        "preset": preset,
        "scans": scans,
        "decoded": score(decoder, results, scenes, stimuli),
        "shuffled_voxels": score(decoder, controls, scenes, stimuli),
    }
    write_json(out / f"phantom-fidelity-{preset}.json", scores)
    tiles = [
        Tile((stimulus, result.image), f"{result.caption}")
        for stimulus, result in list(zip(stimuli, results, strict=True))[:SHOWN]
    ]
    header = [
        "what was shown, and what was decoded from the scan",
        f"the first {SHOWN} held-out scans of {decoder.subject.name}, preset {preset}",
    ]
    write_png(
        out / f"phantom-contact-sheet-{preset}.png",
        contact_sheet(tiles, columns=6, header=header, labels=("shown", "decoded")),
    )
    click.echo(json.dumps({key: scores[key] for key in ("decoded", "shuffled_voxels")}, indent=1))


def score(
    decoder: Decoder, results: list[Reconstruction], scenes: list[Scene], stimuli: NDArray[np.uint8]
) -> dict[str, Any]:
    """Each measure with its bootstrap interval of 95 %."""
    images = np.stack([result.image for result in results])
    # The pooled token alone is what CLIP compares.
    seen, shown = (image_contexts(decoder.bundle, decoder.engine, part)[:, 0] for part in (images, stimuli))
    words = [set(re.findall(r"[a-z]+", result.caption or "")) for result in results]
    own_kind = [_names(found, scene.kind) for found, scene in zip(words, scenes, strict=True)]
    own_colour = [
        {colour for colour in COLOURS if colour_word(colour) in found} == {scene.colour}
        for found, scene in zip(words, scenes, strict=True)
    ]
    return {
        "identification_clip": _interval(two_way_identification(seen, shown)),
        "identification_pixels": _interval(two_way_identification(images, stimuli)),
        "pixcorr": _interval(pixel_correlation(images, stimuli)),
        "caption_names_kind": _interval(np.array(own_kind, float)),
        "caption_names_colour": _interval(np.array(own_colour, float)),
        "examples": [
            {"shown": captions(scene)[0], "decoded": result.caption}
            for scene, result in list(zip(scenes, results, strict=True))[:10]
        ],
    }


def _names(words: set[str], kind: str) -> bool:
    """Whether a caption names this kind and no other."""
    return {other for other in KINDS if words & set(kind_words(other))} == {kind}


def _interval(values: NDArray[np.float64]) -> dict[str, float]:
    rng = np.random.Generator(np.random.Philox(key=[1, 0]))
    means = rng.choice(values, (RESAMPLES, len(values))).mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return {
        "mean": round(float(values.mean()), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
    }


if __name__ == "__main__":
    main()
