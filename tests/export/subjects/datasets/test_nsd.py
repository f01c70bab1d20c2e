"""NSD's folders, as the phantom writes them: what is read is what was recorded, and what is missing is named."""

from __future__ import annotations

import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unibrain_rt.errors import InputError
from unibrain_rt.export.subjects.datasets.nsd import (
    DESIGN,
    STIMULI,
    STIMULUS_INFO,
    betas_folder,
    read_design,
    read_nsd,
    roi_folder,
    subject_number,
)

h5py = pytest.importorskip("h5py")
nibabel = pytest.importorskip("nibabel")
io = pytest.importorskip("scipy.io")

SESSION = "betas_session01.nii.gz"


@pytest.fixture
def copy(recording: Path, tmp_path: Path) -> Path:
    """A recording to damage: folders of its own, files shared until they are replaced."""
    return Path(
        shutil.copytree(recording, tmp_path / "nsd", copy_function=lambda a, b: Path(b).hardlink_to(a))
    )


def put(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def by_hand(root: Path, number: int) -> dict[str, Any]:
    """What a script of NSD's users would make of the files, with none of our code."""
    design = io.loadmat(root / DESIGN)
    order = design["masterordering"][0].astype(int) - 1
    ids = design["subjectim"][number - 1].astype(int)[order]
    mask = np.asarray(nibabel.load(roi_folder(root, number) / "nsdgeneral.nii.gz").dataobj) > 0
    volumes = np.asarray(nibabel.load(betas_folder(root, number) / SESSION).dataobj)
    faces = np.asarray(nibabel.load(roi_folder(root, number) / "floc-faces.nii.gz").dataobj)
    areas = np.asarray(nibabel.load(roi_folder(root, number) / "prf-visualrois.nii.gz").dataobj)
    with h5py.File(root / STIMULI) as file:
        brick = np.asarray(file["imgBrick"])
    return {
        "ids": ids[:750],
        "shared": design["sharedix"].ravel().astype(int),
        "trials": volumes[mask].T / 300.0,
        "mask": mask,
        "faces": faces[mask] > 0,
        "hV4": areas[mask] == 7,
        "brick": brick,
    }


@pytest.mark.parametrize(("subject", "number"), [("sub-02", 2), ("subj07", 7)])
def test_what_is_read_is_what_a_script_would_read(recording: Path, subject: str, number: int) -> None:
    plain = by_hand(recording, number)
    found = {part: read_nsd(recording, subject, part) for part in ("train", "test")}
    assert {part: data.scans for part, data in found.items()} == {"train": 225, "test": 25}
    np.testing.assert_array_equal(found["test"].groups + 1, np.sort(plain["shared"]))
    for data in found.values():
        assert data.name == subject
        assert data.repeats.tolist() == [3] * data.scans
        np.testing.assert_array_equal(data.mask, plain["mask"])
        np.testing.assert_array_equal(data.rois["faces"], plain["faces"])
        np.testing.assert_array_equal(data.rois["hV4"], plain["hV4"])
        assert list(data.rois) == ["V1v", "V1d", "V2v", "V2d", "V3v", "V3d", "hV4", "faces", "words", "places", "bodies"]  # fmt: skip
        for row in (0, 7, data.scans - 1):
            trials = plain["trials"][plain["ids"] == data.groups[row] + 1]
            assert len(trials) == 3
            np.testing.assert_allclose(data.betas[row], trials.mean(axis=0), rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(data.stimuli.images(64, [3, 1]), plain["brick"][data.groups[[3, 1]]])
    assert not set(found["train"].groups) & set(found["test"].groups)


def test_single_trials_keep_their_stimulus(recording: Path) -> None:
    plain = by_hand(recording, 2)
    found = read_nsd(recording, "sub-02", "test", average=False)
    wanted = np.isin(plain["ids"], plain["shared"])
    np.testing.assert_array_equal(found.groups + 1, plain["ids"][wanted])
    np.testing.assert_allclose(found.betas, plain["trials"][wanted], rtol=1e-5, atol=1e-6)
    assert found.repeats.tolist() == [1] * 75
    averaged = read_nsd(recording, "sub-02", "test")
    first = dict(zip(found.groups.tolist(), found.captions, strict=True))
    assert tuple(first[group] for group in averaged.groups.tolist()) == averaged.captions


def test_captions_are_those_of_the_scene_that_was_shown(recording: Path) -> None:
    from unibrain_rt.export.phantom.phrases import captions
    from unibrain_rt.export.phantom.recording import Experiment

    experiment = Experiment.of(("sub-02", "sub-07"), 250)
    data = read_nsd(recording, "sub-07")
    told = {
        number: captions(scene)
        for numbers, shown, who in experiment.sets()
        if who == ("sub-07",)
        for number, scene in zip(numbers.tolist(), shown, strict=True)
    }
    assert dict(zip(data.groups.tolist(), data.captions, strict=True)) == told


def matlabs(path: Path, volumes: np.ndarray[Any, Any]) -> None:
    """A session as MATLAB writes it: axes the other way round."""
    with h5py.File(path, "w") as file:
        file["betas"] = volumes.transpose(3, 2, 1, 0)


def test_hdf5_holds_the_same_betas(copy: Path) -> None:
    expected = read_nsd(copy, "sub-02").betas
    path = betas_folder(copy, 2) / SESSION
    volumes = np.asarray(nibabel.load(path).dataobj)
    path.unlink()
    matlabs(path.with_name("betas_session01.hdf5"), volumes)
    np.testing.assert_array_equal(read_nsd(copy, "sub-02").betas, expected)
    path.write_bytes(b"not read where there is HDF5")
    np.testing.assert_array_equal(read_nsd(copy, "sub-02").betas, expected)
    path.unlink()
    matlabs(path.with_name("betas_session01.hdf5"), volumes[:-1])
    with pytest.raises(
        InputError, match=r"betas_session01\.hdf5: betas are int16 \(750, .* not int16 or float32"
    ):
        read_nsd(copy, "sub-02")


def two_sessions(root: Path) -> None:
    """Double the design: what was shown in session 1 is shown again, backwards, in session 2."""
    content = io.loadmat(root / DESIGN)
    order = content["masterordering"]
    (root / DESIGN).unlink()
    io.savemat(
        root / DESIGN,
        {
            "masterordering": np.concatenate([order, order[:, ::-1]], axis=1),
            "subjectim": content["subjectim"],
            "sharedix": content["sharedix"],
        },
    )


def test_sessions_that_are_there_are_used_by_their_numbers(copy: Path) -> None:
    once = read_nsd(copy, "sub-02", "test")
    two_sessions(copy)
    path = betas_folder(copy, 2) / SESSION
    image = nibabel.load(path)
    backwards = np.asarray(image.dataobj)[..., ::-1]
    nibabel.save(nibabel.Nifti1Image(backwards, image.affine), path.with_name("betas_session02.nii.gz"))
    both = read_nsd(copy, "sub-02", "test")
    assert both.repeats.tolist() == [6] * 25
    np.testing.assert_allclose(both.betas, once.betas, atol=1e-5)
    path.unlink()
    second = read_nsd(copy, "sub-02", "test")
    assert second.repeats.tolist() == [3] * 25
    np.testing.assert_allclose(second.betas, once.betas, atol=1e-5)


def test_memory_is_stimuli_times_voxels(recording: Path) -> None:
    """Well below one session's volumes, which hold four times as many numbers as lie in the mask."""
    volumes = np.prod(nibabel.load(betas_folder(recording, 2) / SESSION).shape) * 4
    read_nsd(recording, "sub-02", "test")
    tracemalloc.start()
    read_nsd(recording, "sub-02", "test")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < volumes


def test_progress_is_told(recording: Path) -> None:
    said: list[str] = []
    read_nsd(recording, "sub-02", "test", report=said.append)
    assert said == ["session 1 (betas_session01.nii.gz)"]


def test_subjects_are_numbered() -> None:
    assert [subject_number(name) for name in ("subj01", "sub-05", "8", "CSI12")] == [1, 5, 8, 12]
    for name in ("me", "sub-", "sub-00", "sub1x"):
        with pytest.raises(InputError, match="NSD numbers its subjects"):
            subject_number(name)


# --- what is missing or damaged -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "nsddata/ppdata/subj02/func1pt8mm/roi/nsdgeneral.nii.gz",
        "nsddata/ppdata/subj02/func1pt8mm/roi/floc-words.nii.gz",
        str(DESIGN),
        str(STIMULUS_INFO),
        str(STIMULI),
        "nsddata_betas/ppdata/subj02/func1pt8mm/betas_fithrf_GLMdenoise_RR/betas_session01.nii.gz",
        "annotations/captions_train2017.json",
    ],
)
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(InputError) as caught:
        read_nsd(copy, "sub-02")
    assert Path(name).name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_folders_and_subjects_are_named(copy: Path) -> None:
    with pytest.raises(InputError, match=r"none: no such folder"):
        read_nsd(copy / "none", "sub-02")
    with pytest.raises(InputError, match=r"subj03/func1pt8mm/roi/nsdgeneral\.nii\.gz: no such file"):
        read_nsd(copy, "sub-03")


