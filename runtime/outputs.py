"""What a decode leaves behind: PNG and JSON, written whole or not at all.

A file is first written under a temporary name in its own folder, then renamed, so that no reader ever sees
half of it. What the system refuses (no space, no permission) is an `InputError` of one line.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.errors import InputError, input_error, one_line
from unibrain_rt.png import encode_png

SHEET_NAME = "contact_sheet"

_ADVICE = {
    errno.ENOSPC: "free some space or write elsewhere with --out",
    errno.EDQUOT: "free some space or write elsewhere with --out",
    errno.ENOTDIR: "a file stands where a folder is needed, write elsewhere with --out",
    errno.EEXIST: "a file stands where a folder is needed, write elsewhere with --out",
    errno.EISDIR: "a folder stands where the file would go, write elsewhere with --out",
    errno.ENAMETOOLONG: "shorten the scan's name",
}


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
    _write([(Path(path), encode_png(image, _encodable(text)))])


def write_json(path: Path, mapping: Mapping[str, Any]) -> None:
    """Write strict JSON in UTF-8; NumPy values and paths are converted. Raises `InputError`."""
    _write([(Path(path), _json_bytes(mapping))])


def write_text(path: Path, text: str) -> None:
    """Write ``text`` in UTF-8. Raises `InputError`."""
    _write([(Path(path), text.encode("utf-8", "backslashreplace"))])


def write_texts(files: Mapping[Path, str]) -> None:
    """Write several texts in UTF-8, all or (where none was there) none. Raises `InputError`."""
    _write([(Path(path), text.encode("utf-8", "backslashreplace")) for path, text in files.items()])


def write_pair(
    output: Output,
    image: NDArray[np.uint8],
    record: Mapping[str, Any],
    *,
    text: Mapping[str, str] | None = None,
) -> None:
    """Write a scan's picture and record, both or (where neither was there) none. Raises `InputError`."""
    picture = encode_png(image, _encodable(text))
    _write([(output.png, picture), (output.json, _json_bytes(record))])


def _encodable(text: Mapping[str, str] | None) -> dict[str, str]:
    """``text`` with lone surrogates, which stand for undecodable bytes of file names, in their backslash form."""
    return {
        key: value.encode("utf-8", "backslashreplace").decode("utf-8") for key, value in (text or {}).items()
    }


def _json_bytes(mapping: Mapping[str, Any]) -> bytes:
    text = json.dumps(dict(mapping), indent=2, ensure_ascii=False, allow_nan=False, default=_plain)
    # A file name may hold undecodable bytes as lone surrogates; their backslash form is JSON's own for them.
    return f"{text}\n".encode("utf-8", "backslashreplace")


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _write(files: Sequence[tuple[Path, bytes]]) -> None:
    """Put all files in place or, if any of them fails, none; temporary files never stay."""
    temporary: list[Path] = []
    placed: list[Path] = []
    path = files[0][0]
    try:
        for path, data in files:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            part = path.with_name(f".{os.urandom(8).hex()}.tmp")
            temporary.append(part)
            # Not tempfile: it makes files that only their owner can read, and labs share folders.
            with open(part, "xb") as stream:
                stream.write(data)
        for (path, _), part in zip(files, temporary, strict=True):
            if not os.path.lexists(path):
                placed.append(path)
            os.replace(part, path)
    except BaseException as error:  # an interrupt must not leave half a pair either
        for leftover in (*temporary, *placed):
            try:
                leftover.unlink(missing_ok=True)
            except OSError:
                continue  # the folder itself may be gone; the first error is the one to show
        if isinstance(error, OSError):
            raise _cannot_write(path, error) from error
        raise


def _cannot_write(path: Path, error: OSError) -> InputError:
    advice = _ADVICE.get(error.errno or 0, "write to a folder of yours with --out")
    return input_error(path, f"cannot be written ({error.strerror or type(error).__name__}): {advice}")


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
        raise _cannot_write(out, error) from error
