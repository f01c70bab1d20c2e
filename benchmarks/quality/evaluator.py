"""The test scans of one subject, decoded and measured: as they are, as controls, ablated, and region by region."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.benchmarks.quality.ablations import FULL, VARIANTS, Ablation
from unibrain_rt.benchmarks.quality.controls import CONTROLS
from unibrain_rt.benchmarks.quality.decoding import captions_of, decode_all, pictures_of
from unibrain_rt.benchmarks.quality.image_measures import SIDE
from unibrain_rt.benchmarks.quality.regions import active, lesioned, natural_strength
from unibrain_rt.benchmarks.quality.scores import CaptionJudge, ImageJudge, Scores
from unibrain_rt.bundle import Bundle
from unibrain_rt.engines import Engine
from unibrain_rt.errors import InputError
from unibrain_rt.export.judges.features import Extractor
from unibrain_rt.export.subjects.datasets.dataset import Dataset
from unibrain_rt.export.subjects.datasets.volumes import CATEGORY_FILES, VISUAL_AREAS
from unibrain_rt.pools.decoder_pool import Request
from unibrain_rt.pools.opening import open_pool
from unibrain_rt.reconstruction import Reconstruction
from unibrain_rt.subject import Subject

FEWEST = 3  # scans: of two, identification says next to nothing, and best, median and worst are none
CATEGORIES = tuple(CATEGORY_FILES.values())
EARLY = "early visual"
DECODED = "decoded"
ACTIVATIONS = 6  # seeds of each active region
_STRENGTH_SCANS = 60  # by which an active region's strength is set


@dataclass(frozen=True, eq=False)
class Condition:
    """What N scans decoded to under one condition. ``captions`` is None where the bundle writes none."""

    decoded: list[Reconstruction]
    images: Scores
    captions: Scores | None


Plans: TypeAlias = dict[str, list[Request]]
"""What to decode, by the name of what it shows."""


class Evaluator:
    """A subject's test scans beside what was shown, ready to be decoded in any way and measured."""

    def __init__(
        self,
        bundle: Bundle,
        subject: Subject,
        dataset: Dataset,
        engine: Engine,
        extractors: Sequence[Extractor],
        *,
        preset: str = "paper",
        seed: int = 0,
        workers: int | None = None,
        say: Callable[[str], None] = lambda what: None,
    ) -> None:
        """Read the stimuli and take their features.

        Args:
            extractors: what pictures are compared by, the bundle's CLIP among them.
            workers: decoding processes; by default one a core, or one where the engine has a device.
            say: told, line by line, how far it is.

        Raises:
            InputError: the scans are not this subject's, or are too few.
        """
        if dataset.voxels != subject.voxels:
            problem = f"the test scans have {dataset.voxels:,} voxels, but {subject.name} {subject.voxels:,}"
            raise InputError(f"{problem}: give that subject's scans, or choose another with --subject")
        if dataset.scans < FEWEST:
            raise InputError(f"{dataset.scans} test scans: give {FEWEST} at least, to tell one from others")
        self.bundle, self.subject, self.dataset = bundle, subject, dataset
        self.engine, self.extractors = engine, tuple(extractors)
        self.preset, self.seed, self.workers, self._say = preset, seed, workers, say
        say(f"reading {dataset.scans} stimuli")
        # Larger than the measures look at would only cost memory; smaller than decodes would blur what was shown.
        self.stimuli: NDArray[np.uint8] = dataset.stimuli.images(
            min(int(bundle.architecture["autokl"]["image_size"]), SIDE)
        )
        self._images = ImageJudge(self.stimuli, extractors)
        self._captions = CaptionJudge(dataset.captions, bundle, engine) if bundle.has_captions else None

    def full(self) -> Plans:
        """The scans as ``unibrain-rt decode`` decodes them, under the name `DECODED`."""
        return {DECODED: self._requests(self.dataset.betas)}

    def controls(self) -> Plans:
        """Scans that say nothing of the stimuli. Each is decoded from noise of its own, or all means were one."""
        return {
            name: [
                Request(scan, seed=self.seed + place)
                for place, scan in enumerate(make(self.subject, self.dataset.betas, self.seed))
            ]
            for name, make in CONTROLS.items()
        }

    def ablations(self) -> Plans:
        """Every variant of the paper's tables but the full model, by its name."""
        return {
            variant.name: self._requests(self.dataset.betas, variant)
            for variant in VARIANTS
            if variant != FULL
        }

    def regions(self) -> dict[str, NDArray[np.bool_]]:
        """Early visual cortex and the category regions, (V,) each, as far as the data or the subject tell them.

        Raises:
            InputError: they tell none.
        """
        known: Mapping[str, NDArray[np.bool_]] = self.dataset.rois or self.subject.rois()
        areas = [known[name] for name in VISUAL_AREAS if name in known]
        regions = {EARLY: np.any(areas, axis=0)} if areas else {}
        regions |= {name: known[name] for name in CATEGORIES if name in known}
        regions = {name: region for name, region in regions.items() if region.any()}
        if not regions:
            raise InputError(f"no regions are known of {self.subject.name}: give --rois, or fit it with them")
        return regions

    def activations(self) -> Plans:
        """Each category region active alone, as strong as real scans move the predictions: the paper's figure 6."""
        plans = {}
        for name, region in self.regions().items():
            if name != EARLY:
                strength = natural_strength(self.subject, region, self.dataset.betas[:_STRENGTH_SCANS])
                scan = active(self.subject, region, strength)
                plans[f"{name} active"] = [
                    Request(scan, seed=self.seed + place) for place in range(ACTIVATIONS)
                ]
        return plans

    def lesions(self) -> Plans:
        """The test scans with each region at its training mean."""
        return {
            f"{name} silenced": self._requests(lesioned(self.subject, self.dataset.betas, region))
            for name, region in self.regions().items()
        }

    def decode(self, plans: Plans) -> dict[str, list[Reconstruction]]:
        """Decode all plans at once, with a line about every tenth of the way.

        Raises:
            BundleError, EngineError: as `Decoder.open` and `Decoder.decode`, or a process was killed.
        """
        requests = [request for plan in plans.values() for request in plan]
        # Processes would only share a device, and each hold the bundle in its memory.
        workers = self.workers or (1 if self.engine.on_device else None)
        with open_pool(
            self.bundle,
            workers=workers,
            subject=self.subject.name,
            preset=self.preset,
            engine=self.engine.name,
        ) as pool:
            decoded = iter(decode_all(pool, requests, "decoded", self._say, lines=10))
        return {name: [next(decoded) for _ in plan] for name, plan in plans.items()}

    def measure(self, decoded: Mapping[str, list[Reconstruction]]) -> dict[str, Condition]:
        """Score decodes of the test scans, by name, each in the scans' order."""
        conditions = {}
        for name, each in decoded.items():
            self._say(f"measuring: {name}")
            captions = self._captions.score(captions_of(each)) if self._captions is not None else None
            conditions[name] = Condition(each, self._images.score(pictures_of(each)), captions)
        return conditions

    def _requests(self, betas: NDArray[np.float32], variant: Ablation = FULL) -> list[Request]:
        return [Request(scan, seed=self.seed, inputs=variant.inputs) for scan in betas]
