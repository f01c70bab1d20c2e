from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from unibrain_rt.errors import InputError
from unibrain_rt.export.subjects.datasets.dataset import Dataset, Stimuli, fitted, resized

SCANS, VOXELS = 6, 5
PICTURES = np.random.default_rng(0).integers(0, 256, (SCANS, 8, 8, 3), np.uint8)
MASK = np.array([1, 1, 0, 1, 1, 1, 0, 0], bool).reshape(2, 2, 2)


def in_memory(pictures: np.ndarray) -> Stimuli:
    return Stimuli(lambda numbers: map(Image.fromarray, pictures[numbers]), np.arange(len(pictures)))


def make(**changes: Any) -> Dataset:
    parts: dict[str, Any] = {
        "name": "subj01",
        "betas": np.arange(SCANS * VOXELS, dtype=np.float32).reshape(SCANS, VOXELS),
        "stimuli": in_memory(PICTURES),
        "captions": tuple((f"caption {scan}", "another") for scan in range(SCANS)),
        "groups": np.arange(SCANS) * 10,
        "repeats": np.full(SCANS, 3),
        "mask": MASK,
        "rois": {"V1v": np.array([1, 0, 0, 1, 0], bool)},
    }
    return Dataset(**{**parts, **changes})


def test_a_selection_keeps_what_belongs_together() -> None:
    whole = make()
    part = whole.select([4, 1])
    assert (part.scans, part.voxels) == (2, VOXELS)
    np.testing.assert_array_equal(part.betas, whole.betas[[4, 1]])
    np.testing.assert_array_equal(part.groups, [40, 10])
    assert part.captions == (whole.captions[4], whole.captions[1])
    np.testing.assert_array_equal(part.stimuli.images(8), PICTURES[[4, 1]])
    np.testing.assert_array_equal(part.select(slice(1, None)).stimuli.images(8, [0]), PICTURES[[1]])
    assert part.rois is whole.rois


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"betas": np.zeros((SCANS, VOXELS))}, "betas are float64"),
        ({"betas": np.zeros(SCANS, np.float32)}, r"betas are float32 \(6,\)"),
        ({"stimuli": in_memory(PICTURES[:5])}, "5 pictures for 6 scans"),
        ({"captions": (("a",),) * 7}, "7 captions for 6 scans"),
        ({"captions": (("a",),) * 5 + ((),)}, "scan 5 of subj01 has no caption"),
        ({"groups": np.arange(5)}, "5 stimulus names for 6 scans"),
        ({"repeats": np.arange(5)}, "5 numbers of repeats"),
        ({"mask": np.ones((2, 2, 2), bool)}, "8 voxels in the mask of subj01, but betas of 5"),
        ({"rois": {"faces": np.zeros(4, bool)}}, "region faces does not fit the 5 voxels"),
        ({"rois": {"faces": np.zeros(5)}}, "region faces does not fit"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem) as caught:
        make(**changes)
    assert "\n" not in str(caught.value)


def test_pictures_are_resized_as_pillow_does() -> None:
    small = resized(PICTURES, 4)
    for picture, found in zip(PICTURES, small, strict=True):
        expected = Image.fromarray(picture).resize((4, 4), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(found, np.asarray(expected))
    np.testing.assert_array_equal(resized(PICTURES, 8), PICTURES)
    assert resized(PICTURES[:0], 4).shape == (0, 4, 4, 3)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_pictures_of_any_mode_become_rgb(mode: str) -> None:
    image = Image.fromarray(PICTURES[0]).convert(mode)
    assert fitted(image, 6).shape == (6, 6, 3)
