"""From a dataset to a subject: the targets are the encoders', the ridge is scikit-learn's, the bytes are the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ridge_problem import weight_of

from unibrain_rt.bundle import Bundle
from unibrain_rt.engines import Engine, create_engine
from unibrain_rt.errors import InputError
from unibrain_rt.export.subjects.datasets.dataset import Dataset
from unibrain_rt.export.subjects.datasets.nsd import read_nsd
from unibrain_rt.export.subjects.encoders import TargetEncoder, encode_targets
from unibrain_rt.export.subjects.ridge.journal import Journal
from unibrain_rt.export.subjects.subject_fit import (
    FitOptions,
    encode_dataset,
    fit_dataset,
    work_folder,
    write_fit,
)
from unibrain_rt.flows import INPUTS
from unibrain_rt.subject import Subject

ALPHA = 300.0


@pytest.fixture(scope="module")
def bundle(phantom_bundle: Path) -> Bundle:
    return Bundle.open(phantom_bundle)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return create_engine()


@pytest.fixture(scope="module")
def trials(recording: Path) -> Dataset:
    """Ninety single trials of 30 stimuli."""
    every = read_nsd(recording, "sub-07", average=False)
    wanted = np.unique(every.groups)[:30]
    return every.select(np.flatnonzero(np.isin(every.groups, wanted)))


@pytest.fixture(scope="module")
def encoder(bundle: Bundle, engine: Engine) -> TargetEncoder:
    return TargetEncoder(bundle, engine)


def test_every_trial_gets_the_targets_of_its_stimulus(
    bundle: Bundle, engine: Engine, encoder: TargetEncoder, trials: Dataset
) -> None:
    found = encode_dataset(encoder, trials, Journal())
    said = [phrasings[0] for phrasings in trials.captions]
    expected = encode_targets(bundle, engine, trials.stimuli.images(64), said)
    for head in INPUTS:
        assert found[head].shape == expected[head].shape
        scale = np.abs(expected[head]).max()
        np.testing.assert_allclose(found[head], expected[head], atol=2e-3 * scale)
    # Not one stimulus' targets for another's: the nearest of the expected ones is its own stimulus'.
    flat, other = (values["text_context"].reshape(90, -1) for values in (found, expected))
    nearest = np.square(flat[:, None] - other[None]).sum(axis=2).argmin(axis=1)
    assert [trials.captions[row][0] for row in nearest] == said


def test_text_targets_may_be_means_over_captions(encoder: TargetEncoder, trials: Dataset) -> None:
    few = trials.select(np.arange(4))
    mean = encode_dataset(encoder, few, Journal(), "mean")
    each = [
        encode_dataset(
            encoder,
            Dataset(**{**vars(few), "captions": tuple((said[k],) for said in few.captions)}),
            Journal(),
        )
        for k in range(5)
    ]
    for head in ("text_latent", "text_context"):
        expected = np.mean([found[head] for found in each], axis=0)
        np.testing.assert_allclose(mean[head], expected, rtol=2e-3, atol=5e-3)  # halves
        assert np.abs(mean[head] - each[0][head]).max() > 0.01
    np.testing.assert_array_equal(mean["image_latent"], each[0]["image_latent"])


def test_a_fit_with_a_folder_goes_on_where_it_stood(
    trials: Dataset, tmp_path: Path, bundle: Bundle, engine: Engine
) -> None:
    few, options = trials.select(np.arange(40)), FitOptions(alphas=(ALPHA,))
    in_memory = fit_dataset(bundle, engine, few, Journal(), options)

    def stop(what: str) -> None:
        if what.startswith("factorised"):
            raise KeyboardInterrupt

    work = tmp_path / "work"
    with pytest.raises(KeyboardInterrupt), work_folder(bundle, few, options, work) as journal:
        fit_dataset(bundle, engine, few, journal, options, stop)
    assert np.load(work / "image_context.npy", mmap_mode="r").dtype == np.float16
    told: list[str] = []
    with work_folder(bundle, few, options, work) as journal:
        on_disk = fit_dataset(bundle, engine, few, journal, options, told.append)
        assert not any("encoded" in what for what in told)
        for head in INPUTS:
            np.testing.assert_array_equal(weight_of(on_disk[head]), weight_of(in_memory[head]))
    with pytest.raises(InputError, match="holds another fit"):
        work_folder(bundle, few, FitOptions(alphas=(1.0,)), work).__enter__()


def test_the_ridge_is_that_of_scikit_learn(
    bundle: Bundle, engine: Engine, encoder: TargetEncoder, recording: Path, tmp_path: Path
) -> None:
    """Predictions before calibration, of scans not fitted on, as Ridge has them on z-scored voxels."""
    ridge = pytest.importorskip("sklearn.linear_model").Ridge
    train = read_nsd(recording, "sub-07").select(np.arange(128))
    test = read_nsd(recording, "sub-07", "test")
    options = FitOptions(alphas=(ALPHA,), folds=4, calibration="none", exact=True)
    write_fit(tmp_path / "sub-07", train, fit_dataset(bundle, engine, train, Journal(), options), options)
    found = Subject.open(tmp_path / "sub-07").predict(test.betas)

    targets = encode_dataset(encoder, train, Journal())
    betas, unseen = (data.betas.astype(np.float64) for data in (train, test))
    mean, std = betas.mean(axis=0), betas.std(axis=0, ddof=1)
    for head in INPUTS:
        y = targets[head].reshape(128, -1).astype(np.float64)
        expected = ridge(ALPHA).fit((betas - mean) / std, y).predict((unseen - mean) / std)
        error = np.linalg.norm(found[head].reshape(len(unseen), -1) - expected) / np.linalg.norm(expected)
        change = np.linalg.norm(expected - y.mean(axis=0)) / np.linalg.norm(expected)
        assert error < 1e-4 * change, head


def test_compressed_heads_predict_what_exact_ones_do(
    bundle: Bundle, engine: Engine, recording: Path, tmp_path: Path
) -> None:
    train, test = read_nsd(recording, "sub-07"), read_nsd(recording, "sub-07", "test")
    options = FitOptions(alphas=(3000.0,))
    fits = fit_dataset(bundle, engine, train, Journal(), options)
    found = {}
    for name, exact in (("exact", True), ("int8", False)):
        write_fit(tmp_path / name, train, fits, replace(options, exact=exact))
        found[name] = Subject.open(tmp_path / name).predict(test.betas)
    for head in INPUTS:
        exact, stored = (found[name][head].reshape(len(test.betas), -1) for name in ("exact", "int8"))
        each = [np.corrcoef(exact[:, t], stored[:, t])[0, 1] for t in range(exact.shape[1])]
        assert np.nanmean(each) > 0.998, head


def test_a_stimulus_is_never_trained_on_and_tested_on(
    bundle: Bundle, engine: Engine, trials: Dataset
) -> None:
    """With its trials in several folds, 30 stimuli would be recognised; kept together, they are hard to predict."""
    options = FitOptions(alphas=(ALPHA,), folds=10)
    together = fit_dataset(bundle, engine, trials, Journal(), options)
    scattered = Dataset(**{**vars(trials), "groups": np.arange(trials.scans)})
    leaked = fit_dataset(bundle, engine, scattered, Journal(), options)
    for head in INPUTS:
        assert together[head].mean_correlation < leaked[head].mean_correlation - 0.1


def test_what_a_written_subject_holds(
    bundle: Bundle, engine: Engine, trials: Dataset, tmp_path: Path
) -> None:
    options = FitOptions(alphas=(ALPHA, 3000.0), folds=3, captions_used="first", fidelity=0.9)
    write_fit(tmp_path / "sub-07", trials, fit_dataset(bundle, engine, trials, Journal(), options), options)
    subject = Subject.open(tmp_path / "sub-07")
    assert (subject.name, subject.voxels, subject.beta_scale) == ("sub-07", trials.voxels, 1 / 300)
    assert subject.fitted_on == {
        "scans": 90,
        "stimuli": 30,
        "trials": 90,
        "folds": 3,
        "calibration": "variance",
        "captions_used": "first",
    }
    np.testing.assert_array_equal(subject.voxel_space.mask, trials.mask)
    rois = subject.rois()
    assert set(rois) == set(trials.rois)
    for region, inside in trials.rois.items():
        np.testing.assert_array_equal(rois[region], inside)
    assert 0.9 <= np.mean([head.fidelity or 0 for head in subject.heads.values()]) < 0.95


def test_betas_that_say_nothing_are_refused(bundle: Bundle, engine: Engine, trials: Dataset) -> None:
    silent = Dataset(**{**vars(trials), "betas": np.zeros_like(trials.betas)})
    with pytest.raises(InputError, match="every voxel is constant"):
        fit_dataset(bundle, engine, silent.select(np.arange(6)), Journal(), FitOptions(folds=2))
