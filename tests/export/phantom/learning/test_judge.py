from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from unibrain_rt.benchmarks.experiments.report import shipped_judge
from unibrain_rt.engines import create_engine
from unibrain_rt.export.judges.features import FeatureFile, network_extractor
from unibrain_rt.export.phantom.learning.judge import FEATURES, SIDE, JudgeLearner, write_judge
from unibrain_rt.export.phantom.scenes import FACTORS, KINDS, scenes


def test_losses_are_a_function_of_the_generator_and_every_part_learns() -> None:
    torch.manual_seed(0)
    learner = JudgeLearner(count=16, batch=8)
    first, second, other = (learner.loss(np.random.default_rng(seed), 0) for seed in (1, 1, 2))
    assert float(first.detach()) == float(second.detach()) != float(other.detach())
    first.backward()
    assert all(value.grad is not None and value.grad.abs().max() > 0 for value in learner.parameters())
    assert set(learner.labels) == set(FACTORS)


def test_the_written_network_gives_the_judge_s_features(tmp_path: Path) -> None:
    torch.manual_seed(0)
    learner = JudgeLearner(count=5, batch=2)
    path = write_judge(tmp_path, learner.judge.eval())
    extractor = network_extractor(FeatureFile.load(path), create_engine(threads=1))
    images = learner.pictures.permute(0, 2, 3, 1).numpy()
    found = extractor.features(images)
    assert found.shape == (5, FEATURES)
    with torch.no_grad():
        wanted = learner.judge(learner.pictures.float() / 255).numpy()
    # Weights are stored in half precision.
    assert np.linalg.norm(found - wanted) < 5e-3 * np.linalg.norm(wanted)


def test_the_shipped_judge_tells_kinds_of_held_out_scenes_apart() -> None:
    from unibrain_rt.export.phantom.pictures import stimuli

    shown = scenes("test", 120, 9)
    file = FeatureFile.load(shipped_judge())
    assert file.side == SIDE
    features = network_extractor(file, create_engine(threads=1)).features(stimuli(shown, SIDE))
    kinds = np.array([KINDS.index(scene.kind) for scene in shown])
    # The nearest other picture is of the same kind far more often than one time in ten.
    distances = np.linalg.norm(features[:, None] - features[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (kinds[distances.argmin(axis=1)] == kinds).mean() > 0.5
