"""How like a stimulus a reconstruction is, as the field measures it: by its pixels, and by features of networks.

PixCorr and SSIM follow the evaluation that Brain-Diffuser published and later work took over: both pictures at
425 x 425, the size of NSD's stimuli, values in [0, 1]. Exact here: Pearson's correlation over all RGB values,
and SSIM's windows. Not settled by the field is the resizing: Brain-Diffuser takes Pillow's default (bicubic),
MindEye bilinear. We resize bilinearly with Pillow, which averages where a picture gets smaller and rounds to
whole grey levels; a stimulus of 425 x 425 stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage.metrics import structural_similarity

from unibrain_rt.engines.host import usable_cores

Float = NDArray[np.float64]
Picture: TypeAlias = NDArray[np.uint8]
Pictures: TypeAlias = "Picture | Sequence[Picture]"
"""(N, H, W, 3), or N pictures (H, W, 3) of sizes of their own."""
SIDE = 425
LUMA = (0.2125, 0.7154, 0.0721)
"""Shares of red, green and blue in grey: ITU-R BT.709, as scikit-image's ``rgb2gray``."""
TIE = 1e-12  # correlations closer than this are equal: matrix products differ in their last bits
_NOTHING = 1e-24  # lengths below it are of features that do not vary
_CHUNK = 2**14  # features at a time: the layers of AlexNet have 140,000


def two_way_identification(features: NDArray[np.number], references: NDArray[np.number]) -> Float:
    """Share of other stimuli whose features correlate less with a reconstruction than its own stimulus' do.

    Exhaustive over all pairs; chance is 0.5.

    Args:
        features: of the reconstructions, (N, …), N of at least 2; flattened.
        references: of the stimuli, in the same order, (N, …).

    Returns:
        (N,): per reconstruction, the share of the N − 1 others that it beats; ties count half. Features that do not
        vary correlate with nothing.
    """
    if len(features) != len(references) or len(features) < 2:
        raise ValueError(f"two pairs at least are needed, not {len(features)} and {len(references)}")
    correlations = _correlations(features, references)
    lead = np.diag(correlations)[:, None] - correlations
    wins = np.where(np.abs(lead) <= TIE, 0.5, lead > 0)
    np.fill_diagonal(wins, 0.0)
    return np.asarray(wins.sum(axis=1) / (len(wins) - 1), np.float64)


def correlation_distance(features: NDArray[np.number], references: NDArray[np.number]) -> Float:
    """(N,): 1 − Pearson's correlation of each reconstruction's features (N, …) with its own stimulus'."""
    if len(features) != len(references):
        raise ValueError(f"pairs are needed, not {len(features)} and {len(references)} items")
    distances = [
        1.0 - float(_correlations(one[None], other[None])[0, 0])
        for one, other in zip(features, references, strict=True)
    ]
    return np.array(distances, np.float64)


def pixel_correlation(images: Pictures, references: Pictures) -> Float:
    """PixCorr, (N,): Pearson's correlation of all RGB values of each pair. Images (H, W, 3), each of any size."""

    def measure(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
        a, b = (part.ravel().astype(np.float64) for part in (one, other))
        a, b = a - a.mean(), b - b.mean()
        return float(a @ b / max(np.sqrt((a @ a) * (b @ b)), _NOTHING))

    return _each(measure, images, references)


def structure(images: Pictures, references: Pictures) -> Float:
    """SSIM, (N,), of each pair in grey: Wang et al. 2004 (doi 10.1109/TIP.2003.819861).

    Gaussian windows of sigma 1.5, covariances of the population, values from 0 to 1. Images as in `pixel_correlation`.
    """

    def measure(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
        index = structural_similarity(
            grey(one),
            grey(other),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1.0,
        )
        return float(index)

    return _each(measure, images, references)


def resized(image: Picture, side: int = SIDE) -> NDArray[np.float32]:
    """A picture (H, W, 3) → (side, side, 3) in [0, 1], bilinear, in whole grey levels as Pillow gives them."""
    if image.shape[:2] != (side, side):
        whole = Image.fromarray(np.ascontiguousarray(image))
        image = np.asarray(whole.resize((side, side), Image.Resampling.BILINEAR))
    return image.astype(np.float32) / np.float32(255)


def grey(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Luminance (H, W) of colours (H, W, 3)."""
    return np.asarray(values @ np.array(LUMA, np.float32), np.float32)


def _each(
    measure: Callable[[NDArray[np.float32], NDArray[np.float32]], float],
    images: Pictures,
    references: Pictures,
) -> Float:
    """A measure of every resized pair. Pillow and SciPy's filters let go of the interpreter: threads help."""
    if len(images) != len(references):
        raise ValueError(f"pairs are needed, not {len(images)} and {len(references)} pictures")
    with ThreadPoolExecutor(usable_cores()) as pool:
        values = pool.map(lambda one, other: measure(resized(one), resized(other)), images, references)
        return np.array(list(values), np.float64)


def _correlations(features: NDArray[np.number], references: NDArray[np.number]) -> Float:
    """Pearson's correlations (N, M) of every row with every row, summed in float64, some columns at a time."""
    a, b = (np.asarray(part).reshape(len(part), -1) for part in (features, references))
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"features have {a.shape[1]} and {b.shape[1]} values an item")
    means = [part.mean(axis=1, dtype=np.float64, keepdims=True) for part in (a, b)]
    products = np.zeros((len(a), len(b)))
    squares = [np.zeros((len(part), 1)) for part in (a, b)]
    for start in range(0, a.shape[1], _CHUNK):
        columns = slice(start, start + _CHUNK)
        left, right = (part[:, columns] - mean for part, mean in zip((a, b), means, strict=True))
        products += left @ right.T
        for total, part in zip(squares, (left, right), strict=True):
            total += np.einsum("nd,nd->n", part, part)[:, None]
    lengths = np.sqrt(squares[0]) * np.sqrt(squares[1]).T
    return np.asarray(products / np.maximum(lengths, _NOTHING), np.float64)
