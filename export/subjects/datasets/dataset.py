"""A subject's scans with their stimuli and captions: what a fit learns from and an evaluation compares with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unibrain_rt.errors import InputError

#: Stored int16 betas are % signal change times 300 (NSD).
BETA_SCALE = 1 / 300

Rows: TypeAlias = slice | Sequence[int] | NDArray[np.integer]


@dataclass(frozen=True, eq=False)
class Stimuli:
    """Pictures that are read when they are asked for: a set of tens of thousands is never held."""

    read: Callable[[Sequence[int]], Iterable[Image.Image]]
    """Pictures by their numbers in the set that is stored. Raises `InputError`."""
    numbers: NDArray[np.int64]
    """(N,): which of the stored pictures these are. Of ``[7, 7, 2]``, the first two are one picture."""

    def __len__(self) -> int:
        return len(self.numbers)

    def select(self, rows: Rows) -> Stimuli:
        """Those in these rows, in this order."""
        return replace(self, numbers=self.numbers[rows])

    def images(self, size: int, rows: Rows = slice(None)) -> NDArray[np.uint8]:
        """Pictures (n, size, size, 3) of these rows, all by default. Raises `InputError`."""
        numbers = self.numbers[rows].tolist()
        pictures = np.empty((len(numbers), size, size, 3), np.uint8)
        for row, picture in enumerate(self.read(numbers)):
            pictures[row] = fitted(picture, size)
        return pictures


@dataclass(frozen=True, eq=False)
class Dataset:
    """N scans of one subject. Raises `InputError` when made if its parts do not fit each other."""

    name: str
    """The subject."""
    betas: NDArray[np.float32]
    """(N, V), % signal change; each the mean of ``repeats`` trials."""
    stimuli: Stimuli
    """What was shown in each scan, N pictures."""
    captions: tuple[tuple[str, ...], ...]
    """Of each scan's stimulus, all phrasings, one at least."""
    groups: NDArray[np.int64]
    """(N,): identity of the stimulus. Scans of one stimulus belong into one fold."""
    repeats: NDArray[np.int64]
    """(N,): trials that were averaged."""
    mask: NDArray[np.bool_] | None = None
    """(x, y, z): where the V voxels lie, in C order."""
    beta_scale: float = BETA_SCALE
    """What stored int16 betas are multiplied by."""
    rois: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    """Region -> which voxels (V,) lie in it: V1v ... hV4, faces, words, places, bodies."""

    def __post_init__(self) -> None:
        scans = self.betas.shape[0]
        if self.betas.ndim != 2 or self.betas.dtype != np.float32:
            raise InputError(f"betas are {self.betas.dtype} {self.betas.shape}: give float32 (scans, voxels)")
        for what, count in (
            ("pictures", len(self.stimuli)),
            ("captions", len(self.captions)),
            ("stimulus names", len(self.groups)),
            ("numbers of repeats", len(self.repeats)),
        ):
            if count != scans:
                raise InputError(f"{count:,} {what} for {scans:,} scans of {self.name}: give one for each")
        if not all(self.captions):
            raise InputError(
                f"scan {self.captions.index(())} of {self.name} has no caption: give one or more"
            )
        if self.mask is not None and int(self.mask.sum()) != self.voxels:
            problem = (
                f"{int(self.mask.sum()):,} voxels in the mask of {self.name}, but betas of {self.voxels:,}"
            )
            raise InputError(f"{problem}: give the mask they were taken with")
        for region, inside in self.rois.items():
            if inside.shape != (self.voxels,) or inside.dtype != np.bool_:
                raise InputError(f"region {region} does not fit the {self.voxels:,} voxels: draw it anew")

    @property
    def scans(self) -> int:
        return len(self.betas)

    @property
    def voxels(self) -> int:
        return self.betas.shape[1]

    def select(self, rows: Rows) -> Dataset:
        """The dataset of these scans alone, in this order."""
        places = np.arange(self.scans)[rows]
        return replace(
            self,
            betas=self.betas[places],
            stimuli=self.stimuli.select(places),
            captions=tuple(self.captions[place] for place in places),
            groups=self.groups[places],
            repeats=self.repeats[places],
        )


def resized(images: NDArray[Any], size: int) -> NDArray[np.uint8]:
    """Pictures (N, H, W, 3) as (N, size, size, 3), bicubic."""
    if images.shape[1:3] == (size, size) or not len(images):
        return np.asarray(images, np.uint8).reshape(-1, size, size, 3)
    return np.stack([fitted(Image.fromarray(np.ascontiguousarray(image)), size) for image in images])


def fitted(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """One picture as (size, size, 3), bicubic; what is not square is stretched to it."""
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    if rgb.size != (size, size):
        rgb = rgb.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(rgb, np.uint8)
