"""Bundles as they are written: whole or as they were, whatever happens in between."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unibrain_rt.bundle import Bundle
from unibrain_rt.errors import InputError
from unibrain_rt.export.bundles import bundle_folder
from unibrain_rt.export.bundles.bundle_folder import add_subject, copy_bundle, new_folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def writer(source: Path, extra: str = "") -> Callable[[Path], None]:
    """Writes a copy of another subject, with blanks behind its description that make it another file."""

    def write(folder: Path) -> None:
        shutil.copytree(source, folder)
        with (folder / "subject.json").open("a") as file:
            file.write(extra)

    return write


@pytest.fixture
def template(tiny_template: Path) -> Path:
    return tiny_template / "subjects" / "sub-01"


def test_a_subject_is_entered_with_its_files(tiny_bundle: Path, template: Path) -> None:
    before = contents(tiny_bundle)
    add_subject(tiny_bundle, writer(template), "sub-09")
    bundle = Bundle.open(tiny_bundle)
    assert bundle.subjects == ("sub-01", "sub-09")
    assert bundle.subject("sub-09").voxels == bundle.subject("sub-01").voxels
    manifest, old = (
        json.loads(text) for text in (contents(tiny_bundle)["bundle.json"], before["bundle.json"])
    )
    assert {name: manifest["files"][name] for name in old["files"]} == old["files"]
    assert set(manifest["files"]) - set(old["files"]) == {
        "subjects/sub-09/subject.json",
        "subjects/sub-09/heads.safetensors",
        "subjects/sub-09/ridge.onnx",
    }
    after = contents(tiny_bundle)
    assert {name: after[name] for name in before if name != "bundle.json"} == {
        name: content for name, content in before.items() if name != "bundle.json"
    }


def test_a_subject_is_replaced_only_if_asked_for(tiny_bundle: Path, template: Path) -> None:
    before = contents(tiny_bundle)
    with pytest.raises(InputError, match="is in the bundle already: replace it with --overwrite"):
        add_subject(tiny_bundle, writer(template, "\n"), "sub-01")
    assert contents(tiny_bundle) == before
    (tiny_bundle / "subjects" / "sub-01" / "heads.safetensors").chmod(0o644)
    add_subject(tiny_bundle, writer(template, "\n"), "sub-01", overwrite=True)
    changed = {name for name, content in contents(tiny_bundle).items() if before.get(name) != content}
    assert changed == {"bundle.json", "subjects/sub-01/subject.json"}
    assert Bundle.open(tiny_bundle).subjects == ("sub-01",)


def test_a_folder_that_was_never_entered_is_in_nobodys_way(tiny_bundle: Path, template: Path) -> None:
    leftover = tiny_bundle / "subjects" / "sub-09"
    leftover.mkdir()
    (leftover / "half.bin").write_bytes(b"half")
    add_subject(tiny_bundle, writer(template), "sub-09")
    assert {path.name for path in (tiny_bundle / "subjects").iterdir()} == {"sub-01", "sub-09"}
    assert not (leftover / "half.bin").exists()
    Bundle.open(tiny_bundle)


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\\b", "a\nb"])
def test_a_name_that_is_no_folders_is_refused(tiny_bundle: Path, template: Path, name: str) -> None:
    before = contents(tiny_bundle)
    with pytest.raises(InputError, match="cannot be a folder's name"):
        add_subject(tiny_bundle, writer(template), name)
    assert contents(tiny_bundle) == before


class Nth:
    """A function that does what it did before, until its call number ``fatal``."""

    def __init__(self, function: Callable[..., Any], fatal: int, error: BaseException) -> None:
        self.function, self.left, self.error = function, fatal, error

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            raise self.error
        return self.function(*arguments, **options)


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), OSError(28, "No space left on device")], ids=["^C", "full"]
)
@pytest.mark.parametrize("name", ["sub-01", "sub-09"])
@pytest.mark.parametrize(
    ("what", "call"), [("replace", 1), ("replace", 2), ("rename", 1), ("rename", 2), ("write", 1)]
)
def test_whatever_is_raised_the_bundle_stays_as_it_was(
    tiny_bundle: Path,
    template: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    name: str,
    what: str,
    call: int,
) -> None:
    before = contents(tiny_bundle)
    write = writer(template, "\n")
    reached = name == "sub-01" or call == 1  # a new subject takes one step of each kind
    with monkeypatch.context() as patch:
        if what == "replace":
            patch.setattr(bundle_folder.os, "replace", Nth(os.replace, call, error))
        elif what == "rename":
            original = Path.rename
            counted = Nth(original, call, error)
            patch.setattr(Path, "rename", lambda self, target: counted(self, target))
        else:
            write = Nth(write, call, error)
        if not reached:
            add_subject(tiny_bundle, write, name, overwrite=True)
            return
        with pytest.raises((KeyboardInterrupt, InputError)):
            add_subject(tiny_bundle, write, name, overwrite=True)
    assert contents(tiny_bundle) == before
    assert {path.name for path in (tiny_bundle / "subjects").iterdir()} == {"sub-01"}
    Bundle.open(tiny_bundle)


KILL = """
import os, shutil, sys
from pathlib import Path
from unibrain_rt.export.bundles import bundle_folder
bundle, template, fatal = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
left = [fatal]
def counted(function):
    def call(*arguments):
        left[0] -= 1
        if left[0] == 0:
            os._exit(9)
        return function(*arguments)
    return call
