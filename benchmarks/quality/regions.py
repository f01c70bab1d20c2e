"""What a region of the brain stands for: scans with one region active, and scans with one region silenced.

The paper's figure 6 shows synthetic voxels, one category region active, decoded as any scan. After
Brain-Diffuser's analysis, a synthetic scan is 1 inside the region and 0 outside, and what the heads predict
from it is rescaled to the size of predictions from real scans.

Here that rescaling is done on the scan, so that all heads see one scan, as they would from a scanner: z is
``strength`` inside the region and 0, the training mean, outside. The strength is the one at which the four
predictions depart from their means as far as those of real scans do.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.errors import InputError
from unibrain_rt.subject import Subject

Float = NDArray[np.float32]
Mask = NDArray[np.bool_]


def active(subject: Subject, region: Mask, strength: float) -> Float:
    """Betas (V,) of a scan with ``region`` (V,) at ``strength`` standard deviations, all else at its mean."""
    return np.asarray(
        subject.voxel_mean + strength * subject.voxel_std * _checked(subject, region), np.float32
    )


def lesioned(subject: Subject, betas: Float, region: Mask) -> Float:
    """Betas (N, V) with ``region`` (V,) at its training mean: it says nothing about the stimulus any more."""
    return np.where(_checked(subject, region), subject.voxel_mean, betas).astype(np.float32)


def natural_strength(subject: Subject, region: Mask, betas: Float) -> float:
    """The strength at which ``active`` moves the heads as far from their means as scans ``betas`` (N, V) do.

    Of each head, the distance of its prediction from the prediction of the mean scan is linear in the
    strength; the four ratios of typical to unit distance are averaged geometrically.
    """
    mean = subject.voxel_mean[None]
    rest = subject.predict(mean)
    unit = subject.predict(active(subject, region, 1.0)[None])
    seen = subject.predict(betas)

    def distance(predictions: Mapping[str, Float], head: str) -> float:
        rows = (predictions[head] - rest[head]).reshape(len(predictions[head]), -1)
        return float(np.median(np.linalg.norm(rows, axis=1)))

    ratios = [distance(seen, head) / max(distance(unit, head), 1e-12) for head in rest]
    return float(np.exp(np.mean(np.log(ratios))))


def _checked(subject: Subject, region: Mask) -> Mask:
    mask = np.asarray(region, bool)
    if mask.shape != (subject.voxels,) or not mask.any():
        problem = f"a region of {int(mask.sum()):,} of {mask.size:,} voxels"
        raise InputError(f"{problem} does not fit {subject.name} with {subject.voxels:,}: give its own masks")
    return mask
