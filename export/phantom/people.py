"""Who is scanned in the phantom's world, on which scenes, and what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.errors import InputError
from unibrain_rt.export.phantom.cortex import EARLY, regions
from unibrain_rt.export.phantom.pictures import stimuli
from unibrain_rt.export.phantom.scenes import Scene, scenes
from unibrain_rt.export.phantom.simulated_subjects import BETA_SCALE, SubjectModel, betas, make_subject

REPEATS = 3
SCENE_SEED = 1000


@dataclass(frozen=True)
class Person:
    """Who is simulated."""

    seed: int
    voxels: int

    def brain(self, name: str) -> SubjectModel:
        return make_subject(name, self.seed, self.voxels)


#: The subjects that UniBrain decoded, each with a tenth of the voxels that NSD's nsdgeneral has of them.
SUBJECTS = {
    "sub-01": Person(1, 1572),
    "sub-02": Person(2, 1428),
    "sub-05": Person(5, 1304),
    "sub-07": Person(7, 1268),
}
DEFAULT_SUBJECT = "sub-01"


def subject_model(name: str) -> SubjectModel:
    """The brain of one of `SUBJECTS`. Raises `InputError` for another."""
    if name not in SUBJECTS:
        raise InputError(f"no subject '{name}' in the phantom: choose {', '.join(SUBJECTS)}")
    return SUBJECTS[name].brain(name)


def scans(
    model: SubjectModel, images: NDArray[np.uint8], shown: Sequence[Scene], seed: int
) -> NDArray[np.float32]:
    """Betas (N, voxels) in % signal change, the mean of the repeats, as a subject's heads are fitted on."""
    trials = betas(model, images, list(shown), repeats=REPEATS, seed=seed)
    return trials.astype(np.float32).mean(axis=1) / BETA_SCALE


def held_out(
    name: str, count: int, size: int, seed: int = SCENE_SEED
) -> tuple[list[Scene], NDArray[np.uint8], NDArray[np.float32]]:
    """Scenes never shown in training, their stimuli (N, size, size, 3) and averaged betas (N, voxels)."""
    shown = scenes("test", count, seed)
    images = stimuli(shown, size)
    return shown, images, scans(subject_model(name), images, shown, SUBJECTS[name].seed + seed)


def named_regions(model: SubjectModel) -> dict[str, NDArray[np.bool_]]:
    """Region -> its voxels (V,), for the regions that NSD's files name."""
    every = regions(model)
    return {name: every[name] for name in (*EARLY, "faces", "words", "places", "bodies")}
