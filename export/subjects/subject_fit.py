"""From a dataset to a subject's four heads: what was shown and said is encoded, and ridge learns it from betas.

Only an engine runs the bundle's encoders; torch has no part in it. Everything is determined by the dataset, the
bundle and the options: the same fit on the same machine gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.bundle import Bundle
from unibrain_rt.engines import Engine
from unibrain_rt.errors import InputError
from unibrain_rt.export.subjects.datasets.dataset import Dataset
from unibrain_rt.export.subjects.encoders import TargetEncoder
from unibrain_rt.export.subjects.ridge import ALPHAS, Calibration, RidgeFit, fit_heads
from unibrain_rt.export.subjects.ridge.journal import Journal
from unibrain_rt.export.subjects.ridge.targets import release
from unibrain_rt.export.subjects.subject_writer import StorageOptions, write_subject

Half = NDArray[np.float16]
Report = Callable[[str], None]
CaptionsUsed = Literal["first", "mean"]

_HALF_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True, kw_only=True)
class FitOptions(StorageOptions):
    """How a subject is fitted and stored; `fit_heads`, `encode_dataset` and `write_subject` tell what each does."""

    alphas: tuple[float, ...] = ALPHAS
    folds: int | None = None
    calibration: Calibration = "variance"
    captions_used: CaptionsUsed = "first"
    weigh_repeats: bool = False


@contextmanager
def work_folder(
    bundle: Bundle, dataset: Dataset, options: FitOptions, folder: Path | None = None
) -> Iterator[Journal]:
    """The journal of a fit, in ``folder``, where a fit that was killed goes on, or in a temporary one.

    Raises `InputError` if the folder holds the fit of other data, by another bundle, or with other options.
    """
    digest = hashlib.sha256(np.ascontiguousarray(dataset.betas).data)
    about = [dataset.groups.tolist(), dataset.repeats.tolist(), [list(said) for said in dataset.captions]]
    digest.update(json.dumps(about).encode())
    key = {
        "bundle": bundle.encoders,
        "precision": bundle.precision,
        "subject": dataset.name,
        "data": digest.hexdigest(),
        "options": asdict(options),
    }
    if folder is not None:
        yield Journal(folder, key)
        return
    with tempfile.TemporaryDirectory(prefix="unibrain-rt-", ignore_cleanup_errors=True) as temporary:
        yield Journal(Path(temporary), key)


def fit_dataset(
    bundle: Bundle,
    engine: Engine,
    dataset: Dataset,
    journal: Journal,
    options: FitOptions | None = None,
    report: Report | None = None,
) -> dict[str, RidgeFit]:
    """The four heads of a dataset's subject, by `fit_heads`; scans of one stimulus are held out together.

    Targets lie in the journal's folder, for as long as the fits are used. Raises `InputError` if the data cannot be
    fitted or pictures cannot be read.
    """
    options, say = options or FitOptions(), report or (lambda what: None)
    encoder = TargetEncoder(bundle, engine)
    targets = encode_dataset(encoder, dataset, journal, options.captions_used, report=say)
    say(f"fitting {dataset.scans:,} scans of {dataset.voxels:,} voxels")
    return fit_heads(
        dataset.betas,
        targets,
        options.alphas,
        options.folds,
        calibration=options.calibration,
        groups=dataset.groups,
        weights=dataset.repeats if options.weigh_repeats else None,
        journal=journal,
        report=say,
    )


def encode_dataset(
    encoder: TargetEncoder,
    dataset: Dataset,
    journal: Journal,
    captions_used: CaptionsUsed = "first",
    *,
    report: Report | None = None,
) -> dict[str, Half]:
    """Every head's targets (N, *shape) of the dataset's scans; a stimulus of many scans is encoded once.

    They are float16 memory maps in the journal's folder: memory has not room for half of NSD's. Values beyond
    float16 are cut off.

    Args:
        captions_used: ``first``, the text targets are those of each stimulus' first caption; ``mean``, they are
            averaged over all its captions. A mean is nearer to what the captions have in common, but no encoder
            ever gives one, and what decodes it has seen none.
    """
    names, first, inverse = np.unique(dataset.groups, return_index=True, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    bounds = np.searchsorted(inverse[order], np.arange(len(names) + 1))
    captions = [dataset.captions[row] for row in first]
    if captions_used == "first":
        captions = [phrasings[:1] for phrasings in captions]
    done = int((journal.find("encoded") or {"stimuli": np.array(0)})["stimuli"])
    targets = {
        head: _room(journal.folder, head, (dataset.scans, *shape), fresh=done == 0)
        for head, shape in encoder.shapes.items()
    }
    told = 10 * done // len(names)

    def pictures(side: int, part: slice) -> NDArray[np.uint8]:
        return dataset.stimuli.images(side, first[part])

    for part, block in encoder.blocks(pictures, captions, done):
        rows = order[bounds[part.start] : bounds[part.stop]]
        for head, values in block.items():
            targets[head][rows] = np.clip(values[inverse[rows] - part.start], -_HALF_MAX, _HALF_MAX)
        tenths = 10 * part.stop // len(names)
        if tenths > told or journal.due:
            for mapped in targets.values() if journal.folder is not None else ():
                mapped.flush()
                release(mapped)
            journal.enter("encoded", stimuli=part.stop)
        if report is not None and tenths > told:
            report(f"encoded {part.stop:,} of {len(names):,} stimuli")
        told = tenths
    return targets


def write_fit(
    folder: Path,
    dataset: Dataset,
    fits: Mapping[str, RidgeFit],
    options: FitOptions | None = None,
    *,
    encoders: str | None = None,
    journal: Journal | None = None,
    report: Report | None = None,
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
        **{field.name: getattr(options, field.name) for field in fields(StorageOptions)},
        encoders=encoders,
        journal=journal,
        report=report,
        provenance={
            "stimuli": len(np.unique(dataset.groups)),
            "trials": int(dataset.repeats.sum()),
            "folds": options.folds or "each stimulus",
            "calibration": options.calibration,
            "captions_used": options.captions_used,
            **({"weighted": "by repeats"} if options.weigh_repeats else {}),
        },
    )


def _room(folder: Path | None, head: str, shape: tuple[int, ...], *, fresh: bool) -> Any:
    """A memory map for a head's targets: a new one if ``fresh``, else that of the fit that goes on."""
    if folder is None:
        return np.empty(shape, np.float16)
    path = folder / f"{head}.npy"
    try:
        if not fresh:
            return np.lib.format.open_memmap(path, mode="r+")
        return np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
    except (OSError, ValueError) as error:
        need = f"{2 * math.prod(shape) >> 20:,} MiB of targets"
        raise InputError(
            f"{folder}: no room for {need} ({error}); name a --work folder on a larger disk"
        ) from error
