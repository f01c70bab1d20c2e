"""The Natural Scenes Dataset (Allen et al. 2022) in its own folders, as published; the phantom is written so, too.

Below the root, for subject N (``subj0N``)::

    nsddata/ppdata/subj0N/func1pt8mm/roi/           nsdgeneral.nii.gz (the mask) and the files of `volumes.ROI_FILES`
    nsddata/experiments/nsd/nsd_expdesign.mat       masterordering, subjectim, sharedix; all numbered from 1
    nsddata/experiments/nsd/nsd_stim_info_merged.csv
    nsddata_betas/ppdata/subj0N/func1pt8mm/betas_fithrf_GLMdenoise_RR/betas_sessionNN.nii.gz or .hdf5
    nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5    imgBrick (stimuli, side, side, 3) uint8
    annotations/captions_{train,val}2017.json       COCO's, which may lie elsewhere

In a session's file are 750 trials, int16, (x, y, z, trials) in NIfTI; HDF5, written by MATLAB, has the axes the other
way round, (trials, z, y, x). Trial t showed the subject's picture ``masterordering[t]``, which is stimulus
``subjectim[N - 1, masterordering[t] - 1]``. The stimuli that all subjects saw, ``sharedix``, are the test set.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unibrain_rt.errors import InputError, input_error, one_line
from unibrain_rt.export.subjects.datasets.coco import coco_captions
from unibrain_rt.export.subjects.datasets.dataset import BETA_SCALE, Dataset, Stimuli
from unibrain_rt.export.subjects.datasets.hdf5 import hdf5_array
from unibrain_rt.export.subjects.datasets.nsd_session import SESSION_TRIALS, NsdSession
from unibrain_rt.export.subjects.datasets.volumes import read_mask, read_rois
from unibrain_rt.scans import VoxelSpace

Part = Literal["train", "test"]
Report = Callable[[str], None]

PREPARATION = "betas_fithrf_GLMdenoise_RR"
EXPERIMENT = Path("nsddata", "experiments", "nsd")
DESIGN, STIMULUS_INFO = EXPERIMENT / "nsd_expdesign.mat", EXPERIMENT / "nsd_stim_info_merged.csv"
STIMULI, BRICK = Path("nsddata_stimuli", "stimuli", "nsd", "nsd_stimuli.hdf5"), "imgBrick"
ANNOTATIONS, MASK = Path("annotations"), "nsdgeneral"

_SESSION = re.compile(r"betas_session(\d{2,})\.(nii\.gz|nii|hdf5)")


def subject_number(name: str) -> int:
    """NSD's number of a subject, the digits its name ends with: 1 of subj01 and sub-01. Raises `InputError`."""
    digits = re.search(r"(\d{1,3})$", name)
    if digits is None or not int(digits[1]):
        raise InputError(f"subject '{one_line(name, 40)}': NSD numbers its subjects, name one like subj01")
    return int(digits[1])


def roi_folder(root: Path, number: int) -> Path:
    """Where a subject's mask and regions lie."""
    return root / "nsddata" / "ppdata" / f"subj{number:02d}" / "func1pt8mm" / "roi"


def betas_folder(root: Path, number: int) -> Path:
    """Where a subject's sessions lie."""
    return root / "nsddata_betas" / "ppdata" / f"subj{number:02d}" / "func1pt8mm" / PREPARATION


@dataclass(frozen=True, eq=False)
class Design:
    """Which of its stimuli a subject saw when. Stimuli are numbered from 0, as in the stimulus file."""

    shown: NDArray[np.int64]  # (trials,): stimulus of each trial
    shared: NDArray[np.int64]  # stimuli of all subjects


