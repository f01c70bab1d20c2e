from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unibrain_rt.errors import InputError
from unibrain_rt.export.subjects.datasets.volumes import VISUAL_AREAS, read_mask, read_rois, read_volume

nibabel = pytest.importorskip("nibabel")

LABELS = np.arange(24).reshape(4, 3, 2) % 9 - 1  # -1 ... 7
MASK = LABELS >= 0


def save(path: Path, values: object, kind: str = "i2") -> Path:
    nibabel.save(nibabel.Nifti1Image(np.asarray(values).astype(kind), np.eye(4)), path)
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", ["u1", "i2", "i4", "f4", "f8"])
def test_a_mask_is_what_is_above_zero(tmp_path: Path, suffix: str, kind: str) -> None:
    path = save(tmp_path / f"mask{suffix}", np.where(MASK, 1, 0 if kind == "u1" else -1), kind)
    found = read_mask(path)
    assert found.dtype == np.bool_
    np.testing.assert_array_equal(found, MASK)


def test_a_last_axis_of_one_is_no_dimension(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_volume(save(tmp_path / "v.nii", LABELS[..., None])), LABELS)


def test_regions_are_those_of_nsds_labels(tmp_path: Path) -> None:
    save(tmp_path / "prf-visualrois.nii.gz", LABELS)
    save(tmp_path / "floc-faces.nii", np.where(LABELS > 5, 2, 0))
    rois = read_rois(tmp_path, MASK)
    assert list(rois) == [*VISUAL_AREAS, "faces"]
    for label, area in enumerate(VISUAL_AREAS, start=1):
        np.testing.assert_array_equal(rois[area], LABELS[MASK] == label)
    np.testing.assert_array_equal(rois["faces"], LABELS[MASK] > 5)


def test_regions_outside_the_mask_are_left_out(tmp_path: Path) -> None:
    save(tmp_path / "prf-visualrois.nii.gz", LABELS)
    inside = LABELS == 3
    assert {name: member.tolist() for name, member in read_rois(tmp_path, inside).items()} == {
        "V2v": [True] * int(inside.sum())
    }


def test_bad_regions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        read_rois(tmp_path / "none", MASK)
    with pytest.raises(InputError, match=r"no region files: put NSD's prf-visualrois, floc-faces"):
        read_rois(tmp_path, MASK)
    save(tmp_path / "floc-words.nii.gz", LABELS[:2])
    with pytest.raises(InputError, match=r"\(2, 3, 2\) voxels, but the mask is \(4, 3, 2\)"):
        read_rois(tmp_path, MASK)
    with pytest.raises(InputError, match=r"prf-visualrois\.nii\.gz: no such file"):
        read_rois(tmp_path, MASK, every=True)


def test_bad_volumes_are_refused(tmp_path: Path) -> None:
    def refused(path: Path, problem: str) -> None:
        with pytest.raises(InputError, match=problem) as caught:
            read_mask(path)
        assert "\n" not in str(caught.value)
        assert path.name in str(caught.value)

    refused(tmp_path / "none.nii", "no such file")
    (tmp_path / "text.nii.gz").write_text("no volume")
    refused(tmp_path / "text.nii.gz", "damaged, or no NIfTI")
    whole = save(tmp_path / "whole.nii.gz", LABELS).read_bytes()
    (tmp_path / "half.nii.gz").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / "half.nii.gz", "damaged, or no NIfTI")
    refused(save(tmp_path / "four.nii", np.ones((2, 2, 2, 2))), r"masks and regions are \(x, y, z\)")
    refused(save(tmp_path / "empty.nii", np.zeros((2, 2, 2))), "no voxel is above 0")
    refused(save(tmp_path / "nan.nii", np.full((2, 2, 2), np.nan), "f4"), "not all finite")
