"""Where a subject's voxels lie: a volume of two hemispheres, parted into the regions that NSD names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Region -> share of the voxels; what is left over is non-visual (region "").
REGIONS: dict[str, float] = {
    "V1v": 0.080,
    "V1d": 0.080,
    "V2v": 0.065,
    "V2d": 0.065,
    "V3v": 0.050,
    "V3d": 0.050,
    "hV4": 0.070,
    "LO": 0.140,
    "bodies": 0.060,
    "faces": 0.060,
    "words": 0.050,
    "places": 0.070,
}
EARLY = ("V1v", "V1d", "V2v", "V2d", "V3v", "V3d", "hV4")
HIGH = ("LO", "bodies", "faces", "words", "places")
#: NSD's region files and label tables; a category region is cut, back to front, into its first three labels.
LABEL_TABLES: dict[str, dict[int, str]] = {
    "prf-visualrois": {0: "Unknown", **{i + 1: name for i, name in enumerate(EARLY)}},
    "floc-faces": {0: "Unknown", 1: "OFA", 2: "FFA-1", 3: "FFA-2", 4: "mTL-faces", 5: "aTL-faces"},
    "floc-words": {0: "Unknown", 1: "OWFA", 2: "VWFA-1", 3: "VWFA-2", 4: "mfs-words", 5: "mTL-words"},
    "floc-places": {0: "Unknown", 1: "OPA", 2: "PPA", 3: "RSC"},
    "floc-bodies": {0: "Unknown", 1: "EBA", 2: "FBA-1", 3: "FBA-2", 4: "mTL-bodies"},
}


@dataclass(frozen=True, eq=False)
class Cortex:
    """V voxels in C order of the mask."""

    shape: tuple[int, int, int]
    places: NDArray[np.int64]  # (V, 3): where in the volume
    region: NDArray[np.str_]  # (V,): a key of REGIONS, or "" for non-visual

    @property
    def voxels(self) -> int:
        return len(self.region)


def make_cortex(voxels: int) -> Cortex:
    """Two ellipsoids side by side, x to the right, y forwards, z up, cut across into regions."""
    radius = (voxels / 2.0 / (4.0 / 3.0 * np.pi * 0.8 * 1.25)) ** (1.0 / 3.0)
    half = np.array([0.8, 1.25, 1.0]) * radius
    nx, ny, nz = (int(np.ceil(2.0 * h)) + 4 for h in half)
    shape = (2 * nx, ny, nz)
    x, y, z = np.indices(shape).astype(np.float64)
    beside = np.minimum(np.abs(x - nx / 2 + 0.5), np.abs(x - 1.5 * nx + 0.5))
    distance = (
        (beside / half[0]) ** 2 + ((y - ny / 2 + 0.5) / half[1]) ** 2 + ((z - nz / 2 + 0.5) / half[2]) ** 2
    )
    inside = np.sort(np.argsort(distance.ravel(), kind="stable")[:voxels])
    places = np.stack(np.unravel_index(inside, shape), axis=1).astype(np.int64)

    region = np.full(voxels, "", dtype="<U8")
    for right in (False, True):
        members = np.flatnonzero((places[:, 0] >= nx) == right)
        # From the back of the head forwards, and from below upwards within a slice.
        members = members[np.lexsort((places[members, 0], places[members, 2], places[members, 1]))]
        ends = np.rint(np.cumsum([0.0, *REGIONS.values()]) * len(members)).astype(int)
        slabs = {name: members[a:b] for name, a, b in zip(REGIONS, ends[:-1], ends[1:], strict=True)}
        for area in ("V1", "V2", "V3"):  # the ventral half lies below the dorsal one
            slab = np.concatenate([slabs[area + "v"], slabs[area + "d"]])
            slab = slab[np.argsort(places[slab, 2], kind="stable")]
            cut = len(slabs[area + "v"])
            slabs[area + "v"], slabs[area + "d"] = slab[:cut], slab[cut:]
        for name, slab in slabs.items():
            region[slab] = name
    return Cortex(shape, places, region)


def mask(cortex: Cortex) -> NDArray[np.bool_]:
    """The volume's mask, bool (x, y, z): true at the cortex's voxels, whose order is C order."""
    inside = np.zeros(cortex.shape, np.bool_)
    inside[tuple(cortex.places.T)] = True
    return inside


def roi_labels(cortex: Cortex) -> dict[str, NDArray[np.int8]]:
    """NSD's region files -> label of each voxel, int8 (V,); the names of the labels are in LABEL_TABLES."""
    files: dict[str, NDArray[np.int8]] = {}
    for file in LABEL_TABLES:
        labels = np.zeros(cortex.voxels, np.int8)
        if file == "prf-visualrois":
            for i, name in enumerate(EARLY):
                labels[cortex.region == name] = i + 1
        else:
            members = np.flatnonzero(cortex.region == file.removeprefix("floc-"))
            members = members[np.argsort(cortex.places[members, 1], kind="stable")]
            for i, part in enumerate(np.array_split(members, 3)):
                labels[part] = i + 1
        files[file] = labels
    return files


def regions(cortex: Cortex) -> Mapping[str, NDArray[np.bool_]]:
    """Region name -> its voxels, bool (V,), the non-visual ones under ""."""
    return {name: cortex.region == name for name in (*REGIONS, "")}
