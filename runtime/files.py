"""Whole or not at all: a file, files that belong together, a folder.

What is written lies under another name beside its place until it is whole, so that no reader ever sees half of it. When
something fails or is interrupted, what was there before is still there, and nothing else. What the system refuses (no
space, no permission) is an `InputError` of one line.

    with whole_files(png, json) as (picture, record):
        ...  # write to `picture` and `record`; at the end of the block both get their names
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from unibrain_rt.errors import InputError, input_error

_log = logging.getLogger(__name__)

_FULL = "free some space or write elsewhere with {option}"
_FILE_IN_THE_WAY = "a file stands where a folder is needed, write elsewhere with {option}"
_ADVICE = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.ENOTDIR: _FILE_IN_THE_WAY,
    errno.EEXIST: _FILE_IN_THE_WAY,
    errno.EISDIR: "a folder stands where the file would go, write elsewhere with {option}",
    errno.ENAMETOOLONG: "shorten the name",
}


def cannot_write(path: Path, error: OSError, option: str = "--out") -> InputError:
    """What to raise where the system refused to write ``path``; ``option`` lets a user choose another place."""
    advice = _ADVICE.get(error.errno or 0, "write to a folder of yours with {option}").format(option=option)
    return input_error(path, f"cannot be written ({error.strerror or type(error).__name__}): {advice}")


@contextmanager
def whole_files(*paths: Path, option: str = "--out") -> Iterator[tuple[Path, ...]]:
    """Names to write files to, one for each of ``paths``, which take their places together at the end of the block.

    If the block or a renaming fails, no new file stays. Of files that are replaced, those before the one that failed
    are the new ones. Folders that are missing are made.

    Raises:
        InputError: the system refused to write; its line names ``option``.
    """
    parts = tuple(path.with_name(f".{os.urandom(8).hex()}.tmp") for path in paths)
    placed: list[Path] = []
    path = paths[0]
    try:
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path = paths[0]
        yield parts
        for path, part in zip(paths, parts, strict=True):
            if not os.path.lexists(path):
                placed.append(path)
            os.replace(part, path)
    except BaseException as error:  # an interrupt must not leave half a pair either
        for leftover in (*parts, *placed):
            with suppress(OSError):  # the folder itself may be gone; the first error is the one to show
                leftover.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise cannot_write(path, error, option) from error
        raise


@contextmanager
def whole_file(path: Path, option: str = "--out") -> Iterator[Path]:
    """A name to write a file to, which takes its place at the end of the block: see `whole_files`."""
    with whole_files(path, option=option) as (part,):
        yield part


def write_files(files: Mapping[Path, bytes | str], option: str = "--out") -> None:
    """Write bytes, or texts in UTF-8, all or (where none was there) none. Raises `InputError`."""
    with whole_files(*files, option=option) as parts:
        for part, content in zip(parts, files.values(), strict=True):
            # A file name may hold undecodable bytes as lone surrogates; they are written in their backslash form.
            raw = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
            # Not tempfile: it makes files that only their owner can read, and labs share folders.
            with open(part, "xb") as stream:
                stream.write(raw)
    _log.debug("wrote %s", ", ".join(map(str, files)))


def write_json(path: Path, mapping: Mapping[str, Any]) -> None:
    """Write strict JSON in UTF-8; NumPy values and paths are converted. Raises `InputError`."""
    write_files({path: json_text(mapping)})


def json_text(mapping: Mapping[str, Any]) -> str:
    """What `write_json` writes."""
    return json.dumps(dict(mapping), indent=2, ensure_ascii=False, allow_nan=False, default=_plain) + "\n"


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


@contextmanager
def whole_folder(folder: Path, option: str = "--out") -> Iterator[Path]:
    """A folder beside ``folder`` to fill, which takes its place at the end of the block.

    A folder that is there is replaced: ask first. If the block fails, that is left as it was.

    Raises:
        InputError: the system refused to write; its line names ``option``.
    """
    folder = folder.absolute()
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        partial.mkdir(parents=True)
        yield partial
        with exchanged(partial, folder):
            pass
    except OSError as error:
        raise cannot_write(folder, error, option) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def exchanged(new: Path, folder: Path) -> Iterator[None]:
    """Put the folder ``new`` in the place of ``folder``, for good if the block succeeds. Raises `OSError`."""
    old = folder.with_name(f".{folder.name}.replaced")
    shutil.rmtree(old, ignore_errors=True)  # of a process that was killed
    if there := folder.exists():
        folder.rename(old)
    try:
        new.rename(folder)
        yield
    except BaseException:
        with suppress(OSError):
            shutil.rmtree(folder, ignore_errors=True)
            if there:
                old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
