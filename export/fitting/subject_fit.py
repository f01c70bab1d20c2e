"""From a dataset to a subject's four heads: what was shown and said is encoded, and ridge learns it from betas.

Only an engine runs the bundle's encoders; torch has no part in it. Everything is determined by the dataset, the
bundle and the options: the same fit on the same machine gives the same bytes.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.bundle import Bundle
from unibrain_rt.engines import Engine
from unibrain_rt.errors import InputError
from unibrain_rt.export.datasets.dataset import Dataset
from unibrain_rt.export.ridge import ALPHAS, FOLDS, Calibration, RidgeFit, fit_heads
from unibrain_rt.export.subject_writer import write_subject
from unibrain_rt.export.targets import TargetEncoder

Float = NDArray[np.float32]
Report = Callable[[str], None]
CaptionsUsed = Literal["first", "mean"]

_IN_MEMORY_BYTES = 2 << 30  # of targets; more of them (NSD's are 10 GB) lie in a temporary folder


@dataclass(frozen=True)
class FitOptions:
    """How a subject is fitted and stored; what each does is told where it is used."""

    alphas: tuple[float, ...] = ALPHAS
    folds: int = FOLDS
    calibration: Calibration = "variance"
    captions_used: CaptionsUsed = "first"
    fidelity: float = 0.999
    exact: bool = False


def fit_dataset(
    bundle: Bundle,
    engine: Engine,
    dataset: Dataset,
    options: FitOptions | None = None,
    report: Report | None = None,
) -> dict[str, RidgeFit]:
    """The four heads of a dataset's subject, by `fit_heads`; scans of one stimulus share a fold.

    Raises `InputError` if the data cannot be fitted or pictures cannot be read.
    """
    options, say = options or FitOptions(), report or (lambda what: None)
    encoder = TargetEncoder(bundle, engine)
    size_bytes = 4 * dataset.scans * sum(math.prod(shape) for shape in encoder.shapes.values())
    with tempfile.TemporaryDirectory(prefix="unibrain-rt-", ignore_cleanup_errors=True) as folder:
        room = Path(folder) if size_bytes > _IN_MEMORY_BYTES else None
        targets = encode_dataset(encoder, dataset, options.captions_used, folder=room, report=say)
        say(f"fitting {dataset.scans:,} scans of {dataset.voxels:,} voxels")
        return fit_heads(
            dataset.betas,
            targets,
            options.alphas,
            options.folds,
            calibration=options.calibration,
            groups=dataset.groups,
        )


def encode_dataset(
    encoder: TargetEncoder,
    dataset: Dataset,
    captions_used: CaptionsUsed = "first",
    *,
    folder: Path | None = None,
    report: Report | None = None,
) -> dict[str, Float]:
    """Every head's targets (N, *shape) of the dataset's scans; a stimulus of many scans is encoded once.

    Args:
        captions_used: ``first``, the text targets are those of each stimulus' first caption; ``mean``, they are
            averaged over all its captions. A mean is nearer to what the captions have in common, but no encoder
            ever gives one, and what decodes it has seen none.
        folder: where to keep targets that memory has no room for, as memory maps.
    """
    names, first, inverse = np.unique(dataset.groups, return_index=True, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    bounds = np.searchsorted(inverse[order], np.arange(len(names) + 1))
    captions = [dataset.captions[row] for row in first]
    if captions_used == "first":
        captions = [phrasings[:1] for phrasings in captions]
    targets = {head: _room(folder, head, (dataset.scans, *shape)) for head, shape in encoder.shapes.items()}
    told = 0
    for part, found in encoder.blocks(lambda side, part: dataset.stimuli.images(side, first[part]), captions):
        rows = order[bounds[part.start] : bounds[part.stop]]
        for head, values in found.items():
            targets[head][rows] = values[inverse[rows] - part.start]
        tenths = 10 * part.stop // len(names)
        if report is not None and tenths > told:
            told = tenths
            report(f"encoded {part.stop:,} of {len(names):,} stimuli")
    return targets


def write_fit(
    folder: Path, dataset: Dataset, fits: Mapping[str, RidgeFit], options: FitOptions | None = None
) -> None:
    """Write the subject's new folder, with the dataset's mask and regions. Raises `InputError`."""
    options = options or FitOptions()
    write_subject(
        folder,
        dataset.name,
        fits,
        beta_scale=dataset.beta_scale,
        mask=dataset.mask,
        rois=dataset.rois,
        exact=options.exact,
        fidelity=options.fidelity,
        provenance={
            "stimuli": len(np.unique(dataset.groups)),
            "trials": int(dataset.repeats.sum()),
            "folds": options.folds,
            "calibration": options.calibration,
            "captions_used": options.captions_used,
        },
    )


def _room(folder: Path | None, head: str, shape: tuple[int, ...]) -> Float:
    if folder is None:
        return np.empty(shape, np.float32)
    try:
        return np.lib.format.open_memmap(folder / f"{head}.npy", mode="w+", dtype=np.float32, shape=shape)
    except OSError as error:
        need = f"{4 * math.prod(shape) >> 20:,} MiB of targets"
        raise InputError(
            f"{folder}: no room for {need} ({error.strerror}); set TMPDIR to a larger disk"
        ) from error
