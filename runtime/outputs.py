"""What a decode leaves behind: a picture and its record for every scan. What is there is kept unless asked."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.errors import input_error, one_line
from unibrain_rt.files import cannot_write, json_text, write_files
from unibrain_rt.png import encode_png

SHEET_NAME = "contact_sheet"


@dataclass(frozen=True)
class Output:
    """The pair of files of one scan; ``existing`` are those that were there when the plan was made."""

    stem: str
    png: Path
    json: Path
    existing: tuple[Path, ...]


@dataclass(frozen=True)
class OutputPlan:
    """Which scans to decode (``todo``) and which to leave because an output of theirs is there (``kept``)."""

    out: Path
    todo: tuple[Output, ...]
    kept: tuple[Output, ...]

    @property
    def wanted(self) -> frozenset[str]:
        """Stems to decode."""
        return frozenset(output.stem for output in self.todo)

    @property
    def incomplete(self) -> tuple[Output, ...]:
        """Kept although one file of the pair is missing: it is not ours to guess who wrote the other."""
        return tuple(output for output in self.kept if len(output.existing) == 1)

    @property
    def contact_sheet(self) -> Path:
        return self.out / f"{SHEET_NAME}.png"


def plan_outputs(
    out: Path,
    stems: Sequence[str],
    overwrite: bool,
    *,
    sources: Sequence[str | os.PathLike[str]] | None = None,
) -> OutputPlan:
    """Decide what to write before anything is decoded: ``<out>/<stem>.png`` and ``.json`` for every stem.

    ``sources`` are the stems' inputs, for messages. A scan is kept if either of its files is there and not
    ``overwrite``. Raises `InputError` if two scans would write the same files, if a stem cannot be a file's
    name, or if ``out`` cannot be written to.
    """
    out = Path(out)
    origin = [os.fspath(source) for source in sources] if sources is not None else list(stems)
    _check_folder(out)
    seen: dict[str, str] = {}
    todo: list[Output] = []
    kept: list[Output] = []
    for stem, source in zip(stems, origin, strict=True):
        if not stem or Path(stem).name != stem or "\0" in stem or stem == "..":
            raise input_error(source, f"'{stem}' cannot name an output: rename the scan")
        if len(os.fsencode(f"{stem}.json")) > 255:
            raise input_error(source, "its name is too long for an output: shorten it")
        if stem == SHEET_NAME:
            raise input_error(source, f"{SHEET_NAME}.png is the name of the contact sheet: rename the scan")
        png, record = out / f"{stem}.png", out / f"{stem}.json"
        key = os.path.normcase(stem)
        if key in seen:
            first, second = one_line(seen[key], 80), one_line(source, 80)
            if seen[key] == source:
                raise input_error(png, f"'{first}' would be written twice: give every scan once")
            problem = f"both '{first}' and '{second}' would be written there"
            raise input_error(png, f"{problem}: rename one, or decode them apart, each with its own --out")
        seen[key] = source
        existing = tuple(path for path in (png, record) if os.path.lexists(path))
        for path in existing:
            if path.is_dir():
                raise input_error(path, "a folder stands where the file would go: write elsewhere with --out")
        (kept if existing and not overwrite else todo).append(Output(stem, png, record, existing))
    return OutputPlan(out, tuple(todo), tuple(kept))


def write_png(path: Path, image: NDArray[np.uint8], *, text: Mapping[str, str] | None = None) -> None:
    """Write ``image`` (height, width, 3) with ``text`` as PNG text chunks. Raises `InputError`."""
    write_files({path: encode_png(image, text)})


def write_pair(
    output: Output,
    image: NDArray[np.uint8],
    record: Mapping[str, Any],
    *,
    text: Mapping[str, str] | None = None,
) -> None:
    """Write a scan's picture and record, both or (where neither was there) none. Raises `InputError`."""
    write_files({output.png: encode_png(image, text), output.json: json_text(record)})


def _check_folder(out: Path) -> None:
    """Raise early what would make every write fail."""
    if "\0" in os.fspath(out):
        raise input_error(out, "cannot be a folder's name: give another --out")
    try:
        nearest = next((folder for folder in (out, *out.parents) if os.path.lexists(folder)), Path())
        if not nearest.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise cannot_write(out, error) from error
