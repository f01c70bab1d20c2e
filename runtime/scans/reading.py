"""Scan files to betas, one scan at a time: every header is checked before the first scan is read.

What a subject expects of a scan is a `VoxelSpace`; how the files are read is in `scan_file`. Whatever a file
holds, the only error is an `InputError`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.errors import InputError
from unibrain_rt.scans.scan_file import ScanFile, inspect
from unibrain_rt.scans.voxel_space import VoxelSpace

OnError = Callable[[InputError], None] | None


@dataclass(frozen=True, eq=False)
class Scan:
    """One scan, ready to decode: finite ``betas`` (voxels,). ``index`` is its row in a file of several."""

    stem: str
    source: Path
    index: int | None
    betas: NDArray[np.float32]


def inspect_all(
    paths: Iterable[str | os.PathLike[str]], space: VoxelSpace, on_error: OnError = None
) -> tuple[ScanFile, ...]:
    """`inspect` every file. A bad one is given to ``on_error`` and left out; without it, it is raised."""
    files = []
    for path in paths:
        try:
            files.append(inspect(path, space))
        except InputError as error:
            _report(error, on_error)
    return tuple(files)


def iter_scans(
    files: Iterable[ScanFile], on_error: OnError = None, wanted: Container[str] | None = None
) -> Iterator[Scan]:
    """Scans of inspected files, in order, one at a time in memory; of ``wanted`` stems only, if given.

    A file that cannot be loaded, or a scan that is not finite, is given to ``on_error`` once and left out;
    without ``on_error`` it is raised.
    """
    for file in files:
        rows = [row for row, stem in enumerate(file.stems) if wanted is None or stem in wanted]
        try:
            if rows:
                file.load()
        except InputError as error:
            _report(error, on_error)
            continue
        try:
            for row in rows:
                try:
                    betas = file.read(row)
                except InputError as error:
                    _report(error, on_error)
                else:
                    yield Scan(file.stems[row], file.path, row if len(file) > 1 else None, betas)
        finally:
            file.close()


def read_scans(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    space: VoxelSpace,
    on_error: OnError = None,
) -> Iterator[Scan]:
    """Scans of one file or of many: every header is checked before the first scan is read."""
    several = (paths,) if isinstance(paths, (str, os.PathLike)) else paths
    return iter_scans(inspect_all(several, space, on_error), on_error)


def _report(error: InputError, on_error: OnError) -> None:
    if on_error is None:
        raise error
    on_error(error)
