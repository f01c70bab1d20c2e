from __future__ import annotations

import numpy as np
import pytest

from unibrain_rt.bundle import Bundle
from unibrain_rt.errors import InputError
from unibrain_rt.export.phantom.people import (
    DEFAULT_SUBJECT,
    SUBJECTS,
    held_out,
    named_regions,
    subject_model,
)
from unibrain_rt.export.phantom.scenes import split


def test_the_shipped_bundle_has_every_subject_with_its_voxels_and_regions() -> None:
    bundle = Bundle.open()
    assert set(bundle.subjects) == set(SUBJECTS)
    assert len(SUBJECTS) >= 4
    assert bundle.subject().folder.name == DEFAULT_SUBJECT
    for name, person in SUBJECTS.items():
        subject = bundle.subject(name)
        assert subject.voxels == person.voxels
        regions = named_regions(subject_model(name))
        stored = subject.rois()
        assert stored.keys() == regions.keys()
        assert all(np.array_equal(stored[region], mask) for region, mask in regions.items())


def test_subjects_differ_in_number_of_voxels_and_in_weights() -> None:
    assert len({person.voxels for person in SUBJECTS.values()}) == len(SUBJECTS)
    first, second = (subject_model(name) for name in list(SUBJECTS)[:2])
    assert not np.array_equal(first.kinds[:100], second.kinds[:100])


def test_every_subject_sees_the_same_held_out_scenes_with_its_own_brain() -> None:
    one, other = (held_out(name, 4, 64) for name in list(SUBJECTS)[:2])
    assert one[0] == other[0]
    assert all(split(scene) == "test" for scene in one[0])
    assert np.array_equal(one[1], other[1])
    assert one[2].shape == (4, SUBJECTS["sub-01"].voxels)
    assert one[2].dtype == np.float32
    assert other[2].shape == (4, SUBJECTS["sub-02"].voxels)
    assert np.array_equal(one[2], held_out("sub-01", 4, 64)[2])


def test_a_stranger_is_an_input_error() -> None:
    with pytest.raises(InputError, match="sub-99.*choose sub-01"):
        subject_model("sub-99")
