"""The phantom's subjects in the scanner: their recordings in NSD's own folders, so that one reader serves both.

What lies where is told in `unibrain_rt.export.subjects.datasets.nsd`. As in NSD, every subject sees each of its
stimuli three times, in an order that is the same for all, in sessions of 750 trials; a tenth of the stimuli, scenes of
the split ``test``, are shown to all, and the others, of the split ``train``, to one subject alone.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.errors import InputError
from unibrain_rt.export.bundles.bundle_folder import new_folder
from unibrain_rt.export.phantom.cortex import LABEL_TABLES, mask, roi_labels
from unibrain_rt.export.phantom.early_vision import Floats
from unibrain_rt.export.phantom.people import REPEATS, SCENE_SEED, SUBJECTS, subject_model
from unibrain_rt.export.phantom.phrases import captions
from unibrain_rt.export.phantom.pictures import stimuli
from unibrain_rt.export.phantom.scenes import Scene, scenes
from unibrain_rt.export.phantom.simulated_subjects import SubjectModel, responses, single_trials
from unibrain_rt.export.subjects.datasets import nsd
from unibrain_rt.export.subjects.datasets.coco import SPLITS
from unibrain_rt.export.subjects.datasets.nsd_session import SESSION_TRIALS

#: Stimuli of each subject in a whole experiment; one in `SHARED` of them is shown to all.
STIMULI, SHARED = 10_000, 10
SIDE = 64

_BLOCK = 250  # scenes whose pictures are held at a time
_MILLIMETRES = 1.8
_COCO_OFFSET = 200_000  # COCO's picture numbers are not NSD's


@dataclass(frozen=True, eq=False)
class Experiment:
    """Which stimulus is which scene, who sees it and when; all as NSD's design has it, but numbered from 0."""

    subjects: tuple[str, ...]
    shared: NDArray[np.int64]  # stimuli that all subjects see, rising
    own: dict[str, NDArray[np.int64]]  # stimuli of one subject, rising
    order: NDArray[np.int64]  # (trials,): which of a subject's stimuli, shared ones first, each trial shows

    @classmethod
    def of(cls, subjects: Sequence[str], count: int) -> Experiment:
        """An experiment in which each subject sees ``count`` stimuli. Raises `InputError`."""
        session = SESSION_TRIALS // REPEATS
        if count < session or count % session:
            below = max(session, count // session * session)
            problem = f"{count:,} stimuli {REPEATS} times do not fill sessions of {SESSION_TRIALS} trials"
            raise InputError(f"{problem}: choose a multiple of {session}, such as {below:,}")
        shared = count // SHARED
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((SCENE_SEED, count))))
        order = rng.permutation(np.repeat(np.arange(count), REPEATS))
        numbers = rng.permutation(shared + len(subjects) * (count - shared))
        parts = np.split(numbers, range(shared, len(numbers), count - shared))
        own = {name: np.sort(part) for name, part in zip(subjects, parts[1:], strict=True)}
        return cls(tuple(subjects), np.sort(parts[0]), own, order)

    @property
    def stimuli(self) -> int:
        return len(self.shared) + sum(map(len, self.own.values()))

    def seen_by(self, name: str) -> NDArray[np.int64]:
        """A subject's stimuli, shared ones first."""
        return np.concatenate([self.shared, self.own[name]])

    def sets(self) -> list[tuple[NDArray[np.int64], list[Scene], tuple[str, ...]]]:
        """Stimuli, the scenes they show, and who sees them."""
        sets = [(self.shared, scenes("test", len(self.shared), SCENE_SEED), self.subjects)]
        for name, numbers in self.own.items():
            # The first subject sees the scenes on which the shipped bundle's subjects were fitted.
            shown = scenes("train", len(numbers), SCENE_SEED + SUBJECTS[name].seed - 1)
            sets.append((numbers, shown, (name,)))
        return sets


def record(
    out: Path,
    subjects: Sequence[str] = tuple(SUBJECTS),
    count: int = STIMULI,
    *,
    overwrite: bool = False,
    report: Callable[[str], None] | None = None,
) -> None:
    """Scan ``subjects`` while each sees ``count`` stimuli three times, and write it all into the folder ``out``.

    The folder appears whole or not at all. Raises `InputError` if it exists, or for a subject or number that
    cannot be.
    """
    say = report or (lambda what: None)
    models = {name: subject_model(name) for name in dict.fromkeys(subjects)}
    experiment = Experiment.of(tuple(models), count)
    with new_folder(out, overwrite=overwrite, marker="nsddata") as folder:
        for place in (nsd.EXPERIMENT, nsd.STIMULI.parent, nsd.ANNOTATIONS):
            (folder / place).mkdir(parents=True)
        _write_design(folder / nsd.DESIGN, experiment)
        answers = _show(folder, experiment, models, say)
        for name, model in models.items():
            number = nsd.subject_number(name)
            _write_regions(folder, number, model)
            _write_sessions(folder, number, model, answers[name], experiment, say)


