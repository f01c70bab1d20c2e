"""Outputs: whole files or none, nothing overwritten unasked, and a sheet that can be read."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unibrain_rt import outputs
from unibrain_rt.errors import InputError
from unibrain_rt.files import write_json
from unibrain_rt.outputs import plan_outputs, write_pair, write_png


def picture(size: int = 64) -> np.ndarray[Any, Any]:
    return np.random.default_rng(size).integers(0, 256, (size, size, 3), np.uint8)


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def check_line(error: BaseException) -> None:
    assert isinstance(error, InputError)
    assert str(error).isprintable()
    assert len(str(error)) <= 300


# --- writing ------------------------------------------------------------------------------------------------


def test_a_picture_comes_back_with_its_text(tmp_path: Path) -> None:
    text = {"caption": "a dog", "Überschrift": "ein Hund – 犬", "path": os.fsdecode(b"\xff.npy")}
    write_png(tmp_path / "deep" / "er" / "a.png", picture(), text=text)
    with Image.open(tmp_path / "deep" / "er" / "a.png") as image:
        np.testing.assert_array_equal(np.asarray(image), picture())
        assert image.text == {**text, "path": "\\udcff.npy"}  # type: ignore[attr-defined]
    assert files(tmp_path) == ["deep", "deep/er", "deep/er/a.png"]


def test_the_same_picture_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        write_png(tmp_path / name, picture()[:, ::-1])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8),
     np.zeros((0, 4, 3), np.uint8)],
)  # fmt: skip
def test_pictures_are_rgb_bytes(tmp_path: Path, image: np.ndarray[Any, Any]) -> None:
    with pytest.raises(ValueError, match="a picture is uint8"):
        write_png(tmp_path / "a.png", image)
    assert files(tmp_path) == []


def test_records_are_strict_json(tmp_path: Path) -> None:
    record = {
        "caption": "un été 犬",
        "seed": np.int64(7),
        "ratio": np.float32(0.5),
        "row": np.arange(3),
        "bundle": Path("x/y"),
        "source": os.fsdecode(b"\xff.npy"),
        "timings_ms": {"unet": 1.5},
    }
    write_json(tmp_path / "a.json", record)
    text = (tmp_path / "a.json").read_text("utf-8")
    assert "un été 犬" in text
    assert text.endswith("}\n")
    found = json.loads(text)
    assert list(found) == list(record)
    assert found == {**record, "seed": 7, "ratio": 0.5, "row": [0, 1, 2], "bundle": "x/y"}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float64("nan"), object(), {1, 2}])
def test_what_is_not_json_is_a_mistake_of_ours(tmp_path: Path, value: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        write_json(tmp_path / "a.json", {"value": value})
    assert files(tmp_path) == []


def test_files_get_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    write_json(tmp_path / "a.json", {})
    assert (tmp_path / "a.json").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("old" * 1000)
    write_json(tmp_path / "a.json", {"new": 1})
    assert json.loads((tmp_path / "a.json").read_text()) == {"new": 1}
    assert files(tmp_path) == ["a.json"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["write", "first rename", "second rename"])
@pytest.mark.parametrize("old", [False, True])
def test_nothing_half_written_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, step: str, old: bool
) -> None:
    (output,) = plan_outputs(tmp_path, ["scan"], False).todo
    if old:
        output.json.write_text("old")
    replace, calls = os.replace, iter(range(9))

    def failing_replace(source: Path, target: Path) -> None:
        if next(calls) == (1 if step == "second rename" else 0):
            raise error
        replace(source, target)

    if step == "write":

        def failing_open(path: Path, mode: str) -> Any:
            path.write_bytes(b"half")
            raise error

        monkeypatch.setattr("builtins.open", failing_open)
    else:
        monkeypatch.setattr(outputs.os, "replace", failing_replace)
    expected = InputError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        write_pair(output, picture(8), {})
    if isinstance(error, OSError):
        check_line(caught.value)
        assert "No space left on device" in str(caught.value)
        assert "free some space" in str(caught.value)
    monkeypatch.undo()
    assert files(tmp_path) == (["scan.json"] if old else [])
    if old:
        assert output.json.read_text() == "old"


def test_a_write_that_the_system_cuts_short(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    code = (
        "import resource, signal, sys\n"
        "from unibrain_rt import files\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: files.write_json(files.Path(sys.argv[1]), {'text': 'x' * 5000})\n"
        "except files.InputError as error: print(error)\n"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "a.json")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert "cannot be written (File too large)" in done.stdout
    assert files(tmp_path) == []


def test_a_pair_is_written_together(tmp_path: Path) -> None:
    (output,) = plan_outputs(tmp_path / "out", ["scan"], False).todo
    write_pair(output, picture(8), {"caption": "a dog"}, text={"caption": "a dog"})
    assert files(tmp_path / "out") == ["scan.json", "scan.png"]
    assert json.loads(output.json.read_text())["caption"] == "a dog"


def test_what_the_system_refuses_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.json").mkdir()
    for path, part in [
        (tmp_path / "file" / "a.json", "a file stands where a folder is needed"),
        (tmp_path / "file" / "deeper" / "a.json", "a file stands where a folder is needed"),
        (tmp_path / "folder.json", "a folder stands where the file would go"),
        (tmp_path / ("x" * 300) / "a.json", "shorten"),
    ]:
        with pytest.raises(InputError, match=part) as caught:
            write_json(path, {})
        check_line(caught.value)
    before = files(tmp_path)

    def forbidden(*args: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("builtins.open", forbidden)
    with pytest.raises(InputError, match=r"Permission denied.*--out"):
        write_png(tmp_path / "a.png", picture())
    assert files(tmp_path) == before


# --- planning -----------------------------------------------------------------------------------------------


def test_a_plan_for_a_new_folder_touches_nothing(tmp_path: Path) -> None:
    plan = plan_outputs(tmp_path / "new" / "out", ["b", "a"], False)
    assert [output.stem for output in plan.todo] == ["b", "a"]
    assert plan.todo[0].png == tmp_path / "new" / "out" / "b.png"
    assert plan.todo[0].json == tmp_path / "new" / "out" / "b.json"
    assert plan.contact_sheet == tmp_path / "new" / "out" / "contact_sheet.png"
    assert plan.wanted == {"a", "b"}
    assert (plan.kept, plan.incomplete) == ((), ())
    assert files(tmp_path) == []


def test_what_exists_is_kept_unless_asked(tmp_path: Path) -> None:
    for name in ("both.png", "both.json", "half.png", "other.txt"):
        (tmp_path / name).touch()
    os.symlink("nowhere", tmp_path / "link.json")
    stems = ["both", "half", "link", "new"]
    plan = plan_outputs(tmp_path, stems, False)
    assert plan.wanted == {"new"}
    assert [output.stem for output in plan.kept] == ["both", "half", "link"]
    assert [output.stem for output in plan.incomplete] == ["half", "link"]
    assert plan.kept[1].existing == (tmp_path / "half.png",)
    again = plan_outputs(tmp_path, stems, True)
    assert again.wanted == set(stems)
    assert again.kept == ()
    assert len(again.todo[0].existing) == 2


def test_two_scans_of_one_name_collide(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"s\.png.*both 'a/s\.npy' and 'b/s\.npz'.*--out") as caught:
        plan_outputs(tmp_path, ["x", "s", "s"], True, sources=["x.npy", "a/s.npy", Path("b/s.npz")])
    check_line(caught.value)
    with pytest.raises(InputError, match=r"'a/s\.npy' would be written twice"):
        plan_outputs(tmp_path, ["s", "s"], False, sources=["a/s.npy", "a/s.npy"])
    with pytest.raises(InputError, match="twice"):
        plan_outputs(tmp_path, ["s", "s"], False)
    with pytest.raises(InputError) as caught:
        plan_outputs(tmp_path / ("y" * 90), ["s" * 90] * 2, False, sources=["a" * 500 + "\n", "b" * 500])
    check_line(caught.value)


@pytest.mark.parametrize("stem", ["", ".", "..", "a/b", "/a", "a\0b", "contact_sheet", "x" * 251, "é" * 126])
def test_stems_that_cannot_name_an_output(tmp_path: Path, stem: str) -> None:
    with pytest.raises(InputError) as caught:
        plan_outputs(tmp_path, ["fine", stem], False, sources=["fine.npy", "odd.npy"])
    check_line(caught.value)
    assert "odd.npy" in str(caught.value)


def test_folders_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    os.symlink("nowhere", tmp_path / "link")
    (tmp_path / "scan.json").mkdir()
    for out in (tmp_path / "file", tmp_path / "file" / "deeper", tmp_path / "link", Path("a\0b")):
        with pytest.raises(InputError, match="--out") as caught:
            plan_outputs(out, ["scan"], True)
        check_line(caught.value)
    with pytest.raises(InputError, match="a folder stands where the file would go"):
        plan_outputs(tmp_path, ["scan"], True)
    monkeypatch.setattr(outputs.os, "access", lambda *_: False)
    with pytest.raises(InputError, match="Permission denied"):
        plan_outputs(tmp_path / "new", ["scan"], False)


def test_a_relative_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert plan_outputs(Path("."), ["s"], False).todo[0].png == Path("s.png")
    assert plan_outputs(Path("a/b"), ["s"], False).todo[0].png == Path("a/b/s.png")
