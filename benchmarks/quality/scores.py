"""The measures of a set of decodes, item by item, and what each measure means."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.benchmarks.quality import caption_measures as texts
from unibrain_rt.benchmarks.quality.image_measures import (
    correlation_distance,
    pixel_correlation,
    structure,
    two_way_identification,
)
from unibrain_rt.benchmarks.quality.intervals import Interval, difference, interval
from unibrain_rt.bundle import Bundle
from unibrain_rt.engines import Engine
from unibrain_rt.export.judges.features import Extractor, Measure

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Metric:
    """What a measure's values mean. ``chance`` is None where only a control can tell it."""

    about: str
    higher_is_better: bool = True
    chance: float | None = None

    @property
    def arrow(self) -> str:
        return "↑" if self.higher_is_better else "↓"


_NETWORKS: dict[Measure, Metric] = {
    "identification": Metric("two-way identification by the network's features", chance=0.5),
    "distance": Metric("correlation distance of the network's features", higher_is_better=False),
}
METRICS: dict[str, Metric] = {
    "PixCorr": Metric("Pearson's correlation of all pixels, at 425 x 425"),
    "SSIM": Metric("structural similarity in grey, at 425 x 425"),
    "Pixels": Metric("two-way identification by all pixels", chance=0.5),
    "CLIP": Metric("two-way identification by CLIP", chance=0.5),
    **dict.fromkeys(("Alex(2)", "Alex(5)", "Inception"), _NETWORKS["identification"]),
    **dict.fromkeys(("EffNet-B1", "SwAV"), _NETWORKS["distance"]),
    "METEOR": Metric("METEOR, best of the stimulus' captions"),
    "ROUGE-1": Metric("F1 of shared words, best of the stimulus' captions"),
    "ROUGE-L": Metric("F1 of the longest common subsequence, best of the stimulus' captions"),
    "BLEU": Metric("BLEU-4 of the sentence, smoothed, against all of the stimulus' captions"),
}
"""The measures by name; a feature network of another name means what its ``measure`` does."""


@dataclass(frozen=True, eq=False)
class Scores:
    """Values (N,) of each measure, of N items in one order."""

    values: Mapping[str, Float]
    metrics: Mapping[str, Metric] = field(default_factory=lambda: METRICS)
    notes: Mapping[str, Any] = field(default_factory=dict)
    """What a reader has to know of how they came about, such as ``meteor_synonyms``."""

    def __post_init__(self) -> None:
        lengths = {name: len(values) for name, values in self.values.items()}
        if not lengths or len(set(lengths.values())) > 1:
            raise ValueError(f"every measure needs one value an item, found {lengths or 'no measure'}")
        if unknown := self.values.keys() - self.metrics.keys():
            raise ValueError(f"no word on what {sorted(unknown)[0]} means")

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))

    def __getitem__(self, name: str) -> Float:
        return self.values[name]

    def summary(self, groups: Sequence[Hashable] | NDArray[Any] | None = None) -> dict[str, Interval]:
        """Mean and interval of every measure; ``groups`` as in `intervals.interval`.

        Items are drawn as if independent. In two-way identification they are compared with each other, so its
        intervals are a little too narrow.
        """
        return {name: interval(values, groups=groups) for name, values in self.values.items()}

    def by(self, labels: Sequence[Hashable] | NDArray[Any]) -> dict[Any, dict[str, Interval]]:
        """The summary of each label's items, in the order of labels' first items. ``labels`` are (N,).

        The others that two-way identification compares an item with stay those of the whole set.
        """
        if len(labels) != len(self):
            raise ValueError(f"{len(self)} items, but {len(labels)} labels")
        plain = [label.item() if isinstance(label, np.generic) else label for label in labels]
        by_label = {}
        for label in dict.fromkeys(plain):
            rows = np.array([other == label for other in plain])
            by_label[label] = {name: interval(values[rows]) for name, values in self.values.items()}
        return by_label

    def against(self, other: Scores) -> dict[str, Interval]:
        """Mean and interval of the paired difference to ``other``'s values of the same items, measure by measure."""
        return {
            name: difference(values, other.values[name])
            for name, values in self.values.items()
            if name in other.values
        }

    def joined(self, other: Scores) -> Scores:
        """These measures and ``other``'s of the same items.

        Raises:
            ValueError: both have a measure of one name, or numbers of items differ.
        """
        if twice := self.values.keys() & other.values.keys():
            raise ValueError(f"both have a measure called {sorted(twice)[0]}")
        return Scores(
            {**self.values, **other.values},
            {**self.metrics, **other.metrics},
            {**self.notes, **other.notes},
        )

    def record(self, *, items: bool = False) -> dict[str, Any]:
        """For JSON: every measure's interval and meaning; with ``items``, its values, too."""
        summary = self.summary()
        return {
            "n": len(self),
            **({"notes": dict(self.notes)} if self.notes else {}),
            "metrics": {
                name: {
                    **summary[name].record(),
                    "higher_is_better": self.metrics[name].higher_is_better,
                    "chance": self.metrics[name].chance,
                    "about": self.metrics[name].about,
                    **({"items": np.round(values, 6).tolist()} if items else {}),
                }
                for name, values in self.values.items()
            },
        }


class ImageJudge:
    """Stimuli (N, H, W, 3) and their features, taken once, that any number of decodes are compared with."""

    def __init__(self, stimuli: NDArray[np.uint8], extractors: Sequence[Extractor]) -> None:
        self._stimuli, self._extractors = stimuli, extractors
        self._features = [extractor.features(stimuli) for extractor in extractors]
        self._metrics = {**METRICS, **{each.name: _NETWORKS[each.measure] for each in extractors}}
        self._metrics["CLIP"] = METRICS["CLIP"]

    def score(self, images: NDArray[np.uint8]) -> Scores:
        """Every measure of reconstructions (N, H, W, 3), in the stimuli's order."""
        if len(images) != len(self._stimuli):
            raise ValueError(f"{len(images)} images, but {len(self._stimuli)} stimuli")
        values = {
            "PixCorr": pixel_correlation(images, self._stimuli),
            "SSIM": structure(images, self._stimuli),
            "Pixels": two_way_identification(*self._same_size(images)),
        }
        for extractor, references in zip(self._extractors, self._features, strict=True):
            compare = (
                two_way_identification if extractor.measure == "identification" else correlation_distance
            )
            values[extractor.name] = compare(extractor.features(images), references)
        return Scores(values, self._metrics)

    def _same_size(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Both at the smaller size of the two: identification by pixels takes all against all."""
        from unibrain_rt.export.subjects.datasets.dataset import resized

        side = min(images.shape[1], self._stimuli.shape[1])
        return resized(images, side), resized(self._stimuli, side)


class CaptionJudge:
    """Captions of stimuli, one or more each, and their features, that any number of decodes are compared with."""

    def __init__(self, references: texts.References, bundle: Bundle, engine: Engine) -> None:
        """Raises `InputError` if the bundle has no vocabulary of CLIP."""
        self._references = references
        self._encode = texts.TextFeatures(bundle, engine)
        self._features = self._encode.mean(references)
        self._synonyms = texts.has_synonyms()

    def score(self, captions: Sequence[str]) -> Scores:
        """Every measure of captions, in the stimuli's order."""
        values = {
            "METEOR": texts.meteor(captions, self._references, synonyms=self._synonyms),
            **texts.rouge(captions, self._references),
            "BLEU": texts.bleu(captions, self._references),
            "CLIP": two_way_identification(self._encode(captions), self._features),
        }
        return Scores(values, METRICS, {"meteor_synonyms": self._synonyms})
