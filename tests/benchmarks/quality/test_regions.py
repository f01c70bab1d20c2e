from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from unibrain_rt.benchmarks.quality.regions import active, lesioned, natural_strength
from unibrain_rt.bundle import Bundle
from unibrain_rt.errors import InputError
from unibrain_rt.subject import Subject

Mask = NDArray[np.bool_]


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Bundle.open().subject()


@pytest.fixture(scope="module")
def region(subject: Subject) -> Mask:
    mask = np.zeros(subject.voxels, bool)
    mask[10:60] = True
    return mask


@pytest.fixture(scope="module")
def scans(subject: Subject) -> NDArray[np.float32]:
    noise = np.random.default_rng(1).standard_normal((20, subject.voxels), dtype=np.float32)
    return subject.voxel_mean + subject.voxel_std * noise


def test_an_active_region_is_that_many_deviations_up_and_the_rest_at_its_mean(
    subject: Subject, region: Mask
) -> None:
    scan = active(subject, region, 2.5)
    assert scan.dtype == np.float32
    z = (scan - subject.voxel_mean) / np.where(subject.voxel_std > 0, subject.voxel_std, 1)
    varies = subject.voxel_std > 0
    np.testing.assert_allclose(z[region & varies], 2.5, rtol=1e-4)
    assert not z[~region].any()


def test_a_lesion_silences_its_region_and_touches_nothing_else(
    subject: Subject, region: Mask, scans: NDArray[np.float32]
) -> None:
    silenced = lesioned(subject, scans, region)
    assert np.array_equal(silenced[:, ~region], scans[:, ~region])
    assert (silenced[:, region] == subject.voxel_mean[region]).all()
    assert not (scans[:, region] == silenced[:, region]).all()


def test_natural_strength_moves_predictions_as_far_as_scans_do(
    subject: Subject, region: Mask, scans: NDArray[np.float32]
) -> None:
    strength = natural_strength(subject, region, scans)
    assert strength > 0
    rest = subject.predict(subject.voxel_mean[None])
    found = subject.predict(active(subject, region, strength)[None])
    seen = subject.predict(scans)
    ratios = [
        np.linalg.norm(found[head] - rest[head])
        / np.median(np.linalg.norm((seen[head] - rest[head]).reshape(len(scans), -1), axis=1))
        for head in rest
    ]
    assert np.exp(np.mean(np.log(ratios))) == pytest.approx(1.0, rel=1e-2)


@pytest.mark.parametrize("wrong", ["short", "empty"])
def test_a_mask_that_does_not_fit_is_refused(subject: Subject, region: Mask, wrong: str) -> None:
    mask = region[:-1] if wrong == "short" else np.zeros_like(region)
    with pytest.raises(InputError, match="does not fit"):
        active(subject, mask, 1.0)
