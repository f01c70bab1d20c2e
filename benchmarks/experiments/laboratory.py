"""Where the experiments are run: a bundle, its subjects' held-out scans, and what decodes are measured by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.benchmarks.quality.decoding import captions_of, decode_all, pictures_of
from unibrain_rt.benchmarks.quality.scores import CaptionJudge, ImageJudge, Metric, Scores
from unibrain_rt.bundle import Bundle
from unibrain_rt.engines import Engine
from unibrain_rt.export.judges.features import Extractor
from unibrain_rt.export.phantom.people import held_out, subject_model
from unibrain_rt.export.phantom.phrases import captions, colours_named, kinds_named
from unibrain_rt.export.phantom.scenes import COLOURS, KINDS, Scene
from unibrain_rt.export.phantom.simulated_subjects import SubjectModel
from unibrain_rt.pools.decoder_pool import DecoderPool, Request
from unibrain_rt.reconstruction import Reconstruction
from unibrain_rt.subject import Subject

Values = NDArray[np.float64]
KIND, COLOUR = "names kind", "names colour"
METRICS = {
    KIND: Metric(
        f"the caption names the right one of {len(KINDS)} kinds, and no other", chance=1 / len(KINDS)
    ),
    COLOUR: Metric(
        f"the caption names the right one of {len(COLOURS)} colours, and no other", chance=1 / len(COLOURS)
    ),
}


@dataclass(frozen=True, eq=False)
class Participant:
    """One subject and its held-out scans, each the mean of three repeats."""

    subject: Subject
    brain: SubjectModel
    shown: tuple[Scene, ...]
    stimuli: NDArray[np.uint8]  # (N, S, S, 3)
    voxels: NDArray[np.float32]  # (N, V), % signal change

    @property
    def name(self) -> str:
        return self.subject.name

    def __len__(self) -> int:
        return len(self.shown)


@dataclass(frozen=True, eq=False)
class Result:
    """Decodes of one condition, and how their pictures and captions score, scan by scan."""

    decoded: list[Reconstruction]
    images: Scores
    captions: Scores

    @property
    def pictures(self) -> NDArray[np.uint8]:
        """(N, S, S, 3)."""
        return pictures_of(self.decoded)

    @property
    def told(self) -> list[str]:
        return captions_of(self.decoded)


class Yardstick:
    """What decodes of certain scenes are measured by; the scenes' own features are taken once."""

    def __init__(self, lab: Laboratory, shown: Sequence[Scene], stimuli: NDArray[np.uint8]) -> None:
        self._shown = shown
        self._images = ImageJudge(stimuli, lab.extractors)
        self._captions = CaptionJudge([captions(scene) for scene in shown], lab.bundle, lab.engine)

    def measure(self, decoded: list[Reconstruction]) -> Result:
        told = captions_of(decoded)
        named = Scores(
            {KIND: names_kind(told, self._shown), COLOUR: names_colour(told, self._shown)}, METRICS
        )
        return Result(
            decoded, self._images.score(pictures_of(decoded)), named.joined(self._captions.score(told))
        )


@dataclass(frozen=True, eq=False)
class Laboratory:
    """The bundle under test, and the judges: the bundle's own CLIP first, the one trained apart last."""

    bundle: Bundle
    engine: Engine
    extractors: tuple[Extractor, ...]
    preset: str
    pool: DecoderPool
    say: Callable[[str], None]

    @property
    def judge(self) -> Extractor:
        """The feature network that was trained apart from everything the decoder uses."""
        return self.extractors[-1]

    def participant(self, name: str, scans: int) -> Participant:
        """The first ``scans`` held-out scans of a subject; every subject sees the same scenes."""
        size = self.bundle.architecture["autokl"]["image_size"]
        shown, pictures, voxels = held_out(name, scans, size)
        return Participant(self.bundle.subject(name), subject_model(name), tuple(shown), pictures, voxels)

    def decode(self, what: str, requests: Sequence[Request]) -> list[Reconstruction]:
        """Decode all, with a line about every quarter of the way."""
        return decode_all(self.pool, requests, what, self.say)


def names_kind(told: Sequence[str], shown: Sequence[Scene]) -> Values:
    """1 where a caption names the scene's kind and no other, else 0: (N,)."""
    right = [kinds_named(text) == {scene.kind} for text, scene in zip(told, shown, strict=True)]
    return np.array(right, np.float64)


def names_colour(told: Sequence[str], shown: Sequence[Scene]) -> Values:
    """1 where a caption names the scene's colour and no other, else 0: (N,)."""
    right = [colours_named(text) == {scene.colour} for text, scene in zip(told, shown, strict=True)]
    return np.array(right, np.float64)
