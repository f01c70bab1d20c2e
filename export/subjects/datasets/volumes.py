"""Volumes that tell where voxels lie: masks and region labels, NIfTI files named as in NSD."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.errors import InputError, input_error, one_line

#: NSD's labels of prf-visualrois, from 1; a category file's region is wherever it has any label.
VISUAL_AREAS = ("V1v", "V1d", "V2v", "V2d", "V3v", "V3d", "hV4")
VISUAL_FILE = "prf-visualrois"
CATEGORY_FILES = {f"floc-{category}": category for category in ("faces", "words", "places", "bodies")}
ROI_FILES = (VISUAL_FILE, *CATEGORY_FILES)
SUFFIXES = (".nii.gz", ".nii")

_MOST_VOXELS = 1 << 28  # a head at half a millimetre has 1 << 27


def read_volume(path: Path) -> NDArray[Any]:
    """Numbers (x, y, z) of a NIfTI file. Raises `InputError`."""
    try:
        import nibabel
        from nibabel.imageglobals import LoggingOutputSuppressor
    except ImportError as error:
        raise input_error(path, 'to read NIfTI, pip install "unibrain-rt[nifti]"') from error
    if not path.is_file():
        raise input_error(path, "no such file: check the name")
    try:
        # What nibabel has to say of a header goes to the terminal otherwise.
        with LoggingOutputSuppressor():
            image: Any = nibabel.load(path)
            shape = tuple(int(extent) for extent in image.shape)
            while len(shape) > 3 and shape[-1] == 1:
                shape = shape[:-1]
            if len(shape) != 3 or not 0 < math.prod(shape) <= _MOST_VOXELS:
                problem = f"its shape is {shape}, but masks and regions are (x, y, z)"
                raise input_error(path, f"{problem}: save it so")
            values: NDArray[Any] = np.asarray(image.dataobj).reshape(shape)
    except InputError:
        raise
    except Exception as error:  # nibabel, gzip and zlib raise a dozen types
        problem = f"damaged, or no NIfTI ({one_line(str(error) or type(error).__name__, 90)})"
        raise input_error(path, f"{problem}: save or copy it again") from error
    if values.dtype.kind not in "iufb" or not np.isfinite(values).all():
        raise input_error(
            path, f"values of type {values.dtype} that are not all finite numbers: save it again"
        )
    return values


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Where a volume is above 0, bool (x, y, z): V voxels in C order. Raises `InputError`."""
    inside = np.asarray(read_volume(path) > 0, np.bool_)
    if not inside.any():
        raise input_error(path, "no voxel is above 0: give the mask the betas were taken with")
    return inside


def read_rois(
    folder: Path, mask: NDArray[np.bool_], *, every: bool = False
) -> Mapping[str, NDArray[np.bool_]]:
    """Region -> which of the mask's voxels (V,) lie in it, of the files in ``folder`` named as in `ROI_FILES`.

    Voxels outside the mask are left out, and so are regions without any inside. Raises `InputError` if a file
    does not fit the mask, if there is none or, with ``every``, if one is missing.
    """
    rois: dict[str, NDArray[np.bool_]] = {}
    files = {name: find(folder, name) for name in ROI_FILES}
    for name, path in files.items():
        if path is None and not every:
            continue
        labels = read_volume(path or folder / f"{name}.nii.gz")
        if labels.shape != mask.shape:
            problem = f"{labels.shape} voxels, but the mask is {mask.shape}"
            raise input_error(folder / name, f"{problem}: resample it to the mask")
        inside = labels[mask]
        if name == VISUAL_FILE:
            rois.update({area: inside == label for label, area in enumerate(VISUAL_AREAS, start=1)})
        else:
            rois[CATEGORY_FILES[name]] = inside > 0
    if not any(files.values()):
        problem = f"no region files: put NSD's {', '.join(ROI_FILES)} (.nii.gz) there"
        raise input_error(folder, problem if folder.is_dir() else "no such folder: check the name")
    return {name: np.asarray(inside, np.bool_) for name, inside in rois.items() if inside.any()}


def find(folder: Path, name: str) -> Path | None:
    """The NIfTI file called ``name`` in ``folder``, compressed or not."""
    paths = (folder / f"{name}{suffix}" for suffix in SUFFIXES)
    return next((path for path in paths if path.is_file()), None)
