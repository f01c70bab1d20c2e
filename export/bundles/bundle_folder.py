"""A bundle's folder as it is written: it appears whole, and whatever changes in it, its manifest comes last."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from unibrain_rt.bundle import MANIFEST, is_plain, sha256_of
from unibrain_rt.errors import InputError, input_error, one_line
from unibrain_rt.files import cannot_write, exchanged, whole_folder, write_files


@contextmanager
def new_folder(out: Path, *, overwrite: bool = False, marker: str = MANIFEST) -> Iterator[Path]:
    """A folder beside ``out`` to fill, which takes its place at the end, or is removed if that is not reached.

    Args:
        overwrite: replace ``out`` if it exists, but only a folder that holds ``marker``: nobody means to lose
            another one.

    Raises:
        InputError: ``out`` exists, or cannot be written.
    """
    check_free(out, overwrite=overwrite, marker=marker)
    with whole_folder(out) as partial:
        yield partial


def check_free(out: Path, *, overwrite: bool = False, marker: str = MANIFEST) -> None:
    """Raise `InputError` now where `new_folder` would."""
    if not os.path.lexists(out):
        return
    if not overwrite:
        raise InputError(f"{out}: exists already; choose another --out, or replace it with --overwrite")
    if not (out / marker).exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out}: exists and holds no {marker}, so it is not replaced; choose another --out")


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write ``bundle.json`` with the size and SHA-256 of every other file in ``folder``."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    _put_manifest(folder, {**manifest, "files": _records(folder, paths)})


def copy_bundle(source: Path, target: Path) -> None:
    """Copy a bundle's manifest, and every file that it names, into the folder ``target``."""
    copy_files(source, target, read_manifest(source)["files"])
    shutil.copyfile(source / MANIFEST, target / MANIFEST)


def copy_files(source: Path, target: Path, names: Iterable[str]) -> None:
    """Copy these files of a bundle into the folder ``target``, to the same places."""
    for name in sorted(names):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)


def check_name(name: str) -> None:
    """Raise `InputError` if a subject cannot be called so."""
    if not is_plain(name):
        raise InputError(f"subject '{one_line(name, 40)}' cannot be a folder's name: give a plain one")


def check_subject(bundle: Path, name: str, *, overwrite: bool = False) -> None:
    """Raise `InputError` now if `add_subject` would refuse this name in this bundle."""
    check_name(name)
    if name in read_manifest(bundle)["subjects"] and not overwrite:
        problem = f"subject '{one_line(name, 40)}' is in the bundle already"
        raise input_error(bundle, f"{problem}: replace it with --overwrite, or choose another --subject")


def add_subject(bundle: Path, write: Callable[[Path], None], name: str, *, overwrite: bool = False) -> None:
    """Let ``write`` make ``subjects/<name>/`` and enter its files into the manifest; other files are not read.

    Until ``write`` is done, nothing that the bundle holds is touched. Then a subject of that name is taken out of
    the manifest before its folder is exchanged, and the new one is entered last: killed in between, the bundle is
    whole, if without that subject. Whatever is raised, the bundle stays as it was.

    Raises:
        InputError: the name is taken (unless ``overwrite``) or no folder's, or the folder cannot be written.
    """
    check_subject(bundle, name, overwrite=overwrite)
    before = (bundle / MANIFEST).read_text(encoding="utf-8")
    manifest = json.loads(before)
    taken = name in manifest["subjects"]
    folder = bundle / "subjects" / name
    partial = folder.with_name(f".{name}.partial")
    others: dict[str, Any] = {
        "subjects": [other for other in manifest["subjects"] if other != name],
        "files": {
            file: record
            for file, record in manifest["files"].items()
            if not file.startswith(f"subjects/{name}/")
        },
    }
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        folder.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        records = {
            f"subjects/{name}/{path}": record
            for path, record in _records(partial, sorted(partial.iterdir())).items()
        }
        entered: dict[str, Any] = {
            "subjects": sorted({*others["subjects"], name}),
            "files": {**others["files"], **records},
        }
        try:
            if taken:
                _put_manifest(bundle, {**manifest, **others})
            # What is in its place is the old one, or what a killed process never entered.
            with exchanged(partial, folder):
                _put_manifest(bundle, {**manifest, **entered})
        except BaseException:
            with suppress(OSError, InputError):
                write_files({bundle / MANIFEST: before})
            raise
    except OSError as error:
        raise cannot_write(folder, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def set_default_subject(bundle: Path, name: str) -> None:
    """Whose scans the bundle takes where nobody says whose they are."""
    _put_manifest(bundle, {**read_manifest(bundle), "default_subject": name})


def read_manifest(folder: Path) -> dict[str, Any]:
    """``bundle.json`` as it stands."""
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return manifest


def _put_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    write_files({folder / MANIFEST: json.dumps(manifest, indent=1, sort_keys=True) + "\n"})


def _records(folder: Path, paths: list[Path]) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of these files, by their places in ``folder``."""
    return {
        path.relative_to(folder).as_posix(): {"size_bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in paths
    }
