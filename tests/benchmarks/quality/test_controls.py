from __future__ import annotations

import numpy as np
import pytest

from unibrain_rt.benchmarks.quality.controls import CONTROLS, mean, noise, shuffled
from unibrain_rt.bundle import Bundle
from unibrain_rt.subject import Subject


@pytest.fixture(scope="module")
def subject(bundle: Bundle) -> Subject:
    return bundle.subject(bundle.subjects[0])


@pytest.fixture(scope="module")
def betas(subject: Subject) -> np.ndarray:
    z = np.random.default_rng(0).normal(size=(40, subject.voxels)) * 2 + 1
    return (subject.voxel_mean + subject.voxel_std * z).astype(np.float32)


def z_scores(subject: Subject, scans: np.ndarray) -> np.ndarray:
    return (scans - subject.voxel_mean) / np.where(subject.voxel_std > 0, subject.voxel_std, 1)


def test_shuffling_keeps_every_scans_values_and_loses_their_places(
    subject: Subject, betas: np.ndarray
) -> None:
    found, given = z_scores(subject, shuffled(subject, betas)), z_scores(subject, betas)
    np.testing.assert_allclose(np.sort(found, axis=1), np.sort(given, axis=1), atol=2e-3)
    assert abs(np.corrcoef(found[0], given[0])[0, 1]) < 0.1
    # Every scan is shuffled anew: were it one permutation, scans would keep their likeness.
    twice = shuffled(subject, np.repeat(betas[:1], 2, axis=0))
    assert abs(np.corrcoef(*z_scores(subject, twice))[0, 1]) < 0.1


def test_noise_has_the_voxels_statistics(subject: Subject, betas: np.ndarray) -> None:
    z = z_scores(subject, noise(subject, betas))
    assert abs(z.mean()) < 0.02
    assert z.std() == pytest.approx(1.0, abs=0.02)
    assert abs(np.corrcoef(z[0], z[1])[0, 1]) < 0.1


def test_the_mean_scan_is_that_of_training(subject: Subject, betas: np.ndarray) -> None:
    np.testing.assert_array_equal(
        mean(subject, betas), np.repeat(subject.voxel_mean[None], len(betas), axis=0)
    )


@pytest.mark.parametrize("name", CONTROLS)
def test_controls_are_scans_that_depend_on_the_seed_alone(
    name: str, subject: Subject, betas: np.ndarray
) -> None:
    make = CONTROLS[name]
    found = make(subject, betas, 5)
    assert found.shape == betas.shape
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, make(subject, betas, 5))
    if name != "mean scan":
        assert not np.array_equal(found, make(subject, betas, 6))
