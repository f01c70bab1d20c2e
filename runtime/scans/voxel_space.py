"""What a subject expects of a scan."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.errors import BundleError, one_line


@dataclass(frozen=True, eq=False)
class VoxelSpace:
    """What a subject expects of a scan: how many voxels, how int16 is scaled, and where the voxels lie.

    ``mask`` (x, y, z) picks ``count`` voxels of a volume in C order; without one, NIfTI cannot be read.
    Raises `BundleError` if they do not fit each other, since they come from the bundle.
    """

    subject: str
    count: int
    scale: float
    mask: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        mask, problem = self.mask, ""
        if self.count < 1 or not (math.isfinite(self.scale) and self.scale > 0):
            problem = f"{self.count} voxels with beta scale {self.scale}"
        elif mask is not None and (mask.ndim != 3 or mask.dtype != np.bool_):
            problem = f"its mask is not a 3-D array of booleans but {mask.ndim}-D of {mask.dtype}"
        elif mask is not None and (inside := int(np.count_nonzero(mask))) != self.count:
            problem = f"{inside:,} voxels in its mask, not {self.count:,}"
        if problem:
            raise BundleError(f"{self.label}: {problem}: fit the subject again")

    @property
    def label(self) -> str:
        return f"subject '{one_line(self.subject, 40)}'"
