"""Simulated subjects: voxels answer to what they should, with the noise they declare."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from noise_ceilings import averaged
from numpy.typing import NDArray

from unibrain_rt.export.phantom import simulated_subjects as subjects
from unibrain_rt.export.phantom.cortex import EARLY, mask
from unibrain_rt.export.phantom.pictures import render, stimuli
from unibrain_rt.export.phantom.scenes import KINDS, Scene, scenes
from unibrain_rt.export.phantom.simulated_subjects import SubjectModel

CATEGORY = {"faces": "face", "words": "word", "places": "place", "bodies": "body"}


@pytest.fixture(scope="module")
def model() -> SubjectModel:
    return subjects.make_subject("subj01", seed=11)


@pytest.fixture(scope="module")
def other() -> SubjectModel:
    """Another brain in a worse scanner."""
    return subjects.make_subject("subj02", seed=12, quality=0.5)


@pytest.fixture(scope="module")
def shown() -> list[Scene]:
    return scenes("test", 500, seed=2)


@pytest.fixture(scope="module")
def pictures(shown: list[Scene]) -> NDArray[np.uint8]:
    return stimuli(shown)


@pytest.fixture(scope="module")
def answers(model: SubjectModel, pictures: NDArray[np.uint8], shown: list[Scene]) -> NDArray[np.float32]:
    return subjects.responses(model, pictures, shown)


@pytest.fixture(scope="module")
def trials(model: SubjectModel, pictures: NDArray[np.uint8], shown: list[Scene]) -> NDArray[np.float64]:
    return subjects.betas(model, pictures, shown, repeats=3, seed=1) / subjects.BETA_SCALE


def test_a_seed_is_a_subject(
    model: SubjectModel, other: SubjectModel, shown: list[Scene], pictures: NDArray[np.uint8]
) -> None:
    again = subjects.make_subject("subj01", seed=11)
    few, seen = shown[:8], pictures[:8]
    trials = subjects.betas(model, seen, few, seed=4)
    np.testing.assert_array_equal(trials, subjects.betas(again, seen, few, seed=4))
    assert not np.array_equal(trials, subjects.betas(model, seen, few, seed=5))
    assert not np.array_equal(subjects.responses(model, seen, few), subjects.responses(other, seen, few))


def test_shapes_and_types(model: SubjectModel, shown: list[Scene], pictures: NDArray[np.uint8]) -> None:
    signal = subjects.responses(model, pictures[:4], shown[:4])
    assert signal.shape == (4, 1200)
    assert signal.dtype == np.float32
    noisy = subjects.betas(model, pictures[:4], shown[:4], repeats=2)
    assert noisy.shape == (4, 2, 1200)
    assert noisy.dtype == np.int16
    assert subjects.responses(model, pictures[:0], []).shape == (0, 1200)
    assert mask(model).sum() == 1200


def test_a_scan_does_not_depend_on_its_neighbours(
    model: SubjectModel, shown: list[Scene], pictures: NDArray[np.uint8], answers: NDArray[np.float32]
) -> None:
    alone = subjects.responses(model, pictures[300:301], shown[300:301])
    np.testing.assert_allclose(alone[0], answers[300], atol=1e-4)


def test_pictures_of_another_size_are_looked_at_alike(model: SubjectModel, shown: list[Scene]) -> None:
    few = shown[:20]
    small = subjects.responses(model, stimuli(few, 64), few)
    large = subjects.responses(model, stimuli(few, 128), few)
    assert np.sqrt(((small - large) ** 2).mean()) < 0.2 * small.std(axis=0).mean()


def test_wrong_input_is_refused(model: SubjectModel, shown: list[Scene], pictures: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="2 pictures but 3 scenes"):
        subjects.responses(model, pictures[:2], shown[:3])
    with pytest.raises(ValueError, match="uint8"):
        subjects.responses(model, pictures[:2].astype(np.float32), shown[:2])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="200"):
        subjects.make_subject("tiny", seed=0, voxels=50)


@pytest.mark.parametrize("region", CATEGORY)
def test_category_regions_prefer_their_kind(
    region: str, model: SubjectModel, shown: list[Scene], answers: NDArray[np.float32]
) -> None:
    kinds = np.array([scene.kind for scene in shown])
    mean = {kind: answers[kinds == kind][:, model.region == region].mean() for kind in KINDS}
    own = mean.pop(CATEGORY[region])
    spread = answers[:, model.region == region].mean(axis=1).std()
    assert own > max(mean.values()) + spread


def test_cross_talk_between_faces_and_bodies(
    model: SubjectModel, shown: list[Scene], answers: NDArray[np.float32]
) -> None:
    kinds = np.array([scene.kind for scene in shown])
    for region, near, far in (
        ("faces", "body", "place"),
        ("bodies", "face", "place"),
        ("places", "car", "ball"),
    ):
        voxels = answers[:, model.region == region]
        assert voxels[kinds == near].mean() > voxels[kinds == far].mean()


def test_object_voxels_tell_the_objects_apart(
    model: SubjectModel, shown: list[Scene], answers: NDArray[np.float32]
) -> None:
    kinds = np.array([scene.kind for scene in shown])
    voxels = answers[:, model.region == "LO"]
    patterns = np.stack([voxels[kinds == kind].mean(axis=0) for kind in KINDS])
    similar = np.corrcoef(patterns - patterns.mean(axis=0))
    assert np.max(similar - 2 * np.eye(len(KINDS))) < 0.9


def test_non_visual_voxels_answer_to_nothing(model: SubjectModel, answers: NDArray[np.float32]) -> None:
    silent = model.region == ""
    assert 0.1 < silent.mean() < 0.3
    np.testing.assert_array_equal(np.ptp(answers[:, silent], axis=0), 0.0)
    assert answers[:, ~silent].std(axis=0).min() > 0.01
    np.testing.assert_array_equal(model.noise_ceiling[silent], 0.0)
    assert model.noise_sd[silent].min() > 0.0


def dot(x: float, y: float) -> NDArray[np.uint8]:
    """A bright checked disc on grey."""
    rows, columns = np.indices((64, 64)) + 0.5
    inside = (columns / 64 - x) ** 2 + (rows / 64 - y) ** 2 < 0.1**2
    checks = np.where((rows // 4 + columns // 4) % 2 == 0, 255, 0)
    return np.repeat(np.where(inside, checks, 128)[..., None], 3, axis=2).astype(np.uint8)


def test_early_visual_voxels_are_retinotopic(model: SubjectModel) -> None:
    any_scene = Scene("ball", "red", "middle", "small", 1, "wall", "bright")
    places = [(x, y) for x in (0.2, 0.35, 0.5, 0.65, 0.8) for y in (0.2, 0.35, 0.5, 0.65, 0.8)]
    seen = np.stack([dot(x, y) for x, y in places])
    answer = subjects.responses(model, seen, [any_scene] * len(seen))
    best = np.array(places)[answer.argmax(axis=0)]
    for region in ("V1v", "V1d", "V2v", "V2d"):
        members = (model.region == region) & (np.abs(model.field[:, :2] - 0.5).max(axis=1) < 0.35)
        error = np.abs(best[members] - model.field[members, :2]).max(axis=1)
        assert np.median(error) < 0.11
        assert (answer[:, members].std(axis=0) > 0.05).mean() > 0.9


def test_moving_a_thing_moves_the_response_of_v1(model: SubjectModel) -> None:
    """A ball on the left is seen by voxels that look to the left, which lie in the right hemisphere."""
    left = Scene("ball", "red", "left", "small", 1, "wall", "bright")
    pair = [left, replace(left, position="right")]
    gain = np.subtract(*subjects.responses(model, stimuli(pair), pair))
    v1 = np.isin(model.region, ("V1v", "V1d"))
    x = model.field[:, 0]
    assert gain[v1 & (x < 0.35)].mean() > 0.1
    assert gain[v1 & (x > 0.65)].mean() < -0.1
    assert np.all(model.places[v1 & (x < 0.5), 0] >= model.shape[0] // 2)


def test_early_voxels_see_colour(model: SubjectModel) -> None:
    ball = Scene("ball", "red", "middle", "large", 1, "wall", "bright")
    pair = [ball, replace(ball, colour="blue")]
    change = np.abs(np.subtract(*subjects.responses(model, stimuli(pair), pair)))
    assert np.median(change[model.region == "hV4"]) > 0.1


def test_empirical_noise_ceilings_match_the_declared(
    model: SubjectModel, answers: NDArray[np.float32], trials: NDArray[np.float64]
) -> None:
    visual = model.region != ""
    noise = trials.var(axis=1, ddof=1).mean(axis=0)
    np.testing.assert_allclose(np.sqrt(noise), model.noise_sd, rtol=0.15)
    # As NSD estimates it: the variance of the averages, less what noise adds to it.
    signal = np.maximum(trials.mean(axis=1).var(axis=0, ddof=1) - noise / 3, 0.0)
    found = signal / (signal + noise)
    assert np.corrcoef(found[visual], model.noise_ceiling[visual])[0, 1] > 0.95
    assert abs(np.mean(found[visual] - model.noise_ceiling[visual])) < 0.01
    assert found[~visual].mean() < 0.03
    three = signal / (signal + noise / 3)
    assert abs(np.median(three[visual] - averaged(model.noise_ceiling, 3)[visual])) < 0.03


def test_quality_scales_the_ceilings(model: SubjectModel, other: SubjectModel) -> None:
    assert np.median(averaged(other.noise_ceiling, 3)) < 0.7 * np.median(averaged(model.noise_ceiling, 3))


def test_noise_is_shared_in_part(
    model: SubjectModel, answers: NDArray[np.float32], trials: NDArray[np.float64]
) -> None:
    noise = (trials - answers[:, None, :]).reshape(-1, model.voxels)
    together = np.corrcoef(noise[:, ::10].T)
    pairs = together[np.triu_indices(len(together), 1)]
    assert 0.05 < pairs.mean() < 0.3
    power = np.linalg.eigvalsh(together)[::-1]
    assert power[0] / power.sum() > 0.08
    # Trials of one stimulus share no noise.
    first, second = noise[0::3, ::10].ravel(), noise[1::3, ::10].ravel()
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.05


def test_percent_signal_change_is_plausible(trials: NDArray[np.float64]) -> None:
    assert np.abs(trials).max() < 30.0
    assert 0.8 < np.median(trials.reshape(-1, trials.shape[2]).std(axis=0)) < 3.0


def test_early_vision_sees_the_picture_and_category_regions_the_scene(model: SubjectModel) -> None:
    face = Scene("face", "red", "middle", "large", 1, "wall", "bright")
    word = replace(face, kind="word")
    seen = np.stack([render(face), render(face)])
    answer = subjects.responses(model, seen, [face, word])
    change = np.abs(answer[0] - answer[1])
    assert change[np.isin(model.region, EARLY)].max() < 1e-4
    assert change[model.region == "faces"].mean() > 0.5
