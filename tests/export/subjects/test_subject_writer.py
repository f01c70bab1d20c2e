"""Written subjects: read back by the runtime, the same bytes every time, and whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ridge_problem import predicted

from unibrain_rt.errors import InputError
from unibrain_rt.export.subjects import subject_writer
from unibrain_rt.export.subjects.ridge import RidgeFit, fit_heads
from unibrain_rt.export.subjects.subject_writer import write_subject
from unibrain_rt.flows import INPUTS
from unibrain_rt.subject import Subject
from unibrain_rt.subject_files import DESCRIPTION_FILE, GRAPH_FILE, ROI_FILE, TENSOR_FILE
from unibrain_rt.tensor_file import map_tensors

SCANS, VOXELS = 150, 40
SHAPES = {"image_latent": (4, 3, 3), "text_latent": (10,), "image_context": (5, 8), "text_context": (3, 8)}
MASK = np.zeros((5, 4, 3), bool)
MASK.reshape(-1)[np.random.default_rng(0).permutation(60)[:VOXELS]] = True


def data(scans: int = SCANS, seed: int = 0) -> tuple[np.ndarray[Any, Any], dict[str, np.ndarray[Any, Any]]]:
    world = np.random.default_rng(7)
    maps = {name: world.normal(size=(6, int(np.prod(shape)))) for name, shape in SHAPES.items()}
    to_voxels = world.normal(size=(6, VOXELS))
    rng = np.random.default_rng(seed)
    latents = rng.normal(size=(scans, 6))
    targets = {
        name: (latents @ maps[name] + rng.normal(size=(scans, maps[name].shape[1]))).reshape(scans, *shape)
        for name, shape in SHAPES.items()
    }
    return (latents @ to_voxels + 2 * rng.normal(size=(scans, VOXELS))).astype(np.float32), targets


def fitted() -> dict[str, RidgeFit]:
    return fit_heads(*data(), (1.0, 10.0, 100.0, 1000.0))


@pytest.fixture(scope="module")
def fits() -> dict[str, RidgeFit]:
    return fitted()


def write(folder: Path, fits: dict[str, RidgeFit], **options: Any) -> Subject:
    write_subject(folder, "subj01", fits, **{"beta_scale": 1 / 300, "mask": MASK, **options})
    return Subject.open(folder)


@pytest.mark.parametrize(
    ("options", "least"),
    [
        ({}, 0.998),
        ({"storage": "float16"}, 0.998),
        ({"storage": "float32", "fidelity": 0.999}, 0.999),
        ({"fidelity": 0.95}, 0.95),
        ({"storage": "float32", "fidelity": 1.0}, 0.99999),
        ({"exact": True}, 1.0),
    ],
)
def test_the_runtime_predicts_what_was_fitted(
    tmp_path: Path, fits: dict[str, RidgeFit], options: dict[str, Any], least: float
) -> None:
    subject = write(tmp_path / "subjects" / "subj01", fits, **options)
    scans, _ = data(50, seed=1)
    found = subject.predict(scans)
    told = [head.fidelity or 0.0 for head in subject.heads.values()]
    assert np.mean(told) >= least
    assert min(told) >= 1 - 4 * (1 - least)
    for name, fit in fits.items():
        head, expected = subject.heads[name], predicted(fit, scans)
        assert (head.shape, head.alpha) == (SHAPES[name], fit.alpha)
        assert head.held_out_correlation == pytest.approx(fit.mean_correlation, abs=1e-6)
        assert (head.rank is None) == bool(options.get("exact"))
        change = expected - fit.target_mean.reshape(head.shape)
        error = np.square(found[name] - expected).sum() / np.square(change).sum()
        assert error < 2 * (1 - (head.fidelity or 0.0)) + 1e-6
        if least == 1.0:
            np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-4)


def test_what_a_written_subject_tells(tmp_path: Path, fits: dict[str, RidgeFit]) -> None:
    subject = write(tmp_path / "a", fits, provenance={"repeats": 3, "seed": 5}, max_bytes=2800)
    assert (subject.name, subject.voxels, subject.beta_scale) == ("subj01", VOXELS, 1 / 300)
    assert subject.fitted_on == {"scans": SCANS, "repeats": 3, "seed": 5}
    tensors = map_tensors(tmp_path / "a" / TENSOR_FILE)
    assert 2600 < sum(values.nbytes for name, values in tensors.items() if name != "mask") <= 2800
    assert subject.voxel_space.mask is not None
    np.testing.assert_array_equal(subject.voxel_space.mask, MASK)
    assert write(tmp_path / "b", fits, mask=None).voxel_space.mask is None


def test_regions_are_written_beside_the_heads(tmp_path: Path, fits: dict[str, RidgeFit]) -> None:
    rois = {"V1v": np.arange(VOXELS) < 9, "faces": np.arange(VOXELS) % 2}
    found = write(tmp_path / "a", fits, rois=rois).rois()
    assert list(found) == ["V1v", "faces"]
    for region, inside in rois.items():
        np.testing.assert_array_equal(found[region], np.asarray(inside, bool))
    write(tmp_path / "b", fits, rois=dict(reversed(rois.items())))
    assert (tmp_path / "a" / ROI_FILE).read_bytes() == (tmp_path / "b" / ROI_FILE).read_bytes()
    assert write(tmp_path / "c", fits, rois={}).rois() == {}
    assert {path.name for path in (tmp_path / "c").iterdir()} == {DESCRIPTION_FILE, TENSOR_FILE, GRAPH_FILE}


@pytest.mark.parametrize("options", [{}, {"exact": True}, {"storage": "float32"}])
def test_the_same_fit_is_the_same_bytes(
    tmp_path: Path, fits: dict[str, RidgeFit], options: dict[str, Any]
) -> None:
    write(tmp_path / "a", fits, **options, provenance={"x": 1, "y": 2})
    again = dict(reversed(fitted().items()))
    write(tmp_path / "b", again, **options, provenance={"y": 2, "x": 1})
    for file in (DESCRIPTION_FILE, TENSOR_FILE):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    description = json.loads((tmp_path / "a" / DESCRIPTION_FILE).read_text())
    assert list(description) == sorted(description)


def test_constant_targets_and_voxels_are_written(tmp_path: Path) -> None:
    voxels, targets = data()
    voxels[:, 3] = 1.5
    targets["text_latent"] = np.full((SCANS, 10), 2.5)
    subject = write(tmp_path / "a", fit_heads(voxels, targets, (10.0,)))
    np.testing.assert_allclose(subject.predict(voxels[:3])["text_latent"], 2.5)
    assert subject.heads["text_latent"].held_out_correlation == 0.0
    assert subject.heads["text_latent"].rank == 1


def test_others_may_read_the_files(tmp_path: Path, fits: dict[str, RidgeFit]) -> None:
    before = os.umask(0o022)
    try:
        write(tmp_path / "a", fits)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "a").iterdir()}
    assert modes == {DESCRIPTION_FILE: 0o644, TENSOR_FILE: 0o644, GRAPH_FILE: 0o644}
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o755


# --- nothing half-written -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"mask": MASK[..., None]}, "40 voxels in 4 dimensions"),
        ({"mask": np.ones((5, 4, 3), bool)}, "60 voxels in 3 dimensions, but the betas have 40"),
        ({"rois": {"faces": np.ones(3)}}, "region faces is (3,), but there are 40 voxels"),
        ({"fidelity": 2.0}, "fidelity 2.0"),
        ({"beta_scale": 0.0}, "beta scale 0.0"),
        ({"beta_scale": float("inf")}, "beta scale inf"),
    ],
)
def test_what_cannot_be_written_is_refused(
    tmp_path: Path, fits: dict[str, RidgeFit], options: dict[str, Any], part: str
) -> None:
    with pytest.raises(InputError) as caught:
        write(tmp_path / "a", fits, **options)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_values_beyond_half_precision_are_refused(tmp_path: Path) -> None:
    voxels, targets = data()
    targets["text_latent"] = targets["text_latent"] * 1e12
    huge = fit_heads(voxels, targets, (10.0,))
    with pytest.raises(InputError, match=r"text_latent: factors .* do not fit in float16: store float32"):
        write(tmp_path / "a", huge, storage="float16")
    assert not list(tmp_path.iterdir())
    write(tmp_path / "a", huge, storage="float32")


def test_a_subject_is_one_whole_fit(tmp_path: Path, fits: dict[str, RidgeFit]) -> None:
    with pytest.raises(ValueError, match="a subject is one fit of"):
        write(tmp_path / "a", {name: fits[name] for name in INPUTS[:3]})
    with pytest.raises(ValueError, match="a subject is one fit of"):
        write(tmp_path / "a", fits | {"text_latent": fitted()["text_latent"]})
    with pytest.raises(ValueError, match="int8, float16, float32, not int4"):
        write(tmp_path / "a", fits, storage="int4")


def test_what_is_there_stays(tmp_path: Path, fits: dict[str, RidgeFit]) -> None:
    write(tmp_path / "a", fits)
    before = (tmp_path / "a" / TENSOR_FILE).read_bytes()
    with pytest.raises(InputError, match="exists already"):
        write(tmp_path / "a", fits, exact=True)
    assert (tmp_path / "a" / TENSOR_FILE).read_bytes() == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="cannot be written"):
        write(tmp_path / "file" / "a", fits)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "file"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_nothing(
    tmp_path: Path, fits: dict[str, RidgeFit], monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(path: Path, specs: Any) -> Any:
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(subject_writer, "new_tensors", fail)
    with pytest.raises(InputError if isinstance(error, OSError) else KeyboardInterrupt):
        write(tmp_path / "a", fits)
    assert not list(tmp_path.iterdir())