def _show(
    folder: Path, experiment: Experiment, models: dict[str, SubjectModel], say: Callable[[str], None]
) -> dict[str, Floats]:
    """Write pictures and captions; each subject's noise-free responses (stimuli, V), shared stimuli first."""
    import h5py

    answers = {
        name: np.empty((len(experiment.seen_by(name)), models[name].voxels), np.float32) for name in models
    }
    filled = dict.fromkeys(models, 0)
    said: dict[int, tuple[str, ...]] = {}
    done = 0
    with h5py.File(folder / nsd.STIMULI, "w") as file:
        shape = (experiment.stimuli, SIDE, SIDE, 3)
        brick = file.create_dataset(nsd.BRICK, shape, np.uint8, chunks=(1, *shape[1:]), compression=4)
        for numbers, shown, watching in experiment.sets():
            for start in range(0, len(shown), _BLOCK):
                part = slice(start, start + _BLOCK)
                pictures = stimuli(shown[part], SIDE)
                for number, scene, picture in zip(numbers[part].tolist(), shown[part], pictures, strict=True):
                    brick[number] = picture
                    said[number] = captions(scene)
                for name in watching:
                    rows = slice(filled[name], filled[name] + len(pictures))
                    answers[name][rows] = responses(models[name], pictures, shown[part])
                    filled[name] = rows.stop
                done += len(pictures)
                say(f"stimuli shown: {done:,} of {experiment.stimuli:,}")
    _write_captions(folder, experiment, said)
    return answers


def _write_design(path: Path, experiment: Experiment) -> None:
    from scipy.io import savemat

    numbers = {nsd.subject_number(name): experiment.seen_by(name) + 1 for name in experiment.subjects}
    seen = np.zeros((max(numbers), len(experiment.order) // REPEATS))  # 0: not a subject of this recording
    for number, pictures in numbers.items():
        seen[number - 1] = pictures
    design = {
        "masterordering": experiment.order[None] + 1.0,
        "subjectim": seen,
        "sharedix": experiment.shared[None] + 1.0,
    }
    savemat(path, design, do_compression=True)


def _write_captions(folder: Path, experiment: Experiment, said: dict[int, tuple[str, ...]]) -> None:
    """COCO's two files, and NSD's table that tells of each stimulus where in COCO it came from."""
    train, test = SPLITS
    is_shared = np.isin(np.arange(experiment.stimuli), experiment.shared)
    split_of = {number: test if is_shared[number] else train for number in range(experiment.stimuli)}
    phrasings = len(said[0])
    for split in SPLITS:
        numbers = [number for number in split_of if split_of[number] == split]
        content: dict[str, list[dict[str, Any]]] = {
            "images": [{"id": _COCO_OFFSET + number, "width": SIDE, "height": SIDE} for number in numbers],
            "annotations": [
                {"image_id": _COCO_OFFSET + number, "id": phrasings * number + place, "caption": caption}
                for number in numbers
                for place, caption in enumerate(said[number])
            ],
        }
        path = folder / nsd.ANNOTATIONS / f"captions_{split}.json"
        path.write_text(json.dumps(content), encoding="utf-8")
    with (folder / nsd.STIMULUS_INFO).open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("", "cocoId", "cocoSplit", "nsdId", "shared1000"))
        for number, split in split_of.items():
            table.writerow((number, _COCO_OFFSET + number, split, number, bool(is_shared[number])))


def _write_regions(folder: Path, number: int, model: SubjectModel) -> None:
    rois = nsd.roi_folder(folder, number)
    tables = folder / "nsddata" / "freesurfer" / f"subj{number:02d}" / "label"
    inside = mask(model)
    for path in (rois, tables):
        path.mkdir(parents=True)
    volumes = {nsd.MASK: np.ones(model.voxels, np.int8), **roi_labels(model)}
    for name, labels in volumes.items():
        volume = np.full(inside.shape, -1, np.int16)  # as NSD marks what is no cortex
        volume[inside] = labels
        _write_nifti(rois / f"{name}.nii.gz", volume)
    for name, table in LABEL_TABLES.items():
        lines = "".join(f"{label} {region}\n" for label, region in table.items())
        (tables / f"{name}.mgz.ctab").write_text(lines, encoding="utf-8")


def _write_sessions(
    folder: Path,
    number: int,
    model: SubjectModel,
    answers: Floats,
    experiment: Experiment,
    say: Callable[[str], None],
) -> None:
    target = nsd.betas_folder(folder, number)
    target.mkdir(parents=True)
    inside = mask(model)
    sessions = len(experiment.order) // SESSION_TRIALS
    for session in range(1, sessions + 1):
        shown = experiment.order[(session - 1) * SESSION_TRIALS : session * SESSION_TRIALS]
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((model.seed, session, 3))))
        volumes = np.zeros((*inside.shape, SESSION_TRIALS), np.int16)
        volumes[inside] = single_trials(model, answers[shown], rng).T
        _write_nifti(target / f"betas_session{session:02d}.nii.gz", volumes)
        say(f"{model.name} scanned: session {session} of {sessions}")


def _write_nifti(path: Path, volume: NDArray[np.int16]) -> None:
    import nibabel

    image = nibabel.Nifti1Image(volume, np.diag([_MILLIMETRES] * 3 + [1.0]))
    nibabel.save(image, path)
