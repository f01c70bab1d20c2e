"""Scans in files to pictures and records in a folder: a plan of all, then an event for each."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from unibrain_rt.contact_sheet import SHEET_TILES, Tile, contact_sheet
from unibrain_rt.decoder import Decoder
from unibrain_rt.errors import InputError
from unibrain_rt.outputs import Output, OutputPlan, plan_outputs, write_pair, write_png
from unibrain_rt.pools.decoder_pool import DecoderPool, LocalPool, Request
from unibrain_rt.reconstruction import Reconstruction
from unibrain_rt.scans import inspect_all, iter_scans
from unibrain_rt.scans.reading import Scan
from unibrain_rt.scans.scan_file import ScanFile
from unibrain_rt.subject import Subject


@dataclass(frozen=True, eq=False)
class FilePlan:
    """Scan files whose headers are good, what their scans will be written to, and the errors of the other files."""

    files: tuple[ScanFile, ...]
    failed: tuple[InputError, ...]
    outputs: OutputPlan
    overwrite: bool

    @property
    def scans(self) -> int:
        """How many scans there are, those that are kept included."""
        return len(self.outputs.todo) + len(self.outputs.kept)


@dataclass(frozen=True, eq=False)
class ScanDecoded:
    """A scan was decoded, and its picture and its record are in their files."""

    output: Output
    result: Reconstruction
    record: dict[str, Any]
    """What stands in the JSON file."""


@dataclass(frozen=True)
class ScanKept:
    """A scan was not decoded: the file ``existing`` of its two is there already."""

    stem: str
    existing: Path


@dataclass(frozen=True)
class ScanFailed:
    """A scan or a whole file cannot be decoded; the error's line says why."""

    error: InputError


@dataclass(frozen=True)
class SheetDone:
    """What became of the contact sheet, which several decoded scans get."""

    path: Path
    outcome: Literal["written", "kept"]


Event: TypeAlias = "ScanDecoded | ScanKept | ScanFailed | SheetDone"


def plan_files(
    scans: Iterable[str | os.PathLike[str]],
    subject: Subject,
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> FilePlan:
    """Read the headers of all files, and decide what is decoded to where. Nothing is written.

    Args:
        scans: files as `unibrain_rt.read_scans` reads them.
        subject: whose scans they are.
        out: folder for ``<stem>.png`` and ``<stem>.json`` of each scan.
        overwrite: decode scans again whose files are there.

    Raises:
        InputError: two scans would be written to one file, or ``out`` cannot be written to.
    """
    failed: list[InputError] = []
    files = inspect_all(scans, subject.voxel_space, failed.append)
    stems = [stem for file in files for stem in file.stems]
    sources = [file.path for file in files for _ in file.stems]
    return FilePlan(
        files, tuple(failed), plan_outputs(Path(out), stems, overwrite, sources=sources), overwrite
    )


def decode_files(
    plan: FilePlan,
    decoder: Decoder | DecoderPool,
    *,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Iterator[Event]:
    """Decode what a plan says and write it, file by file; several scans also get a contact sheet.

        bundle = Bundle.open()
        plan = plan_files(["run-1.npy", "run-2.nii.gz"], bundle.subject("sub-01"), "reconstructions")
        with open_pool(bundle, subject="sub-01", workers=2) as pool:
            for event in decode_files(plan, pool):
                print(event)

    Args:
        plan: of `plan_files`, for the decoder's subject.
        decoder: what decodes. A pool loads nothing where nothing is to be decoded.
        seed: of the noise of every scan.
        progress: called with a scan's stem, the denoising steps just done and how many there are, by what decodes in
            this process.

    Yields:
        Events: files that cannot be read and scans that are kept first, then the scans in their order. A pair of files
        is written whole or not at all before its event.

    Raises:
        InputError: an output cannot be written.
        BundleError, EngineError: as `Decoder.decode`.
    """
    yield from (ScanFailed(error) for error in plan.failed)
    yield from (ScanKept(output.stem, output.existing[0]) for output in plan.outputs.kept)

    pool = decoder if isinstance(decoder, DecoderPool) else LocalPool(lambda: decoder)
    under_way: deque[Scan | InputError] = deque()
    """What the pool has taken, in order, and the errors between."""

    def requests() -> Iterator[Request]:
        for scan in iter_scans(plan.files, under_way.append, plan.outputs.wanted):
            under_way.append(scan)
            yield Request(scan.betas, seed=seed)

    def steps(done: int, total: int) -> None:
        scan = under_way[-1]
        if progress is not None and isinstance(scan, Scan):
            progress(scan.stem, done, total)

    outputs = {output.stem: output for output in plan.outputs.todo}
    tiles: list[Tile] = []
    last, decoded = None, 0
    for result in pool.decode(requests(), steps):
        while isinstance(scan := under_way.popleft(), InputError):
            yield ScanFailed(scan)
        if isinstance(result, InputError):
            yield ScanFailed(result)
            continue
        record = {**result.record(), "scan": str(scan.source), "scan_index": scan.index}
        text = {"Description": result.caption or "", "Software": "unibrain-rt"}
        write_pair(outputs[scan.stem], result.image, record, text=text)
        last, decoded = result, decoded + 1
        if len(tiles) < SHEET_TILES:
            tiles.append(Tile((result.image,), f"{scan.stem}: {result.caption or ''}"))
        yield ScanDecoded(outputs[scan.stem], result, record)
    yield from (ScanFailed(error) for error in under_way if isinstance(error, InputError))
    if last is not None and decoded > 1:
        yield _write_sheet(plan, tiles, last, decoded)


def _write_sheet(plan: FilePlan, tiles: list[Tile], last: Reconstruction, decoded: int) -> SheetDone:
    path = plan.outputs.contact_sheet
    if path.exists() and not plan.overwrite:
        return SheetDone(path, "kept")
    header = [f"{decoded} scans, {last.bundle}, {last.subject}, preset {last.preset}"]
    if decoded > len(tiles):
        header.append(f"the first {len(tiles)} are shown")
    write_png(path, contact_sheet(tiles, header=header))
    return SheetDone(path, "written")
