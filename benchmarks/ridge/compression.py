"""What compressing ridge heads costs in decodes: the phantom's first subject, stored exactly and in factors.

    python -m unibrain_rt.benchmarks.ridge.compression --work DIR --out benchmarks/results/ridge-phantom

One fit is stored once as dense float32 and once for each budget (share of the held-out predictions' variance that
int8 factors keep). The same held-out scans are decoded with each, from the same noise, and measured as ``evaluate``
does, with paired differences to the exact heads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from unibrain_rt.benchmarks import machine
from unibrain_rt.benchmarks.experiments.laboratory import Laboratory, Yardstick
from unibrain_rt.benchmarks.experiments.report import shipped_judge
from unibrain_rt.benchmarks.kept_results import result_option, write_results
from unibrain_rt.benchmarks.markdown import machine_line, table
from unibrain_rt.benchmarks.quality.intervals import Interval
from unibrain_rt.benchmarks.quality.scores import Scores
from unibrain_rt.bundle import Bundle
from unibrain_rt.engines import create_engine
from unibrain_rt.export.bundles.bundle_folder import add_subject, copy_bundle
from unibrain_rt.export.judges.features import open_extractors
from unibrain_rt.export.phantom import assemble
from unibrain_rt.export.phantom.people import DEFAULT_SUBJECT, SCENE_SEED, SUBJECTS, scans
from unibrain_rt.export.phantom.phrases import captions
from unibrain_rt.export.phantom.pictures import stimuli
from unibrain_rt.export.phantom.scenes import scenes
from unibrain_rt.export.phantom.simulated_subjects import BETA_SCALE
from unibrain_rt.export.subjects.encoders import encode_targets
from unibrain_rt.export.subjects.ridge import fit_heads
from unibrain_rt.export.subjects.ridge.journal import Journal
from unibrain_rt.export.subjects.subject_writer import FIDELITY, write_subject
from unibrain_rt.files import whole_folder
from unibrain_rt.pools.decoder_pool import Request
from unibrain_rt.pools.opening import open_pool

EXACT = "exact"
BUDGETS = (FIDELITY, assemble.FIDELITY, 0.9)
"""What ``fit`` keeps by default, what the shipped phantom keeps, and less, to show that the measures can tell."""


def make_subjects(folder: Path, engine_name: str, training: int) -> Bundle:
    """A copy of the shipped phantom in which one fit is stored in every way."""
    if not folder.exists():
        with whole_folder(folder) as partial:
            shipped = Bundle.open()
            copy_bundle(shipped.folder, partial)
            bundle, engine = Bundle.open(partial), create_engine(engine_name)
            # One search for components serves every budget.
            key = {"training": training, "bundle": shipped.fingerprint(), "engine": engine.name}
            journal = Journal(folder.with_name("journal"), key)
            person = SUBJECTS[DEFAULT_SUBJECT]
            shown = scenes("train", training, SCENE_SEED)
            images = stimuli(shown, bundle.architecture["autokl"]["image_size"])
            targets = encode_targets(bundle, engine, images, [captions(scene)[0] for scene in shown])
            fits = fit_heads(
                scans(person.brain(DEFAULT_SUBJECT), images, shown, person.seed), targets, journal=journal
            )
            for budget in (None, *BUDGETS):

                def write(place: Path, budget: float | None = budget) -> None:
                    kept: dict[str, Any] = {"exact": True} if budget is None else {"fidelity": budget}
                    write_subject(
                        place,
                        _name(budget),
                        fits,
                        beta_scale=1 / BETA_SCALE,
                        encoders=bundle.encoders,
                        journal=journal,
                        **kept,
                    )

                add_subject(partial, write, _name(budget))
    return Bundle.open(folder)


def measure(bundle: Bundle, engine_name: str, count: int) -> dict[str, Any]:
    """Decode the same scans with every way of storing, and compare."""
    engine = create_engine(engine_name)
    extractors = tuple(open_extractors(bundle, [shipped_judge()], engine))
    scores: dict[str, Scores] = {}
    told: dict[str, list[str]] = {}
    with open_pool(bundle, subject=EXACT, engine=engine.name) as pool:
        lab = Laboratory(bundle, engine, extractors, "paper", pool, lambda line: click.echo(line, err=True))
        participant = lab.participant(DEFAULT_SUBJECT, count)
        yardstick = Yardstick(lab, participant.shown, participant.stimuli)
        for name in map(_name, (None, *BUDGETS)):
            requests = [Request(scan, name) for scan in participant.voxels]
            result = yardstick.measure(lab.decode(name, requests))
            scores[name] = _together(result.images, result.captions)
            told[name] = result.told
    stored = {}
    for name in scores:
        subject = bundle.subject(name)
        stored[name] = {
            "bytes": sum(subject.size_bytes(head) for head in subject.heads),
            "ranks": {head: each.rank for head, each in subject.heads.items()},
            "same_caption": sum(a == b for a, b in zip(told[name], told[EXACT], strict=True)) / count,
            "scores": {key: value.record() for key, value in scores[name].summary().items()},
            "difference": {key: value.record() for key, value in scores[name].against(scores[EXACT]).items()},
        }
    return {"machine": machine.collect(), "scans": count, "engine": engine.name, "stored": stored}


def page(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    stored = results["stored"]
    sizes = [
        [
            name,
            f"{each['bytes'] / 1e6:.2f} MB",
            " / ".join(str(rank) if rank else "–" for rank in each["ranks"].values()),
            f"{100 * each['same_caption']:.0f} %",
        ]
        for name, each in stored.items()
    ]
    metrics = list(stored[EXACT]["scores"])
    rows = [
        [
            metric,
            _interval(stored[EXACT]["scores"][metric]).text(),
            *(_interval(stored[name]["difference"][metric]).text() for name in stored if name != EXACT),
        ]
        for metric in metrics
    ]
    return (
        "\n\n".join(
            [
                "# Compressed ridge heads, in decodes",
                "`python -m unibrain_rt.benchmarks.ridge.compression`: one fit of the phantom's "
                f"{DEFAULT_SUBJECT}, stored exactly and as int8 factors that keep a share of the held-out predictions' "
                f"variance; {results['scans']} held-out scans, preset paper, engine {results['engine']}, equal noise.",
                machine_line(results["machine"]),
                table(
                    ["heads", "size", "ranks (image, text latent; image, text context)", "same caption"],
                    sizes,
                ),
                "Below, the exact heads' scores, and for the others the paired difference to them, with 95 % "
                "bootstrap intervals: one that holds 0 is no difference that these scans can tell. Pictures' and "
                "captions' measures are those of `evaluate`.",
                table(["measure", EXACT, *(f"{name} − {EXACT}" for name in stored if name != EXACT)], rows),
            ]
        )
        + "\n"
    )


def _name(budget: float | None) -> str:
    return EXACT if budget is None else f"kept-{budget:g}"


def _interval(record: dict[str, Any]) -> Interval:
    return Interval(record["mean"], record["low"], record["high"], record["n"])


def _together(images: Scores, words: Scores) -> Scores:
    """Both have a measure called CLIP."""
    return Scores(
        {**images.values, **{f"caption {name}": values for name, values in words.values.items()}},
        {**images.metrics, **{f"caption {name}": words.metrics[name] for name in words.values}},
    )


@click.command()
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    required=True,
    help="For the bundle; a killed run goes on from it.",
)
@result_option
@click.option("--engine", default="onnxruntime", show_default=True)
@click.option("--scans", "count", type=click.IntRange(3), default=200, show_default=True)
@click.option("--training", type=click.IntRange(20), default=9000, show_default=True)
def main(work: Path, out: Path, engine: str, count: int, training: int) -> None:
    """Decode the phantom's held-out scans with exact and with compressed heads."""
    results = measure(make_subjects(work / "bundle", engine, training), engine, count)
    write_results(out, results, page(results))


if __name__ == "__main__":
    main()
