"""The experiments themselves: what is decoded, and what is made of it in figures. No page is made here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.benchmarks.experiments.laboratory import (
    Laboratory,
    Participant,
    Result,
    Values,
    Yardstick,
)
from unibrain_rt.benchmarks.quality.ablations import FULL, VARIANTS, Ablation
from unibrain_rt.benchmarks.quality.caption_measures import rouge
from unibrain_rt.benchmarks.quality.controls import CONTROLS
from unibrain_rt.benchmarks.quality.decoding import captions_of, pictures_of
from unibrain_rt.benchmarks.quality.image_measures import pixel_correlation, two_way_identification
from unibrain_rt.benchmarks.quality.regions import active, lesioned, natural_strength
from unibrain_rt.export.judges.features import Extractor
from unibrain_rt.export.phantom.cortex import EARLY, regions
from unibrain_rt.export.phantom.people import scans
from unibrain_rt.export.phantom.phrases import kinds_named
from unibrain_rt.export.phantom.pictures import stimuli
from unibrain_rt.export.phantom.scenes import KINDS, scenes
from unibrain_rt.pools.decoder_pool import Request
from unibrain_rt.reconstruction import Reconstruction

#: Category region -> the kind of thing it prefers.
PREFERRED = {"faces": "face", "words": "word", "places": "place", "bodies": "body"}
ACTIVATIONS = 20  # seeds for each region
CONTROL_SCANS = 100  # chance is known well enough from half as many scans
_REFERENCE_SCANS = 60  # by which an active region's strength is set: of validation scenes
_REFERENCE_SEED = 31
_KNOWN_SCENES = 400  # from which the judge learns what each kind looks like


def full_decodes(
    lab: Laboratory, participants: Sequence[Participant], yardstick: Yardstick
) -> dict[str, Result]:
    """Every held-out scan of every subject, as ``unibrain-rt decode`` does it, by the subject's name."""
    return {
        participant.name: yardstick.measure(
            lab.decode(participant.name, [Request(scan, participant.name) for scan in participant.voxels])
        )
        for participant in participants
    }


def ablations(
    lab: Laboratory, participant: Participant, full: Result, yardstick: Yardstick
) -> dict[Ablation, Result]:
    """Every variant of one subject's decodes."""
    results = {FULL: full}
    for variant in VARIANTS:
        if variant is not FULL:
            requests = [Request(scan, participant.name, inputs=variant.inputs) for scan in participant.voxels]
            results[variant] = yardstick.measure(lab.decode(variant.name, requests))
    return results


@dataclass(frozen=True, eq=False)
class Activation:
    """One region active, decoded with several seeds."""

    subject: str
    region: str
    strength: float  # standard deviations
    decoded: list[Reconstruction]
    kind_in_caption: Values  # (seeds,): 1 where the caption names the region's kind and no other
    kind_in_picture: Values  # (seeds,): 1 where the judge takes the picture for one of that kind


def activations(lab: Laboratory, participant: Participant, recogniser: KindRecogniser) -> list[Activation]:
    """Each category region active alone, ``ACTIVATIONS`` seeds of noise."""
    shown = scenes("validation", _REFERENCE_SCANS, _REFERENCE_SEED)
    size = participant.stimuli.shape[1]
    reference = scans(participant.brain, stimuli(shown, size), shown, _REFERENCE_SEED)
    every = regions(participant.brain)
    strengths = {
        region: natural_strength(participant.subject, every[region], reference) for region in PREFERRED
    }
    # All in one call: starting the workers takes as long as many decodes.
    decoded = lab.decode(
        f"{participant.name}, regions active",
        [
            Request(active(participant.subject, every[region], strength), participant.name, seed)
            for region, strength in strengths.items()
            for seed in range(ACTIVATIONS)
        ],
    )
    activated = []
    for place, (region, kind) in enumerate(PREFERRED.items()):
        own = decoded[place * ACTIVATIONS : (place + 1) * ACTIVATIONS]
        named = [kinds_named(text) == {kind} for text in captions_of(own)]
        seen = [other == kind for other in recogniser(pictures_of(own))]
        activated.append(
            Activation(
                participant.name,
                region,
                strengths[region],
                own,
                np.array(named, np.float64),
                np.array(seen, np.float64),
            )
        )
    return activated


