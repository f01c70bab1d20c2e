"""Plain files to a dataset: an array of betas, a folder of pictures, a file of captions.

Scans and pictures belong together by order: scan i saw picture i of the folder, sorted by name without suffix.
Captions do, too, where they are a list or lines of text; where they are told by picture (a JSON object), only the
pictures that it names are used, again sorted by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unibrain_rt.errors import InputError, input_error, one_line
from unibrain_rt.export.subjects.datasets.dataset import BETA_SCALE, Dataset, Stimuli
from unibrain_rt.export.subjects.datasets.volumes import read_mask, read_rois
from unibrain_rt.json_file import read_json
from unibrain_rt.scans import VoxelSpace
from unibrain_rt.scans.scan_file import inspect

PICTURES = (".png", ".jpg", ".jpeg")
_MOST_CAPTION_BYTES = 1 << 30


def read_folder(
    name: str,
    betas: Path,
    images: Path,
    captions: Path,
    *,
    mask: Path | None = None,
    rois: Path | None = None,
) -> Dataset:
    """A dataset of plain files.

    Args:
        name: the subject's.
        betas: ``.npy`` (N, V) of floats in % signal change, or of int16 that 1/300 makes % signal change; or a
            NIfTI (x, y, z, N), from which ``mask`` picks the voxels.
        images: folder of N pictures, PNG or JPEG, in the order of the scans when sorted by name. If the captions
            are told by picture, it may hold others, too.
        captions: JSON, an object {name of a picture without its suffix: caption or captions} or a list with one
            entry a scan; or text with one caption a line.
        mask: NIfTI, (x, y, z), above 0 at the V voxels.
        rois: folder of region files named as in NSD (`volumes.ROI_FILES`), in the mask's space.

    Raises:
        InputError: something is missing or damaged, or numbers do not agree.
    """
    inside = None if mask is None else read_mask(mask)
    if rois is not None and inside is None:
        raise InputError(f"{rois}: regions need the mask that says where the voxels lie: give --mask")
    values = read_betas(name, betas, inside, mask)
    said = read_captions(captions)
    files = _pictures(images)
    if isinstance(said, Mapping):
        if missing := sorted(said.keys() - files.keys()):
            raise input_error(
                images, f"no picture called {missing[0]}, of which {captions.name} tells: add it"
            )
        stems = sorted(said)
        texts = tuple(said[stem] for stem in stems)
    else:
        stems, texts = list(files), tuple(said)
    for path, what, count in ((images, "pictures", len(stems)), (captions, "captions", len(texts))):
        if count != len(values):
            raise input_error(path, f"{count:,} {what} for {len(values):,} scans: give one for each scan")
    return Dataset(
        name,
        values,
        Stimuli(
            lambda numbers: (_picture(files[stems[number]]) for number in numbers), np.arange(len(stems))
        ),
        texts,
        groups=np.arange(len(values)),
        repeats=np.ones(len(values), np.int64),
        mask=inside,
        rois={} if rois is None or inside is None else read_rois(rois, inside),
    )


def read_betas(
    name: str, path: Path, inside: NDArray[np.bool_] | None = None, mask: Path | None = None
) -> NDArray[np.float32]:
    """Betas (N, V) of a file of scans; see `read_folder`. Raises `InputError`."""
    if path.name.lower().endswith((".nii", ".nii.gz")):
        if inside is None:
            raise input_error(path, "volumes need the mask that says where the voxels lie: give --mask")
        count = int(inside.sum())
    elif path.suffix.lower() != ".npy":
        raise input_error(path, "not a kind of file that is fitted on: give .npy (scans, voxels) or NIfTI")
    else:
        # A file of which nothing can be told here is told of by `inspect`.
        count = _voxels(path) or (1 if inside is None else int(inside.sum()))
        if inside is not None and count != int(inside.sum()):
            problem = f"{int(inside.sum()):,} voxels inside, but {path.name} has {count:,}"
            raise input_error(mask or path, f"{problem}: give the mask the betas were taken with")
    file = inspect(path, VoxelSpace(name, count, BETA_SCALE, inside))
    try:
        betas = np.empty((len(file), count), np.float32)
        for row in range(len(file)):
            betas[row] = file.read(row)
    finally:
        file.close()
    return betas


def read_captions(path: Path) -> Mapping[str, tuple[str, ...]] | Sequence[tuple[str, ...]]:
    """Captions by the names of pictures, or in the order of scans; see `read_folder`. Raises `InputError`."""
    if path.suffix.lower() != ".json":
        return [_phrasings(path, f"line {number}", line) for number, line in enumerate(_lines(path), 1)]
    said = read_json(
        path,
        lambda where, problem: input_error(where, f"{problem}: mend it"),
        largest_bytes=_MOST_CAPTION_BYTES,
    )
    if isinstance(said, dict):
        return {stem: _phrasings(path, f"entry {stem!r}", entry) for stem, entry in said.items()}
    if isinstance(said, list):
        return [_phrasings(path, f"entry {number}", entry) for number, entry in enumerate(said)]
    raise input_error(path, "neither an object nor a list: give captions by picture or in the scans' order")


def _lines(path: Path) -> list[str]:
    try:
        if path.stat().st_size > _MOST_CAPTION_BYTES:
            raise input_error(path, "too large for a file of captions: check that it is one")
        return path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise input_error(path, f"cannot be read ({error.strerror}): check the name") from error
    except UnicodeDecodeError as error:
        raise input_error(path, "not UTF-8 text: save it as such") from error


def _phrasings(path: Path, where: str, said: Any) -> tuple[str, ...]:
    several = [said] if isinstance(said, str) else said
    if not isinstance(several, list) or not all(isinstance(one, str) for one in several):
        raise input_error(path, f"{where} is no caption, nor a list of them: mend it")
    clean = tuple(" ".join(one.split()) for one in several if one.strip())
    if not clean:
        raise input_error(path, f"{where} is empty: give every scan a caption")
    return clean


def _pictures(folder: Path) -> dict[str, Path]:
    """Pictures by their names without suffix, sorted by name."""
    if not folder.is_dir():
        raise input_error(folder, "no such folder: name the one with the pictures that were shown")
    pictures: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in PICTURES and not path.name.startswith("."):
            if path.stem in pictures:
                raise input_error(path, f"and {pictures[path.stem].name} have one name: remove or rename one")
            pictures[path.stem] = path
    if not pictures:
        raise input_error(folder, f"no pictures: put what was shown there ({', '.join(PICTURES)})")
    return dict(sorted(pictures.items()))


def _picture(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError and its own
        problem = f"no picture that can be read ({one_line(str(error), 90)})"
        raise input_error(path, f"{problem}: save it again as PNG") from error


def _voxels(path: Path) -> int | None:
    """Length of the last axis of a .npy file, if its header can be read."""
    try:
        return int(np.load(path, mmap_mode="r", allow_pickle=False).shape[-1]) or None
    except Exception:  # numpy raises whatever its parsers do; `inspect` says it in words
        return None