bundle_folder.os.replace = counted(os.replace)
Path.rename = counted(Path.rename)
bundle_folder.add_subject(bundle, lambda folder: shutil.copytree(template, folder), "sub-01", overwrite=True)
"""


@pytest.mark.parametrize("fatal", [1, 2, 3, 4])
def test_killed_between_any_two_steps_the_bundle_is_whole(
    tiny_bundle: Path, template: Path, fatal: int
) -> None:
    command = [sys.executable, "-c", KILL, tiny_bundle, template, str(fatal)]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 9, done.stderr
    assert Bundle.open(tiny_bundle).subjects == (("sub-01",) if fatal == 1 else ())
    add_subject(tiny_bundle, writer(template), "sub-01", overwrite=True)
    assert Bundle.open(tiny_bundle).subjects == ("sub-01",)
    assert {path.name for path in (tiny_bundle / "subjects").iterdir()} == {"sub-01"}


# --- folders ------------------------------------------------------------------------------------------------


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    out = tmp_path / "a" / "out"
    with new_folder(out) as folder:
        (folder / "bundle.json").write_text("{}")
        assert not out.exists()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["out"]
    with pytest.raises(InputError, match="exists already"), new_folder(out):
        raise AssertionError
    with new_folder(out, overwrite=True) as folder:
        (folder / "new").write_text("new")
    assert contents(out) == {"new": b"new"}
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["out"]


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), OSError(28, "No space left on device")], ids=["^C", "full"]
)
def test_a_folder_that_fails_leaves_the_old_one(tmp_path: Path, error: BaseException) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "bundle.json").write_text("old")
    with pytest.raises((KeyboardInterrupt, InputError)), new_folder(out, overwrite=True) as folder:
        (folder / "bundle.json").write_text("new")
        raise error
    assert contents(tmp_path) == {"out/bundle.json": b"old"}


def test_a_folder_of_another_kind_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    refused = pytest.raises(InputError, match=r"holds no bundle\.json, so it is not replaced")
    with refused, new_folder(tmp_path, overwrite=True):
        raise AssertionError
    assert contents(tmp_path) == {"mine.txt": b"keep"}


def test_a_copy_holds_what_the_manifest_names(tiny_bundle: Path, tmp_path: Path) -> None:
    (tiny_bundle / "notes.txt").write_text("not the bundle's")
    copy_bundle(tiny_bundle, tmp_path / "copy")
    assert set(contents(tiny_bundle)) - set(contents(tmp_path / "copy")) == {"notes.txt"}
    assert Bundle.open(tmp_path / "copy").fingerprint() == Bundle.open(tiny_bundle).fingerprint()
