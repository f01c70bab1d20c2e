"""``unibrain-rt fit`` and ``phantom scan`` through the command line, bad input included."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unibrain_rt.bundle import Bundle
from unibrain_rt.export.subjects.datasets.nsd import betas_folder, read_nsd, roi_folder
from unibrain_rt.flows import INPUTS

nibabel = pytest.importorskip("nibabel")

Run = Callable[..., Any]
SCANS = 24
QUICK = ("--alpha", "300", "--alpha", "3000", "--folds", "3", "--fidelity", "0.9")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def plain(recording: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of a recording's scans as plain files: betas, pictures, captions, mask, regions."""
    folder = tmp_path_factory.mktemp("plain")
    data = read_nsd(recording, "sub-07").select(np.arange(SCANS))
    np.save(folder / "betas.npy", data.betas)
    (folder / "images").mkdir()
    for number, picture in enumerate(data.stimuli.images(64)):
        Image.fromarray(picture).save(folder / "images" / f"{number:03d}.png")
    captions = {f"{number:03d}": list(said) for number, said in enumerate(data.captions)}
    (folder / "captions.json").write_text(json.dumps(captions))
    shutil.copytree(roi_folder(recording, 7), folder / "roi")
    return folder


@pytest.fixture
def files(plain: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(plain, tmp_path / "plain"))


def source(folder: Path) -> tuple[Any, ...]:
    """The options that name plain files."""
    return (
        "--scans",
        folder / "betas.npy",
        "--images",
        folder / "images",
        "--captions",
        folder / "captions.json",
    )


def everything(folder: Path) -> tuple[Any, ...]:
    return (*source(folder), "--mask", folder / "roi" / "nsdgeneral.nii.gz", "--rois", folder / "roi")


