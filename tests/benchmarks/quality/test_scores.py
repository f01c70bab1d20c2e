from __future__ import annotations

import json
from typing import ClassVar

import numpy as np
import pytest

from unibrain_rt.benchmarks.quality.image_measures import pixel_correlation, two_way_identification
from unibrain_rt.benchmarks.quality.intervals import difference, interval
from unibrain_rt.benchmarks.quality.scores import (
    METRICS,
    CaptionJudge,
    ImageJudge,
    Metric,
    Scores,
)
from unibrain_rt.bundle import Bundle
from unibrain_rt.engines import Engine
from unibrain_rt.export.judges.features import clip_extractor
from unibrain_rt.export.phantom.phrases import captions
from unibrain_rt.export.phantom.scenes import Scene


class Means:
    """An extractor of mean colours, compared by distance."""

    name = "Means"
    measure = "distance"
    provenance: ClassVar[dict[str, str]] = {}

    def __init__(self) -> None:
        self.seen = 0

    def features(self, images: np.ndarray) -> np.ndarray:
        self.seen += len(images)
        return images.mean(axis=(1, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def noisy(pictures: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 40, pictures.shape)
    return np.clip(pictures + noise, 0, 255).astype(np.uint8)


def test_image_scores_are_the_measures(
    bundle: Bundle, engine: Engine, pictures: np.ndarray, noisy: np.ndarray
) -> None:
    clip = clip_extractor(bundle, engine)
    found = ImageJudge(pictures, [clip, Means()]).score(noisy)
    assert list(found.values) == ["PixCorr", "SSIM", "Pixels", "CLIP", "Means"]
    assert len(found) == len(pictures)
    np.testing.assert_array_equal(found["PixCorr"], pixel_correlation(noisy, pictures))
    expected = two_way_identification(clip.features(noisy), clip.features(pictures))
    np.testing.assert_array_equal(found["CLIP"], expected)
    assert found["Pixels"].mean() > 0.9
    assert not found.metrics["Means"].higher_is_better
    assert found.metrics["CLIP"].chance == 0.5
    perfect = ImageJudge(pictures, [clip]).score(pictures)
    assert {name: round(float(values.mean()), 3) for name, values in perfect.values.items()} == {
        "PixCorr": 1.0,
        "SSIM": 1.0,
        "Pixels": 1.0,
        "CLIP": 1.0,
    }


def test_a_judge_takes_the_stimulis_features_once(pictures: np.ndarray, noisy: np.ndarray) -> None:
    means = Means()
    judge = ImageJudge(pictures, [means])
    judge.score(noisy)
    judge.score(noisy)
    assert means.seen == 3 * len(pictures)
    with pytest.raises(ValueError, match="3 images, but 24 stimuli"):
        judge.score(noisy[:3])


def test_decodes_of_another_size_are_compared_all_the_same(pictures: np.ndarray) -> None:
    large = pictures.repeat(2, axis=1).repeat(2, axis=2)
    found = ImageJudge(pictures, []).score(large)
    assert found["PixCorr"].min() > 0.97
    assert found["Pixels"].min() == 1.0


def test_caption_scores(bundle: Bundle, engine: Engine, shown: list[Scene]) -> None:
    references = [captions(scene) for scene in shown]
    found = CaptionJudge(references, bundle, engine).score([several[1] for several in references])
    assert list(found.values) == ["METEOR", "ROUGE-1", "ROUGE-L", "BLEU", "CLIP"]
    assert found.notes.keys() == {"meteor_synonyms"}
    assert min(found["ROUGE-L"]) == 1.0
    assert found["CLIP"].mean() > 0.9
    judge = CaptionJudge(references, bundle, engine)
    shuffled = judge.score([several[0] for several in [*references[1:], references[0]]])
    assert abs(shuffled["CLIP"].mean() - 0.5) < 0.2
    assert shuffled.summary()["METEOR"].high < found.summary()["METEOR"].low


@pytest.fixture
def scores() -> Scores:
    values = np.linspace(0, 1, 6)
    return Scores({"CLIP": values, "SwAV": 1 - values})


def test_summaries(scores: Scores) -> None:
    assert scores.summary() == {name: interval(values) for name, values in scores.values.items()}
    groups = ["a", "a", "b", "b", "c", "c"]
    assert scores.summary(groups)["CLIP"] == interval(scores["CLIP"], groups=groups)
    found = scores.by(np.array(["x", "y", "x", "y", "x", "z"]))
    assert list(found) == ["x", "y", "z"]
    assert found["x"]["CLIP"] == interval(scores["CLIP"][[0, 2, 4]])
    assert found["z"]["SwAV"].n == 1
    with pytest.raises(ValueError, match="6 items, but 2 labels"):
        scores.by(["a", "b"])


def test_paired_differences(scores: Scores) -> None:
    other = Scores({"CLIP": scores["CLIP"] - 0.1})
    assert scores.against(other) == {"CLIP": difference(scores["CLIP"], other["CLIP"])}


def test_joined_scores_keep_their_meanings(scores: Scores) -> None:
    own = Scores({"kind": np.ones(6)}, {"kind": Metric("names the kind", chance=0.1)}, {"words": 10})
    both = own.joined(scores)
    assert list(both.values) == ["kind", "CLIP", "SwAV"]
    assert both.metrics["kind"].chance == 0.1
    assert both.notes == {"words": 10}
    with pytest.raises(ValueError, match="both have a measure called CLIP"):
        scores.joined(scores)
    with pytest.raises(ValueError, match="one value an item"):
        scores.joined(Scores({"PixCorr": np.ones(5)}))


def test_records_are_json(scores: Scores) -> None:
    record = json.loads(json.dumps(scores.record(items=True), allow_nan=False))
    assert record["n"] == 6
    assert record["metrics"]["SwAV"]["higher_is_better"] is False
    assert record["metrics"]["CLIP"]["chance"] == 0.5
    assert record["metrics"]["CLIP"]["items"] == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert "items" not in scores.record()["metrics"]["CLIP"]


def test_what_has_no_meaning_is_refused() -> None:
    with pytest.raises(ValueError, match="what taste means"):
        Scores({"taste": np.ones(3)})
    with pytest.raises(ValueError, match="no measure"):
        Scores({})


def test_the_table_tells_direction_and_chance() -> None:
    lower = {name for name, metric in METRICS.items() if not metric.higher_is_better}
    assert lower == {"EffNet-B1", "SwAV"}
    assert {name for name, metric in METRICS.items() if metric.chance == 0.5} == {
        "Pixels", "CLIP", "Alex(2)", "Alex(5)", "Inception",
    }  # fmt: skip
    assert [METRICS[name].arrow for name in ("CLIP", "SwAV")] == ["↑", "↓"]
