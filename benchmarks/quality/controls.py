"""Scans that say nothing of the stimulus: what a decoder makes of them is the prior's, not the brain's.

A generative model always draws something, and a measure that is fooled by it is fooled by these, too ("Spurious
reconstruction from brain activity", arXiv 2405.10078). Every report holds them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.subject import Subject

Float = NDArray[np.float32]


def shuffled(subject: Subject, betas: Float, seed: int = 0) -> Float:
    """Each scan (N, V) with its own values in other voxels, z-scored: the histogram stays, where it was is lost.

    Betas are shuffled as z-scores and given their new voxels' mean and standard deviation: what is shuffled is the
    signal, not how strong and how variable voxels are.
    """
    rng = _generator(seed, 1)
    varies = subject.voxel_std > 0
    z = (betas[:, varies] - subject.voxel_mean[varies]) / subject.voxel_std[varies]
    scans = np.array(np.broadcast_to(subject.voxel_mean, betas.shape), np.float32)
    scans[:, varies] += rng.permuted(z, axis=1) * subject.voxel_std[varies]
    return scans


def noise(subject: Subject, betas: Float, seed: int = 0) -> Float:
    """As many scans (N, V) of Gaussian noise with every voxel's training mean and standard deviation."""
    z = _generator(seed, 2).standard_normal(betas.shape, np.float32)
    return np.asarray(subject.voxel_mean + subject.voxel_std * z, np.float32)


def mean(subject: Subject, betas: Float, seed: int = 0) -> Float:
    """The mean training scan, (N, V), as many times. It needs no seed; the decodes differ by that of their noise."""
    return np.array(np.broadcast_to(subject.voxel_mean, betas.shape), np.float32)


#: Name -> control scans of a subject, of betas (N, V), by seed.
CONTROLS: dict[str, Callable[[Subject, Float, int], Float]] = {
    "shuffled voxels": shuffled,
    "noise only": noise,
    "mean scan": mean,
}


def _generator(seed: int, stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, stream]))
