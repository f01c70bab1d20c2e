"""From the phantom's trained checkpoint to the shipped bundle: export, fitted subjects, example scans."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from unibrain_rt.bundle import Bundle
from unibrain_rt.engines import Engine
from unibrain_rt.export.bundles.bundle_folder import add_subject, set_default_subject
from unibrain_rt.export.bundles.checkpoint import open_checkpoint
from unibrain_rt.export.bundles.writer import write_bundle
from unibrain_rt.export.phantom.cortex import mask
from unibrain_rt.export.phantom.people import (
    DEFAULT_SUBJECT,
    REPEATS,
    SCENE_SEED,
    SUBJECTS,
    held_out,
    named_regions,
    scans,
)
from unibrain_rt.export.phantom.phrases import captions
from unibrain_rt.export.phantom.pictures import stimuli
from unibrain_rt.export.phantom.scenes import scenes
from unibrain_rt.export.phantom.simulated_subjects import BETA_SCALE
from unibrain_rt.export.subjects.encoders import encode_targets
from unibrain_rt.export.subjects.ridge import fit_heads
from unibrain_rt.export.subjects.subject_writer import write_subject
from unibrain_rt.files import write_json
from unibrain_rt.outputs import write_png

TRAINING_SCANS = 9000
EXAMPLES = 6
# A little of the predictions' variance, for a fraction of the bytes: the wheel has to stay small.
FIDELITY = 0.985


def assemble(
    checkpoint: Path, out: Path, engine: Engine, report: Callable[[str], None], overwrite: bool
) -> None:
    """Export the checkpoint in ``checkpoint`` to the bundle ``out`` and fit the phantom's subjects on it."""
    report("exporting the graphs")
    write_bundle(
        open_checkpoint(checkpoint), out, precision="fp32-half-weights", name="phantom", overwrite=overwrite
    )
    bundle = Bundle.open(out)
    shown = scenes("train", TRAINING_SCANS, SCENE_SEED)
    report(f"rendering and encoding {len(shown)} scenes")
    images = stimuli(shown, bundle.architecture["autokl"]["image_size"])
    # One phrasing, the one that says most: targets of mixed phrasings would differ for equal scenes.
    targets = encode_targets(bundle, engine, images, [captions(scene)[0] for scene in shown])
    for name, person in SUBJECTS.items():
        report(f"scanning and fitting {name}")
        model = person.brain(name)
        fits = fit_heads(scans(model, images, shown, person.seed), targets)
        write = partial(
            write_subject,
            name=name,
            heads=fits,
            beta_scale=1 / BETA_SCALE,
            mask=mask(model),
            rois=named_regions(model),
            fidelity=FIDELITY,
            encoders=bundle.encoders,
            provenance={
                "repeats": REPEATS,
                "subject_seed": person.seed,
                "scene_seed": SCENE_SEED,
                "simulated": True,
            },
        )
        add_subject(out, write, name)
    set_default_subject(out, DEFAULT_SUBJECT)


def write_examples(folder: Path, size: int, name: str = DEFAULT_SUBJECT, count: int = EXAMPLES) -> None:
    """Held-out scans with what was shown: ``scan.npy``, ``scans.npy``, stimuli and captions."""
    shown, images, voxels = held_out(name, count, size)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "scan.npy", voxels[0].astype(np.float32))
    np.save(folder / "scans.npy", np.round(voxels[1:] * BETA_SCALE).astype(np.int16))
    stems = ["scan", *(f"scans_{place:03d}" for place in range(count - 1))]
    for stem, image in zip(stems, images, strict=True):
        write_png(folder / "stimuli" / f"{stem}.png", image)
    write_json(
        folder / "stimuli" / "captions.json",
        {stem: list(captions(scene)) for stem, scene in zip(stems, shown, strict=True)},
    )