def _short_session(root: Path) -> None:
    path = betas_folder(root, 2) / SESSION
    image = nibabel.load(path)
    volumes = np.asarray(image.dataobj)[..., :700]
    path.unlink()
    nibabel.save(nibabel.Nifti1Image(volumes, image.affine), path)


def _second_session(root: Path) -> None:
    path = betas_folder(root, 2) / SESSION
    shutil.copyfile(path, path.with_name("betas_session02.nii.gz"))


def _stimuli(array: np.ndarray[Any, Any], name: str = "imgBrick") -> Callable[[Path], None]:
    def change(root: Path) -> None:
        (root / STIMULI).unlink()
        with h5py.File(root / STIMULI, "w") as file:
            file[name] = array

    return change


def _design(**content: Any) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        kept = {name: value for name, value in io.loadmat(root / DESIGN).items() if not name.startswith("_")}
        (root / DESIGN).unlink()
        kept.update(content)
        io.savemat(root / DESIGN, {name: value for name, value in kept.items() if value is not None})

    return change


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "too few trials": (_short_session, r"betas_session01\.nii\.gz: 700 trials, but a session has 750"),
    "half a session": (
        lambda root: put(betas_folder(root, 2) / SESSION, (betas_folder(root, 2) / SESSION).read_bytes()[:9000]),
        r"betas_session01\.nii\.gz: .*(truncated|damaged)",
    ),
    "a session too many": (_second_session, "session 2, but the design ends after 750 trials"),
    "few stimuli": (_stimuli(np.zeros((9, 4, 4, 3), np.uint8)), r"nsd_stimuli\.hdf5: 9 pictures, but stimulus"),
    "stimuli of floats": (_stimuli(np.zeros((9, 4, 4, 3), "f4")), "imgBrick is float32"),
    "no brick": (_stimuli(np.zeros((9, 4, 4, 3), np.uint8), "images"), "no HDF5 file with imgBrick"),
    "no HDF5": (lambda root: put(root / STIMULI, b"no HDF5 file"), r"nsd_stimuli\.hdf5: damaged"),
    "no design": (lambda root: put(root / DESIGN, b"no design"), r"nsd_expdesign\.mat: no experiment design"),
    "a design without an order": (_design(masterordering=None), "no experiment design of NSD .*masterordering"),
    "an order beyond the pictures": (_design(masterordering=np.full((1, 750), 251)), "does not fit 250 pictures"),
    "everything shared": (_design(sharedix=np.arange(1, 476)), "no train stimulus in these sessions"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_damaged_is_told_in_one_line(copy: Path, case: str) -> None:
    change, problem = BAD[case]
    change(copy)
    with pytest.raises(InputError, match=problem) as caught:
        list(read_nsd(copy, "sub-02").stimuli.images(64, [0]))
    assert "\n" not in str(caught.value)


def test_a_design_knows_who_was_scanned(recording: Path) -> None:
    with pytest.raises(InputError, match="names no pictures of subject 5"):
        read_design(recording / DESIGN, 5)
    with pytest.raises(InputError, match="7 subjects, but no number 8"):
        read_design(recording / DESIGN, 8)
