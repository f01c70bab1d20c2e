"""``unibrain-rt decode``."""

from __future__ import annotations

import logging
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from unibrain_rt.bundle import Bundle
from unibrain_rt.captions import CaptionOptions
from unibrain_rt.cli import complain
from unibrain_rt.cli.json_report import JsonCommand, JsonReport, json_option
from unibrain_rt.cli.messages import shows_progress
from unibrain_rt.cli.options import cache_option, engine_option, low_memory_option, threads_option
from unibrain_rt.file_decoding import ScanDecoded, ScanFailed, ScanKept, SheetDone, decode_files, plan_files
from unibrain_rt.pools.opening import open_pool
from unibrain_rt.reconstruction import fallback_note

_log = logging.getLogger(__name__)


@click.command("decode", cls=JsonCommand, short_help="Decode scans into images and captions.")
@click.argument("scans", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="SCAN...")
@click.option(
    "--bundle", type=click.Path(path_type=Path), help="Bundle folder.  [default: the shipped phantom]"
)
@click.option("--subject", help="Whose scans these are.  [default: the bundle's default or only one]")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("reconstructions"),
    show_default=True,
    help="Folder for the pictures and JSON files.",
)
@click.option("--preset", default="paper", show_default=True, help="Sampling preset of the bundle.")
@engine_option
@click.option(
    "--workers",
    type=click.IntRange(1, 1024),
    default=1,
    show_default=True,
    help="Decoding processes, each with the bundle in memory and its share of the cores.",
)
@threads_option
@cache_option
@low_memory_option
@click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Seed of the noise."
)
@click.option(
    "--temperature",
    type=float,
    default=0.0,
    show_default=True,
    help="Of caption sampling; 0 takes the likeliest word.",
)
@click.option(
    "--top-p",
    type=float,
    default=1.0,
    show_default=True,
    help="Share of probability that caption sampling chooses from.",
)
@click.option("--overwrite", is_flag=True, help="Decode again where outputs exist.")
@json_option("one object a line for every scan decoded")
def command(
    scans: tuple[Path, ...],
    bundle: Path | None,
    subject: str | None,
    out: Path,
    preset: str,
    engine: str,
    workers: int,
    threads: int | None,
    cache: Path | None,
    low_memory: bool,
    seed: int,
    temperature: float,
    top_p: float,
    overwrite: bool,
    json_file: str | None,
) -> None:
    """Decode scans (.npy, .npz, .nii, .nii.gz) into <stem>.png and <stem>.json.

    A file holds one scan (voxels,) or many (scans, voxels); a NIfTI is 3-D or 4-D and needs the subject's
    mask. Several scans also give contact_sheet.png. A bad scan is reported and the rest are decoded; the exit
    code is then 2.
    """
    captions = CaptionOptions(temperature=temperature, top_p=top_p)
    opened = Bundle.open(bundle)
    opened.preset(preset)
    plan = plan_files(scans, opened.subject(subject), out, overwrite=overwrite)
    several = len(scans) > 1 or plan.scans > 1
    if plan.failed and not several:
        raise plan.failed[0]
    outputs = (
        path for output in (*plan.outputs.todo, *plan.outputs.kept) for path in (output.png, output.json)
    )
    report = JsonReport(json_file, bundle=opened.folder, inputs=(*scans, *outputs))
    pool = open_pool(
        opened,
        workers=workers,
        threads=threads,
        subject=subject,
        preset=preset,
        engine=engine,
        captions=captions,
        cache=cache,
        low_memory=low_memory,
    )
    failed, fallen_back = 0, set[str]()
    with pool, closing(_StepBar()) as bar:
        for event in decode_files(plan, pool, seed=seed, progress=bar if shows_progress() else None):
            bar.close()
            match event:
                case ScanFailed(error):
                    if not several:
                        raise error
                    failed = error.exit_code
                    complain(str(error))
                case ScanKept(stem, existing):
                    _log.info("%s: kept, %s exists (--overwrite decodes it again)", stem, existing)
                case ScanDecoded():
                    if new := sorted(set(event.result.fallbacks) - fallen_back):
                        fallen_back.update(new)
                        _log.info(fallback_note(new))
                    report.add({"stem": event.output.stem, **event.record})
                    if not report.on_stdout:
                        caption = event.result.caption
                        said = "(this bundle writes no captions)" if caption is None else caption
                        click.echo(f"{event.output.stem}: {said}" if plan.scans > 1 else said)
                case SheetDone(path, "kept"):
                    _log.info("%s: kept (--overwrite makes it again)", path)
    report.close()
    if failed:
        raise SystemExit(failed)


class _StepBar:
    """A progress bar on a terminal, of the steps of the scan that is being decoded."""

    _bar: Any = None

    def __call__(self, stem: str, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = click.progressbar(
                length=total, label=stem, file=sys.stderr, show_percent=False, show_pos=True
            )
            self._bar.render_progress()
        self._bar.update(done)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.render_finish()
            self._bar = None
