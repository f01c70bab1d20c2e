"""``unibrain-rt phantom report``: every experiment, one page."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unibrain_rt import __version__
from unibrain_rt.benchmarks.experiments import ablation_sections, experiments, region_sections
from unibrain_rt.benchmarks.experiments import experiment_sections as sections
from unibrain_rt.benchmarks.experiments.laboratory import Laboratory, Yardstick
from unibrain_rt.benchmarks.quality.page import Page, Section, Text
from unibrain_rt.bundle import Bundle
from unibrain_rt.engines import create_engine
from unibrain_rt.errors import InputError
from unibrain_rt.export.judges.features import open_extractors
from unibrain_rt.export.phantom.people import SUBJECTS
from unibrain_rt.pools.opening import open_pool

FEWEST_SCANS = 10


def shipped_judge() -> Path:
    """The description of the judge that comes with the package."""
    return Path(__file__).parent / "judge" / "judge.json"


def run(
    folder: Path | None,
    *,
    scans: int = 200,
    preset: str = "paper",
    engine: str = "auto",
    workers: int | None = None,
    judge: Path | None = None,
    say: Callable[[str], None] = lambda what: None,
) -> tuple[Page, NDArray[np.uint8]]:
    """Run every experiment on a phantom bundle; by default on the one that is shipped.

    Gives the page, and a contact sheet (H, W, 3) of the first held-out scans.

    Args:
        folder: of the bundle.
        scans: held-out scans of each subject, at least `FEWEST_SCANS`.
        judge: JSON file of a feature network; by default the shipped one.
        workers: decoding processes; by default one a core.
        say: told, line by line, how far it is.

    Raises:
        InputError: the bundle has none of the phantom's subjects, or writes no captions.
    """
    start = time.monotonic()
    bundle = Bundle.open(folder)
    bundle.preset(preset)
    names = [
        name
        for name, person in SUBJECTS.items()
        if name in bundle.subjects and bundle.subject(name).voxels == person.voxels
    ]
    if not names or not bundle.has_captions:
        problem = "no phantom: it needs captions and one of the subjects " + ", ".join(SUBJECTS)
        raise InputError(f"{bundle.folder}: {problem}; make one with unibrain-rt phantom bundle")
    runner = create_engine(engine)
    extractors = tuple(open_extractors(bundle, [judge or shipped_judge()], runner))
    with open_pool(bundle, workers=workers, subject=names[0], preset=preset, engine=runner.name) as pool:
        lab = Laboratory(bundle, runner, extractors, preset, pool, say)
        say(f"scanning {', '.join(names)}: {scans} held-out scenes")
        participants = [lab.participant(name, scans) for name in names]
        first = participants[0]
        yardstick = Yardstick(lab, first.shown, first.stimuli)  # every subject sees the same scenes
        results = experiments.full_decodes(lab, participants, yardstick)
        full = results[first.name]
        variants = experiments.ablations(lab, first, full, yardstick)
        recogniser = experiments.KindRecogniser(lab.judge, first.stimuli.shape[1])
        active = [
            one
            for participant in participants
            for one in experiments.activations(lab, participant, recogniser)
        ]
        rows, silenced = experiments.lesions(lab, first, full)
        controls = experiments.controls(lab, first)
        agreements = experiments.agreements(lab, results)
    body = [
        sections.examples(first, full),
        sections.scores(participants, results),
        ablation_sections.image_ablation(variants),
        ablation_sections.caption_ablation(variants),
        region_sections.activation(active),
        region_sections.lesion(first, rows, silenced),
        sections.controls(controls),
    ]
    if agreements:
        body.append(sections.agreement(participants, results, agreements))
    body.append(_method(lab, scans, time.monotonic() - start))
    page = Page("The phantom: every experiment of UniBrain", tuple(body))
    return page, sections.contact_sheet_of(first, full, preset)


def _method(lab: Laboratory, scans: int, seconds: float) -> Section:
    return Section(
        "How this was made",
        (
            Text(
                f"unibrain-rt {__version__}, bundle {lab.bundle.name} ({lab.bundle.fingerprint()[:16]}), "
                f"preset {lab.preset}, engine {lab.engine.name}, {scans} held-out scans a subject, "
                f"{seconds:.0f} s. The phantom is a small world of rendered scenes and simulated subjects. "
                "It shows that the whole of the method works and how its parts add up; it says nothing "
                "about real brains."
            ),
            Text(
                "Voxels follow a written encoding model with noise ceilings like NSD's, set before any "
                "model was trained. Scenes of the test set were never shown to the models or to the heads. "
                "Everything is seeded: the same bundle gives the same page."
            ),
        ),
    )
