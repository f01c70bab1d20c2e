"""The judge: a feature network that scores reconstructions and knows nothing of the models that made them.

CLIP guides the decoder, so it cannot be the only judge of what was decoded. This network shares no weights,
no labels and no objective with it: a convolutional classifier of what a scene holds, in pictures that are
blurred, faded and noisy in part, since a judge that only knows clean pictures would see nothing in others.
It learns on scenes of its own, which the decoder's models may or may not have seen; test scenes are held out
from both.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unibrain_rt.bundle import sha256_of
from unibrain_rt.export.bundles.graphs import Graph
from unibrain_rt.export.bundles.trace import export_graph
from unibrain_rt.export.judges.features import INPUT, OUTPUT, FeatureFile
from unibrain_rt.export.phantom.learning.loop import Stage, train
from unibrain_rt.export.phantom.learning.world import normal
from unibrain_rt.export.phantom.pictures import stimuli
from unibrain_rt.export.phantom.scenes import FACTORS, scenes
from unibrain_rt.files import write_json

SIDE = 64
FEATURES = 128
SCENES = 8192
SCENE_SEED = 500_000
STEPS = 2000
# No other factor makes a picture what it is as its kind does.
KIND_WEIGHT = 3.0


class Judge(nn.Module):
    """Pictures (N, 3, 64, 64) in [0, 1] → features (N, 128), from which every factor can be read linearly."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels, wider, stride in ((3, 24, 2), (24, 48, 2), (48, 96, 2), (96, 96, 2), (96, 96, 1)):
            layers += [
                nn.Conv2d(channels, wider, 3, stride=stride, padding=1),
                nn.GroupNorm(8, wider),
                nn.ReLU(),
            ]
        # Where things are is half of a scene: the last map, 4 × 4, is read as a whole and not averaged.
        self.layers = nn.Sequential(*layers, nn.Conv2d(96, 32, 1), nn.ReLU())
        self.features = nn.Linear(16 * 32, FEATURES)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.features(self.layers(2.0 * pictures - 1.0).flatten(1))


class JudgeLearner(nn.Module):
    """Learns to tell every factor of a scene by a linear classifier of its picture's features.

    The picture may be spoiled.
    """

    def __init__(self, count: int = SCENES, batch: int = 64) -> None:
        super().__init__()
        self.judge = Judge()
        self.classifiers = nn.ModuleDict({name: nn.Linear(FEATURES, len(v)) for name, v in FACTORS.items()})
        shown = scenes("train", count, SCENE_SEED)
        self.pictures = torch.from_numpy(stimuli(shown, SIDE)).permute(0, 3, 1, 2).contiguous()
        self.labels = {
            name: torch.tensor([values.index(getattr(scene, name)) for scene in shown])
            for name, values in FACTORS.items()
        }
        self.batch = batch

    def loss(self, rng: np.random.Generator, step: int) -> Tensor:
        index = torch.from_numpy(rng.integers(len(self.pictures), size=self.batch))
        features = F.relu(self.judge(self._spoiled(rng, self.pictures[index].float() / 255)))
        return sum(
            (
                (KIND_WEIGHT if name == "kind" else 1.0)
                * F.cross_entropy(reads(features), self.labels[name][index])
                for name, reads in self.classifiers.items()
            ),
            start=torch.zeros(()),
        )

    @torch.no_grad()
    def _spoiled(self, rng: np.random.Generator, pictures: Tensor) -> Tensor:
        """A batch blurred by one random width, with random contrast and noise a picture."""
        width = float(rng.uniform(0.0, 2.5))
        ticks = torch.arange(-6, 7, dtype=torch.float32)
        kernel = torch.exp(-(ticks**2) / (2 * max(width, 0.05) ** 2))
        kernel = (kernel / kernel.sum()).expand(3, 1, -1)
        padded = F.pad(pictures, (6, 6, 6, 6), mode="replicate")
        blurred = F.conv2d(F.conv2d(padded, kernel[:, :, :, None], groups=3), kernel[:, :, None, :], groups=3)
        each = (len(pictures), 1, 1, 1)
        contrast = torch.from_numpy(rng.uniform(0.6, 1.1, each).astype(np.float32))
        level = torch.from_numpy(rng.uniform(0.0, 0.08, each).astype(np.float32))
        middle = blurred.mean(dim=(1, 2, 3), keepdim=True)
        return middle + contrast * (blurred - middle) + level * normal(rng, blurred.shape)


def train_judge(folder: Path, report: Callable[[str, int, int, float], None], seed: int = 0) -> JudgeLearner:
    """Learn the judge, or load it from ``folder`` if it was learned; apart from all other stages."""
    torch.manual_seed(seed)
    learner = JudgeLearner()
    stage = Stage("judge", learner, learner.loss, STEPS, 2e-3, weight_decay=0.01, average=0.99)
    train(stage, folder, seed + 40, report)
    return learner


def write_judge(folder: Path, judge: Judge) -> Path:
    """The judge as a feature network that ``evaluate`` reads: ``judge.onnx`` and ``judge.json``.

    Returns the JSON file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    graph = Graph("judge", judge, {INPUT: torch.zeros(2, 3, SIDE, SIDE)}, (OUTPUT,), batch=True)
    path = export_graph(graph, folder, "fp32-half-weights")
    file = FeatureFile(
        name="Judge",
        measure="identification",
        graph=path,
        sha256=sha256_of(path),
        side=SIDE,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        shape=(FEATURES,),
        provenance={
            "what": "a classifier of the phantom's scenes, trained apart from the decoder's models",
            "factors": {name: len(values) for name, values in FACTORS.items()},
            "scenes": SCENES,
            "scene_seed": SCENE_SEED,
            "steps": STEPS,
        },
    )
    write_json(folder / "judge.json", file.record())
    return folder / "judge.json"