@pytest.fixture
def own_bundle(phantom_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the phantom that a fit may change."""
    return Path(shutil.copytree(phantom_bundle, tmp_path / "own"))


# --- what a fit makes ---------------------------------------------------------------------------------------


def test_a_fit_from_nsds_folders_decodes(
    cli: Run, recording: Path, phantom_bundle: Path, tmp_path: Path
) -> None:
    before = contents(phantom_bundle)
    out, told = tmp_path / "bundle", tmp_path / "fit.json"
    done = cli("fit", "--nsd", recording, "--subject", "sub-02", "--out", out, "--alpha", "300", "--folds", "5",
               "--json", told)  # fmt: skip
    assert done.code == 0, done.err
    assert f"{out}: sub-02 fitted on 225 scans of 1,428 voxels" in done.out
    assert "encoded 225 of 225 stimuli" in done.err
    record = json.loads(told.read_text())
    assert (record["subject"], record["scans"], record["trials"], record["voxels"]) == (
        "sub-02",
        225,
        675,
        1428,
    )
    assert set(record["rois"]) >= {"V1v", "hV4", "faces", "words", "places", "bodies"}
    assert set(record["heads"]) == set(INPUTS)
    assert sum(head["fidelity"] for head in record["heads"].values()) / 4 >= 0.998
    for head in record["heads"].values():
        assert head["alpha"] == 300
        assert 0.2 < head["held_out_correlation"] < 1
        assert head["fidelity"] >= 1 - 4 * 0.002
        assert head["rank"] >= 1
    assert set(record["seconds"]) == {"read", "fit", "write", "all"}
    bundle = Bundle.open(out)
    assert "sub-02" in bundle.subjects
    assert bundle.subject("sub-02").rois().keys() == record["rois"].keys()
    assert contents(phantom_bundle) == before

    scan = tmp_path / "scan.npy"
    np.save(scan, read_nsd(recording, "sub-02", "test").betas[0])
    decoded = cli(
        "decode",
        scan,
        "--bundle",
        out,
        "--subject",
        "sub-02",
        "--preset",
        "realtime",
        "--out",
        tmp_path / "r",
    )
    assert decoded.code == 0, decoded.err
    assert (tmp_path / "r" / "scan.png").is_file()


def test_a_subject_fitted_twice_is_the_same_byte_for_byte(cli: Run, plain: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert cli("fit", *everything(plain), "--subject", "me", "--out", tmp_path / name, *QUICK).code == 0
    first, second = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert {
        "subjects/me/subject.json",
        "subjects/me/heads.safetensors",
        "subjects/me/rois.safetensors",
    } <= set(first)
    assert first == second  # the manifests, too
    manifest = json.loads(first["bundle.json"])
    assert "subjects/me/rois.safetensors" in manifest["files"]
    # Again, over itself: the same once more.
    again = ("fit", *everything(plain), "--subject", "me", "--bundle", tmp_path / "a", *QUICK)
    assert cli(*again).code == 2
    assert cli(*again, "--overwrite").code == 0
    assert contents(tmp_path / "a") == second


def test_a_subject_of_plain_files_may_have_no_mask(cli: Run, plain: Path, own_bundle: Path) -> None:
    done = cli("fit", *source(plain), "--subject", "me", "--bundle", own_bundle, *QUICK, "--json")
    assert done.code == 0, done.err
    record = json.loads(done.out)
    assert (record["scans"], record["trials"], record["rois"]) == (SCANS, SCANS, {})
    subject = Bundle.open(own_bundle).subject("me")
    assert subject.voxel_space.mask is None
    assert subject.rois() == {}


def test_options_reach_the_fit(cli: Run, plain: Path, own_bundle: Path) -> None:
    done = cli("fit", *source(plain), "--subject", "me", "--bundle", own_bundle, *QUICK, "--calibration", "none",
               "--exact", "--captions-used", "mean", "--threads", "1", "--json")  # fmt: skip
    assert done.code == 0, done.err
    record = json.loads(done.out)
    assert (record["folds"], record["calibration"], record["captions_used"]) == (3, "none", "mean")
    for head in record["heads"].values():
        assert head["rank"] is None
        assert set(head["alphas"]) == {"300", "3000"}
    assert Bundle.open(own_bundle).subject("me").fitted_on["captions_used"] == "mean"


def test_a_fit_never_imports_torch(plain: Path, tmp_path: Path) -> None:
    words = ["fit", *everything(plain), "--subject", "me", "--out", tmp_path / "out", *QUICK]
    code = f"""
import sys
from unibrain_rt.cli import main
try:
    main({[str(word) for word in words]!r})
except SystemExit as ended:
    assert ended.code == 0
print(sorted({{"torch", "transformers"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_tells_of_both_kinds_of_data(cli: Run) -> None:
    done = cli("fit", "--help")
    assert (done.code, done.err) == (0, "")
    for option in ("--nsd", "--scans", "--images", "--captions", "--single-trials", "--json [FILE]"):
        assert option in done.out


# --- bad input ----------------------------------------------------------------------------------------------


def refused(done: Any, *parts: str, code: int = 2) -> None:
    assert done.code == code, done.err
    assert done.out == ""
    complaint = done.complaints[-1]
    assert complaint.startswith("unibrain-rt: ")
    assert sum(line.startswith("unibrain-rt: ") for line in done.complaints) == 1
    for part in parts:
        assert part in complaint


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ((), "Give either --nsd, or --scans"),
        (("--nsd", "a", "--scans", "b"), "Give either --nsd, or --scans"),
        (("--nsd", "a", "--mask", "b"), "--mask goes with --scans"),
        (("--scans", "a", "--images", "b"), "--scans needs --images and --captions"),
        (("--scans", "a", "--images", "b", "--captions", "c", "--single-trials"), "go with --nsd"),
        (("--nsd", "a"), "Give --out for a copy of the phantom"),
        (("--nsd", "a", "--out", "o", "--alpha", "0"), "--alpha"),
        (("--nsd", "a", "--out", "o", "--alpha", "nan"), "--alpha is a finite number"),
        (("--nsd", "a", "--out", "o", "--folds", "1"), "--folds"),
        (("--nsd", "a", "--out", "o", "--fidelity", "1.5"), "--fidelity"),
        (("--nsd", "a", "--out", "o", "--storage", "int4"), "--storage"),
        (("--nsd", "no-nsd", "--out", "o"), "no-nsd: no such folder"),
        (("--nsd", "a", "--bundle", "no-bundle"), "no-bundle: no such bundle"),
        (("--nsd", "a", "--out", "o", "--engine", "steam"), "unknown engine 'steam'"),
    ],
)
def test_wrong_words(
    cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(cli("fit", "--subject", "me1", *words), problem, code=3 if "engine" in problem else 2)
    assert not list(tmp_path.iterdir())


def _not_finite(folder: Path) -> None:
    betas = np.load(folder / "betas.npy")
    betas[3, 7] = np.inf
    np.save(folder / "betas.npy", betas)


def _another_mask(folder: Path) -> None:
    shape = nibabel.load(folder / "roi" / "nsdgeneral.nii.gz").shape
    nibabel.save(nibabel.Nifti1Image(np.ones(shape, "i2"), np.eye(4)), folder / "roi" / "nsdgeneral.nii.gz")


BAD: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "no pictures' folder": (lambda folder: shutil.rmtree(folder / "images"), ("images: no such folder",)),
    "a caption missing": (
        lambda folder: (folder / "captions.json").write_text(json.dumps(["a cup"] * (SCANS - 1))),
        ("captions.json", "23 captions for 24 scans"),
    ),
    "not finite": (_not_finite, ("betas.npy", "scan 3", "not finite (1 infinite")),
    "a mask of another head": (
        _another_mask,
        ("nsdgeneral.nii.gz", "voxels inside, but betas.npy has 1,268"),
    ),
    "a pickle": (lambda folder: (folder / "betas.npy").write_bytes(pickle.dumps([1])), ("not a .npy array",)),
    "objects": (
        lambda folder: np.save(folder / "betas.npy", np.array([[{}]], object), allow_pickle=True),
        ("would have to be unpickled",),
    ),
    "a region of another head": (
        lambda folder: nibabel.save(
            nibabel.Nifti1Image(np.ones((2, 2, 2), "i2"), np.eye(4)), folder / "roi" / "floc-faces.nii.gz"
        ),
        ("(2, 2, 2) voxels, but the mask is",),
    ),
    "a picture of nothing": (
        lambda folder: (folder / "images" / "020.png").write_bytes(b"nothing"),
        ("020.png", "no picture that can be read"),
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_and_leave_nothing(cli: Run, files: Path, own_bundle: Path, case: str) -> None:
    change, parts = BAD[case]
    change(files)
    before = contents(own_bundle)
    refused(cli("fit", *everything(files), "--subject", "me", "--bundle", own_bundle, *QUICK), *parts)
    assert contents(own_bundle) == before
    refused(cli("fit", *everything(files), "--subject", "me", "--out", files / "out", *QUICK), *parts)
    assert not list(files.glob("*out*"))


def test_a_session_with_too_few_trials_is_refused(cli: Run, recording: Path, tmp_path: Path) -> None:
    nsd = tmp_path / "nsd"
    shutil.copytree(recording, nsd)
    path = betas_folder(nsd, 2) / "betas_session01.nii.gz"
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj)[..., :10], image.affine), path)
    done = cli("fit", "--nsd", nsd, "--subject", "sub-02", "--out", tmp_path / "out")
    refused(done, "betas_session01.nii.gz: 10 trials, but a session has 750")
    (betas_folder(nsd, 2) / "betas_session01.nii.gz").unlink()
    refused(
        cli("fit", "--nsd", nsd, "--subject", "sub-02", "--out", tmp_path / "out"), "betas_session01.nii.gz"
    )
    assert not (tmp_path / "out").exists()


def test_an_existing_subject_is_kept(cli: Run, plain: Path, own_bundle: Path) -> None:
    before = contents(own_bundle)
    done = cli("fit", *source(plain), "--subject", "sub-01", "--bundle", own_bundle, *QUICK)
    refused(done, "subject 'sub-01' is in the bundle already", "--overwrite")
    assert contents(own_bundle) == before


def test_the_shipped_phantom_is_never_changed(cli: Run, plain: Path, phantom_bundle: Path) -> None:
    before = contents(phantom_bundle)
    for words in (("--bundle", phantom_bundle), ("--out", phantom_bundle, "--overwrite")):
        refused(
            cli("fit", *source(plain), "--subject", "me", *words, *QUICK),
            "the shipped phantom is never changed",
        )
    assert contents(phantom_bundle) == before


def test_a_copy_does_not_land_on_other_things(
    cli: Run, plain: Path, own_bundle: Path, tmp_path: Path
) -> None:
    words = ("fit", *source(plain), "--subject", "me", *QUICK)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("keep")
    refused(cli(*words, "--out", tmp_path / "mine"), "exists already")
    refused(cli(*words, "--out", tmp_path / "mine", "--overwrite"), "holds no bundle.json")
    refused(cli(*words, "--bundle", own_bundle, "--out", own_bundle / "copy"), "lies in the bundle")
    refused(
        cli("fit", *source(plain), "--subject", "../me", "--out", tmp_path / "o"), "cannot be a folder's name"
    )
    assert contents(tmp_path / "mine") == {"thesis.txt": b"keep"}


def test_a_report_does_not_replace_what_is_read(cli: Run, files: Path, tmp_path: Path) -> None:
    captions = (files / "captions.json").read_bytes()
    words = (
        "fit",
        *source(files),
        "--subject",
        "me",
        "--out",
        tmp_path / "o",
        "--json",
        files / "captions.json",
    )
    refused(cli(*words), "is among the files to read")
    assert (files / "captions.json").read_bytes() == captions


def test_a_bundle_without_vocabularies_cannot_be_fitted(cli: Run, tiny_bundle: Path, plain: Path) -> None:
    refused(cli("fit", *source(plain), "--subject", "me", "--bundle", tiny_bundle), "no tokenizers/clip")


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize("moment", ["encoded", "writing"])
def test_a_killed_fit_leaves_the_bundle_as_it_was(
    plain: Path, own_bundle: Path, tmp_path: Path, moment: str
) -> None:
    before = contents(own_bundle)
    words = ["fit", *source(plain), "--subject", "sub-01", "--bundle", own_bundle, "--overwrite", *QUICK]
    process = subprocess.Popen(
        [sys.executable, "-m", "unibrain_rt", *map(str, words)],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(moment):
            time.sleep(0.02)
            os.kill(process.pid, signal.SIGKILL)
            break
    process.wait()
    if process.returncode == 0:  # it was quicker than we were
        assert Bundle.open(own_bundle).subject("sub-01").fitted_on["scans"] == SCANS
        return
    assert process.returncode == -signal.SIGKILL
    after = contents(own_bundle)
    assert {name: content for name, content in after.items() if "/." not in name} == before
    assert Bundle.open(own_bundle).subject("sub-01").fitted_on["scans"] > SCANS
