from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unibrain_rt.errors import InputError
from unibrain_rt.export.subjects.datasets.dataset import Dataset
from unibrain_rt.export.subjects.datasets.folders import read_betas, read_captions, read_folder

SCANS, SHAPE = 5, (3, 2, 2)
MASK = np.array([1, 0, 1, 1, 1, 0, 1, 1, 0, 1, 0, 1], bool).reshape(SHAPE)
VOXELS = int(MASK.sum())
BETAS = np.random.default_rng(0).normal(size=(SCANS, VOXELS)).astype(np.float32)
STEMS = ["a", "a-b", "b", "c10", "c9"]


def nifti(path: Path, values: Any) -> Path:
    nibabel = pytest.importorskip("nibabel")
    nibabel.save(nibabel.Nifti1Image(np.asarray(values), np.eye(4)), path)
    return path


def picture(number: int, side: int = 8) -> np.ndarray[Any, Any]:
    return np.full((side, side, 3), 20 * number + 5, np.uint8)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Arguments of `read_folder`: betas, images and captions that belong together."""
    np.save(tmp_path / "betas.npy", BETAS)
    (tmp_path / "images").mkdir()
    for number, stem in enumerate(STEMS):
        Image.fromarray(picture(number)).save(tmp_path / "images" / f"{stem}.png")
    captions = {stem: [f"this is {stem}", "something"] for stem in reversed(STEMS)}
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    return {
        "betas": tmp_path / "betas.npy",
        "images": tmp_path / "images",
        "captions": tmp_path / "captions.json",
    }


def read(files: dict[str, Path], **options: Any) -> Dataset:
    return read_folder("me", **files, **options)


def test_scans_pictures_and_captions_go_by_name(files: dict[str, Path]) -> None:
    found = read(files)
    np.testing.assert_array_equal(found.betas, BETAS)
    assert found.captions == tuple((f"this is {stem}", "something") for stem in STEMS)
    assert found.stimuli.images(8)[:, 0, 0, 0].tolist() == [5, 25, 45, 65, 85]
    assert found.stimuli.images(4, [3]).shape == (1, 4, 4, 3)
    assert (found.repeats.tolist(), found.groups.tolist()) == ([1] * SCANS, list(range(SCANS)))
    assert (found.mask, dict(found.rois)) == (None, {})


def test_pictures_that_captions_do_not_name_are_left_out(files: dict[str, Path]) -> None:
    Image.fromarray(picture(9)).save(files["images"] / "aa.jpg")
    (files["images"] / "notes.txt").write_text("no picture")
    assert read(files).stimuli.images(8)[:, 0, 0, 0].tolist() == [5, 25, 45, 65, 85]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("captions.json", json.dumps([f"  scan\n {scan} " for scan in range(SCANS)])),
        ("captions.json", json.dumps([[f"scan {scan}", " "] for scan in range(SCANS)])),
        ("captions.txt", "".join(f"scan  {scan}\n" for scan in range(SCANS))),
    ],
)
def test_captions_in_the_scans_order(files: dict[str, Path], tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    found = read({**files, "captions": tmp_path / name})
    assert found.captions == tuple((f"scan {scan}",) for scan in range(SCANS))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_volumes_are_masked_in_c_order(files: dict[str, Path], tmp_path: Path, suffix: str) -> None:
    volumes = np.full((*SHAPE, SCANS), 7777, np.int16)
    volumes[MASK] = np.rint(BETAS * 300).T
    scans = nifti(tmp_path / f"scans{suffix}", volumes)
    mask = nifti(tmp_path / "mask.nii.gz", MASK.astype(np.uint8))
    regions = tmp_path / "rois"
    regions.mkdir()
    nifti(regions / "floc-places.nii.gz", np.arange(12, dtype=np.int16).reshape(SHAPE) // 6)
    found = read({**files, "betas": scans}, mask=mask, rois=regions)
    np.testing.assert_allclose(found.betas, np.rint(BETAS * 300) / 300, rtol=1e-6)
    np.testing.assert_array_equal(found.rois["places"], np.flatnonzero(MASK) >= 6)
    assert found.mask is not None
    np.testing.assert_array_equal(found.mask, MASK)


def test_stored_int16_becomes_percent(files: dict[str, Path]) -> None:
    np.save(files["betas"], np.full((SCANS, VOXELS), 150, np.int16))
    np.testing.assert_allclose(read(files).betas, 0.5)


def test_a_mask_goes_with_an_array_too(files: dict[str, Path], tmp_path: Path) -> None:
    mask = nifti(tmp_path / "mask.nii", MASK.astype(np.uint8))
    assert read(files, mask=mask).mask is not None
    nifti(mask, np.ones(SHAPE, np.uint8))
    with pytest.raises(InputError, match=r"mask\.nii: 12 voxels inside, but betas\.npy has 8"):
        read(files, mask=mask)


# --- what cannot be read ------------------------------------------------------------------------------------


def _change(name: str, **changes: Any) -> Callable[[dict[str, Path]], None]:
    def change(files: dict[str, Path]) -> None:
        for key, value in changes.items():
            if key == "text":
                files[name].write_text(value)
            elif key == "array":
                np.save(files[name], value, allow_pickle=value.dtype == object)

    return change


def _without(name: str) -> Callable[[dict[str, Path]], None]:
    return lambda files: files.update({name: files[name].with_name(f"no-{files[name].name}")})


def _pickled(files: dict[str, Path]) -> None:
    files["betas"].write_bytes(pickle.dumps(BETAS))


def _same_stem(files: dict[str, Path]) -> None:
    Image.fromarray(picture(1)).save(files["images"] / "a.jpg")


def _no_pictures(files: dict[str, Path]) -> None:
    for path in files["images"].iterdir():
        path.unlink()


BAD: dict[str, tuple[Callable[[dict[str, Path]], None], str]] = {
    "no betas": (_without("betas"), r"no-betas\.npy: no such file"),
    "no pictures' folder": (_without("images"), r"no-images: no such folder"),
    "no captions": (_without("captions"), r"no-captions\.json: cannot be read \(No such file"),
    "objects": (_change("betas", array=np.array([[{}]], object)), "array of Python objects"),
    "a pickle": (_pickled, r"betas\.npy: not a \.npy array"),
    "not finite": (
        _change("betas", array=np.where(np.eye(SCANS, VOXELS) > 0, np.nan, BETAS)),
        r"betas\.npy: scan 0 .* not finite \(1 NaN, of 8\)",
    ),
    "three dimensions": (_change("betas", array=BETAS[None]), "3 dimensions"),
    "whole numbers": (_change("betas", array=np.ones((5, 8), np.int64)), "values of type int64"),
    "no scans": (_change("betas", array=BETAS[:0]), "holds no scan"),
    "fewer scans": (_change("betas", array=BETAS[:4]), r"images: 5 pictures for 4 scans"),
    "of another kind": (
        lambda files: files.update(betas=files["captions"]),
        "give .npy .scans, voxels. or NIfTI",
    ),
    "two of a name": (_same_stem, r"a\.png: and a\.jpg have one name"),
    "an empty folder": (_no_pictures, "no pictures: put what was shown there"),
    "an unknown picture": (_change("captions", text='{"z": "what"}'), "no picture called z"),
    "fewer captions": (_change("captions", text='["a", "b"]'), r"captions\.json: 2 captions for 5 scans"),
    "no JSON": (_change("captions", text="{"), "not valid JSON"),
    "a number": (_change("captions", text="3"), "neither an object nor a list"),
    "numbers": (_change("captions", text="[1, 2]"), "entry 0 is no caption"),
    "nothing said": (_change("captions", text='{"a": [" "]}'), "entry 'a' is empty"),
    "no text": (lambda files: files["captions"].write_bytes(b"\xff\xfe\x00"), "not UTF-8"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_read_is_told_in_one_line(files: dict[str, Path], case: str) -> None:
    change, problem = BAD[case]
    change(files)
    with pytest.raises(InputError, match=problem) as caught:
        read(files)
    assert "\n" not in str(caught.value)


def test_a_mask_is_needed_where_voxels_lie_somewhere(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give --mask"):
        read({**files, "betas": nifti(tmp_path / "scans.nii", np.ones((*SHAPE, SCANS), np.int16))})
    with pytest.raises(InputError, match="regions need the mask"):
        read(files, rois=tmp_path)
    with pytest.raises(InputError, match=r"volume is \(2, 2, 2\), but the mask"):
        read_betas("me", nifti(tmp_path / "small.nii", np.ones((2, 2, 2, SCANS), np.int16)), MASK)


def test_a_picture_that_cannot_be_read_is_named(files: dict[str, Path]) -> None:
    (files["images"] / "b.png").write_bytes(b"no picture")
    found = read(files)
    assert len(found.stimuli.images(4, [0, 1])) == 2
    with pytest.raises(InputError, match=r"b\.png: no picture that can be read"):
        found.stimuli.images(4)


def test_lines_of_text_must_not_be_empty(tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("one\n\nthree\n")
    with pytest.raises(InputError, match="line 2 is empty"):
        read_captions(tmp_path / "captions.txt")
