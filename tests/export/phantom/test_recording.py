"""The phantom in the scanner: an experiment laid out as NSD's, and recordings that are whole or not there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from noise_ceilings import averaged

from unibrain_rt.errors import InputError
from unibrain_rt.export.phantom import recording as module
from unibrain_rt.export.phantom.cortex import LABEL_TABLES, mask, regions
from unibrain_rt.export.phantom.people import SUBJECTS, subject_model
from unibrain_rt.export.phantom.pictures import render
from unibrain_rt.export.phantom.recording import Experiment, record
from unibrain_rt.export.phantom.scenes import split
from unibrain_rt.export.phantom.simulated_subjects import responses
from unibrain_rt.export.subjects.datasets import nsd
from unibrain_rt.export.subjects.datasets.nsd import read_nsd

nibabel = pytest.importorskip("nibabel")

Run = Callable[..., Any]


def test_an_experiment_is_laid_out_as_nsds() -> None:
    experiment = Experiment.of(tuple(SUBJECTS), 500)
    assert len(experiment.shared) == 50
    every = np.concatenate([experiment.shared, *experiment.own.values()])
    np.testing.assert_array_equal(np.sort(every), np.arange(experiment.stimuli))
    assert experiment.stimuli == 50 + 450 * len(SUBJECTS)
    np.testing.assert_array_equal(np.bincount(experiment.order), np.full(500, 3))
    assert np.abs(np.diff(experiment.order)).mean() > 100  # shuffled
    for numbers, shown, who in experiment.sets():
        assert len(numbers) == len(shown)
        assert {split(scene) for scene in shown} == ({"test"} if who == tuple(SUBJECTS) else {"train"})
    first, second = experiment.sets()[1][1][:5], experiment.sets()[2][1][:5]
    assert first != second
    again = Experiment.of(tuple(SUBJECTS), 500)
    np.testing.assert_array_equal(again.order, experiment.order)


@pytest.mark.parametrize("count", [1, 249, 300, 760])
def test_sessions_have_to_be_full(count: int) -> None:
    with pytest.raises(InputError, match="choose a multiple of 250, such as (250|750)"):
        Experiment.of(("sub-01",), count)


def test_betas_are_the_subjects_answers_with_noise(recording: Path) -> None:
    model = subject_model("sub-07")
    data = read_nsd(recording, "sub-07")
    experiment = Experiment.of(("sub-02", "sub-07"), 250)
    numbers, shown, _ = next(part for part in experiment.sets() if part[2] == ("sub-07",))
    np.testing.assert_array_equal(data.groups, numbers)
    pictures = data.stimuli.images(64)
    np.testing.assert_array_equal(pictures[11], render(shown[11], 64))
    signal = responses(model, pictures, shown)
    noise = data.betas - signal
    # Three trials were averaged; rounding to 1/300 adds next to nothing.
    np.testing.assert_allclose(noise.std(axis=0, ddof=1) / (model.noise_sd / np.sqrt(3)), 1, atol=0.25)
    assert abs((noise.mean(axis=0) / model.noise_sd).mean()) < 0.05
    visual = model.region != ""
    found = np.array([np.corrcoef(signal[:, v], data.betas[:, v])[0, 1] ** 2 for v in np.flatnonzero(visual)])
    np.testing.assert_allclose(found.mean(), averaged(model.noise_ceiling, 3)[visual].mean(), atol=0.05)


def test_masks_and_regions_are_the_cortexs(recording: Path) -> None:
    model = subject_model("sub-02")
    data = read_nsd(recording, "sub-02", "test")
    np.testing.assert_array_equal(data.mask, mask(model))
    expected = regions(model)
    for region, inside in data.rois.items():
        np.testing.assert_array_equal(inside, expected[region])
    assert set(expected) - set(data.rois) == {"LO", ""}
    for name, table in LABEL_TABLES.items():
        path = recording / "nsddata" / "freesurfer" / "subj02" / "label" / f"{name}.mgz.ctab"
        assert dict(line.split(" ") for line in path.read_text().splitlines()) == {
            str(k): v for k, v in table.items()
        }


def test_stored_as_nsd_stores(recording: Path) -> None:
    image = nibabel.load(nsd.betas_folder(recording, 2) / "betas_session01.nii.gz")
    assert image.get_data_dtype() == np.int16
    assert image.shape[3] == 750
    assert image.header.get_zooms()[:3] == pytest.approx((1.8, 1.8, 1.8))
    annotations = json.loads((recording / nsd.ANNOTATIONS / "captions_train2017.json").read_text())[
        "annotations"
    ]
    assert len(annotations) == 2 * 225 * 5
    assert len({entry["id"] for entry in annotations}) == len(annotations)


# --- the command --------------------------------------------------------------------------------------------


def test_a_recording_by_the_command_is_the_same_again(cli: Run, recording: Path, tmp_path: Path) -> None:
    done = cli(
        "phantom",
        "scan",
        "--out",
        tmp_path / "r",
        "--subject",
        "sub-02",
        "--subject",
        "sub-07",
        "--scans",
        250,
    )
    assert done.code == 0, done.err
    assert "sub-07 scanned: session 1 of 1" in done.err
    first, second = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (recording, tmp_path / "r")
    )
    assert first.keys() == second.keys()
    dated = {nsd.DESIGN}  # MATLAB's format has the time of writing in its header
    assert {path for path in first if first[path] != second[path]} <= dated
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--scans", "300"), "300 stimuli 3 times do not fill sessions of 750 trials"),
        (("--subject", "sub-99"), "no subject 'sub-99' in the phantom"),
        (("--out", "there"), "there: exists already"),
        (("--out", "there", "--overwrite"), "there: exists and holds no nsddata"),
        (("--out", "there/file/r"), "cannot be written"),
    ],
)
def test_bad_recordings_are_refused(
    cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("keep")
    done = cli("phantom", "scan", "--out", "r", "--scans", "250", *words)
    assert done.code == 2
    assert len(done.complaints) == 1
    assert problem in done.err
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["there", "there/file"]


def test_an_interrupted_recording_leaves_the_old_one(
    recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "r" / "nsddata").mkdir(parents=True)

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_show", interrupted)
    with pytest.raises(KeyboardInterrupt):
        record(tmp_path / "r", ("sub-02",), 250, overwrite=True)
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["r", "r/nsddata"]
