"""``unibrain-rt fit``: a subject from scans, stimuli and captions."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click

from unibrain_rt.bundle import Bundle, phantom_folder
from unibrain_rt.cli.json_report import JsonCommand, JsonReport, json_option
from unibrain_rt.cli.options import engine_option, threads_option
from unibrain_rt.engines import create_engine
from unibrain_rt.errors import input_error
from unibrain_rt.export.bundles.bundle_folder import (
    add_subject,
    check_free,
    check_name,
    check_subject,
    copy_bundle,
    new_folder,
)
from unibrain_rt.export.option_groups import grouped
from unibrain_rt.export.progress import Watch
from unibrain_rt.export.subjects.datasets.data_options import DataFiles, data_options
from unibrain_rt.export.subjects.datasets.dataset import Dataset
from unibrain_rt.export.subjects.ridge import ALPHAS, RidgeFit
from unibrain_rt.export.subjects.storage_options import STORAGE_OPTIONS
from unibrain_rt.export.subjects.subject_fit import (
    FitOptions,
    fit_dataset,
    work_folder,
    write_fit,
)
from unibrain_rt.subject import Subject

_path = click.Path(path_type=Path)

_FIT_OPTIONS: tuple[Any, ...] = (
    click.option(
        "--alpha",
        "alphas",
        type=click.FloatRange(0, min_open=True),
        multiple=True,
        default=ALPHAS,
        help=f"Ridge penalty; repeat it to choose among several.  [default: {ALPHAS[0]:g} to {ALPHAS[-1]:g}]",
    ),
    click.option(
        "--folds",
        type=click.IntRange(2),
        help="Of cross-validation.  [default: each stimulus is left out in turn]",
    ),
    click.option(
        "--weigh-repeats", is_flag=True, help="Let a mean count as often as its stimulus was scanned."
    ),
    click.option(
        "--calibration",
        type=click.Choice(["variance", "none"]),
        default="variance",
        show_default=True,
        help="Whether predictions get the targets' own spread, as held-out scans tell it.",
    ),
    click.option(
        "--captions-used",
        type=click.Choice(["first", "mean"]),
        default="first",
        show_default=True,
        help="Text targets: of a stimulus' first caption, or their mean over all.",
    ),
)


@click.command("fit", cls=JsonCommand, short_help="Fit a subject from scans, stimuli and captions.")
@click.option("--bundle", type=_path, help="Bundle whose encoders are used.  [default: the shipped phantom]")
@click.option("--subject", required=True, help="The subject's name; with --nsd it ends with NSD's number.")
@data_options(nsd="fit on what is not shared.", scans="Betas")
@click.option("--single-trials", is_flag=True, help="With --nsd: do not average a stimulus' trials.")
@click.option("--out", type=_path, help="Leave the bundle as it is, and write a copy with the subject here.")
@click.option("--overwrite", is_flag=True, help="Replace the subject, or with --out the folder.")
@grouped((*_FIT_OPTIONS, *STORAGE_OPTIONS), FitOptions, "options")
@click.option(
    "--work", type=_path, help="Keep targets and progress here; after a break, the same fit goes on."
)
@engine_option
@threads_option
@json_option("what was fitted")
def command(
    bundle: Path | None,
    subject: str,
    data: DataFiles,
    single_trials: bool,
    out: Path | None,
    overwrite: bool,
    options: FitOptions,
    work: Path | None,
    engine: str,
    threads: int | None,
    json_file: str | None,
) -> None:
    """Learn to decode a subject's scans: four ridge heads, from betas to the bundle's latents and contexts.

    What was shown and said is encoded by the bundle's own encoders. Each head's penalty is chosen by exact
    cross-validation. With --work, a fit that was interrupted goes on where it stood. The data are NSD's folders
    (--nsd), or plain files (--scans, --images, --captions).
    """
    data.check()
    if data.scans is not None and (data.coco is not None or single_trials):
        raise click.UsageError("--coco and --single-trials go with --nsd.")
    if not all(math.isfinite(alpha) for alpha in options.alphas):
        raise click.UsageError("--alpha is a finite number above 0.")

    watch = Watch()
    opened = Bundle.open(bundle)
    _check_target(opened, subject, bundle, out, overwrite)
    report = JsonReport(json_file, bundle=opened.folder, inputs=data.inputs)
    runner = create_engine(engine, threads)
    dataset = data.read(subject, "train", watch.say, average=not single_trials)
    watch.lap("read")
    with work_folder(opened, dataset, options, work) as journal:
        fits = fit_dataset(opened, runner, dataset, journal, options, watch.say)
        watch.lap("fit")
        watch.say("writing the subject")
        write = partial(
            write_fit,
            dataset=dataset,
            fits=fits,
            options=options,
            encoders=opened.encoders,
            journal=journal,
            report=watch.say,
        )
        if out is None:
            add_subject(opened.folder, write, subject, overwrite=overwrite)
        else:
            with new_folder(out, overwrite=overwrite) as folder:
                copy_bundle(opened.folder, folder)
                add_subject(folder, write, subject, overwrite=True)
    watch.lap("write")
    target = out or opened.folder
    record = describe(
        target, Subject.open(target / "subjects" / subject), dataset, fits, options, watch.seconds
    )
    if not report.on_stdout:
        _print(record)
    report.add(record)
    report.close()


def describe(
    folder: Path,
    subject: Subject,
    dataset: Dataset,
    fits: Mapping[str, RidgeFit],
    options: FitOptions,
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """What the command prints, as JSON has it."""
    return {
        "bundle": str(folder),
        "subject": subject.name,
        "scans": dataset.scans,
        "trials": int(dataset.repeats.sum()),
        "voxels": dataset.voxels,
        "rois": {region: int(inside.sum()) for region, inside in subject.rois().items()},
        "folds": options.folds,
        "calibration": options.calibration,
        "captions_used": options.captions_used,
        "heads": {
            name: {
                "shape": list(head.shape),
                "held_out_correlation": head.held_out_correlation,
                "alpha": head.alpha,
                "rank": head.rank,
                "fidelity": head.fidelity,
                "storage": subject.storage(name),
                "size_bytes": subject.size_bytes(name),
                "alphas": dict(
                    zip((f"{alpha:g}" for alpha in fits[name].alphas), fits[name].alpha_scores, strict=True)
                ),
            }
            for name, head in subject.heads.items()
        },
        "seconds": dict(seconds),
    }


def _check_target(
    bundle: Bundle, subject: str, named: Path | None, out: Path | None, overwrite: bool
) -> None:
    """Raise now what would be raised after minutes."""
    target = os.path.realpath(out or bundle.folder)
    if out is None and named is None:
        raise click.UsageError("Give --out for a copy of the phantom with the subject, or name a --bundle.")
    if target == os.path.realpath(phantom_folder()):
        raise input_error(target, "the shipped phantom is never changed: make a copy elsewhere with --out")
    if out is None:
        check_subject(bundle.folder, subject, overwrite=overwrite)
        return
    check_name(subject)
    if Path(target).is_relative_to(os.path.realpath(bundle.folder)):
        raise input_error(out, "lies in the bundle that is copied: write elsewhere with --out")
    check_free(out, overwrite=overwrite)


def _print(record: Mapping[str, Any]) -> None:
    row = "{:<15} {:>16} {:>9} {:>20} {:>6} {:>9}"
    click.echo(row.format("head", "shape", "alpha", "held-out correlation", "rank", "fidelity").rstrip())
    for name, head in record["heads"].items():
        shape = " x ".join(map(str, head["shape"]))
        rank = "exact" if head["rank"] is None else head["rank"]
        correlation, fidelity = (f"{head[key]:.4f}" for key in ("held_out_correlation", "fidelity"))
        click.echo(row.format(name, shape, f"{head['alpha']:g}", correlation, rank, fidelity))
    click.echo(
        f"{record['bundle']}: {record['subject']} fitted on {record['scans']:,} scans of {record['voxels']:,} "
        f"voxels in {record['seconds']['all']:.0f} s"
    )
