"""``unibrain-rt evaluate``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unibrain_rt.bundle import Bundle
from unibrain_rt.cli.json_report import JsonCommand, JsonReport, json_option
from unibrain_rt.cli.options import engine_option
from unibrain_rt.engines import create_engine
from unibrain_rt.errors import input_error
from unibrain_rt.export.progress import Watch
from unibrain_rt.export.subjects.datasets.data_options import DataFiles, data_options

if TYPE_CHECKING:
    from unibrain_rt.benchmarks.quality.evaluator import Condition, Evaluator

_path = click.Path(path_type=Path)


@click.command("evaluate", cls=JsonCommand, short_help="Score decodes of test scans and write a report.")
@click.option("--bundle", type=_path, help="Bundle folder.  [default: the shipped phantom]")
@click.option("--subject", help="Whose scans these are.  [default: the bundle's only subject]")
@data_options(nsd="the shared stimuli's scans.", scans="Test scans")
@click.option("--kinds", type=_path, help="What kind of thing each scan shows, written as --captions are.")
@click.option("--preset", default="paper", show_default=True, help="Sampling preset of the bundle.")
@engine_option
@click.option("--workers", type=click.IntRange(1, 1024), help="Decoding processes.  [default: one a core]")
@click.option(
    "--seed", type=click.IntRange(0, 2**62), default=0, show_default=True, help="Seed of the noise."
)
@click.option("--limit", type=click.IntRange(3), help="Only the first so many scans.")
@click.option(
    "--features",
    type=_path,
    multiple=True,
    help="JSON file of a feature network (unibrain-rt export-features); repeat it for several.",
)
@click.option(
    "--ablations", is_flag=True, help="Also without the latent and without each context, as the paper."
)
@click.option("--regions", is_flag=True, help="Also with single regions active, and silenced.")
@click.option("--out", type=_path, required=True, help="Folder for report.html, report.md and report.json.")
@click.option("--overwrite", is_flag=True, help="Replace a report that is there.")
@json_option("the scores")
def command(
    bundle: Path | None,
    subject: str | None,
    data: DataFiles,
    kinds: Path | None,
    preset: str,
    engine: str,
    workers: int | None,
    seed: int,
    limit: int | None,
    features: tuple[Path, ...],
    ablations: bool,
    regions: bool,
    out: Path,
    overwrite: bool,
    json_file: str | None,
) -> None:
    """Decode test scans, compare pictures and captions with what was shown, and write a report.

    The data are NSD's folders (--nsd), or plain files (--scans, --images, --captions). The report holds every
    measure with its interval, the best, median and worst decodes, and controls: scans that say nothing.
    """
    data.check()
    if data.scans is not None and data.coco is not None:
        raise click.UsageError("--coco goes with --nsd.")

    # Only now: what measures captions takes seconds to load, and --help should not.
    from unibrain_rt.benchmarks.quality import evaluation_sections as sections
    from unibrain_rt.benchmarks.quality.decoding import fallbacks_of
    from unibrain_rt.benchmarks.quality.evaluator import DECODED, Evaluator
    from unibrain_rt.benchmarks.quality.page import HTML, MARKDOWN, RECORD, Page, check_report, write_report
    from unibrain_rt.export.judges.features import open_extractors

    watch = Watch()
    opened = Bundle.open(bundle)
    opened.preset(preset)
    chosen = opened.subject(subject)
    if Path(os.path.realpath(out)).is_relative_to(os.path.realpath(opened.folder)):
        raise input_error(out, "lies in the bundle, which is only read: choose another --out")
    check_report(out, overwrite=overwrite)
    others = [] if kinds is None else [kinds]
    outputs = [out / name for name in (HTML, MARKDOWN, RECORD)]
    report = JsonReport(json_file, bundle=opened.folder, inputs=(*data.inputs, *others, *features, *outputs))
    runner = create_engine(engine)
    extractors = open_extractors(opened, features, runner)
    dataset = data.read(chosen.name, "test", watch.say)
    labels = None if kinds is None else _labels(kinds, dataset.scans)
    if limit is not None:
        dataset = dataset.select(slice(limit))
        labels = None if labels is None else labels[:limit]
    evaluator = Evaluator(
        opened, chosen, dataset, runner, extractors, preset=preset, seed=seed, workers=workers, say=watch.say
    )
    asked = {
        "controls": evaluator.controls(),
        "ablations": evaluator.ablations() if ablations else {},
        "active": evaluator.activations() if regions else {},
        "silenced": evaluator.lesions() if regions else {},
    }
    # All in one go: starting the decoding processes takes longer than some scans do.
    decoded = evaluator.decode(
        {**evaluator.full(), **{k: v for plans in asked.values() for k, v in plans.items()}}
    )
    fallbacks = fallbacks_of([one for each in decoded.values() for one in each])
    active = {name: decoded.pop(name) for name in asked["active"]}
    conditions = evaluator.measure(decoded)
    by_part = {
        part: {name: conditions[name] for name in plans if name in conditions}
        for part, plans in asked.items()
    }

    full = conditions[DECODED]
    parts = [sections.examples(evaluator, full), sections.scores(full, published=data.nsd is not None)]
    if labels is not None:
        parts.append(sections.kinds(full, labels))
    parts.append(sections.controls(full, by_part["controls"]))
    if ablations:
        parts.append(sections.ablations(full, by_part["ablations"]))
    if regions:
        parts.append(sections.regions(full, active, by_part["silenced"]))
    parts.append(sections.method(evaluator, full, fallbacks, watch.elapsed))

    page = Page(f"{chosen.name}: {dataset.scans} test scans decoded", tuple(parts))
    about = {**_about(evaluator), "fallbacks": fallbacks}
    whole = {**about, "conditions": _records(conditions, items=True)}
    write_report(out, page, data={"evaluation": whole}, overwrite=overwrite)
    report.add({**about, "conditions": _records(conditions), "report": str(out / HTML)})
    if not report.on_stdout:
        _print(conditions)
        click.echo(f"{out / HTML}: written in {watch.elapsed:.0f} s")
    report.close()


def _labels(path: Path, scans: int) -> list[str]:
    """A label a scan, in the scans' order: of one told by picture, the pictures' names sorted."""
    from unibrain_rt.export.subjects.datasets.folders import read_captions

    told = read_captions(path)
    labels = [told[name][0] for name in sorted(told)] if isinstance(told, dict) else [one[0] for one in told]
    if len(labels) != scans:
        raise input_error(path, f"{len(labels):,} kinds for {scans:,} scans: give one for each scan")
    return labels


def _about(evaluator: Evaluator) -> dict[str, Any]:
    """What was evaluated, and how."""
    return {
        "bundle": evaluator.bundle.name,
        "fingerprint": evaluator.bundle.fingerprint(),
        "subject": evaluator.subject.name,
        "scans": evaluator.dataset.scans,
        "voxels": evaluator.dataset.voxels,
        "preset": evaluator.preset,
        "engine": evaluator.engine.describe(),
        "seed": evaluator.seed,
        "features": {extractor.name: dict(extractor.provenance) for extractor in evaluator.extractors},
    }


def _records(conditions: dict[str, Condition], *, items: bool = False) -> dict[str, Any]:
    """Scores by condition; with ``items``, of every scan, and what its caption came out as."""
    records: dict[str, Any] = {}
    for name, one in conditions.items():
        records[name] = {"images": one.images.record(items=items)}
        if one.captions is not None:
            records[name]["captions"] = one.captions.record(items=items)
            if items:
                records[name]["decoded_captions"] = [each.caption for each in one.decoded]
    return records


def _print(conditions: dict[str, Condition]) -> None:
    """A row a condition, a column a measure."""
    first = max(map(len, conditions)) + 2
    for part in ("images", "captions"):
        scored = {name: getattr(one, part) for name, one in conditions.items()}
        if any(scores is None for scores in scored.values()):
            continue
        measures = list(next(iter(scored.values())).values)
        click.echo(f"{part:<{first}}" + "".join(f"{measure:<24}" for measure in measures).rstrip())
        for name, scores in scored.items():
            row = "".join(f"{interval.text():<24}" for interval in scores.summary().values())
            click.echo(f"{name:<{first}}{row.rstrip()}")
