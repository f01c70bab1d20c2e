"""``unibrain-rt decode``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from unibrain_rt.bundle import Bundle
from unibrain_rt.captions import CaptionOptions
from unibrain_rt.cli import complain
from unibrain_rt.cli.json_report import JsonCommand, JsonReport, json_option
from unibrain_rt.cli.options import cache_option, engine_option, low_memory_option, threads_option
from unibrain_rt.contact_sheet import SHEET_TILES, Tile, contact_sheet
from unibrain_rt.decoder import Decoder
from unibrain_rt.engines import Probe
from unibrain_rt.errors import InputError, UnibrainError, one_line
from unibrain_rt.outputs import OutputPlan, plan_outputs, write_pair, write_png
from unibrain_rt.reconstruction import Reconstruction
from unibrain_rt.scans import inspect_all, iter_scans
from unibrain_rt.scans.scan_file import ScanFile


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
    failed: list[UnibrainError] = []

    def fail(error: UnibrainError) -> None:
        failed.append(error)
        complain(str(error))

    opened = Bundle.open(bundle)
    opened.preset(preset)
    files = inspect_all(scans, opened.subject(subject).voxel_space, fail if len(scans) > 1 else None)
    stems = [stem for file in files for stem in file.stems]
    several = len(scans) > 1 or len(stems) > 1
    plan = plan_outputs(out, stems, overwrite, sources=[file.path for file in files for _ in file.stems])
    outputs = (path for output in (*plan.todo, *plan.kept) for path in (output.png, output.json))
    report = JsonReport(json_file, bundle=opened.folder, inputs=(*scans, *outputs))
    for kept in plan.kept:
        click.echo(f"{kept.stem}: kept, {kept.existing[0]} exists (--overwrite decodes it again)", err=True)
    if plan.todo:
        decoder = Decoder.open(
            opened,
            subject=subject,
            preset=preset,
            engine=engine,
            threads=threads,
            captions=captions,
            cache=cache,
            low_memory=low_memory,
            tell=_note,
        )
        for found in decoder.engine.passed_over:
            if isinstance(found, Probe) and found.version is not None:
                _note(f"passed over {found}")
        _decode_all(decoder, files, plan, fail if several else None, seed, overwrite, report)
    report.close()
    if failed:
        raise SystemExit(max(error.exit_code for error in failed))


def _decode_all(
    decoder: Decoder,
    files: tuple[ScanFile, ...],
    plan: OutputPlan,
    fail: Callable[[UnibrainError], None] | None,
    seed: int,
    overwrite: bool,
    report: JsonReport,
) -> None:
    outputs = {output.stem: output for output in plan.todo}
    tiles: list[Tile] = []
    done = 0
    fallen_back: set[str] = set()
    for scan in iter_scans(files, fail, plan.wanted):
        try:
            with _progress_bar(decoder.steps, scan.stem) as bar:
                result = decoder.decode(scan.betas, seed=seed, progress=bar.update if bar else None)
        except InputError as error:
            if fail is None:
                raise
            fail(error)
            continue
        if new := sorted(set(result.fallbacks) - fallen_back):
            fallen_back.update(new)
            _note(f"{', '.join(new)}: computed in fp32, because numbers in half precision were not finite")
        record = {**result.record(), "scan": str(scan.source), "scan_index": scan.index}
        text = {"Description": result.caption or "", "Software": "unibrain-rt"}
        write_pair(outputs[scan.stem], result.image, record, text=text)
        report.add({"stem": scan.stem, **record})
        if not report.on_stdout:
            _print(scan.stem, result, named=len(plan.todo) + len(plan.kept) > 1)
        done += 1
        if len(tiles) < SHEET_TILES:
            tiles.append(Tile((result.image,), f"{scan.stem}: {result.caption or ''}"))
    sheet = plan.contact_sheet
    if done > 1 and sheet.exists() and not overwrite:
        click.echo(f"{sheet}: kept (--overwrite makes it again)", err=True)
    elif done > 1:
        header = [
            f"{done} scans, {decoder.bundle.name}, {decoder.subject.name}, preset {decoder.preset_name}"
        ]
        if done > len(tiles):
            header.append(f"the first {len(tiles)} are shown")
        try:
            drawn = contact_sheet(tiles, header=header)
        except ImportError:
            click.echo(f"{sheet.name} needs Pillow: pip install pillow", err=True)
        else:
            write_png(sheet, drawn)


def _note(line: str) -> None:
    click.echo(one_line(line, 400), err=True)


def _progress_bar(steps: int, label: str) -> Any:
    if not sys.stderr.isatty():
        return nullcontext()
    return click.progressbar(length=steps, label=label, file=sys.stderr, show_percent=False, show_pos=True)


def _print(stem: str, result: Reconstruction, named: bool) -> None:
    caption = result.caption if result.caption is not None else "(this bundle writes no captions)"
    click.echo(f"{stem}: {caption}" if named else caption)