class KindRecogniser:
    """What kind of thing a picture shows, by the mean features of known pictures of each kind."""

    def __init__(self, extractor: Extractor, size: int) -> None:
        self._extractor = extractor
        known = scenes("validation", _KNOWN_SCENES, _REFERENCE_SEED + 1)
        features = extractor.features(stimuli(known, size))
        kinds = np.array([scene.kind for scene in known])
        self._middle = features.mean(axis=0)
        self._kinds = np.stack([features[kinds == kind].mean(axis=0) for kind in KINDS]) - self._middle

    def __call__(self, pictures: NDArray[np.uint8]) -> list[str]:
        features = self._extractor.features(pictures) - self._middle
        lengths = np.linalg.norm(self._kinds, axis=1)
        return [KINDS[place] for place in np.argmax(features @ self._kinds.T / lengths, axis=1)]


#: What is silenced -> regions that it is made of.
LESIONS: dict[str, tuple[str, ...]] = {
    "V1 to V4": EARLY,
    **{region: (region,) for region in ("faces", "words", "places", "bodies")},
    "all four category regions": tuple(PREFERRED),
}


def lesions(
    lab: Laboratory, participant: Participant, full: Result
) -> tuple[NDArray[np.bool_], dict[str, Result]]:
    """Scans of the four preferred kinds with a region silenced.

    Gives which of the participant's scans those are, and the results by what was silenced, ``"nothing"`` first.
    """
    rows = np.array([scene.kind in PREFERRED.values() for scene in participant.shown])
    shown = [scene for scene, wanted in zip(participant.shown, rows, strict=True) if wanted]
    pictures, voxels = participant.stimuli[rows], participant.voxels[rows]
    yardstick = Yardstick(lab, shown, pictures)
    whole = [one for one, wanted in zip(full.decoded, rows, strict=True) if wanted]
    results = {"nothing": yardstick.measure(whole)}
    every = regions(participant.brain)
    for name, members in LESIONS.items():
        mask = np.any([every[member] for member in members], axis=0)
        decoded = lab.decode(
            f"{name} silenced",
            [Request(scan, participant.name) for scan in lesioned(participant.subject, voxels, mask)],
        )
        results[name] = yardstick.measure(decoded)
    return rows, results


def controls(lab: Laboratory, participant: Participant) -> dict[str, Result]:
    """What comes out where nothing of the stimulus goes in, by the control's name."""
    rows = slice(CONTROL_SCANS)
    yardstick = Yardstick(lab, participant.shown[rows], participant.stimuli[rows])
    results = {}
    for name, made in CONTROLS.items():
        scans_without = made(participant.subject, participant.voxels[rows], 0)
        requests = [Request(scan, participant.name, seed) for seed, scan in enumerate(scans_without)]
        results[name] = yardstick.measure(lab.decode(f"control: {name}", requests))
    return results


@dataclass(frozen=True, eq=False)
class Agreement:
    """How alike two subjects' decodes of the same stimuli are, stimulus by stimulus (N,)."""

    one: str
    other: str
    pictures: Values  # PixCorr of one's picture with the other's
    identification: Values  # one's picture finds the other's among all, by the judge
    captions: Values  # ROUGE-L of one's caption with the other's
    kinds: Values  # 1 where both captions name the same kind


def agreements(lab: Laboratory, results: Mapping[str, Result]) -> list[Agreement]:
    """Every pair of subjects."""
    judge = lab.judge
    pictures = {name: result.pictures for name, result in results.items()}
    features = {name: judge.features(images) for name, images in pictures.items()}
    told = {name: result.told for name, result in results.items()}
    return [
        Agreement(
            one,
            other,
            pixel_correlation(pictures[one], pictures[other]),
            two_way_identification(features[one], features[other]),
            rouge(told[one], [[text] for text in told[other]])["ROUGE-L"],
            np.array(
                [
                    bool(kinds_named(a)) and kinds_named(a) == kinds_named(b)
                    for a, b in zip(told[one], told[other], strict=True)
                ],
                float,
            ),
        )
        for one, other in combinations(results, 2)
    ]
