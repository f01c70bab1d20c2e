"""``unibrain-rt decode``: what it writes, what it prints, what it keeps, and how it ends."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unibrain_rt import Decoder, outputs
from unibrain_rt.bundle import Bundle
from unibrain_rt.cli.json_report import _joined
from unibrain_rt.engines.program import HostProgram

Run = Callable[..., Any]
KEYS = {
    "caption",
    "seed",
    "preset",
    "engine",
    "bundle",
    "subject",
    "image_size",
    "timings_ms",
    "scan",
    "scan_index",
}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def decode(cli: Run, tiny_template: Path, out: Path) -> Run:
    """``unibrain-rt decode`` with the tiny bundle, quickly, into ``out``."""

    def run(*words: str | Path) -> Any:
        return cli(
            "decode",
            "--bundle",
            tiny_template,
            "--out",
            out,
            "--preset",
            "realtime",
            "--threads",
            "1",
            *words,
        )

    return run


@pytest.fixture
def scans(tiny: Any, tmp_path: Path) -> list[Path]:
    """Three scans, in a file each."""
    paths = [tmp_path / f"{name}.npy" for name in "abc"]
    for number, path in enumerate(paths):
        np.save(path, tiny.scan(number))
    return paths


def files(folder: Path) -> list[str]:
    return (
        sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")) if folder.exists() else []
    )


def picture(path: Path) -> np.ndarray[Any, Any]:
    with Image.open(path) as image:
        return np.asarray(image)


# --- One scan -----------------------------------------------------------------------------------------------


def test_a_scan_gives_a_pair_of_files_and_a_caption(
    decode: Run, out: Path, scans: list[Path], tiny: Any, tiny_template: Path
) -> None:
    done = decode(scans[0], "--seed", "4")
    assert (done.code, done.err) == (0, "")
    assert files(out) == ["a.json", "a.png"]
    record = json.loads((out / "a.json").read_text())
    assert set(record) == KEYS
    assert (record["seed"], record["preset"], record["engine"]) == (4, "realtime", "onnxruntime")
    assert (record["bundle"], record["subject"]) == ("tiny", "sub-01")
    assert (record["scan"], record["scan_index"]) == (str(scans[0]), None)
    assert done.out == f"{record['caption']}\n"
    result = Decoder.open(tiny_template, preset="realtime").decode(tiny.scan(0), seed=4)
    assert record["caption"] == result.caption
    np.testing.assert_array_equal(picture(out / "a.png"), result.image)
    with Image.open(out / "a.png") as image:
        assert image.text == {"Description": result.caption, "Software": "unibrain-rt"}  # type: ignore[attr-defined]


def test_the_seed_counts(decode: Run, out: Path, scans: list[Path]) -> None:
    pictures = []
    for seed in ("0", "1", "1"):
        assert decode(scans[0], "--seed", seed, "--overwrite").code == 0
        pictures.append(picture(out / "a.png"))
    assert not np.array_equal(pictures[0], pictures[1])
    np.testing.assert_array_equal(pictures[1], pictures[2])


def test_captions_can_be_sampled(decode: Run, scans: list[Path]) -> None:
    said = {
        decode(scans[0], "--overwrite", "--temperature", "3", "--seed", str(seed)).out for seed in range(6)
    }
    assert len(said) > 1


@pytest.mark.parametrize("suffix", [".npz", ".nii", ".nii.gz"])
def test_other_kinds_of_files(decode: Run, out: Path, tiny: Any, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"scan.run-1{suffix}"
    if suffix == ".npz":
        np.savez_compressed(path, betas=tiny.scan())
    else:
        nibabel = pytest.importorskip("nibabel")
        volume = np.zeros(tiny.MASK_SHAPE, np.float32)
        volume[tiny.mask()] = tiny.scan()
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), path)
    np.save(tmp_path / "plain.npy", tiny.scan())
    assert decode(path, tmp_path / "plain.npy").code == 0
    assert files(out) == ["contact_sheet.png", "plain.json", "plain.png", "scan.run-1.json", "scan.run-1.png"]
    np.testing.assert_array_equal(picture(out / "scan.run-1.png"), picture(out / "plain.png"))


def test_stored_integers_are_scaled(decode: Run, out: Path, tiny: Any, tmp_path: Path) -> None:
    stored = np.round(tiny.scan() / tiny.BETA_SCALE).astype(np.int16)
    np.save(tmp_path / "i.npy", stored)
    np.save(tmp_path / "f.npy", (stored * np.float64(tiny.BETA_SCALE)).astype(np.float32))
    assert decode(tmp_path / "i.npy", tmp_path / "f.npy").code == 0
    difference = picture(out / "i.png").astype(int) - picture(out / "f.png")
    assert np.abs(difference).max() <= 1


def test_a_bundle_without_captions_says_so(
    cli: Run, tiny: Any, tiny_bundle: Path, out: Path, tiny_scan: Path
) -> None:
    tiny.seal(tiny_bundle, tokenizers={})
    done = cli("decode", tiny_scan, "--bundle", tiny_bundle, "--out", out)
    assert (done.code, done.err) == (0, "")
    assert done.out == "(this bundle writes no captions)\n"
    assert json.loads((out / "scan.json").read_text())["caption"] is None


def test_the_default_folder_is_reconstructions(
    cli: Run, tiny_template: Path, tiny_scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli("decode", tiny_scan.name, "--bundle", tiny_template).code == 0
    assert files(tmp_path / "reconstructions") == ["scan.json", "scan.png"]


def test_the_default_bundle_is_the_shipped_one(
    cli: Run, phantom_bundle: Path, repository: Path, out: Path
) -> None:
    scan = repository / "examples" / "scan.npy"
    done = cli("decode", scan, "--out", out, "--preset", "realtime", "--json")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out)["bundle"] == Bundle.open(phantom_bundle, verify=False).name


# --- Many scans ---------------------------------------------------------------------------------------------


def test_many_scans_get_a_pair_each_and_a_contact_sheet(decode: Run, out: Path, scans: list[Path]) -> None:
    done = decode(*scans)
    assert (done.code, done.err) == (0, "")
    assert files(out) == ["a.json", "a.png", "b.json", "b.png", "c.json", "c.png", "contact_sheet.png"]
    captions = {stem: json.loads((out / f"{stem}.json").read_text())["caption"] for stem in "abc"}
    assert done.out.splitlines() == [f"{stem}: {captions[stem]}" for stem in "abc"]
    assert picture(out / "contact_sheet.png").shape[0] > 200


def test_a_file_of_many_scans_is_numbered(decode: Run, out: Path, tiny: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "run.npy", np.stack([tiny.scan(number) for number in range(3)]))
    np.save(tmp_path / "one.npy", tiny.scan(1)[None])
    done = decode(tmp_path / "run.npy", tmp_path / "one.npy")
    assert done.code == 0
    stems = ["run_000", "run_001", "run_002", "one"]
    assert [line.split(":")[0] for line in done.out.splitlines()] == stems
    assert files(out) == sorted(["contact_sheet.png", *(f"{s}.{k}" for s in stems for k in ("json", "png"))])
    assert json.loads((out / "run_002.json").read_text())["scan_index"] == 2
    np.testing.assert_array_equal(picture(out / "run_001.png"), picture(out / "one.png"))


def test_the_models_are_loaded_once(decode: Run, scans: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    original = Decoder.__init__
    monkeypatch.setattr(Decoder, "__init__", lambda self, *rest: opened.append(self) or original(self, *rest))  # type: ignore[func-returns-value]
    assert decode(*scans).code == 0
    assert len(opened) == 1


def test_workers_decode_what_one_process_does(
    decode: Run, out: Path, scans: list[Path], tmp_path: Path
) -> None:
    scans[1].write_bytes(b"")
    alone = decode(*scans)
    together = decode(*scans, "--out", tmp_path / "two", "--workers", "2")
    assert (together.code, together.out, together.complaints) == (2, alone.out, alone.complaints)
    assert files(tmp_path / "two") == files(out)
    for name in files(out):
        if name.endswith(".png"):
            assert (tmp_path / "two" / name).read_bytes() == (out / name).read_bytes()


@pytest.mark.parametrize("bad", [0, 1, 2])
@pytest.mark.parametrize("kind", ["header", "values", "too large", "missing"])
def test_one_bad_scan_among_many_is_reported(
    decode: Run, out: Path, scans: list[Path], tiny: Any, bad: int, kind: str
) -> None:
    path = scans[bad]
    match kind:
        case "header":
            np.save(path, tiny.scan()[:-1])
        case "values":
            np.save(path, np.where(np.arange(tiny.VOXELS) == 3, np.nan, tiny.scan()))
        case "too large":  # finite, but not in units of this subject
            np.save(path, np.full(tiny.VOXELS, 3e38, np.float32))
        case "missing":
            path.unlink()
    done = decode(*scans)
    good = [stem for stem in "abc" if stem != path.stem]
    assert done.code == 2
    assert len(done.complaints) == 1
    if kind != "too large":
        assert path.name in done.err
    assert [line.split(":")[0] for line in done.out.splitlines()] == good
    assert files(out) == sorted(["contact_sheet.png", *(f"{s}.{k}" for s in good for k in ("json", "png"))])


def test_a_bad_row_is_left_out_of_a_file(decode: Run, out: Path, tiny: Any, tmp_path: Path) -> None:
    rows = np.stack([tiny.scan(number) for number in range(3)])
    rows[1, 5] = np.inf
    np.save(tmp_path / "run.npy", rows)
    done = decode(tmp_path / "run.npy")
    assert done.code == 2
    assert len(done.complaints) == 1
    assert "scan 1 (of 3" in done.err
    assert files(out) == ["contact_sheet.png", "run_000.json", "run_000.png", "run_002.json", "run_002.png"]


def test_all_bad_scans_are_reported(decode: Run, out: Path, scans: list[Path]) -> None:
    for path in scans:
        path.write_bytes(b"")
    done = decode(*scans)
    assert done.code == 2
    assert len(done.complaints) == 3
    assert files(out) == []
    assert done.out == ""


def test_two_scans_of_one_name_are_not_decoded(decode: Run, out: Path, tiny: Any, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "scan.npy", tiny.scan())
    done = decode(tmp_path / "one" / "scan.npy", tmp_path / "two" / "scan.npy")
    assert done.code == 2
    assert len(done.complaints) == 1
    assert files(out) == []


# --- What is there already ----------------------------------------------------------------------------------


def test_what_is_there_is_kept(decode: Run, out: Path, scans: list[Path]) -> None:
    assert decode(scans[0]).code == 0
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()}
    done = decode(scans[0], "--seed", "9")
    assert (done.code, done.out) == (0, "")
    assert done.err == f"a: kept, {out / 'a.png'} exists (--overwrite decodes it again)\n"
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()} == before
    done = decode(*scans)
    assert done.code == 0
    assert [line.split(":")[0] for line in done.out.splitlines()] == ["b", "c"]
    assert {path: path.read_bytes() for path in before} == {path: raw for path, (raw, _) in before.items()}


@pytest.mark.parametrize("left", ["a.png", "a.json"])
def test_half_a_pair_is_not_ours_to_replace(decode: Run, out: Path, scans: list[Path], left: str) -> None:
    out.mkdir()
    (out / left).write_text("mine")
    assert decode(scans[0]).code == 0
    assert files(out) == [left]
    assert (out / left).read_text() == "mine"


def test_overwrite_decodes_again(decode: Run, out: Path, scans: list[Path]) -> None:
    assert decode(*scans).code == 0
    sheet = (out / "contact_sheet.png").read_bytes()
    done = decode(*scans, "--overwrite", "--seed", "9")
    assert (done.code, done.err) == (0, "")
    assert all(json.loads((out / f"{stem}.json").read_text())["seed"] == 9 for stem in "abc")
    assert (out / "contact_sheet.png").read_bytes() != sheet


def test_a_contact_sheet_is_an_output_like_any_other(decode: Run, out: Path, scans: list[Path]) -> None:
    out.mkdir()
    (out / "contact_sheet.png").write_text("mine")
    done = decode(*scans)
    assert done.code == 0
    assert done.complaints == [f"{out / 'contact_sheet.png'}: kept (--overwrite makes it again)"]
    assert (out / "contact_sheet.png").read_text() == "mine"


@pytest.mark.parametrize("kind", ["file", "below a file", "png is a folder"])
def test_where_nothing_can_be_written(decode: Run, out: Path, scans: list[Path], kind: str) -> None:
    words: list[str | Path] = []
    match kind:
        case "file":
            out.write_text("mine")
        case "below a file":
            out.write_text("mine")
            words = ["--out", out / "deeper"]
        case "png is a folder":
            (out / "a.png").mkdir(parents=True)
    done = decode(scans[0], "--overwrite", *words)
    assert done.code == 2
    assert len(done.complaints) == 1
    assert done.out == ""


# --- JSON ---------------------------------------------------------------------------------------------------


def test_json_replaces_the_caption(decode: Run, out: Path, scans: list[Path]) -> None:
    done = decode(scans[0], "--json")
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    assert found == {"stem": "a", **json.loads((out / "a.json").read_text())}


@pytest.mark.parametrize("place", ["last", "first", "between", "dash first", "equals"])
def test_json_goes_to_stdout_and_swallows_no_scan(
    decode: Run, out: Path, scans: list[Path], place: str
) -> None:
    a, b, c = scans
    words: dict[str, Sequence[str | Path]] = {
        "last": (a, b, c, "--json"),
        "first": ("--json", a, b, c),
        "between": (a, "--json", b, c),
        "dash first": ("--json", "-", a, b, c),
        "equals": (a, b, "--json=-", c),
    }
    before = [path.read_bytes() for path in scans]
    done = decode(*words[place])
    assert (done.code, done.err) == (0, "")
    assert [json.loads(line)["stem"] for line in done.out.splitlines()] == ["a", "b", "c"]
    assert [path.read_bytes() for path in scans] == before


@pytest.mark.parametrize("words", [["--json", "{}"], ["--json={}"]], ids=["two words", "one word"])
@pytest.mark.parametrize("name", ["all.json", "all.JSONL", "deeper/all.jsonl"])
def test_json_goes_to_a_file(
    decode: Run, out: Path, scans: list[Path], tmp_path: Path, words: list[str], name: str
) -> None:
    target = tmp_path / name
    done = decode(*(word.format(target) for word in words), *scans)
    assert (done.code, done.err) == (0, "")
    assert [line.split(":")[0] for line in done.out.splitlines()] == ["a", "b", "c"], (
        "captions are printed still"
    )
    records = [json.loads(line) for line in target.read_text().splitlines()]
    assert [record["stem"] for record in records] == ["a", "b", "c"]
    assert set(records[0]) == {"stem", *KEYS}
    decode(scans[0], "--overwrite", "--json", target)
    assert len(target.read_text().splitlines()) == 1, "a report is replaced"


def test_a_file_of_any_name_is_given_in_one_word(decode: Run, scans: list[Path], tmp_path: Path) -> None:
    target = tmp_path / "report.txt"
    assert decode(f"--json={target}", scans[0]).code == 0
    assert json.loads(target.read_text())["stem"] == "a"
    done = decode(f"--json={target}", scans[0], "--overwrite")
    assert done.code == 2, "it might be anything"
    assert "does not look like a report" in done.err


@pytest.mark.parametrize(
    "target", ["scan", "output", "bundle", "folder", "nothing", "output of another name"]
)
def test_json_replaces_nothing_else(
    decode: Run, out: Path, scans: list[Path], tiny_template: Path, tmp_path: Path, target: str
) -> None:
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "link.json").symlink_to(scans[0])
    path = {
        "scan": scans[0],
        "output": out / "a.json",
        "bundle": tiny_template / "bundle.json",
        "folder": tmp_path / "folder.json",
        "nothing": "",
        "output of another name": tmp_path / "link.json",
    }[target]
    before = (scans[0].read_bytes(), (tiny_template / "bundle.json").read_bytes())
    done = decode(f"--json={path}", *scans)
    assert done.code == 2
    assert len(done.complaints) == 1
    assert done.out == ""
    assert files(out) == []
    assert (scans[0].read_bytes(), (tiny_template / "bundle.json").read_bytes()) == before


@pytest.mark.parametrize(
    ("words", "joined"),
    [
        ("a --json", "a --json=-"),
        ("--json a", "--json=- a"),
        ("--json - a", "--json=- a"),
        ("--json a.npy b.npy", "--json=- a.npy b.npy"),
        ("--json b.json a.npy", "--json=b.json a.npy"),
        ("--json x/b.JSON a.npy", "--json=x/b.JSON a.npy"),
        ("--json b.jsonl --seed 1", "--json=b.jsonl --seed 1"),
        ("--json=b.txt a", "--json=b.txt a"),
        ("--json --seed 1", "--json=- --seed 1"),
        ("--json --json a.json", "--json=- --json=a.json"),
        ("a -- --json", "a -- --json"),
        ("--json -- b.json", "--json=- -- b.json"),
        ("a.json", "a.json"),
        ("", ""),
    ],
)
def test_what_counts_as_the_jsons_file(words: str, joined: str) -> None:
    assert _joined(words.split()) == joined.split()


# --- Terminals and pipes ------------------------------------------------------------------------------------


def command_line(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "unibrain_rt", *map(str, words)]


def test_there_is_no_progress_bar_in_a_pipe(
    tiny_template: Path, tiny_scan: Path, out: Path, tmp_path: Path
) -> None:
    words = ("decode", tiny_scan, "--bundle", tiny_template, "--out", out, "--threads", "1")
    done = subprocess.run(command_line(*words), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1


def test_there_is_a_progress_bar_on_a_terminal(
    tiny_template: Path, tiny_scan: Path, out: Path, tmp_path: Path
) -> None:
    words = ("decode", tiny_scan, "--bundle", tiny_template, "--out", out, "--threads", "1")
    ours, theirs = pty.openpty()
    running = subprocess.Popen(command_line(*words), cwd=tmp_path, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            chunk = os.read(ours, 4096)
        except OSError:  # Linux' end of a terminal
            break
        if not chunk:
            break
        shown += chunk
    printed, _ = running.communicate(timeout=60)
    os.close(ours)
    assert running.returncode == 0
    assert b"74/74" in shown
    assert b"scan" in shown
    assert len(printed.splitlines()) == 1, "the bar is on stderr alone"


def test_a_reader_may_leave(tiny_template: Path, tiny: Any, out: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "run.npy", np.stack([tiny.scan(number) for number in range(3)]))
    words = (
        "decode",
        tmp_path / "run.npy",
        "--bundle",
        tiny_template,
        "--out",
        out,
        "--json",
        "--threads",
        "1",
    )
    running = subprocess.Popen(
        command_line(*words), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert running.stdout is not None
    assert running.stderr is not None
    running.stdout.close()
    complaints = running.stderr.read()
    running.stderr.close()
    running.wait(timeout=60)
    assert "Traceback" not in complaints
    assert "Error" not in complaints


def test_a_name_that_is_no_text_can_be_decoded(
    tiny_template: Path, tiny: Any, out: Path, tmp_path: Path
) -> None:
    name = os.fsencode(tmp_path) + b"/\xff.npy"
    try:
        with open(name, "wb") as stream:
            np.save(stream, tiny.scan())
    except OSError:
        pytest.skip("this file system wants names that are text")
    np.save(tmp_path / "b.npy", tiny.scan())
    for extra in ([], ["--json", "--overwrite"]):
        words = [
            os.fsencode(word)
            for word in command_line("decode", "--bundle", tiny_template, "--out", out, *extra)
        ]
        done = subprocess.run(
            [*words, name, os.fsencode(tmp_path / "b.npy")], cwd=tmp_path, capture_output=True
        )
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == 2
    assert len(list(out.iterdir())) == 5


# --- Interrupted --------------------------------------------------------------------------------------------


def test_an_interrupt_leaves_nothing_half_written(
    decode: Run, out: Path, scans: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whenever it comes: in the middle of a loop, or between the two files of a pair."""
    loops = 0
    original = HostProgram.start

    def start(self: HostProgram, *rest: Any) -> Any:
        nonlocal loops
        loops += 1
        if loops == 4:  # the second scan's caption
            raise KeyboardInterrupt
        return original(self, *rest)

    monkeypatch.setattr(HostProgram, "start", start)
    done = decode(*scans, "--json", tmp_path / "all.json")
    assert done.code == 130
    assert done.err == "unibrain-rt: interrupted\n"
    assert files(out) == ["a.json", "a.png"]
    assert not (tmp_path / "all.json").exists()