def read_nsd(
    root: Path,
    subject: str,
    part: Part = "train",
    *,
    average: bool = True,
    coco: Path | None = None,
    report: Report | None = None,
) -> Dataset:
    """A subject's scans of the sessions whose files are there, in % signal change.

    Sessions are read one at a time and masked at once, so that memory is trials (or, averaged, stimuli) times voxels.

    Args:
        root: the folder above ``nsddata``.
        subject: its name in the dataset; the digits it ends with are NSD's number.
        part: ``test`` is the stimuli that all subjects saw, ``train`` all others.
        average: over a stimulus' trials, stimuli in the order of their numbers; else single trials as they came.
        coco: folder of COCO's captions; ``annotations`` below the root by default.
        report: called with what is being read.

    Raises:
        InputError: a file is missing, damaged or does not fit the others, or nothing of that part was shown.
    """
    if not root.is_dir():
        raise input_error(
            root, "no such folder: name the one that holds nsddata, nsddata_betas and nsddata_stimuli"
        )
    number = subject_number(subject)
    mask = read_mask(roi_folder(root, number) / f"{MASK}.nii.gz")
    rois = read_rois(roi_folder(root, number), mask, every=True)
    design = read_design(root / DESIGN, number)
    space = VoxelSpace(subject, int(mask.sum()), BETA_SCALE, mask)
    sessions = [
        NsdSession.open(path, place, space) for place, path in _sessions(betas_folder(root, number)).items()
    ]
    is_test = np.isin(design.shown, design.shared)
    wanted = is_test if part == "test" else ~is_test
    rows = [_trials(session, design, wanted) for session in sessions]
    trials = design.shown[np.concatenate(rows)]
    if not len(trials):
        raise input_error(betas_folder(root, number), f"no {part} stimulus in these sessions: add others")
    names, counts = np.unique(trials, return_counts=True)
    stimuli = names if average else trials
    _check_brick(root / STIMULI, int(names.max()))
    said = coco_captions(root / STIMULUS_INFO, coco or root / ANNOTATIONS, names.tolist())

    betas = np.zeros((len(stimuli), space.count), np.float32)
    place = 0
    for session, wanted_trials in zip(sessions, rows, strict=True):
        if report is not None:
            report(f"session {session.number} ({session.path.name})")
        inside = wanted_trials - session.first
        for scan in session.read(inside):
            betas[np.searchsorted(names, trials[place]) if average else place] += scan
            place += 1
    if average:
        betas /= counts[:, None].astype(np.float32)
    return Dataset(
        subject,
        betas,
        Stimuli(partial(_brick_pictures, root / STIMULI), stimuli),
        tuple(said[stimulus] for stimulus in stimuli.tolist()),
        groups=stimuli,
        repeats=counts if average else np.ones(len(stimuli), np.int64),
        mask=mask,
        rois=rois,
    )


def read_design(path: Path, number: int) -> Design:
    """What subject ``number`` was shown, of NSD's ``nsd_expdesign.mat``. Raises `InputError`."""
    from scipy.io import loadmat

    names = ("masterordering", "subjectim", "sharedix")
    if not path.is_file():
        raise input_error(path, "no such file: copy NSD's experiment design there")
    try:
        content = loadmat(path, variable_names=names)
        order, pictures, shared = (np.atleast_2d(content[name]).astype(np.int64) for name in names)
    except Exception as error:  # scipy raises whatever its parser does
        problem = f"no experiment design of NSD ({one_line(repr(error), 90)})"
        raise input_error(path, f"{problem}: copy the file again") from error
    if number > len(pictures):
        raise input_error(path, f"{len(pictures)} subjects, but no number {number}: choose another subject")
    order, own, shared = order.reshape(-1), pictures[number - 1], shared.reshape(-1)
    if not (order.size and order.min() >= 1 and order.max() <= len(own) and shared.min(initial=1) >= 1):
        raise input_error(path, f"masterordering does not fit {len(own):,} pictures: copy the file again")
    shown = own[order - 1]
    if shown.min() < 1:
        raise input_error(path, f"it names no pictures of subject {number}: choose another subject")
    return Design(shown - 1, shared - 1)


def _sessions(folder: Path) -> dict[int, Path]:
    """Session number -> its file; of two, the one that need not be unpacked."""
    files: dict[int, Path] = {}
    for path in sorted(folder.iterdir(), reverse=True) if folder.is_dir() else ():
        match = _SESSION.fullmatch(path.name)
        if match and int(match[1]) and path.is_file():
            files.setdefault(int(match[1]), path)
            if match[2] == "hdf5":
                files[int(match[1])] = path
    if not files:
        raise input_error(folder / "betas_session01.nii.gz", "no such file: copy one session or more there")
    return dict(sorted(files.items()))


def _trials(session: NsdSession, design: Design, wanted: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Which trials of the experiment, counted from 0, are in the session and wanted."""
    end = session.first + SESSION_TRIALS
    if end > len(design.shown):
        problem = f"session {session.number}, but the design ends after {len(design.shown):,} trials"
        raise input_error(session.path, f"{problem}: remove the file, or copy the design again")
    return session.first + np.flatnonzero(wanted[session.first : end])


def _brick_pictures(path: Path, numbers: Sequence[int]) -> Iterator[Image.Image]:
    with hdf5_array(path, BRICK) as brick:
        for number in numbers:
            yield Image.fromarray(brick[number])


def _check_brick(path: Path, last: int) -> None:
    with hdf5_array(path, BRICK) as brick:
        shape, dtype = tuple(brick.shape), brick.dtype
    if len(shape) != 4 or shape[3] != 3 or dtype != np.uint8 or 0 in shape:
        raise input_error(
            path, f"{BRICK} is {dtype} {shape}, not uint8 (stimuli, side, side, 3): copy it again"
        )
    if last >= shape[0]:
        raise input_error(path, f"{shape[0]:,} pictures, but stimulus {last + 1:,} was shown: copy it again")