@pytest.mark.parametrize("which", ["replace", "urandom"])
def test_an_interrupt_while_writing(
    decode: Run, out: Path, scans: list[Path], monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    calls = 0
    original = getattr(os, which)

    def interrupted(*rest: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return original(*rest)

    monkeypatch.setattr(outputs.os, which, interrupted)
    done = decode(scans[0])
    assert done.code == 130
    assert files(out) == []


def test_ctrl_c_ends_a_process_at_once(tiny_template: Path, tiny: Any, out: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "run.npy", np.stack([tiny.scan(0)] * 4000))
    words = ("decode", tmp_path / "run.npy", "--bundle", tiny_template, "--out", out, "--threads", "1")
    running = subprocess.Popen(
        command_line(*words),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what it puts in the background deaf to Ctrl-C, and so would be all that this suite starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 60
    while len(files(out)) < 4 and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    _, complaints = running.communicate(timeout=30)
    assert running.returncode == 130
    assert complaints == "unibrain-rt: interrupted\n"
    left = files(out)
    assert 4 <= len(left) < 8000
    assert len(left) % 2 == 0
    assert {name.rsplit(".", 1)[1] for name in left} == {"json", "png"}
    for name in left:
        if name.endswith(".json"):
            json.loads((out / name).read_text())
        else:
            picture(out / name)


# --- Refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        ([], 2, "Missing argument 'SCAN...'"),
        (["nowhere.npy"], 2, "nowhere.npy: no such file"),
        (["SCAN", "--engine", "abacus"], 3, "unknown engine 'abacus'"),
        (["SCAN", "--preset", "quick"], 2, "no preset 'quick' in this bundle; it has paper, fast, realtime"),
        (["SCAN", "--subject", "sub-09"], 2, "no subject 'sub-09' in this bundle; it has sub-01"),
        (["SCAN", "--bundle", "nowhere"], 2, "nowhere: no such bundle"),
        (["SCAN", "--seed", "-1"], 2, "Invalid value for '--seed'"),
        (["SCAN", "--seed", "1.5"], 2, "Invalid value for '--seed'"),
        (["SCAN", "--threads", "0"], 2, "Invalid value for '--threads'"),
        (["SCAN", "--workers", "0"], 2, "Invalid value for '--workers'"),
        (["SCAN", "--workers", "2", "--engine", "abacus"], 3, "unknown engine 'abacus'"),
        (["SCAN", "--threads", "100000"], 2, "Invalid value for '--threads'"),
        (["SCAN", "--temperature", "-1"], 2, "temperature must be"),
        (["SCAN", "--temperature", "nan"], 2, "temperature must be"),
        (["SCAN", "--top-p", "0"], 2, "top-p must be"),
        (["SCAN", "--nonsense"], 2, "No such option"),
        (["SCAN", "SCAN"], 2, "would be written twice"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    decode: Run, out: Path, tiny_scan: Path, words: list[str], code: int, problem: str
) -> None:
    done = decode(*(tiny_scan if word == "SCAN" else word for word in words))
    assert done.code == code
    assert len(done.complaints) == 1
    assert problem in done.err
    assert done.err.startswith("unibrain-rt: ")
    assert done.out == ""
    assert files(out) == []
